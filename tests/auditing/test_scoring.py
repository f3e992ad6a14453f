"""No attack's own claim is believed: every returned image is scored again."""

from __future__ import annotations

import dataclasses
import itertools
import time
import zlib
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.auditing.scoring import AttackJob, Scorer, subseed
from pytest_gradmask.randomized.prediction import Sampler
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import AttackResult, AutoAttackVersion
from tests.toys import draw, oracle

Change = Callable[[torch.Tensor], torch.Tensor]

THREAT = ThreatModel(0.2)
#: Six grey images; the toy below calls an image 1 where its first pixel is above one half.
IMAGES = torch.full((6, 1, 2, 2), 0.4)
LABELS = torch.zeros(6, dtype=torch.int64)


class FirstPixel(nn.Module):
    """Class 1 where the first pixel is above one half, NaN where it is exactly 0.25."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = images[:, 0, 0, 0] - 0.5
        score = torch.where(images[:, 0, 0, 0] == 0.25, torch.nan, score)
        return torch.stack([-score, score], 1)


def scorer(
    model: nn.Module | None = None,
    sampler: Sampler | None = None,
    images: torch.Tensor = IMAGES,
    labels: torch.Tensor = LABELS,
) -> Scorer:
    return Scorer(
        oracle=oracle(model or FirstPixel()), images=images, labels=labels, threat=THREAT, seed=0, sampler=sampler
    )


def planned(change: Change, **arguments: Any) -> PlannedAttack:
    """An attack that returns its images changed."""

    def run(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        model(images)
        return change(images.clone())

    return PlannedAttack(
        name="toy", kind="adaptive", access="gradient", run=run, model=oracle(FirstPixel()), **arguments
    )


def witnessed(attack: Witness) -> PlannedAttack:
    return PlannedAttack(name="witness", kind="adaptive", access="scores", run=attack, model=oracle(FirstPixel()))


def score(change: Change, given: Collection[int] = range(6)) -> AttackResult:
    return scorer().run(planned(change), given)


def brighten(amount: float, which: slice = slice(None)) -> Change:
    def change(images: torch.Tensor) -> torch.Tensor:
        images[which, 0, 0, 0] += amount
        return images

    return change


def test_what_is_misclassified_inside_the_ball_is_broken() -> None:
    result = score(brighten(0.15, slice(0, None, 2)))
    assert (result.attacked, result.broken, result.invalid) == ((0, 1, 2, 3, 4, 5), (0, 2, 4), 0)
    assert result.status == "done"


def test_what_stays_correct_is_not_broken() -> None:
    assert score(brighten(0.05)).broken == ()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(brighten(0.25, slice(2)), id="outside the ball"),
        pytest.param(brighten(2, slice(2)), id="outside the bounds"),
        pytest.param(brighten(torch.nan, slice(2)), id="nan"),
        pytest.param(brighten(torch.inf, slice(2)), id="inf"),
    ],
)
def test_invalid_images_are_counted_and_break_nothing(change: Change) -> None:
    result = score(lambda images: change(brighten(0.15, slice(2, 4))(images)))
    assert (result.broken, result.invalid) == ((2, 3), 2)


def test_indices_are_those_of_the_audit() -> None:
    result = score(brighten(0.15, slice(1, None)), given={5, 1, 3})
    assert (result.attacked, result.broken) == ((1, 3, 5), (3, 5))


def test_nan_logits_count_as_broken() -> None:
    assert score(lambda images: images.index_fill(0, torch.tensor([1]), 0.25)).broken == (1,)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda images: images[:3], id="fewer images"),
        pytest.param(lambda images: images.repeat(1, 1, 2, 2), id="larger images"),
        pytest.param(lambda images: None, id="nothing"),
        pytest.param(lambda images: 1 / 0, id="an exception"),
    ],
)
def test_an_attack_that_goes_wrong_has_failed(change: Change) -> None:
    result = score(change)
    assert result.status == "failed"
    assert result.broken == ()
    assert "Error: " in result.note


def test_no_images_are_no_reason_to_run() -> None:
    result = score(lambda images: 1 / 0, given=())  # type: ignore[arg-type,return-value]
    assert (result.status, result.attacked, result.forwards) == ("done", (), 0)


def test_a_skip_is_passed_on() -> None:
    result = scorer().run(planned(brighten(0.15), skip="not today", autoattack=("standard",)), range(6))
    assert result == AttackResult("toy", "adaptive", autoattack=("standard",), status="skipped", note="not today")


@pytest.mark.parametrize("autoattack", [(), ("standard", "rand")])
def test_a_result_names_its_attack(autoattack: tuple[AutoAttackVersion, ...]) -> None:
    result = scorer().run(planned(brighten(0.15), autoattack=autoattack), range(6))
    assert (result.name, result.kind, result.autoattack) == ("toy", "adaptive", autoattack)
    nothing = scorer().run(planned(brighten(0.15), autoattack=autoattack), [])
    assert (nothing.name, nothing.kind, nothing.autoattack) == ("toy", "adaptive", autoattack)


def test_passes_are_those_of_the_attack_and_not_of_the_scoring() -> None:
    assert score(brighten(0.15)).forwards == 6


class Alternating(nn.Module):
    """A constant answer that differs from forward to forward: wrong where told."""

    def __init__(self, wrong: Collection[bool]) -> None:
        super().__init__()
        self.wrong = itertools.cycle(wrong)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = 1.0 if next(self.wrong) else -1.0
        return torch.tensor([[0.0, score]]).repeat(len(images), 1)


@pytest.mark.parametrize(
    ("wrong", "share"),
    [
        ([False] * 4, 1.0),
        ([True, False, False, False], 0.75),
        ([True, True, True, False], 0.25),
        ([True] * 4, 0.0),
    ],
    ids=str,
)
def test_clean_images_are_sampled(wrong: list[bool], share: float) -> None:
    clean, predictions = scorer(Alternating(wrong), Sampler(pilot=4, variance=0.01)).clean()
    assert clean == [share >= 0.5] * 6
    assert {found.pilot for found in predictions.values()} == {share}
    assert {found.first for found in predictions.values()} == {not wrong[0]}
    assert list(predictions) == list(range(6))


def test_attacked_images_are_sampled_too() -> None:
    result = scorer(Alternating([True, True, False]), Sampler(3, 0.01)).run(planned(brighten(0.1)), {1, 4})
    assert result.broken == (1, 4)
    assert {index: found.pilot for index, found in result.predictions.items()} == {1: 1 / 3, 4: 1 / 3}
    assert all(found.number > 10 for found in result.predictions.values())


def test_a_tie_of_logits_is_no_classification() -> None:
    class Tie(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 2)

    assert scorer(Tie()).clean() == ([False] * 6, {})


def test_many_images_are_scored_in_chunks() -> None:
    images = draw(600, 1, 2, 2)
    labels = (images[:, 0, 0, 0] > 0.5).long()
    labels[[3, 251, 599]] = 1 - labels[[3, 251, 599]]
    clean, predictions = scorer(images=images, labels=labels).clean()
    assert [index for index, kept in enumerate(clean) if not kept] == [3, 251, 599]
    assert not predictions


def test_some_images_are_scored_alone_and_keep_their_indices() -> None:
    images = IMAGES.index_fill(0, torch.tensor([2, 4]), 0.6)
    assert scorer(images=images).clean([4, 1, 2]) == ([False, True, False], {})
    _, predictions = scorer(Alternating([False]), Sampler(2, 0.01)).clean([5, 3])
    assert list(predictions) == [5, 3]


def test_random_numbers_of_the_defense_have_a_seed_for_each_run() -> None:
    class Seeded(FirstPixel):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seeds.append(torch.initial_seed())
            return super().forward(images)

    seeds: list[int] = []
    bench = dataclasses.replace(scorer(Seeded()), seed=3)
    bench.clean([4, 1])
    bench.run(planned(brighten(0.1)), [5], " again")
    assert seeds == [subseed(3, "clean images from 4"), subseed(3, "defense under toy again")]


class Witness:
    """An attack that keeps what it was given, and brightens every image from the given one on."""

    def __init__(self, at_most: int = 100) -> None:
        self.at_most = at_most
        self.given: list[tuple[torch.Tensor, torch.Tensor, ThreatModel, int]] = []

    def __call__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        threat: ThreatModel,
        generator: torch.Generator,
    ) -> torch.Tensor:
        if len(images) > self.at_most:
            raise MemoryError("can't allocate memory")
        self.given.append((images, labels, threat, generator.initial_seed()))
        images = images.clone().requires_grad_()
        model(images)[:, 1].sum().backward()
        time.sleep(0.01)
        return (images + 0.15 * (labels == 0).view(-1, 1, 1, 1)).detach()


def test_an_attack_gets_arguments_of_its_own() -> None:
    """An attack is given labels, threat and random numbers of its own."""
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    attack = Witness()
    result = scorer(labels=labels).run(witnessed(attack), {1, 2, 3}, " again")
    assert result.access == "scores"
    [(images, own, threat, seed)] = attack.given
    assert torch.equal(images, IMAGES[1:4])
    assert own.tolist() == [1, 0, 0]
    assert (threat, seed) == (THREAT, subseed(0, "witness again"))
    assert (result.name, result.kind, result.broken) == ("witness", "adaptive", (1, 2, 3))
    assert (result.forwards, result.backwards) == (3, 3)
    assert 0.01 <= result.seconds < 10


def test_a_halved_batch_keeps_its_indices() -> None:
    """A batch that is halved keeps its indices and draws other numbers."""
    attack = Witness(at_most=2)
    result = scorer().run(witnessed(attack), range(6))
    assert result.broken == (0, 1, 2, 3, 4, 5)
    assert result.seconds >= 0.04
    sizes, seeds = [len(each[0]) for each in attack.given], [each[3] for each in attack.given]
    assert sizes == [1, 1, 1, 1, 1, 1]
    assert seeds == [subseed(0, "witness"), *(subseed(0, f"witness at {first}") for first in range(1, 6))]


def test_predictions_of_a_later_chunk_keep_their_indices() -> None:
    job = AttackJob(
        attack=planned(brighten(0.1)), oracle=oracle(Alternating([True])), threat=THREAT, seed=0,
        sampler=Sampler(2, 0.01), stream_name="toy",
    )  # fmt: skip
    result = job(10, IMAGES[:2], LABELS[:2])
    assert (result.name, result.kind, result.broken, list(result.predictions)) == (
        "toy",
        "adaptive",
        (10, 11),
        [10, 11],
    )


def test_a_failure_tells_what_was_wrong_and_how_long_it_took() -> None:
    wanted = r"not images of shape (6, 1, 2, 2) and type torch.float32 on cpu"
    assert score(lambda images: None).note == f"InputError: it returned NoneType, {wanted}"  # type: ignore[arg-type,return-value]
    expected = f"InputError: it returned shape (3, 1, 2, 2) and type torch.float32 on cpu, {wanted}"
    assert score(lambda images: images[:3]).note == expected
    assert "type torch.float64 on cpu, not" in score(lambda images: images.double()).note

    def slow(_: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        raise ValueError("no more")

    result = score(slow)
    assert (result.name, result.kind, result.note) == ("toy", "adaptive", "ValueError: no more")
    assert 0.01 <= result.seconds < 10


def test_chunks_are_one_result() -> None:
    """Chunks are one result, and after one that fails no other runs."""
    images, labels = IMAGES[:1].repeat(250, 1, 1, 1), LABELS[:1].repeat(250)
    attack = Witness()
    bench = dataclasses.replace(scorer(images=images, labels=labels), graph=2**20)  # as much as an image of CIFAR-10
    result = bench.run(witnessed(attack), range(250))
    assert [len(each[0]) for each in attack.given] == [100, 100, 50]
    assert (result.forwards, result.backwards, result.broken) == (250, 250, tuple(range(250)))
    assert 0.01 * len(attack.given) <= result.seconds < 10
    runs: list[int] = []

    def failing(images: torch.Tensor) -> torch.Tensor:
        runs.append(len(images))
        time.sleep(0.01)
        raise ValueError("no more")

    result = bench.run(planned(failing), range(250))
    assert (result.status, result.note, runs) == ("failed", "ValueError: no more", [100])
    assert 0.01 <= result.seconds < 10


def test_half_of_the_samples_is_enough() -> None:
    clean, predictions = scorer(Alternating([True, False]), Sampler(2, 0.25 / 4)).clean()
    assert {found.correct for found in predictions.values()} == {0.5}
    assert clean == [True] * 6


def test_a_subseed_is_made_of_the_seed_and_the_name() -> None:
    assert subseed(0, "bpda") == zlib.crc32(b"bpda")
    assert subseed(2, "bpda") == 2_000_006 + zlib.crc32(b"bpda")
    assert subseed(2**60, "bpda") == (2**60 * 1_000_003 + zlib.crc32(b"bpda")) % 2**63


def test_subseeds_differ_by_name_and_seed() -> None:
    seeds = [subseed(seed, name) for seed in (-1, 0, 1, 2**40) for name in ("bpda", "square", "placebo")]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)
