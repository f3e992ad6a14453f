"""How a randomized defense is judged: the chance of a right answer at a point, over repeated forwards.

Never by one forward, as AutoAttack does, and never as "broken in any of n tries", which any noise amounts to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

from pytest_gradmask.attacks.losses import margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.batching import in_batches
from pytest_gradmask.verdict.results import Finding, Votes

_CHUNK = 250  # images a forward gets
_MOST = 1000  # votes of one image
#: Forwards in which it shows whether the images of a batch share their randomness, and which members answer.
_WATCHED = 64
_CORRELATED = 0.3  # of 64 independent pairs, a correlation above this is rare; taking it for shared only costs time
_SAME = 0.02  # outputs that differ by less, relative to their size, are the same: rounding depends on the batch
_RARE = 1e-4  # chance of an error about weights that are right


@dataclass(frozen=True, slots=True)
class Ballot:
    """How many votes an image gets, and how they are taken.

    Attributes:
        pilot: votes by which the worst of several points is chosen; they also say how many others the point gets.
        variance: largest variance that the other votes may leave in the chance of one image.
        one_by_one: whether a batch shares its randomness (one member answers it all): each image then is a batch of
            its own, or the images' votes would not be independent.
        members: where the members of an ensemble are known, an oracle that knows them: chances are exact, no vote
            is taken but the first.
    """

    pilot: int
    variance: float
    one_by_one: bool = False
    members: Oracle | None = None

    def count(self, look: Oracle, images: torch.Tensor, labels: torch.Tensor) -> list[Votes]:
        """The votes on each image.

        Args:
            look: the defense as it is used.
            images: N x C x H x W.
            labels: int64, N.
        """
        first = right(look, images, labels)
        if self.members is not None:
            chance = self._expected(self.members, images, labels)
            return [Votes(exact, exact, 0, once) for exact, once in zip(chance, first.tolist(), strict=True)]
        pilot = first.double()
        for _ in range(self.pilot - 1):
            pilot += right(look, images, labels)
        shares = (pilot / self.pilot).tolist()
        numbers = [votes_needed(share, self.pilot, self.variance) for share in shares]
        correct = self._vote(look, images, labels, numbers)
        return [Votes(*each) for each in zip(shares, correct, numbers, first.tolist(), strict=True)]

    def _vote(self, look: Oracle, images: torch.Tensor, labels: torch.Tensor, numbers: Sequence[int]) -> list[float]:
        needed = torch.tensor(numbers, device=images.device)
        won = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for number in range(max(numbers, default=0)):
            asked = (needed > number).nonzero()[:, 0]
            won[asked] += right(look, images[asked], labels[asked], 1 if self.one_by_one else _CHUNK)
        return (won / needed).tolist()

    def _expected(self, oracle: Oracle, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
        chance = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for weight, member in zip(oracle.weights, oracle.members, strict=True):
            chance += weight * right(member, images, labels).double()
        return chance.clamp(0, 1).tolist()


def call_ballot(
    look: Oracle, mixture: Oracle | None, images: torch.Tensor, pilot: int, margin: float
) -> tuple[Ballot, list[Finding]]:
    """How to judge a randomized defense, and what is unusual about it.

    Args:
        look: the defense as it is used.
        mixture: knows the members and their weights, if they are known.
        images: of the audit, N x C x H x W.
        pilot: votes by which the worst of several points is chosen.
        margin: of the verdict. Votes leave a tenth of it as the standard deviation of an accuracy: the rest of the
            uncertainty is that of the images, which more votes do not take away.

    Raises:
        DefenseError: members answer surely more or less often than their weights say.
    """
    variance = len(images) * (margin / 10) ** 2
    findings = []
    if mixture is not None:
        if members_answer(look, mixture, images[:1]):
            return Ballot(pilot, variance, members=mixture), []
        findings.append(
            Finding(
                "members-do-not-answer",
                "what the defense returns is not what one of the given members returns, each time: chances are "
                "estimated from repeated forwards of the defense itself",
            )
        )
    return Ballot(pilot, variance, draws_shared(look, images[:1])), findings


def right(
    model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor, chunk: int = _CHUNK
) -> torch.Tensor:
    """Whether one forward classifies each image correctly; bool, N. NaN logits do not."""
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.bool, device=images.device)

    def part(start: int, end: int) -> torch.Tensor:
        with torch.no_grad():
            return margin(model(images[start:end]), labels[start:end]) < 0

    return torch.cat(in_batches(part, len(images), chunk))


def votes_needed(share: float, pilot: int, variance: float) -> int:
    """How many votes hold the variance of an image's estimated chance below ``variance``, going by a pilot.

    Args:
        share: of right answers in the pilot.
        pilot: votes of the pilot.
        variance: above 0.
    """
    guess = (share * pilot + 1) / (pilot + 2)  # Laplace's: a unanimous pilot does not mean that all will be
    return min(_MOST, max(1, math.ceil(guess * (1 - guess) / variance)))


def draws_shared(look: Oracle, image: torch.Tensor) -> bool:
    """Whether two copies of an image (1 x C x H x W) in one batch get answers that vary together."""
    with torch.no_grad():
        answers = torch.stack([look(image.repeat(2, 1, 1, 1)) for _ in range(_WATCHED)]).double()
    first, second = (answers - answers.mean(0)).unbind(1)
    size = (first.square().sum() * second.square().sum()).sqrt()
    return bool((first * second).sum() > _CORRELATED * size)


def members_answer(look: Oracle, mixture: Oracle, image: torch.Tensor) -> bool:
    """Whether every answer to an image (1 x C x H x W) is that of one of the members, none of which is random.

    Args:
        look: the defense as it is used.
        mixture: knows the members and their weights.

    Raises:
        DefenseError: members answer surely more or less often than their weights say.
    """
    with torch.no_grad():
        own = torch.cat([member(image) for member in mixture.members])
        again = torch.cat([member(image) for member in mixture.members])
        answers = torch.cat([look(image) for _ in range(_WATCHED)])
    near = _SAME * own.abs().amax().clamp_min(1e-12)
    if bool(((own - again).abs().amax(1) > near).any()):
        return False
    matches = torch.cdist(answers, own, p=float("inf")) <= near
    if not bool(matches.any(1).all()):
        return False
    if bool((matches.sum(1) == 1).all()):  # members that agree on this image cannot be counted
        _check_weights(matches.sum(0).tolist(), mixture.weights)
    return True


def _check_weights(counts: Sequence[int], weights: Sequence[float]) -> None:
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        if binomtest(count, _WATCHED, weight).pvalue < _RARE / len(weights):
            raise DefenseError(
                f"weights: member {number} answers {count} of {_WATCHED} forwards, which a weight of {weight:.3g} "
                "makes next to impossible; give Defense(weights=...) as the model draws"
            )
