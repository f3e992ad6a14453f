"""Attacks and probes of the user's own: what they are given, what may go wrong, and what they change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask import Attack, Defense, Finding, ThreatModel, Verdict
from pytest_gradmask.errors import InputError
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import AttackResult
from tests.toys import IMAGES, TINY, KillGradient, Quantize, audited, linear, masked

pytestmark = pytest.mark.usefixtures("no_operations_found")


def sign_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, threat: ThreatModel, **_: object
) -> torch.Tensor:
    """One step along the sign of the gradient: breaks every linear model."""
    images = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    assert images.grad is not None
    return threat.project(images.detach() + threat.eps * images.grad.sign(), images.detach())


def idle(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Asks, and changes nothing."""
    model(images)
    return images


#: Too few queries for a black-box attack.
FEEBLE = replace(TINY, square_queries=2, zero_order_steps=1, zero_order_pairs=1)
#: Where no attack breaks the linear toy, and a failed one has to prove that it is no fault of its own.
NEAR = ThreatModel(1e-6)
#: Where one step breaks it.
FAR = ThreatModel(0.02)


def judged(defense: Defense | nn.Module, **arguments: Any) -> Audit:
    return audited(defense, **{"threat": FAR, "budget": FEEBLE, **arguments})


def hidden(*attacks: Attack | Callable[..., Any]) -> Defense:
    """What the audit's own attacks cannot break, as they are told of no front end."""
    return Defense(masked(KillGradient), bypass=(), attacks=attacks)


def own(audit: Audit, name: str = "sign_step") -> AttackResult:
    return next(result for result in audit.attacks if result.name == name)


def test_an_adaptive_attack_of_ones_own_makes_a_verdict() -> None:
    assert judged(hidden()).verdict is Verdict.INCONCLUSIVE
    result = judged(hidden(Attack(sign_step, through=linear())))
    assert result.verdict is Verdict.MASKED
    assert own(result).kind == "adaptive"
    assert own(result).broken
    assert own(result).forwards == own(result).backwards == len(own(result).attacked)


def test_an_attack_that_finds_nothing_changes_no_verdict() -> None:
    assert judged(hidden(idle)).verdict is Verdict.INCONCLUSIVE
    assert judged(Defense(linear(), attacks=[idle])).verdict is Verdict.NOT_MASKED


def with_another_gradient(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, threat: ThreatModel, **_: object
) -> torch.Tensor:
    """Queries the model, and follows the gradient of another one."""
    model(images)
    return sign_step(linear(), images, labels, threat=threat)


def test_what_a_gradient_attack_of_ones_own_breaks_is_not_masked() -> None:
    # The declared kind of an attack decides what its successes mean. But they waive no finding: no pass either.
    result = judged(hidden(Attack(with_another_gradient, kind="gradient")))
    broken = own(result, "with_another_gradient")
    assert (broken.kind, broken.by_user) == ("gradient", True)
    assert broken.broken
    assert result.verdict is Verdict.INCONCLUSIVE


def test_an_attack_is_given_what_it_needs() -> None:
    seen: dict[str, Any] = {}

    def look(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **arguments: Any) -> torch.Tensor:
        seen.update(arguments, logits=model(images), images=images, labels=labels, training=model.training)
        return images

    judged(Defense(linear(), attacks=[look]), threat=NEAR)
    assert set(seen) == {"threat", "generator", "logits", "images", "labels", "training"}
    assert seen["logits"].dtype is torch.float32
    assert seen["logits"].argmax(1).equal(seen["labels"])
    assert seen["images"].shape[1:] == IMAGES.shape[1:]
    assert isinstance(seen["threat"], ThreatModel)
    assert isinstance(seen["generator"], torch.Generator)
    assert not seen["training"]


def test_random_numbers_of_an_attack_repeat() -> None:
    def random(model: nn.Module, images: torch.Tensor, *_: object, **arguments: Any) -> torch.Tensor:
        model(images)
        noise = torch.randn(images.shape, generator=arguments["generator"]).sign()
        return torch.as_tensor(arguments["threat"].project(images + 0.1 * noise, images))

    runs = [judged(Defense(linear(), attacks=[random]), threat=NEAR) for _ in range(2)]
    assert own(runs[0], "random").broken == own(runs[1], "random").broken


def no_tensor(images: torch.Tensor) -> object:
    return images.numpy()


