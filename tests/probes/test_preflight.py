"""Batches and defenses that cannot be audited are refused, with the reason and the fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from pytest_gradmask.probes.preflight import Preflight, check_batch, check_defense, small_eps
from pytest_gradmask.threat import ThreatModel
from tests.toys import Noisy, Softmax, convolutional, draw, linear, oracle

IMAGES = draw(6, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def spoiled(value: float) -> Tensor:
    images = IMAGES.clone()
    images[4, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param(IMAGES.numpy(), r"images: must be a torch.Tensor, got ndarray; use torch.as_tensor", id="ndarray"),
        pytest.param("images.npy", r"images: must be a torch.Tensor, got str; load them first", id="path"),
        pytest.param((255 * IMAGES).to(torch.uint8), r"images: dtype is uint8; .* / 255", id="uint8"),
        pytest.param(IMAGES.double(), r"images: dtype is torch.float64; use images.float\(\)", id="float64"),
        pytest.param(IMAGES.half(), r"images: dtype is torch.float16; use images.float\(\)", id="float16"),
        pytest.param(IMAGES.to_sparse(), r"images: layout is torch.sparse_coo; use images.to_dense", id="sparse"),
        pytest.param(IMAGES.to("meta"), r"images: on the device meta, which holds no values", id="meta"),
        pytest.param(IMAGES[..., :0], r"\(6, 3, 8, 0\); there is no image to attack", id="no pixel"),
        pytest.param(IMAGES[0, 0, 0], r"images: shape is \(8,\); a batch has at least two axes", id="1-d"),
        pytest.param(
            IMAGES.permute(0, 2, 3, 1), r"\(6, 8, 8, 3\) looks like N x H x W x C; use images.perm", id="nhwc"
        ),
        pytest.param(IMAGES[:0], r"images: shape is \(0, 3, 8, 8\); there is no image to attack", id="empty"),
        pytest.param(spoiled(torch.nan), r"images: 1 of 6 hold NaN or infinite values; leave these out", id="nan"),
        pytest.param(spoiled(torch.inf), r"images: 1 of 6 hold NaN or infinite values; leave these out", id="inf"),
        pytest.param(
            spoiled(-0.1), r"images: values from -0.1 to .* are outside the bounds \(0.0, 1.0\); put", id="below"
        ),
        pytest.param(
            spoiled(1.5), r"images: values from .* to 1.5 are outside the bounds \(0.0, 1.0\); put", id="above"
        ),
        pytest.param(IMAGES * 255, r"outside the bounds \(0.0, 1.0\); divide by 255", id="0 to 255"),
    ],
)
def test_bad_images(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_batch(images, LABELS[: len(images)], ThreatModel())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([0, 1, 2, 3, 0, 1], r"labels: must be a torch.Tensor, got list", id="list"),
        pytest.param(LABELS.float(), r"labels: dtype is torch.float32; .* labels.long\(\)", id="float"),
        pytest.param(LABELS > 1, r"labels: dtype is torch.bool", id="bool"),
        pytest.param(nn.functional.one_hot(LABELS), r"labels: shape is \(6, 4\); must be \(6,\).*argmax", id="one-hot"),
        pytest.param(nn.functional.one_hot(LABELS).float(), r"torch.float32; .*argmax\(1\)$", id="one-hot floats"),
        pytest.param(LABELS[:5], r"labels: shape is \(5,\); must be \(6,\), one label an image$", id="too few"),
        pytest.param(LABELS[0], r"labels: shape is \(\); must be \(6,\)", id="scalar"),
    ],
)
def test_bad_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_batch(IMAGES, labels, ThreatModel())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    check_batch(IMAGES, LABELS.to(dtype), ThreatModel())


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 1, 1), torch.ones(1, 3, 300, 200), draw(2, 8, 5, 5)])
def test_good_images(images: Tensor) -> None:
    check_batch(images, LABELS[: len(images)], ThreatModel())


def test_bounds_are_those_of_the_threat_model() -> None:
    check_batch(IMAGES * 4 - 2, LABELS, ThreatModel(bounds=(-2, 2)))
    with pytest.raises(InputError, match=r"outside the bounds \(0.1, 1.0\)"):
        check_batch(IMAGES, LABELS, ThreatModel(bounds=(0.1, 1.0)))


class Returns(nn.Module):
    """Returns the result of a function of the images."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(images)


