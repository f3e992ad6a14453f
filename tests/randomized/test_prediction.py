"""Monte Carlo prediction: how many samples, when one image at a time, and when probabilities are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.loading.models.composites import Mixture, RandomizedEnsemble
from pytest_gradmask.randomized.prediction import (
    Sampler,
    draws_shared,
    is_correct,
    members_answer,
    plan_sampler,
    samples_needed,
)
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.results import Prediction
from pytest_gradmask.verdict.stats import accuracy_bounds
from tests.toys import CPU, draw, linear, oracle

IMAGES, LABELS = draw(30, 1, 2, 2), torch.zeros(30, dtype=torch.int64)


class Chance(nn.Module):
    """Class 0 with the probability of an image's first pixel, drawn for each image or once for the whole batch."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, images: Tensor) -> Tensor:
        drawn = torch.rand(1 if self.shared else len(images))
        score = (images[:, 0, 0, 0] - drawn).sign()
        return torch.stack([score, -score], 1)


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.repeat(len(images), 1)


RIGHT, WRONG = Constant(1.0, 0.0), Constant(0.0, 1.0)


def known(members: list[nn.Module], weights: tuple[float, ...] | None = None, seed: int = 0) -> Oracle:
    mixture = Mixture(members, weights)
    return Oracle(mixture, RandomStream(seed, CPU), members=members, weights=mixture.weights)


def test_samples_estimate_the_probability_of_each_image() -> None:
    predictions = Sampler(pilot=10, variance=1e-3).predict(oracle(Chance()), IMAGES, LABELS)
    truth = IMAGES[:, 0, 0, 0].tolist()
    # The standard deviation of each is at most 3.2 %, unless its pilot is misleading.
    assert np.abs(np.subtract([found.correct for found in predictions], truth)).max() < 0.15
    assert np.mean(np.subtract([found.correct for found in predictions], truth)) == pytest.approx(0, abs=0.03)


def test_uncertain_images_get_more_samples() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    none, half, all_ = Sampler(pilot=20, variance=1e-3).predict(oracle(Chance()), images, LABELS[:3])
    assert (none.correct, all_.correct) == (0, 1)
    assert none.number == all_.number < half.number / 3


@pytest.mark.parametrize("pilot", [1, 5, 50])
@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
def test_number_of_samples(share: float, pilot: int) -> None:
    estimate = (share * pilot + 1) / (pilot + 2)
    for variance in (1.0, 0.01, 0.004):
        number = samples_needed(share, pilot, variance)
        assert estimate * (1 - estimate) / number <= variance
        assert number == 1 or estimate * (1 - estimate) / (number - 1) > variance
    assert samples_needed(share, pilot, 1e-12) == 1000


def test_pilot_is_not_part_of_the_estimate() -> None:
    """The pilot that chooses a point is biased; the further samples are not."""
    images = torch.full((400, 1, 1, 1), 0.5)
    labels = torch.zeros(400, dtype=torch.int64)
    target, sampler = oracle(Chance()), Sampler(pilot=5, variance=0.01)
    tries = [sampler.predict(target, images, labels) for _ in range(4)]
    worst = [min(points, key=lambda found: found.pilot) for points in zip(*tries, strict=True)]
    assert np.mean([found.pilot for found in worst]) < 0.35
    assert np.mean([found.correct for found in worst]) == pytest.approx(0.5, abs=0.02)


def test_shared_randomness_is_detected() -> None:
    image = torch.full((1, 1, 1, 1), 0.5)
    assert draws_shared(oracle(Chance(shared=True)), image)
    assert not draws_shared(oracle(Chance()), image)
    assert draws_shared(oracle(RandomizedEnsemble([RIGHT, WRONG])), image)
    assert not draws_shared(oracle(RandomizedEnsemble([RIGHT, WRONG], each_image=True)), image)


