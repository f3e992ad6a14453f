"""Sets that are no norm balls: a patch, a colour shift, a rotation; and what is wrong with a set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask import (
    Attack,
    Audit,
    Defense,
    InputError,
    PerturbationSet,
    ThreatModel,
    Verdict,
    apgd,
    assert_no_gradient_masking,
    audit,
    binarization_test,
    pgd,
    transfer_matrix,
)
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.report.evidence.collection import collect_evidence
from pytest_gradmask.report.json import to_json
from pytest_gradmask.threat import ball_of, contained
from tests.toys import IMAGES, KillGradient, Noisy, Quantize, audited, draw, linear, masked, predictions, seeded

BALL_ONLY = {"apgd-ce", "apgd-t", "fab-t", "square"}


@dataclass(frozen=True)
class Patch:
    """All images that differ in the rows and columns from the fifth on."""

    eps: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)
    start: int = 4

    def mask(self, images: Tensor) -> Tensor:
        mask = torch.zeros_like(images)
        mask[:, :, self.start :, self.start :] = 1
        return mask

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return torch.where(self.mask(images) > 0, perturbed.clamp(*self.bounds), images)

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        noise = torch.rand(images.shape, generator=generator).to(images)
        return torch.where(self.mask(images) > 0, noise, images)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return gradient.sign() * self.mask(gradient)

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return ((perturbed - images).abs() * (1 - self.mask(images)) <= 1e-6).flatten(1).all(1)


@dataclass(frozen=True)
class Pixels:
    """L0: all images that differ in at most so many pixels, each by any amount."""

    number: int
    eps: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        change = perturbed.clamp(*self.bounds) - images
        size = change.square().sum(1).flatten(1)
        kept = torch.zeros_like(size).scatter(1, size.topk(self.number).indices, 1)
        return images + change * kept.view(len(images), 1, *images.shape[2:])

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        return self.project(torch.rand(images.shape, generator=generator).to(images), images)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return gradient / gradient.abs().flatten(1).amax(1)[:, None, None, None].clamp_min(1e-12)

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return (perturbed != images).any(1).flatten(1).sum(1) <= self.number


@dataclass(frozen=True)
class Shift:
    """Each colour channel is shifted as a whole."""

    eps: float = 0.3
    bounds: tuple[float, float] = (0.0, 1.0)

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        shift = (perturbed - images).mean((2, 3), keepdim=True).clamp(-self.eps, self.eps)
        return (images + shift).clamp(*self.bounds)

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        noise = 2 * torch.rand(*images.shape[:2], 1, 1, generator=generator).to(images) - 1
        return (images + self.eps * noise).clamp(*self.bounds)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return gradient.mean((2, 3), keepdim=True).sign().expand_as(gradient)

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        # Pixels that are clipped may have moved by less.
        delta = (perturbed - images).flatten(2)
        largest = delta.gather(2, delta.abs().argmax(2, keepdim=True))[:, :, 0, None, None]
        again = (images + largest).clamp(*self.bounds)
        small = largest.abs().amax((1, 2, 3)) <= self.eps + 1e-5
        return small & ((perturbed - again).abs().flatten(1).amax(1) <= 1e-5)


@dataclass(frozen=True)
class Rotation:
    """Rotations by up to 60 degrees, in steps of three degrees: a set along one curve."""

    eps: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def rotated(self, images: Tensor) -> Tensor:
        """All rotations of each image, N x 41 x C x H x W."""
        angles = torch.linspace(-60, 60, 41).deg2rad()
        zero = torch.zeros_like(angles)
        rows = [torch.stack([angles.cos(), -angles.sin(), zero], 1), torch.stack([angles.sin(), angles.cos(), zero], 1)]
        grid = functional.affine_grid(torch.stack(rows, 1), [41, *images.shape[1:]], align_corners=False)
        each = [functional.grid_sample(image.expand(41, -1, -1, -1), grid, align_corners=False) for image in images]
        return torch.stack(each)

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        rotated = self.rotated(images)
        nearest = (rotated - perturbed[:, None]).flatten(2).norm(dim=2).argmin(1)
        return rotated[torch.arange(len(images)), nearest]

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        chosen = torch.randint(41, (len(images),), generator=generator)
        return self.rotated(images)[torch.arange(len(images)), chosen]

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return gradient.sign()

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return (perturbed - self.project(perturbed, images)).abs().flatten(1).amax(1) <= 1e-5


def run(model: nn.Module | Defense, threat: Any, **arguments: Any) -> Audit:
    return audited(model, threat=threat, **arguments)


def weighted(weight: Tensor, classes: int = 2) -> nn.Module:
    """A linear classifier that looks only where the weight is not zero."""
    layer = nn.Linear(192, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight.flatten(), weight.flatten()]))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def test_balls_are_sets_too() -> None:
    threat: PerturbationSet = ThreatModel(0.1)
    assert ball_of(threat) is threat
    assert contained(threat, IMAGES, IMAGES).all()
    patch: PerturbationSet = Patch()
    assert ball_of(patch) == ThreatModel(8 / 255)


@pytest.mark.parametrize("threat", [Patch(), Shift(), Rotation()], ids=lambda threat: type(threat).__name__)
@pytest.mark.parametrize("attack", [pgd, apgd, zero_order], ids=lambda attack: attack.__name__)
def test_attacks_stay_in_the_set_and_break_images(attack: Any, threat: Any) -> None:
    model, images = linear(), IMAGES
    labels = predictions(model, images)
    found = attack(model, images, labels, threat=threat, steps=20, generator=seeded())
    assert contained(threat, found, images).all()
    if not (isinstance(threat, Rotation) and attack is zero_order):  # its small steps are projected back to the image
        assert (predictions(model, found) != labels).sum() > 10


def test_a_patch_breaks_just_what_it_can() -> None:
    weight = torch.zeros(3, 8, 8)
    weight[:, 4:, 4:] = torch.randn(3, 4, 4, generator=seeded())
    seen, hidden = weighted(weight), weighted(weight.flip(1))
    found = run(seen, Patch())
    assert found.verdict is Verdict.NOT_MASKED
    assert found.robust_accuracy.value == 0  # the patch covers all that the classifier sees
    assert {attack.name for attack in found.attacks if attack.note == "it needs a norm ball"} == BALL_ONLY - {"apgd-t"}
    assert found.attack("apgd").kind == "gradient"
    robust = run(hidden, Patch())
    assert robust.verdict is Verdict.NOT_MASKED
    assert robust.robust_accuracy.value == 1
    assert_no_gradient_masking(robust)


@pytest.mark.parametrize("front", [Quantize, KillGradient])
def test_a_mask_is_found(front: type[nn.Module]) -> None:
    weight = torch.randn(3, 8, 8, generator=seeded()) + 0.2
    found = run(nn.Sequential(front(), weighted(weight)).eval(), Patch())
    assert found.verdict is Verdict.MASKED
    assert run(weighted(weight), Patch()).verdict is Verdict.NOT_MASKED


@pytest.mark.parametrize("front", [Quantize, KillGradient])
def test_a_mask_is_not_cleared_where_random_search_suffices(front: type[nn.Module]) -> None:
    """A colour shift has three dimensions: the placebo's random starts find what the gradient hides."""
    weight = torch.randn(3, 8, 8, generator=seeded()) + 0.2
    found = run(nn.Sequential(front(), weighted(weight)).eval(), Shift())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "zero-gradient" in {finding.id for finding in found.findings}
    assert run(weighted(weight), Shift()).verdict is Verdict.NOT_MASKED