def checked(defense: Defense | nn.Module, labels: Tensor = LABELS) -> Preflight:
    defense = defense if isinstance(defense, Defense) else Defense(defense)
    return check_defense(defense, oracle(defense.model, outputs=defense.outputs), IMAGES, labels)


def returns(function: Callable[[Tensor], object]) -> nn.Module:
    return Returns(function).eval()


def partly_nan(images: Tensor) -> Tensor:
    logits: Tensor = linear()(images).detach()
    logits[:2, 1] = torch.nan
    return logits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(linear().train(), r"Sequential is in train mode; call model.eval\(\) first", id="train mode"),
        pytest.param(returns(lambda x: 1 / 0), r"Returns raised ZeroDivisionError on images of shape", id="raises"),
        pytest.param(returns(lambda x: (linear()(x), x)), r"Returns returns tuple, not a tensor of logits", id="tuple"),
        pytest.param(returns(lambda x: {"logits": x}), r"Returns returns dict, not a tensor", id="dict"),
        pytest.param(returns(lambda x: x), r"to shape \(6, 3, 8, 8\); logits must be 6 x K", id="images"),
        pytest.param(returns(lambda x: linear()(x)[:1]), r"to shape \(1, 4\); logits must be 6 x K", id="one row"),
        pytest.param(
            returns(lambda x: linear(1)(x)),
            r"for a single score s before a sigmoid return \(0, s\); after it .*probabilities",
            id="one score",
        ),
        pytest.param(returns(lambda x: linear(1)(x)[:, 0]), r"to shape \(6,\); logits must be", id="flat score"),
        pytest.param(
            returns(lambda x: linear()(x).long()), r"returns torch.int64; logits must be floating", id="integer"
        ),
        pytest.param(
            returns(lambda x: linear()(x).to_sparse()), r"layout torch.sparse_coo; use logits.to", id="sparse"
        ),
        pytest.param(returns(lambda x: linear()(x).to("meta")), r"logits on meta for images on cpu", id="elsewhere"),
        pytest.param(returns(partly_nan), r"NaN or infinite logits for 2 of 6 clean images", id="nan"),
        pytest.param(Softmax(linear()).eval(), r"Softmax returns probabilities, not logits.*outputs=", id="softmax"),
        pytest.param(
            Defense(linear(), outputs="probabilities"), r"declared with outputs=.*do not sum to 1", id="no softmax"
        ),
        pytest.param(
            Defense(linear().eval(), members=[linear().train()]), r"is in train mode", id="member in train mode"
        ),
        pytest.param(
            Defense(linear().eval(), sources=[linear().train()]), r"is in train mode", id="source in train mode"
        ),
    ],
)
def test_defenses_that_cannot_be_audited(model: Defense | nn.Module, message: str) -> None:
    with pytest.raises(DefenseError, match=message):
        checked(model)


class Fickle(nn.Module):
    """Has another forward from its third call on."""

    def __init__(self, later: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.later, self.calls = linear(), later, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.later(images) if self.calls > 2 else self.model(images)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        pytest.param(
            lambda x: 1 / 0, r"Fickle raised ZeroDivisionError on images of shape \(2, 3, 8, 8\)", id="raises"
        ),
        pytest.param(lambda x: linear(3)(x), r"Fickle maps 2 images to shape \(2, 3\), but others to 4", id="classes"),
        pytest.param(lambda x: linear()(x)[1:], r"Fickle maps 2 images to shape \(1, 4\)", id="images"),
    ],
)
def test_defense_that_fails_in_a_later_call(later: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(DefenseError, match=message):
        checked(Fickle(later).eval())


def test_batch_norm_in_train_mode_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), linear()).eval()
    model[1].train()
    with pytest.raises(DefenseError, match=r"the batch norm layer '1' is in train mode.*call model.eval\(\)"):
        checked(model)