WRONG: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "not a tensor": (no_tensor, "it returned ndarray, not images of shape"),
    "nothing": (lambda images: None, "it returned NoneType"),
    "fewer images": (lambda images: images[:-1], "it returned shape"),
    "another type": (lambda images: images.double(), "type torch.float64"),
    "another device": (lambda images: images.to("meta"), "on meta"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_batch_of_images_is_a_failed_attack(change: Callable[[torch.Tensor], Any], message: str) -> None:
    def wrong(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> Any:
        model(images)
        return change(images)

    result = judged(Defense(linear(), attacks=[wrong]), threat=NEAR)
    assert own(result, "wrong").status == "failed"
    assert message in own(result, "wrong").note
    assert result.verdict is not Verdict.MASKED


def test_an_attack_that_asks_another_model_in_secret_has_failed() -> None:
    twin = linear()

    def secret(_: nn.Module, images: torch.Tensor, *rest: Any, **arguments: Any) -> torch.Tensor:
        return sign_step(twin, images, *rest, **arguments)

    result = judged(hidden(secret))
    assert own(result, "secret").status == "failed"
    assert "Attack(through=...)" in own(result, "secret").note
    assert result.verdict is Verdict.INCONCLUSIVE


def test_images_outside_of_the_ball_count_as_not_broken() -> None:
    def far(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        model(images)
        return 1 - images

    result = judged(hidden(far))
    assert own(result, "far").broken == ()
    assert own(result, "far").invalid == len(own(result, "far").attacked)
    assert result.verdict is Verdict.INCONCLUSIVE


def test_an_attack_is_part_of_what_is_kept(tmp_path: Path) -> None:
    base = hidden(Attack(sign_step, through=linear()))
    judged(base, cache=tmp_path)
    assert judged(base, cache=tmp_path).cached
    for attack in (sign_step, Attack(sign_step, through=linear(seed=1)), Attack(idle, through=linear())):
        assert not judged(hidden(attack), cache=tmp_path).cached


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "not callable": (lambda: Attack(3), "run=3: must be a function"),  # type: ignore[arg-type]
    "unknown kind": (lambda: Attack(idle, kind="black"), "kind='black': must be"),  # type: ignore[arg-type]
    "through a function": (lambda: Attack(idle, through=idle), "through=<function idle"),  # type: ignore[arg-type]
    "no name": (lambda: Attack(partial(idle)), "give it one"),
    "two of a name": (lambda: hidden(idle, Attack(sign_step, name="idle")), "two are called 'idle'"),
    "a name of ours": (lambda: judged(hidden(Attack(idle, name="bpda"))), "'bpda' is the name of one"),
    "the placebo's": (lambda: judged(hidden(Attack(idle, name="placebo"))), "'placebo' is the name of one"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_an_attack_that_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert message in str(raised.value)


def test_a_surrogate_is_left_as_it_was() -> None:
    surrogate = linear().train()
    result = judged(hidden(Attack(sign_step, through=surrogate)))
    assert own(result).status == "done"
    assert surrogate.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in surrogate.parameters())


def quiet(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **_: object) -> list[Finding]:
    assert model(images).argmax(1).equal(labels)
    return []


def loud(*_: object, **__: object) -> list[Finding]:
    return [Finding("my-finding", "an example", True, link="https://example.org/my-finding")]


def broken(*_: object, **__: object) -> list[Finding]:
    raise RuntimeError("no batteries")


def strange(*_: object, **__: object) -> list[str]:
    return ["a string"]


@pytest.mark.parametrize(
    ("probe", "verdict", "found"),
    [
        (quiet, Verdict.NOT_MASKED, []),
        (loud, Verdict.INCONCLUSIVE, [("my-finding", "an example", "https://example.org/my-finding")]),
        (broken, Verdict.INCONCLUSIVE, [("probe-fails", "broken raises RuntimeError: no batteries", "")]),
        (strange, Verdict.INCONCLUSIVE, [("probe-fails", "strange returns 'a string', which is not a Finding", "")]),
    ],
)
def test_a_probe_of_ones_own_may_refuse_not_masked(
    probe: Callable[..., Any], verdict: Verdict, found: list[tuple[str, str, str]]
) -> None:
    result = judged(linear(), probes=[probe], threat=NEAR)
    assert result.verdict is verdict
    expected = [(name, text, link or f"docs/findings.md#{name}") for name, text, link in found]
    assert [(finding.id, finding.message, finding.link) for finding in result.findings] == expected


def test_no_probe_of_ones_own_makes_masked() -> None:
    assert judged(masked(Quantize), probes=[loud]).verdict is Verdict.MASKED
    assert judged(hidden(), probes=[loud]).verdict is Verdict.INCONCLUSIVE


def test_probes_are_part_of_what_is_kept(tmp_path: Path) -> None:
    judged(linear(), probes=[quiet], cache=tmp_path)
    assert judged(linear(), probes=[quiet], cache=tmp_path).cached
    assert not judged(linear(), probes=[loud], cache=tmp_path).cached
    assert not judged(linear(), cache=tmp_path).cached


def test_a_gradient_attack_follows_the_defense_itself() -> None:
    with pytest.raises(InputError, match=r"through=Sequential: a gradient attack follows the defense's own gradient"):
        Attack(sign_step, kind="gradient", through=linear())
    assert Attack(sign_step, through=linear()).access == "surrogate"
    assert Attack(sign_step).access == "gradient"
    with pytest.raises(InputError, match=r"access='logits': must be one of gradient, surrogate, bypass"):
        Attack(sign_step, access="logits")  # type: ignore[arg-type]


def test_an_attack_that_opens_a_file(tmp_path: Path) -> None:
    """From its first call on, it cannot be hashed."""

    class Logs:
        def __init__(self) -> None:
            self.file: Any = None

        def __call__(self, model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            self.file = self.file or (tmp_path / "log").open("a")
            return idle(model, images)

    with_cache = audited(Defense(linear(), attacks=[Attack(Logs(), name="logs")]), budget=FEEBLE, cache=tmp_path)
    without = audited(Defense(linear(), attacks=[Attack(Logs(), name="logs")]), budget=FEEBLE)
    assert with_cache.verdict is without.verdict