def test_a_randomized_defense() -> None:
    found = run(Noisy(linear(), 0.1).eval(), Patch(), exhaustive=True)
    assert found.verdict is not Verdict.MASKED
    assert found.attack("apgd-eot").status == "done"


def test_all_attacks_of_an_exhaustive_audit_run_or_say_why() -> None:
    found = run(linear(), Shift(), exhaustive=True)
    assert {attack.note for attack in found.attacks if attack.status != "done"} == {
        "it needs a norm ball",
        "no submodule to bypass was given or found",
    }
    assert found.autoattack_accuracy is None
    assert {attack.invalid for attack in found.attacks} == {0}


@pytest.mark.longer
def test_a_few_pixels() -> None:
    """L0. On images of 8 x 8 pixels, random starts would break as many as attacks on a mask do."""
    images, network = draw(24, 3, 32, 32), linear(shape=(3, 32, 32))
    honest = audited(network, images, threat=Pixels(4), exhaustive=True)
    masking = audited(masked(KillGradient, network), images, threat=Pixels(4), exhaustive=True)
    assert (honest.verdict, masking.verdict) == (Verdict.NOT_MASKED, Verdict.MASKED)
    assert all(attack.invalid == 0 for attack in (*honest.attacks, *masking.attacks))
    fewer = audited(network, images, threat=Pixels(1), exhaustive=True)
    assert fewer.robust_accuracy.value > honest.robust_accuracy.value


