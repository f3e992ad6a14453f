"""Whole audits of toys whose answer is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask import Defense, ThreatModel, Verdict
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from pytest_gradmask.threat import Norm
from tests.toys import (
    IMAGES,
    TINY,
    Detach,
    KillGradient,
    Noisy,
    Quantize,
    QuantizeInPlace,
    Softmax,
    audited,
    linear,
    masked,
    predictions,
    seeded,
)

pytestmark = pytest.mark.usefixtures("no_operations_found")

FRONT_ENDS: dict[str, Callable[[], nn.Module]] = {
    "quantized": Quantize,
    "quantized-in-place": QuantizeInPlace,
    "detached": Detach,
    "gradient-killer": KillGradient,
}
#: Radii that break an undefended model.
EPS: dict[Norm, float] = {"Linf": 0.15, "L2": 1.5, "L1": 12.0}
every_front_end = pytest.mark.parametrize("make", FRONT_ENDS.values(), ids=FRONT_ENDS.keys())


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_undefended_model_is_not_masked(classes: int, norm: Norm) -> None:
    threat = ThreatModel(EPS[norm], norm)
    result = audited(linear(classes), threat=threat)
    assert result.verdict is Verdict.NOT_MASKED
    assert result.clean_accuracy.value == 1
    assert result.gradient_accuracy.value <= 0.1
    assert result.bypassed == ()
    assert result.attack("bpda").status == "skipped"


def test_a_robust_model_is_not_masked() -> None:
    result = audited(linear(), threat=ThreatModel(1e-6))
    assert result.verdict is Verdict.NOT_MASKED
    assert result.robust_accuracy.value == 1


@every_front_end
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_masking_front_end_is_found_without_a_hint(make: Callable[[], nn.Module], norm: Norm) -> None:
    result = audited(masked(make), threat=ThreatModel(EPS[norm], norm))
    assert result.verdict is Verdict.MASKED
    assert result.bypassed == ("0",)
    assert result.accuracy_under("bpda").value < 0.2 < result.gradient_accuracy.value


@pytest.mark.parametrize("classes", [2, 3])
def test_masking_is_found_with_few_classes(classes: int) -> None:
    result = audited(masked(KillGradient, linear(classes)), threat=ThreatModel(0.15))
    assert result.verdict is Verdict.MASKED


def test_masking_is_found_where_named() -> None:
    model = masked(Quantize)
    assert audited(Defense(model, bypass=["0"])).verdict is Verdict.MASKED
    assert audited(Defense(model, bypass={model[0]: nn.Identity()})).bypassed == ("0",)


class Inside(nn.Module):
    """Cuts the graph in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = linear()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(images.detach())  # type: ignore[no-any-return]


def test_a_mask_in_a_forward_is_bypassed() -> None:
    result = audited(Inside().eval())
    assert result.verdict is Verdict.MASKED
    assert result.bypassed == ("all before backbone",)
    assert result.accuracy_under("bpda").value == 0


def test_masking_without_a_bypass_is_found() -> None:
    """Masking without a bypass is found by other adaptive attacks."""
    budget = replace(TINY, square_queries=300, zero_order_pairs=20, zero_order_steps=10)
    result = audited(Defense(Inside().eval(), bypass=()), threat=ThreatModel(0.2), budget=budget)
    assert result.verdict is Verdict.MASKED
    assert result.attack("bpda").status == "skipped"
    assert {finding.id for finding in result.findings} >= {
        "zero-gradient",
        "interrupted-graph",
        "unbounded-attack-fails",
        "black-box-beats-white-box",
    }


def test_a_transfer_source_breaks_what_its_twin_masks() -> None:
    class Hidden(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images.detach())  # type: ignore[no-any-return]

    budget = replace(TINY, square_queries=1, zero_order_pairs=1, zero_order_steps=1)
    hidden = Defense(Hidden(linear()).eval(), sources=[linear(seed=5), linear()], bypass=())
    result = audited(hidden, budget=budget)
    assert result.verdict is Verdict.MASKED
    assert result.attack("transfer-source-1").broken
    assert len(result.attack("transfer-source-0").broken) < len(result.attack("transfer-source-1").broken)


@pytest.mark.parametrize("known", [True, False], ids=["members known", "members unknown"])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_a_randomized_ensemble_of_masked_members_is_masked(known: bool, outputs: Any) -> None:
    first, second = linear(), linear()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(1)))
    members: list[nn.Module] = [masked(KillGradient, first), masked(KillGradient, second)]
    if outputs == "probabilities":
        members = [Softmax(member).eval() for member in members]
    ensemble = RandomizedEnsemble(members).eval()
    labels = predictions(members[0], IMAGES)
    defense = Defense(ensemble, members=members if known else (), outputs=outputs)
    result = audited(defense, labels=labels, threat=ThreatModel(0.15))
    assert result.verdict is Verdict.MASKED
    assert "randomized" in {finding.id for finding in result.findings}
    assert len(result.bypassed) == 2
    assert len(result.attack("bpda").broken) >= 12


