"""No attack's own claim is believed: every returned image is scored again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.plan import PlannedAttack
from pytest_gradmask.results import AttackResult
from pytest_gradmask.scoring import Evaluation, subseed
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.voting import Ballot
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


def evaluation(
    model: nn.Module | None = None,
    ballot: Ballot | None = None,
    images: torch.Tensor = IMAGES,
    labels: torch.Tensor = LABELS,
) -> Evaluation:
    return Evaluation(oracle(model or FirstPixel()), images, labels, THREAT, seed=0, ballot=ballot)


def planned(change: Change, **arguments: Any) -> PlannedAttack:
    """An attack that returns its images changed."""

    def run(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        model(images)
        return change(images.clone())

    return PlannedAttack("toy", "adaptive", run, oracle(FirstPixel()), **arguments)


def score(change: Change, given: Collection[int] = range(6)) -> AttackResult:
    return evaluation().run(planned(change), given)


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
    result = evaluation().run(planned(brighten(0.15), skip="not today"), range(6))
    assert (result.status, result.note, result.attacked, result.broken) == ("skipped", "not today", (), ())


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
def test_randomized_defenses_are_judged_by_their_votes(wrong: list[bool], share: float) -> None:
    clean, votes = evaluation(Alternating(wrong), Ballot(pilot=4, variance=0.01)).clean()
    assert clean == [share >= 0.5] * 6
    assert {found.pilot for found in votes.values()} == {share}
    assert {found.first for found in votes.values()} == {not wrong[0]}
    assert list(votes) == list(range(6))


def test_attacks_on_randomized_defenses_are_judged_by_votes_too() -> None:
    result = evaluation(Alternating([True, True, False]), Ballot(3, 0.01)).run(planned(brighten(0.1)), {1, 4})
    assert result.broken == (1, 4)
    assert {index: found.pilot for index, found in result.votes.items()} == {1: 1 / 3, 4: 1 / 3}
    assert all(found.number > 10 for found in result.votes.values())


def test_a_tie_of_logits_is_no_classification() -> None:
    class Tie(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 2)

    assert evaluation(Tie()).clean() == ([False] * 6, {})


def test_many_images_are_scored_in_chunks() -> None:
    images = draw(600, 1, 2, 2)
    labels = (images[:, 0, 0, 0] > 0.5).long()
    labels[[3, 251, 599]] = 1 - labels[[3, 251, 599]]
    clean, votes = evaluation(images=images, labels=labels).clean()
    assert [index for index, kept in enumerate(clean) if not kept] == [3, 251, 599]
    assert not votes


def test_subseeds_differ_by_name_and_seed() -> None:
    seeds = [subseed(seed, name) for seed in (-1, 0, 1, 2**40) for name in ("bpda", "square", "placebo")]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)