@pytest.mark.parametrize("seed", range(5))
def test_common_offset_is_no_shared_randomness(seed: int) -> None:
    class Biased(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.shared = shared

        def forward(self, images: Tensor) -> Tensor:
            noise = torch.randn(1 if self.shared else len(images), 3)
            return (torch.tensor([0.0, 10.0, 30.0]) + noise).expand(len(images), 3)

    image = torch.full((1, 1, 1, 1), 0.5)
    for shared in (True, False):
        assert draws_shared(Oracle(Biased(shared), RandomStream(seed, CPU)), image) is shared


def test_shared_randomness_is_sampled_one_by_one() -> None:
    images, labels = torch.full((400, 1, 1, 1), 0.5), torch.zeros(400, dtype=torch.int64)
    together, alone = (
        np.mean([found.correct for found in Sampler(1, 0.25, one_by_one).predict(model, images, labels)])
        for one_by_one, model in ((False, oracle(Chance(shared=True))), (True, oracle(Chance(shared=True))))
    )
    assert together in (0, 1)  # one sample, the same for all images
    assert alone == pytest.approx(0.5, abs=0.1)


def test_sampler_for_the_defense() -> None:
    shared, findings = plan_sampler(oracle(Chance(shared=True)), None, IMAGES, pilot=7, margin=0.1)
    assert (shared, findings) == (Sampler(7, 30 * 0.01**2, one_by_one=True), [])
    independent, _ = plan_sampler(oracle(Chance()), None, IMAGES, pilot=7, margin=0.1)
    assert not independent.one_by_one


# members


@pytest.mark.parametrize("each_image", [False, True])
def test_known_members_give_exact_probabilities(each_image: bool) -> None:
    weights = (0.5, 0.3, 0.2)
    ensemble = RandomizedEnsemble([RIGHT, WRONG, WRONG], weights, each_image=each_image)
    mixture = known([RIGHT, WRONG, WRONG], weights)
    predictions = Sampler(5, 0.01, members=mixture).predict(oracle(ensemble), IMAGES, LABELS)
    assert {(found.pilot, found.correct, found.number) for found in predictions} == {(0.5, 0.5, 0)}
    assert predictions[0].interval(0.99) == (0.5, 0.5)


@pytest.mark.longer
def test_samples_converge_to_exact_probabilities() -> None:
    members: list[nn.Module] = [linear(seed=seed) for seed in range(3)]
    images = draw(20, 3, 8, 8)
    labels = members[0](images).argmax(1)
    target = oracle(RandomizedEnsemble(members, (0.6, 0.3, 0.1)))
    exact = Sampler(5, 0.01, members=known(members, (0.6, 0.3, 0.1))).predict(target, images, labels)
    sampled = Sampler(20, 1e-4, one_by_one=True).predict(target, images, labels)
    assert [found.correct for found in sampled] == pytest.approx([found.correct for found in exact], abs=0.06)


def test_members_that_answer_are_recognised() -> None:
    members: list[nn.Module] = [linear(seed=seed) for seed in range(2)]
    image = draw(1, 3, 8, 8)
    for each_image in (False, True):
        assert members_answer(oracle(RandomizedEnsemble(members, each_image=each_image)), known(members), image)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(RandomizedEnsemble([linear(seed=0), linear(seed=5)]), id="another member"),
        pytest.param(Mixture([linear(seed=0), linear(seed=1)]), id="their mean"),
    ],
)
def test_members_that_do_not_answer_are_recognised(model: nn.Module) -> None:
    members: list[nn.Module] = [linear(seed=seed) for seed in range(2)]
    image = draw(1, 3, 8, 8)
    assert not members_answer(oracle(model), known(members), image)
    sampler, findings = plan_sampler(oracle(model), known(members), image, pilot=5, margin=0.1)
    assert [finding.id for finding in findings] == ["members-do-not-answer"]
    assert sampler.members is None


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("off", "answers"), [(0.015, True), (0.025, False)])
def test_tolerance_is_relative_to_the_largest_logit(scale: float, off: float, answers: bool) -> None:
    members: list[nn.Module] = [Constant(scale, 0.0), Constant(0.0, scale)]
    # Each logit is off by less than is allowed; together, as the corner of a square, they would be by more.
    near = oracle(Constant(scale * (1 + off), scale * off))
    assert members_answer(near, known(members, (0.999, 0.001)), IMAGES[:1]) is answers


def test_finding_if_members_do_not_answer() -> None:
    _, [finding] = plan_sampler(oracle(Constant(1.0, 1.0)), known([RIGHT, WRONG]), IMAGES, pilot=5, margin=0.1)
    assert finding.message == (
        "some outputs of the defense are not those of any given member: probabilities are estimated from repeated "
        "forward passes of the defense itself"
    )


def test_random_members_have_no_exact_probability() -> None:
    members = [Chance(), Chance()]
    image = torch.full((1, 1, 1, 1), 0.5)
    assert not members_answer(oracle(RandomizedEnsemble(members)), known(list(members)), image)


def test_wrong_weights_are_an_error() -> None:
    target, image = oracle(RandomizedEnsemble([RIGHT, WRONG], (0.95, 0.05))), IMAGES[:1]
    with pytest.raises(DefenseError, match=r"weights: member 0 answers \d\d of 64 forwards, which a weight of 0.5"):
        members_answer(target, known([RIGHT, WRONG]), image)
    assert members_answer(target, known([RIGHT, WRONG], (0.95, 0.05)), image)


def test_members_with_equal_outputs_are_not_counted() -> None:
    target = oracle(RandomizedEnsemble([RIGHT, RIGHT], (0.95, 0.05)))
    assert members_answer(target, known([RIGHT, RIGHT]), IMAGES[:1])


# figures


def test_nan_is_not_correct() -> None:
    assert not is_correct(Constant(float("nan"), 0.0), IMAGES, LABELS).any()
    assert is_correct(RIGHT, IMAGES[:0], LABELS[:0]).tolist() == []


def test_interval_of_an_image() -> None:
    low, high = Prediction(1.0, 0.75, 40, True).interval(0.99)
    assert 0.5 < low < 0.75 < high < 0.9


def test_coverage_of_the_interval_of_an_accuracy() -> None:
    """New images each time, few samples: the bounds contain the mean probability of all images."""
    generator = np.random.default_rng(0)
    target, sampler = oracle(Chance()), Sampler(pilot=3, variance=0.02)
    covered = 0
    for _ in range(200):
        images = torch.as_tensor(generator.beta(0.5, 0.5, 40), dtype=torch.float32).view(-1, 1, 1, 1)
        predictions = sampler.predict(target, images, torch.zeros(40, dtype=torch.int64))
        low, high = accuracy_bounds([found.correct for found in predictions], 0.95)
        covered += low <= 0.5 <= high
    # At 90 %, 200 tries cover fewer than 166 times once in a thousand.
    assert covered >= 166
