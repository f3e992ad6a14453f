"""What the binarization test refuses, how its outcomes are counted, and the message of its assertion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import assert_attack_passes_binarization_test
from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
from pytest_gradmask.binarization.single_image import Outcome
from pytest_gradmask.errors import DefenseError, InputError
from tests.binarization.binarization_toys import IMAGES, PGD, THREAT, convnet, on_toy
from tests.toys import (
    KillGradient,
    masked,
    predictions,
    seeded,
)


def test_exception_of_the_attack_is_named() -> None:
    def broken(*_: Any, **__: Any) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(InputError, match="attack: raised ZeroDivisionError: mine"):
        on_toy(convnet(), broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": None}, "attack=None: must be a function"),
        ({"attack": lambda *_, **__: None}, "attack: returned NoneType for images of shape"),
        ({"attack": lambda model, images, labels, **_: images[0]}, r"attack: returned \(3, 8, 8\)"),
        ({"generator": 3}, "generator=3: must be a CPU generator"),
        ({"through": "me"}, "through='me': must be a torch.nn.Module"),
        ({"separation": 0.0}, "separation=0.0: must be a share of eps"),
        ({"separation": 1.0}, "separation=1.0: must be a share of eps"),
        ({"inner": 1}, "inner=1: must be a whole number of at least 2"),
        ({"boundary": 0}, "boundary=0: must be a whole number of at least 1"),
        ({"forwards": 0}, "forwards=0: must be a whole number of at least 1"),
        ({"forwards": 1.5}, "forwards=1.5: must be a whole number"),
        ({"confidence": 1.0}, "confidence=1.0: must be between 0.5 and 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        on_toy(convnet(), **arguments)


def test_input_that_audits_refuse_is_refused() -> None:
    with pytest.raises(InputError, match="images: dtype is uint8"):
        binarization_test(PGD, convnet(), IMAGES.byte(), torch.zeros(8).long(), threat=THREAT, generator=seeded())
    with pytest.raises(DefenseError, match="train mode"):
        on_toy(convnet().train())
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        on_toy(convnet())


def outcomes(**counts: int) -> tuple[Outcome, ...]:
    return tuple(kind for kind, count in counts.items() for _ in range(count))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("counts", "ok", "fails"),
    [
        ({"passed": 8}, True, False),
        ({"passed": 7, "trivial": 1}, True, False),
        ({"passed": 6, "trivial": 2}, False, False),
        ({"passed": 7, "failed": 1}, False, False),
        ({"passed": 19, "failed": 1}, True, False),
        ({"passed": 18, "failed": 2}, False, False),
        ({"passed": 4, "failed": 4}, False, True),
        ({"failed": 8}, False, True),
        ({"failed": 2}, False, True),
        ({"failed": 1}, False, False),
        ({"trivial": 4, "unseparable": 4}, False, False),
    ],
    ids=str,
)
def test_ok_and_fails_by_counts(counts: dict[str, int], ok: bool, fails: bool) -> None:
    result = BinarizationTest(outcomes=outcomes(**counts), confidence=0.99)
    assert (result.ok, result.fails) == (ok, fails)
    assert result.tested == counts.get("passed", 0) + counts.get("failed", 0)


def asserted(model: nn.Module, attack: Callable[..., Tensor] = PGD, count: int = 8) -> None:
    labels = predictions(model, IMAGES[:count])
    assert_attack_passes_binarization_test(attack, model, IMAGES[:count], labels, threat=THREAT, generator=seeded())


def test_assertion_is_silent_if_the_attack_passes() -> None:
    asserted(convnet())


def test_message_of_the_assertion() -> None:
    with pytest.raises(AssertionError) as failure:
        asserted(masked(KillGradient, convnet()))
    message = str(failure.value)
    assert message.startswith("expected pgd to pass the binarization test on Sequential, but it found 0 of 8 embedded")
    assert "0.0% [0.0%, 43.8%] at 99% confidence" in message
    assert "through=bypassed(...)" in message


def test_assertion_fails_on_too_few_images() -> None:
    with pytest.raises(AssertionError, match=r"(?s)found 3 of 3 .*does not prove a failure.*More than 3 images"):
        asserted(convnet(), count=3)
