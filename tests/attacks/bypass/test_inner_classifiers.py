"""Classifiers inside of defenses that vote, purify, optimize or detect, and honest models that have none to attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel, Verdict, audit, load_dataset, load_model
from pytest_gradmask.attacks.bypass.classifiers import InnerClassifier, JointClassifier
from pytest_gradmask.attacks.bypass.inner_classifiers import find_inner_classifiers
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import RejectOption
from tests.toys import (
    IMAGES,
    THREAT,
    KillGradient,
    Noisy,
    Quantize,
    Softmax,
    audited,
    convolutional,
    linear,
    masked,
    oracle,
    predictions,
)

CLASSES = 4


class Around(nn.Module):
    """A classifier with other code around it."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.code = net or convolutional(), code
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.code(self.net, images)


def counted_answers(net: nn.Module, images: Tensor) -> Tensor:
    """Decisions on the image and on two shifted ones, counted."""
    shifted = [images, images.roll(1, 3), images.roll(-1, 3)]
    return torch.stack([nn.functional.one_hot(net(each).argmax(1), CLASSES).float() for each in shifted]).sum(0)


def in_turn(net: nn.Module, images: Tensor) -> Tensor:
    """One image after another."""
    return torch.cat([counted_answers(net, each[None]) for each in images])


def darkened(net: nn.Module, images: Tensor) -> Tensor:
    """Purified so much that BPDA does not take it for a front end."""
    with torch.no_grad():
        darker = torch.where(images > 0.5, images, images / 2).round(decimals=1)
    return net(darker)  # type: ignore[no-any-return]


def optimized(net: nn.Module, images: Tensor) -> Tensor:
    """As the anti-adversary layer (Alfarra et al. 2022, arXiv:2103.14347): towards what the classifier says anyway."""
    with torch.enable_grad():
        point = images.detach().requires_grad_(True)
        logits = net(point)
        loss = nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
    return net(images - 0.3 * gradient.sign())  # type: ignore[no-any-return]


def normalized(net: nn.Module, images: Tensor) -> Tensor:
    return net((images - 0.4) / 0.25)  # type: ignore[no-any-return]


def counted_on_normalized(net: nn.Module, images: Tensor) -> Tensor:
    return normalized(lambda inputs: counted_answers(net, inputs), images)  # type: ignore[arg-type]


def as_is(net: nn.Module, images: Tensor) -> Tensor:
    return net(images)  # type: ignore[no-any-return]


def doubled(net: nn.Module, images: Tensor) -> Tensor:
    return 2 * net(images)  # type: ignore[no-any-return]


def probabilities(net: nn.Module, images: Tensor) -> Tensor:
    return net(images).softmax(1)  # type: ignore[no-any-return]


def with_detector(net: nn.Module, images: Tensor) -> Tensor:
    """One more class: rejected."""
    answers = counted_answers(net, images)
    return torch.cat([answers, 1.5 + 0 * answers[:, :1]], 1)


def found(model: nn.Module, **arguments: Any) -> list[str]:
    given = arguments.pop("oracle", None) or oracle(model)
    return [each.name for each in find_inner_classifiers(given, IMAGES[:8], threat=THREAT, **arguments)]