def test_dropout_in_train_mode_is_allowed() -> None:
    model = nn.Sequential(nn.Dropout(0.5), linear()).eval()
    model[0].train()
    result = checked(model)
    assert result.randomized


@pytest.mark.parametrize("labels", [LABELS + 1, LABELS - 1], ids=["above", "below"])
def test_labels_out_of_range(labels: Tensor) -> None:
    with pytest.raises(InputError, match=r"labels: range from .* but Sequential has 4 classes; .* in 0..3"):
        checked(linear(), labels)


def test_a_sound_defense() -> None:
    result = checked(linear())
    assert result == Preflight(classes=4, randomized=False, findings=())


class Coarse(nn.Module):
    """Logits in few steps, so that some are equal."""

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.model, self.steps = linear(), steps
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(images) * self.steps).round() / self.steps  # type: ignore[no-any-return]


def test_ties_are_a_finding() -> None:
    model = Coarse(0.1)
    with torch.no_grad():
        logits = model(IMAGES)
    labels = logits.argmax(1)
    ties = int((logits.topk(2).values.diff().squeeze(1) == 0).sum())
    assert 0 < ties < len(IMAGES)
    [finding] = checked(model, labels).findings
    assert finding.id == "tied-logits"
    assert f"{ties} of {len(IMAGES)} clean images" in finding.message
    assert not finding.undermines_attacks
    assert checked(Coarse(1e4), labels).findings == ()


def test_declared_probabilities_are_a_finding() -> None:
    result = checked(Defense(Softmax(linear()).eval(), outputs="probabilities"))
    assert [finding.id for finding in result.findings] == ["probabilities"]


def test_a_half_precision_defense_is_sound() -> None:
    result = checked(convolutional().half())
    assert not result.randomized
    assert result.findings == ()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Noisy(linear(), scale=0.1), id="noise"),
        pytest.param(RandomizedEnsemble([linear(seed=1), linear(seed=2)]), id="ensemble"),
    ],
)
def test_a_randomized_defense_is_a_finding(model: nn.Module) -> None:
    result = checked(model.eval())
    assert result.randomized
    assert [finding.id for finding in result.findings] == ["randomized"]
    assert not result.findings[0].undermines_attacks


def test_batch_dependence_is_a_finding() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return linear()(images - images.mean(0))  # type: ignore[no-any-return]

    result = checked(Mean().eval())
    assert not result.randomized
    assert [finding.id for finding in result.findings] == ["batch-dependence"]
    assert result.findings[0].undermines_attacks
    assert "alone and in a batch" in result.findings[0].message


def test_images_are_not_changed() -> None:
    before = IMAGES.clone()
    checked(returns(lambda images: linear()(images.mul_(0.5))))
    assert torch.equal(before, IMAGES)


PIXELS = 255 * torch.rand(4, 3, 8, 8)


def test_an_eps_for_images_of_another_scale() -> None:
    """Eps for images in [0, 1] is far below a grey level of images in [0, 255]."""
    (finding,) = small_eps(ThreatModel(eps=8 / 255, bounds=(0, 255)), PIXELS)
    assert (finding.id, finding.undermines_attacks) == ("tiny-eps", True)
    assert "0.031 grey levels" in finding.message
    assert "such as 8 if" in finding.message


@pytest.mark.parametrize(
    ("threat", "images"),
    [
        pytest.param(ThreatModel(eps=8, bounds=(0, 255)), PIXELS, id="in the units of the images"),
        pytest.param(ThreatModel(eps=0.25 / 255), IMAGES, id="a quarter of a level"),
        pytest.param(ThreatModel(eps=0.03, bounds=(-2.5, 2.7)), IMAGES, id="normalized"),
        pytest.param(ThreatModel(eps=1e-6), IMAGES, id="tiny in (0, 1)"),
        pytest.param(ThreatModel(eps=0.03, bounds=(0, 255)), PIXELS.flatten(1), id="no images"),
        pytest.param(ThreatModel(eps=0.03, bounds=(0, 255), norm="L2"), PIXELS, id="L2"),
    ],
)
def test_other_radii_are_no_finding(threat: ThreatModel, images: Tensor) -> None:
    assert small_eps(threat, images) == []
