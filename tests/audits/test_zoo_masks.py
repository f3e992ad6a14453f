"""Known defenses in code: each hides the gradient that its reference follows, and each detector and memory works."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from audits.defenses import backward, detours, pixels
from audits.defenses.detectors import FeatureSqueezing, doubtful, unsure
from audits.defenses.detours import NoGradBranch, cut_branches
from audits.defenses.entry import Entry
from audits.defenses.inaccurate import NEXT, PAIRS
from audits.defenses.optimizers import AntiAdversary, Hedge
from audits.defenses.references import attack_views, instead, straight_through, view_of
from audits.defenses.unsteady import QueryMemory, RobustWithoutAutograd, RoundsUnderAutograd, adapt_batch_norms
from pytest_gradmask import Defense, load_dataset, load_model
from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.attacks.rejection import RejectOption, under_attack
from pytest_gradmask.defense import as_defense
from pytest_gradmask.threat import ThreatModel
from tests.toys import Detach, draw, half_problem, linear, oracle, predictions, seeded

DATA = load_dataset("embedded")
MASKS = (*backward.ENTRIES, *pixels.ENTRIES, *detours.ENTRIES)


def gradient(model: nn.Module) -> Tensor:
    """Gradient of the logit margin at six images; zero where no graph leads to them."""
    point = DATA.images[:6].clone().requires_grad_(True)
    losses = logit_margin(oracle(model)(point), DATA.labels[:6])
    losses.sum().backward()  # a re-entrant checkpoint refuses torch.autograd.grad
    assert point.grad is not None
    return point.grad.flatten(1)


def likeness(one: Tensor, other: Tensor) -> float:
    """Mean cosine."""
    return float(torch.cosine_similarity(one, other).mean())


@pytest.mark.parametrize("entry", MASKS, ids=lambda entry: entry.name)
def test_the_gradient_is_hidden_and_the_reference_has_it(entry: Entry) -> None:
    model = as_defense(entry.build(load_model)).model
    assert isinstance(entry.reference, partial)
    view = entry.reference.keywords["views"][0].of(model)
    if entry.name == "hard-vote":
        true = gradient(view_of(detours.HardVote.differentiable).of(model))
    else:
        true = gradient(load_model(entry.backbone))
    assert likeness(gradient(model), true) < 0.8
    assert likeness(gradient(view), true) > 0.8


@pytest.mark.parametrize("entry", backward.ENTRIES, ids=lambda entry: entry.name)
def test_a_wrong_backward_pass_leaves_outputs_alone(entry: Entry) -> None:
    model, images = as_defense(entry.build(load_model)).model, DATA.images[:4]
    assert torch.equal(model(images), load_model(entry.backbone)(images))
    assert likeness(gradient(model), gradient(load_model(entry.backbone))) > 0.4, "not noise either"


def test_blocks_under_no_grad_have_the_outputs_of_the_network() -> None:
    model, images = cut_branches(load_model("resnet-adversarial")), DATA.images[:4]
    assert sum(isinstance(module, NoGradBranch) for module in model.modules()) == 4
    assert torch.equal(model(images), load_model("resnet-adversarial")(images))


@pytest.mark.parametrize("entry", pixels.ENTRIES, ids=lambda entry: entry.name)
def test_pixels_hardly_change(entry: Entry) -> None:
    class Images(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    model = as_defense(entry.build(lambda _: Images())).model
    assert (model(DATA.images) - DATA.images.flatten(1)).abs().mean() < 0.06


# views written by hand


def test_bpda_by_hand_has_the_values_of_the_defense() -> None:
    value, approximation = draw(2, 3), draw(2, 3, seed=1).requires_grad_(True)
    joined = straight_through(approximation, value)
    torch.testing.assert_close(joined, value)
    assert torch.equal(torch.autograd.grad(joined.sum(), approximation)[0], torch.ones(2, 3))


def test_bpda_by_hand_succeeds_where_a_plain_attack_fails() -> None:
    model, images, labels = half_problem(8, (1, 4, 4), "Linf", distance=0.3)
    defense = nn.Sequential(Detach(), model).eval()
    found = attack_views(
        defense, images, labels, threat=ThreatModel(0.4, bounds=(-100.0, 100.0)), generator=seeded(), steps=10,
        views=[instead(lambda whole, images: whole[1](images))],
    )  # fmt: skip
    assert (predictions(defense, found) != labels).all()


# optimisers


@pytest.mark.parametrize("kind", [AntiAdversary, Hedge])
def test_optimisers_keep_answers_and_hide_the_gradient(kind: type[nn.Module]) -> None:
    backbone = load_model("vgg-adversarial")
    defense = kind(backbone)
    kept = predictions(defense, DATA.images) == predictions(backbone, DATA.images)
    assert kept.float().mean() >= 0.8
    assert likeness(gradient(defense), gradient(backbone)) < 0.8


def test_an_anti_adversary_is_surer_of_its_answer() -> None:
    backbone = load_model("vgg-adversarial")
    answers = predictions(backbone, DATA.images)
    with torch.no_grad():
        before, after = (cross_entropy(model(DATA.images), answers) for model in (backbone, AntiAdversary(backbone)))
    assert after.median() < 0.1 < before.median()


# detectors


def test_squeezing_rejects_what_it_changes_and_only_that() -> None:
    class Bright(nn.Module):
        """Class 1 if the first pixel is bright, which the median forgets."""

        def forward(self, images: Tensor) -> Tensor:
            score = 100 * (images[:, 0, 4, 4] - 0.5)
            return torch.stack([-score, score], 1)

    images = torch.zeros(2, 3, 8, 8)
    images[0, :, 4, 4] = 1
    assert FeatureSqueezing(Bright())(images).argmax(1).tolist() == [2, 0]


def test_confidence_has_a_score_and_a_decision() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]])
    assert (unsure(logits) > 0).tolist() == [False, True]
    assert doubtful(logits).tolist() == [False, True]


def test_a_reference_on_a_detector_breaks_what_is_accepted() -> None:
    images = DATA.images[:6]
    defense = Defense(load_model("vgg-standard"), rejects=unsure)
    labels = predictions(defense.model, images)
    found = attack_views(defense, images, labels, threat=ThreatModel(), generator=seeded(), steps=20)
    assert defense.rejects is not None
    logits = defense.model(found)
    broken = (logits.argmax(1) != labels) & (unsure(logits) <= 0)
    assert broken.float().mean() >= 0.5
    plain = attack_views(defense.model, images, labels, threat=ThreatModel(), generator=seeded(), steps=20)
    accepted = unsure(defense.model(plain)) <= 0
    assert broken.sum() > (accepted & (defense.model(plain).argmax(1) != labels)).sum()
    option = RejectOption(unsure)
    for index in range(len(images)):
        with under_attack(option, labels[index : index + 1]) as safe:
            joint = oracle(defense.model, rejection=option)(found[index : index + 1])
            assert bool(logit_margin(joint, safe) > 0) == bool(broken[index])


# defenses that must not pass


def test_a_memory_repeats_its_answer_to_near_queries() -> None:
    """A memory answers near queries with the first answer, and others itself."""
    memory, images = QueryMemory(linear(), neighbours=3), draw(4, 3, 8, 8)
    untouched = copy.deepcopy(memory)
    first = memory(images)
    moved = (images + 0.01 * torch.randn(images.shape, generator=seeded())).clamp(0, 1)
    for _ in range(2):
        assert torch.equal(memory(moved), untouched.model(moved))
    assert torch.equal(memory(moved), first)
    assert torch.equal(memory(1 - images), untouched.model(1 - images))
    assert untouched.queries is None


def test_batch_statistics_depend_on_the_batch() -> None:
    """Batch statistics depend on the batch and the backbone does not."""
    for model, same in (
        (load_model("vgg-adversarial"), True),
        (adapt_batch_norms(load_model("vgg-adversarial")), False),
    ):
        alone, together = model(DATA.images[:1]), model(DATA.images[:8])[:1]
        assert torch.allclose(alone, together, atol=1e-4) is same


def test_answers_depend_on_autograd() -> None:
    for defense in (RoundsUnderAutograd(linear()), RobustWithoutAutograd(linear(seed=0), linear(seed=1))):
        images = draw(4, 3, 8, 8)
        with torch.no_grad():
            deployed = defense(images)
        assert torch.equal(deployed, linear()(images))
        assert not torch.allclose(defense(images), deployed)


def test_wrong_orders_are_permutations_that_move_some_labels() -> None:
    for order, moved in ((NEXT, 6), (PAIRS, 6)):
        assert sorted(order) == list(range(10))
        assert sum(label != index for index, label in enumerate(order)) == moved