def test_what_is_outside_of_the_set_is_not_broken() -> None:
    def anywhere(model: nn.Module, images: Tensor, labels: Tensor, **_: Any) -> Tensor:  # noqa: ARG001
        model(images)
        return 1 - images

    unseen = torch.zeros(3, 8, 8)
    unseen[:, :4] = torch.randn(3, 4, 8, generator=seeded())
    found = run(Defense(weighted(unseen), attacks=[Attack(anywhere)]), Patch(), exhaustive=True)
    assert found.attack("anywhere").invalid == len(found.attack("anywhere").attacked) > 0
    assert found.attack("anywhere").broken == ()


def test_reports_name_the_set(tmp_path: Path) -> None:
    found = run(linear(), Patch(), cache=tmp_path)
    assert run(linear(), Patch(), cache=tmp_path).cached
    assert not run(linear(), Patch(start=5), cache=tmp_path).cached
    assert to_json(found)["provenance"]["threat"] == {"norm": "Patch", "eps": 1.0, "bounds": [0.0, 1.0]}
    with pytest.raises(AssertionError, match=r"eps 1 \(Patch\)"):
        assert_no_gradient_masking(run(masked(KillGradient), Patch()))
    evidence = collect_evidence(found, linear(), IMAGES, predictions(linear(), IMAGES), threat=Patch())
    assert [name for name in ("noise", "landscapes", "pictures") if "error" in evidence[name]] == []


class Wrong(Patch):
    def __init__(self, **methods: Any) -> None:
        super().__init__()
        for name, method in methods.items():
            object.__setattr__(self, name, method)


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        (3, "must be a ThreatModel.*or another PerturbationSet"),
        (Patch, "must be a ThreatModel"),
        (Wrong(step=None), "must be a ThreatModel"),
        (Patch(eps=0), r"threat\.eps=0: must be a number above 0"),
        (Patch(bounds=(1, 0)), "the first must be below the second"),
        (Wrong(project=lambda perturbed, images: perturbed[:1]), r"project\(\) does not return tensors of the shape"),
        (Wrong(random_start=lambda images, generator: 1 / 0), r"random_start\(\) raised ZeroDivisionError"),
        (Wrong(contains=lambda perturbed, images: True), r"contains\(\) returned True; must be a bool for each image"),
        (Wrong(contains=lambda perturbed, images: 1 / 0), r"contains\(\) raised ZeroDivisionError"),
        (Wrong(project=lambda perturbed, images: perturbed), r"what project\(\) returns is outside"),
        (
            Wrong(contains=lambda perturbed, images: torch.zeros(len(images), dtype=torch.bool)),
            "a clean image is outside of the set",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_set_is_said(threat: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(linear(), IMAGES, predictions(linear(), IMAGES), threat=threat)


def test_what_needs_a_ball_says_so() -> None:
    labels = predictions(linear(), IMAGES)
    with pytest.raises(InputError, match="must be a ThreatModel"):
        transfer_matrix({"a": linear(), "b": linear(seed=1)}, IMAGES, labels, threat=Patch())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a ThreatModel"):
        binarization_test(pgd, linear(), IMAGES, labels, threat=Patch(), generator=seeded())  # type: ignore[arg-type]


def test_an_eps_for_each_image_is_refused() -> None:
    with pytest.raises(InputError, match="the same for all images"):
        ThreatModel(torch.full((24,), 0.1))  # type: ignore[arg-type]