def test_bypass_takes_the_names_of_the_ensemble() -> None:
    members = [masked(KillGradient, linear(seed=seed)) for seed in (0, 1)]
    ensemble = RandomizedEnsemble(members).eval()
    defense = Defense(ensemble, members=members, bypass=["members.0.0", members[1][0]])
    result = audited(defense, labels=predictions(members[0], IMAGES))
    assert result.attack("bpda").status == "done"
    assert result.bypassed == ("members.0.0", "members.1.0")


def test_a_member_that_raises_is_named() -> None:
    class Alone(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise ValueError("one at a time")

    members = [linear(), Alone().eval()]
    with pytest.raises(DefenseError, match=r"^members\[1\] raised ValueError on images of shape .*: one at a time$"):
        audited(Defense(linear(), members=members))


def test_a_model_that_raises_when_it_is_searched_is_named() -> None:
    class Tired(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > 20:  # of preflight
                raise ValueError("tired")
            return linear()(images)  # type: ignore[no-any-return]

    labels = predictions(linear(), IMAGES)
    with pytest.raises(DefenseError, match=r"^Tired raised ValueError on images of shape .*: tired$"):
        audited(Tired().eval(), labels=labels)


def test_a_bypass_outside_the_members_is_refused() -> None:
    members = [linear(seed=seed) for seed in (0, 1)]
    front = nn.Sequential(KillGradient(), RandomizedEnsemble(members)).eval()
    with pytest.raises(InputError, match="bypass: 0 is part of Sequential but of none of its members"):
        audited(Defense(front, members=members, bypass=["0"]), labels=predictions(members[0], IMAGES))


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        audited(linear())


def test_a_noisy_but_undefended_model_is_not_masked() -> None:
    result = audited(Noisy(linear(), scale=0.1).eval(), threat=ThreatModel(0.15), labels=predictions(linear(), IMAGES))
    assert result.verdict is Verdict.NOT_MASKED
    assert "randomized" in {finding.id for finding in result.findings}


@pytest.mark.parametrize("model", [linear(), masked(KillGradient)], ids=["undefended", "masked"])
def test_one_image_settles_nothing(model: nn.Module) -> None:
    result = audited(model, IMAGES[:1])
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.images_needed is not None
    assert f"about {result.images_needed} images" in result.reasons[-1]


def test_no_correct_image_settles_nothing_and_attacks_nothing() -> None:
    model = linear()
    result = audited(model, labels=(predictions(model, IMAGES) + 1) % 4)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.attacks == ()
    assert result.clean_accuracy.count == 0


def test_misclassified_images_are_never_attacked() -> None:
    """Images misclassified without an attack are never attacked."""
    model = linear()
    labels = predictions(model, IMAGES)
    labels[:3] = (labels[:3] + 1) % 4
    result = audited(model, labels=labels)
    assert result.clean_accuracy.count == 21
    assert all(not {0, 1, 2} & {*attack.attacked, *attack.broken} for attack in result.attacks)


def test_a_decided_audit_skips_the_attacks_left() -> None:
    short, long = audited(masked(KillGradient)), audited(masked(KillGradient), exhaustive=True)
    assert short.verdict is long.verdict is Verdict.MASKED
    skipped_early = {attack.name for attack in short.attacks if attack.status == "skipped-early"}
    assert skipped_early
    assert not any(attack.status == "skipped-early" for attack in long.attacks)
    # The quick attack spares AutoAttack's the images that fall to anything, so their figures would not be theirs.
    assert [attack.name for attack in short.attacks] == ["pgd", *(attack.name for attack in long.attacks)]
    assert short.autoattack_accuracy is None
    assert long.autoattack_accuracy is not None


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(linear().half(), id="half precision"),
        pytest.param(linear().double(), id="double precision"),
        pytest.param(Defense(Softmax(linear()).eval(), outputs="probabilities"), id="probabilities"),
    ],
)
def test_an_undefended_model_of_another_kind_is_not_masked(model: Defense | nn.Module) -> None:
    assert audited(model).verdict is Verdict.NOT_MASKED


def test_a_mask_before_a_half_precision_model() -> None:
    """A masking front end before a half precision model is found."""
    assert audited(masked(KillGradient).half()).verdict is Verdict.MASKED


def test_other_bounds_labels_and_memory_layouts() -> None:
    class Rescale(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images / 2 + 0.5

    expected = audited(masked(KillGradient), exhaustive=True)
    images = (2 * IMAGES - 1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    labels = predictions(masked(KillGradient), IMAGES).to(torch.uint8)
    model = nn.Sequential(Rescale(), KillGradient(), linear()).eval()
    result = audited(model, images, labels=labels, threat=ThreatModel(0.2, bounds=(-1, 1)), exhaustive=True)
    assert result.verdict is expected.verdict is Verdict.MASKED