@pytest.mark.parametrize("code", [counted_answers, in_turn, darkened, optimized, counted_on_normalized])
def test_the_classifier_inside_is_found(code: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = Around(code)
    [inner] = find_inner_classifiers(oracle(model), IMAGES[:8], threat=THREAT)
    assert inner.name == "net"
    inputs = (IMAGES - 0.4) / 0.25 if code is counted_on_normalized else IMAGES
    torch.testing.assert_close(inner(IMAGES), model.net(inputs), rtol=1e-4, atol=1e-4)
    assert not model.net._forward_hooks
    assert not model.net._forward_pre_hooks


def test_probabilities_inside_become_logits() -> None:
    model = Around(counted_answers, Softmax(linear()))
    outer, inner = find_inner_classifiers(oracle(model), IMAGES[:8], threat=THREAT)[:2], linear()
    assert [each.name for each in outer] == ["net"]
    torch.testing.assert_close(outer[0](IMAGES).softmax(1), inner(IMAGES).softmax(1))


@pytest.mark.parametrize("rejects", [CLASSES, lambda outputs: outputs[:, CLASSES] - 1.4], ids=["class", "function"])
def test_detectors_hold_a_classifier(rejects: Any) -> None:
    model = Around(with_detector)
    assert found(model, oracle=oracle(model, rejection=RejectOption(rejects))) == ["net"]


@pytest.mark.parametrize("code", [as_is, normalized, probabilities])
@pytest.mark.parametrize("make", [linear, convolutional])
def test_honest_models_have_none(code: Callable[[nn.Module, Tensor], Tensor], make: Callable[[], nn.Module]) -> None:
    outputs = "probabilities" if code is probabilities else "logits"
    assert found(Around(code, make()), oracle=oracle(Around(code, make()), outputs=outputs)) == []


def test_plain_models_have_none() -> None:
    assert found(linear()) == []
    assert found(nn.DataParallel(convolutional())) == []
    assert found(nn.Sequential(nn.BatchNorm2d(3), convolutional()).eval()) == []


def test_other_classes_are_no_classifier_inside() -> None:
    """Controls: a submodule that answers something else, and one with a useless gradient."""
    assert found(Around(lambda net, images: counted_answers(net, images).roll(1, 1))) == []
    assert found(Around(lambda net, images: counted_answers(net, images)[:, :2])) == []
    assert found(Around(counted_answers, masked(KillGradient))) == ["net.1"]
    assert found(Around(counted_answers, Around(lambda net, images: net(images.detach())))) == ["net.net"]


def test_parts_to_bypass_inside_are_bypassed() -> None:
    model = Around(counted_answers, masked(Quantize, convolutional()))
    [inner] = find_inner_classifiers(oracle(model), IMAGES[:8], threat=THREAT, approximations={"net.0": None})
    assert inner.name == "net"
    point = IMAGES.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(inner(point).sum(), point)
    assert gradient.any()


def test_models_that_are_attacked_anyway_are_left_out() -> None:
    assert found(Around(doubled)) == ["net"]
    model = Around(doubled)
    assert found(model, attacked=[oracle(InnerLogits(model, "net"))]) == []


class Members(nn.Module):
    """Answers with the decisions of its members."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([counted_answers(member, images) for member in self.members]).mean(0)


class Weak(nn.Module):
    """The same answers, with a gradient that leads away from adversarial examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images)
        return 2 * logits.detach() - logits  # type: ignore[no-any-return]


def test_those_that_transfer_best_are_taken() -> None:
    """The first one does not. The third one gives the same logits as the second one, twice as large."""
    names = found(Members(Weak(), Around(doubled, linear())))
    assert sorted(names[:2]) == ["members.0.layer", "members.1"]


