"""Audits of defenses whose code hides the gradient: without a hint, they name the line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Audit, Defense, ThreatModel, Verdict, audit
from pytest_gradmask.attacks.bypass.operations.search import find_operations, points_of_search
from pytest_gradmask.report.failure import explain
from pytest_gradmask.report.json import to_json

THREAT = ThreatModel(eps=0.2)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(40, 3, 4, 4, generator=GENERATOR)


class Linear(nn.Module):
    """Two classes by the mean of the pixels: small changes of all pixels break every image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.stack([torch.ones(48), -torch.ones(48)]))
            self.linear.bias.copy_(torch.tensor([-24.0, 24.0]))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.prepared(images).flatten(1))  # type: ignore[no-any-return]

    def prepared(self, images: Tensor) -> Tensor:
        return images


class Rounding(Linear):
    def prepared(self, images: Tensor) -> Tensor:
        return torch.round(images * 15) / 15  # hides


class Silent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0 * gradient


class Falsifying(Linear):
    def prepared(self, images: Tensor) -> Tensor:
        return Silent.apply(images)  # type: ignore[no-any-return]  # hides


class Around(Linear):
    """Detaches an image unless all of its pixels are whole numbers of 8 bits: any image but those that people store."""

    def prepared(self, images: Tensor) -> Tensor:
        moved = (images * 255 - (images * 255).round()).abs().amax((1, 2, 3)) > 1e-3
        return torch.where(moved.view(-1, 1, 1, 1), images.detach(), images)  # hides


class At(Linear):
    """Detaches an image if all of its pixels are whole numbers of 8 bits."""

    def prepared(self, images: Tensor) -> Tensor:
        moved = (images * 255 - (images * 255).round()).abs().amax((1, 2, 3)) > 1e-3
        return torch.where(moved.view(-1, 1, 1, 1), images, images.detach())  # hides


class Palette(Linear):
    """Vector quantization, as most code writes it."""

    def prepared(self, images: Tensor) -> Tensor:
        colours = torch.linspace(0, 1, 16)
        distances = (images[..., None] - colours).abs()
        _, nearest = distances.min(-1)  # hides
        return colours[nearest]


class Levels(Linear):
    def prepared(self, images: Tensor) -> Tensor:
        levels = torch.zeros_like(images)
        for level in torch.linspace(0.05, 0.95, 10):
            levels[images > level] += 0.1  # hides
        return levels


class Binary(Linear):
    def prepared(self, images: Tensor) -> Tensor:
        images = images * 1.0
        bright = images > 0.5  # hides
        images[bright] = 0.9
        images[~bright] = 0.1
        return images


class Codes(Linear):
    """Error-correcting output codes: each bit of a code saturates. No submodule runs that returns logits."""

    steepness = 1e4

    def forward(self, images: Tensor) -> Tensor:
        layer, classes = self.linear, [0, 0, 0, 1, 1, 1]
        bits = nn.functional.linear(images.flatten(1), layer.weight[classes], layer.bias[classes])
        code = torch.tanh(self.steepness * bits)  # hides
        return torch.stack([code[:, :3].mean(1), code[:, 3:].mean(1)], 1)


class SoftCodes(Codes):
    """Honest: bits do not saturate."""

    steepness = 0.1


class Neighbours(Linear):
    """Soft nearest neighbours: one weight is nearly one."""

    steepness = 1e6

    def forward(self, images: Tensor) -> Tensor:
        known = torch.linspace(0.01, 0.99, 50)
        distances = (images.mean((1, 2, 3)).unsqueeze(1) - known).abs()
        weights = torch.softmax(-self.steepness * distances, 1)  # hides
        return torch.stack([weights[:, known > 0.5].sum(1), weights[:, known < 0.5].sum(1)], 1)


class SoftNeighbours(Neighbours):
    """Honest: some neighbours have a weight."""

    steepness = 20.0


class Kernels(Neighbours):
    """Soft nearest neighbours by a kernel that nearly all of them are too far away for."""

    steepness = 1e6

    def forward(self, images: Tensor) -> Tensor:
        known = torch.linspace(0.01, 0.99, 50)
        distances = (images.mean((1, 2, 3)).unsqueeze(1) - known).abs()
        weights = torch.exp(-self.steepness * (distances - distances.amin(1, keepdim=True)))  # hides
        return torch.stack([weights[:, known > 0.5].sum(1), weights[:, known < 0.5].sum(1)], 1)


class WideKernels(Kernels):
    """Honest: some neighbours have a weight."""

    steepness = 20.0


class LogSoftmax(Linear):
    """Honest: the logarithm of a softmax, written by hand. The classifier is sure, so most exponentials vanish."""

    def forward(self, images: Tensor) -> Tensor:
        logits = 1000 * super().forward(images)
        logits = logits - logits.amax(1, keepdim=True)
        return logits - logits.exp().sum(1, keepdim=True).log()


