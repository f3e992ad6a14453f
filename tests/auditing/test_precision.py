"""Attacks in a lower precision: what they return is scored in the defense's own, and verdicts stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import InputError, ThreatModel, Verdict
from pytest_gradmask.attacks.autoattack import square
from pytest_gradmask.auditing import search_precision as chosen
from pytest_gradmask.execution.precision import searching_in
from tests.toys import (
    IMAGES,
    Detach,
    KillGradient,
    Quantize,
    audited,
    convolutional,
    linear,
    masked,
    oracle,
    predictions,
    seeded,
)


class Watch(nn.Module):
    """A linear model that notes in which type it computes, and whether TensorFloat-32 was allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()
        self.seen: set[tuple[torch.dtype, bool, bool]] = set()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        tf32 = torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        self.seen.add((logits.dtype, tf32, images.requires_grad))
        return logits


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda: masked(KillGradient), Verdict.MASKED),
        (lambda: masked(Detach), Verdict.MASKED),
        (lambda: masked(Quantize), Verdict.MASKED),
        (linear, Verdict.NOT_MASKED),
    ],
)
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_verdicts_do_not_change(make: Any, verdict: Verdict, precision: Any) -> None:
    result = audited(make(), threat=ThreatModel(0.15), precision=precision)
    assert result.verdict is verdict
    assert result.provenance["precision"] == precision
    assert {attack.status for attack in result.attacks} <= {"done", "skipped", "skipped-early"}


def test_only_attacks_compute_in_it() -> None:
    matmul = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    types = {}
    for precision in ("own", "tf32", "bfloat16"):
        model = Watch().eval()
        audited(model, threat=ThreatModel(0.15), precision=precision)
        types[precision] = model.seen
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == matmul
        assert not torch.is_autocast_enabled("cpu")
    assert {dtype for dtype, _, _ in types["own"]} == {torch.float32}
    assert {dtype for dtype, _, _ in types["bfloat16"]} == {torch.float32, torch.bfloat16}
    assert (torch.bfloat16, all(matmul), True) in types["bfloat16"]
    assert {allowed for _, allowed, _ in types["tf32"]} == {all(matmul), True}


def test_a_success_that_only_bfloat16_sees_does_not_count() -> None:
    """Near the boundary, rounded logits are wrong where exact ones are right."""
    result = audited(linear(), threat=ThreatModel(1e-6), precision="bfloat16")
    assert result.verdict is Verdict.NOT_MASKED
    assert result.robust_accuracy.value == 1


@pytest.mark.parametrize("precision", ["float64", "bf16", None, 16])
def test_unknown_precisions_are_named(precision: Any) -> None:
    with pytest.raises(InputError, match=r"precision=.*auto, own, tf32, bfloat16"):
        audited(linear(), precision=precision)


@pytest.fixture
def matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with matrix units for bfloat16."""
    monkeypatch.setattr(chosen, "fast_bfloat16", lambda device: True)


class Branches(Watch):
    """Answers otherwise under autocast."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return -logits if torch.is_autocast_enabled("cpu") else logits


class Refuses(Watch):
    """Raises under autocast."""

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no autocast here")
        return super().forward(images)


class Noisy(Watch):
    """Adds noise to its logits."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0.01 * torch.randn(len(images), 4)


@pytest.mark.usefixtures("matrix_units")
def test_bfloat16_guides_searches() -> None:
    model = Watch().eval()
    result = audited(model, threat=ThreatModel(0.01))
    assert result.verdict is Verdict.NOT_MASKED
    assert (result.provenance["precision"], result.provenance["search_precision"]) == ("auto", "bfloat16")
    assert {(dtype, gradient) for dtype, _, gradient in model.seen} == {
        (torch.float32, False), (torch.float32, True), (torch.bfloat16, False),
    }  # fmt: skip


@pytest.mark.usefixtures("matrix_units")
@pytest.mark.parametrize("make", [Branches, Refuses, Noisy, lambda: Watch().double()])
def test_searches_in_its_own(make: Any) -> None:
    result = audited(make().eval(), threat=ThreatModel(0.01))
    assert result.provenance["search_precision"] == "own"
    assert "raises-at-times" not in {finding.id for finding in result.findings}


@pytest.mark.longer
@pytest.mark.usefixtures("matrix_units")
def test_what_is_compiled_is_not_compiled_for_it() -> None:
    """PyTorch raises, or stays slow, where a model is compiled too often."""
    compiled: dict[str, int] = dict.fromkeys(("own", "auto"), 0)
    for precision in compiled:

        def backend(graph: Any, _: Any, precision: str = precision) -> Any:
            compiled[precision] += 1
            return graph.forward

        torch.compiler.reset()
        model: Any = torch.compile(convolutional(), backend=backend)
        result = audited(model, threat=ThreatModel(0.01), precision=precision)
        assert result.provenance["search_precision"] == ("bfloat16" if precision == "auto" else "own")
    assert compiled["auto"] == compiled["own"] > 0


@pytest.mark.usefixtures("matrix_units")
def test_own_for_all() -> None:
    model = Watch().eval()
    assert audited(model, threat=ThreatModel(0.01), precision="own").provenance["search_precision"] == "own"
    assert {dtype for dtype, _, _ in model.seen} == {torch.float32}


def test_a_chosen_precision_is_not_asked_twice() -> None:
    """On a CPU, TensorFloat-32 changes nothing."""
    queries = set()
    for precision in ("own", "tf32"):
        result = audited(linear(), threat=ThreatModel(0.01), precision=precision)
        assert result.provenance["search_precision"] == precision
        queries.add(result.attack("square").forwards)
    assert len(queries) == 1


def test_no_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert audited(linear(), threat=ThreatModel(0.01)).provenance["search_precision"] == "own"
    assert not chosen.fast_bfloat16(torch.device("cuda"))


@pytest.mark.parametrize(("eps", "broken"), [(1e-6, False), (0.3, True)])
def test_square_does_not_believe_rough_answers(eps: float, broken: bool) -> None:
    """Rounded logits are equal near the border, which Square takes for a success."""
    model = linear()
    images = _to_the_border(model, 0.25 + IMAGES[:8] / 2)
    labels = predictions(model, images)
    asked, attacked = {}, {}
    for precision in ("own", "bfloat16"):
        asked[precision] = oracle(model)
        with searching_in(precision):
            attacked[precision] = square(
                asked[precision], images, labels, threat=ThreatModel(eps), steps=50, generator=seeded(),
                give_up=lambda before, best, done: torch.zeros_like(best, dtype=torch.bool),
            )  # fmt: skip
    fooled = {name: predictions(model, points) != labels for name, points in attacked.items()}
    assert fooled["own"].tolist() == fooled["bfloat16"].tolist() == [broken] * 8
    if not broken:  # it went on
        assert asked["bfloat16"].forwards >= asked["own"].forwards


def _to_the_border(model: nn.Module, images: Tensor) -> Tensor:
    """Images moved so far towards another class that the two largest logits round to the same in bfloat16."""
    with torch.no_grad():
        first, second = model(images).topk(2, dim=1).indices.unbind(1)
        weight = model[-1].weight  # type: ignore[index]
        way = (weight[second] - weight[first]).view_as(images)
        logits = model(images)
        lead = logits.gather(1, first[:, None]) - logits.gather(1, second[:, None])
        moved: Tensor = images + way * (0.999 * lead[:, 0] / way.flatten(1).square().sum(1)).view(-1, 1, 1, 1)
        return moved