class Switch(nn.Module):
    """The first member answers where the second one agrees, and the third one elsewhere."""

    def __init__(self, first: nn.Module, second: nn.Module, third: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = first, second, third
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        agree = first.argmax(1) == self.second(images).argmax(1)
        return torch.where(agree[:, None], first, self.third(images))


class Mean(Members):
    """An honest ensemble: the mean of the logits of its members."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def near(seed: int) -> nn.Module:
    """A linear classifier that mostly agrees with `linear`."""
    model, other = linear(), linear(seed=seed)
    with torch.no_grad():
        model[1].weight.add_(0.5 * other[1].weight)  # type: ignore[operator]
        model[1].bias.add_(0.5 * other[1].bias)  # type: ignore[operator]
    return model


def test_several_as_one() -> None:
    model = Switch(linear(), near(1), near(2))
    joint = find_inner_classifiers(oracle(model), IMAGES[:8], threat=THREAT)[-1]
    assert isinstance(joint, JointClassifier)
    assert len(joint.classifiers) >= 2
    assert {each.name for each in joint.classifiers} <= {"first", "second", "third"}
    expected = sum(each(IMAGES).log_softmax(1) for each in joint.classifiers) / len(joint.classifiers)
    torch.testing.assert_close(joint(IMAGES), expected)


def test_the_mean_of_an_ensemble_is_no_other_model() -> None:
    """Control: attacks on the ensemble attack all members already."""
    assert not any("and" in name for name in found(Mean(linear(), near(1))))


def test_one_inside_of_another_is_not_joined() -> None:
    inside = Around(doubled, linear())
    assert not any("and" in name for name in found(Around(counted_answers, inside)))


@pytest.mark.longer
def test_a_switch_between_live_networks_does_not_pass() -> None:
    """No gradient leads to where two networks agree on a wrong class, and none is hidden."""
    networks = [load_model(name) for name in ("resnet-standard", "vgg-standard", "vgg-adversarial")]
    data = load_dataset("embedded")
    seen = audit(Switch(*networks), data.images, data.labels, margin=0.1)
    joint = seen.attack("transfer-inner-joint")
    assert joint.access == "surrogate"
    assert len(joint.broken) >= 3
    assert seen.verdict is not Verdict.NOT_MASKED
    assert seen.robust_accuracy.value <= 0.1


def test_a_submodule_that_fails_alone_is_left_out() -> None:
    class Moody(nn.Module):
        """Refuses to run outside of its defense."""

        def __init__(self) -> None:
            super().__init__()
            self.open, self.layer = False, linear()

        def forward(self, images: Tensor) -> Tensor:
            if not self.open:
                raise RuntimeError("not outside of the defense")
            return 1 * self.layer(images)  # type: ignore[no-any-return]

    def guarded(net: nn.Module, images: Tensor) -> Tensor:
        assert isinstance(net, Moody)
        net.open = True
        try:
            return counted_answers(net, images)
        finally:
            net.open = False

    assert found(Around(guarded, Moody())) == ["net.layer"]


def test_randomized_defense_and_its_classifier() -> None:
    model = Around(lambda net, images: counted_answers(net, images + 0.05 * torch.randn_like(images)))
    assert found(model, forwards=4) == ["net"]
    assert found(Noisy(linear(), 0.1), forwards=4) == ["model"]


@pytest.mark.usefixtures("no_operations_found")
@pytest.mark.parametrize("code", [counted_answers, in_turn])
def test_audit_finds_the_mask(code: Callable[[nn.Module, Tensor], Tensor]) -> None:
    seen = audited(Around(code), threat=ThreatModel(0.2))
    assert seen.verdict is Verdict.MASKED
    attack = seen.attack("transfer-inner-0")
    assert attack.access == "surrogate"
    assert len(attack.broken) > len(IMAGES) / 2
    assert "all around net" in seen.bypassed


@pytest.mark.parametrize("make", [linear, convolutional, lambda: masked(KillGradient), lambda: masked(Quantize)])
def test_audit_without_a_classifier_inside_has_no_such_attack(make: Callable[[], nn.Module]) -> None:
    """Controls: honest models, and masks that BPDA finds. Their classifier is that of `transfer-backbone`."""
    model = make()
    names = {attack.name for attack in audited(model, exhaustive=True).attacks}
    assert not any(name.startswith("transfer-inner") for name in names)
    assert "transfer-backbone" in names


def test_named_source_is_attacked_once() -> None:
    model = Around(counted_answers)
    seen = audited(Defense(model, sources=[model.net]), exhaustive=True)
    assert "transfer-inner-0" not in {attack.name for attack in seen.attacks}


def test_random_state_and_flags_are_kept() -> None:
    model = Around(counted_answers).train()
    before = torch.get_rng_state()
    [inner] = find_inner_classifiers(oracle(model), IMAGES[:8], threat=THREAT)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.net.training
    assert isinstance(inner, InnerClassifier)
    assert isinstance(oracle(inner), Oracle)
    assert predictions(inner, IMAGES).shape == (len(IMAGES),)


def test_without_a_search_there_is_none() -> None:
    """A user who says what to bypass says what there is to attack."""
    assert not audited(Defense(Around(counted_answers), bypass=())).bypassed