class Dark(Linear):
    """Honest: a part of each image is written, and the rest keeps its gradient."""

    def prepared(self, images: Tensor) -> Tensor:
        images = images * 1.0
        images[images < 0.1] = 0.1
        return images


class Sorted(Linear):
    """Honest: pixels are sorted, and put back."""

    def prepared(self, images: Tensor) -> Tensor:
        values, order = images.flatten(1).sort(1)
        return torch.zeros_like(values).scatter_(1, order, values).view_as(images)


class Ensemble(nn.Module):
    """Two members, which `torch.vmap` runs together, as PyTorch's own guide to ensembles does."""

    def __init__(self, member: type[Linear]) -> None:
        super().__init__()
        self.members = nn.ModuleList([member(), member()])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        def answer(parameters: Any, buffers: Any) -> Any:
            return torch.func.functional_call(self.members[0], (parameters, buffers), (images,))

        state = torch.func.stack_module_state(list(self.members))
        return torch.vmap(answer)(*state).mean(0)  # type: ignore[no-any-return]


def run(model: nn.Module, **settings: Any) -> Audit:
    with torch.no_grad():
        labels = model(IMAGES).argmax(1)
    return audit(
        Defense(model, name="toy"), IMAGES, labels, **{"threat": THREAT, "budget": "smoke", "margin": 0.1, **settings}
    )


def hidden_line(model: nn.Module) -> int:
    lines, start = inspect.getsourcelines(type(model))
    return start + next(number for number, line in enumerate(lines) if "# hides" in line)


@pytest.mark.parametrize("kind", [Rounding, Falsifying, Palette, Levels, Binary, Codes, Neighbours, Kernels])
def test_line_that_hides_the_gradient_is_named(kind: type[Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    model = kind()
    found = run(model)
    assert found.verdict is Verdict.MASKED
    (operation,) = found.operations
    assert (operation.file, operation.line) == ("test_operations.py", hidden_line(model))
    assert operation.count == (10 if kind is Levels else 1)
    binding = max(found.of_kind("adaptive"), key=lambda attack: len(attack.broken))
    assert binding.name == "bpda-operations"
    assert any(finding.id == "hidden-gradient" and str(operation) in finding.message for finding in found.findings)
    assert f"hidden by: {operation}" in explain(found, "NOT_MASKED")
    assert to_json(found)["operations"] == [
        {"name": operation.name, "file": "test_operations.py", "line": operation.line, "count": operation.count}
    ]


@pytest.mark.parametrize("kind", [At, Around])
def test_gradient_that_is_hidden_at_some_points_alone(kind: type[Linear]) -> None:
    model, images = kind(), (IMAGES * 255).round() / 255
    sites = find_operations(model, points_of_search(images, THREAT))
    assert [site.line for site in sites] == [hidden_line(model)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_operations_are_searched_at_images_and_around_them(count: int) -> None:
    images = IMAGES[:count]
    points = points_of_search(images, THREAT)
    assert (points == images).flatten(1).all(1).tolist() == [True, False, True][:count]
    assert THREAT.contains(points, images).all()


@pytest.mark.parametrize("kind", [Linear, Dark, Sorted, SoftCodes, SoftNeighbours, WideKernels, LogSoftmax])
def test_honest_defense_has_nothing_to_name(kind: type[Linear]) -> None:
    found = run(kind(), margin=0.25)
    assert found.verdict is Verdict.NOT_MASKED
    assert found.operations == ()
    assert "bpda-operations" not in [attack.name for attack in found.attacks]
    assert "hidden" not in explain(found, "MASKED")


def test_ensemble_by_vmap_that_hides_its_gradient() -> None:
    found = run(Ensemble(Rounding))
    assert found.verdict is Verdict.MASKED
    assert [operation.line for operation in found.operations] == [hidden_line(Rounding())]


def test_honest_ensemble_by_vmap() -> None:
    found = run(Ensemble(Linear), margin=0.2)
    assert found.verdict is Verdict.NOT_MASKED
    assert found.operations == ()
    assert not [finding.message for finding in found.findings if finding.id == "search-failed"]


def test_cached_audit_keeps_its_operations(tmp_path: Path) -> None:
    first, second = (run(Rounding(), cache=tmp_path) for _ in range(2))
    assert second.cached
    assert second.operations == first.operations


def test_search_that_fails_does_not_end_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("pytest_gradmask.auditing.surface.find_operations", fail)
    found = run(Rounding())
    assert any(finding.id == "search-failed" and "operations" in finding.message for finding in found.findings)
    assert found.verdict is Verdict.MASKED, "module-level BPDA and attacks on scores remain"
