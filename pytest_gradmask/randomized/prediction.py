"""Monte Carlo prediction: with what chance a randomized defense answers a point correctly, over repeated forwards.

One forward is not enough to judge by, as AutoAttack does. "Broken in any of n tries" is no judgment either: any noise
amounts to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.stats import binomtest
from torch import Tensor

from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.batching import in_batches
from pytest_gradmask.verdict.results import Finding, Prediction

#: From images (N x C x H x W) to logits (N x K).
Classifier = Callable[[Tensor], Tensor]

_CHUNK = 250  # images of one forward
_MOST = 1000  # samples of one image
#: Forwards that show whether the images of a batch share their randomness, and which members answer.
_WATCHED = 64
_CORRELATED = 0.3  # of 64 independent pairs, a correlation above this is rare; taking it for shared only costs time
_SAME = 0.02  # outputs that differ by less, relative to their size, are the same: rounding depends on the batch
_RARE = 1e-4  # chance of an error about weights that are right


class KnownMembers(Protocol):
    """A randomized ensemble whose members, and the chance with which each answers, are known."""

    @property
    def members(self) -> Sequence[Classifier]: ...

    @property
    def weights(self) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """How many samples (forwards) each image gets, and how they are drawn.

    Attributes:
        pilot: samples that choose the worst of several points. They also decide how many further samples the chosen
            point gets.
        variance: largest variance that the further samples may leave in the estimated chance of one image.
        one_by_one: whether the images of a batch share their randomness (one member answers them all). Each image is
            then a batch of its own; otherwise the samples of different images would not be independent.
        members: the known members of an ensemble. Chances are then exact, and only one sample is drawn.
    """

    pilot: int
    variance: float
    one_by_one: bool = False
    members: KnownMembers | None = None

    def predict(self, defense: Classifier, images: Tensor, labels: Tensor) -> list[Prediction]:
        """The prediction for each image.

        Args:
            defense: as its users call it.
            images: N x C x H x W.
            labels: int64, N.
        """
        first = is_correct(defense, images, labels)
        if self.members is not None:
            exact = _exact(self.members, images, labels)
            return [
                Prediction(pilot=chance, correct=chance, number=0, first=once)
                for chance, once in zip(exact, first.tolist(), strict=True)
            ]
        count = first.double()
        for _ in range(self.pilot - 1):
            count += is_correct(defense, images, labels)
        pilot = (count / self.pilot).tolist()
        numbers = [samples_needed(share, self.pilot, self.variance) for share in pilot]
        correct = self._sample(defense, images, labels, numbers)
        return [
            Prediction(pilot=share, correct=chance, number=number, first=once)
            for share, chance, number, once in zip(pilot, correct, numbers, first.tolist(), strict=True)
        ]

    def _sample(self, defense: Classifier, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> list[float]:
        needed = torch.tensor(numbers, device=images.device)
        correct = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for number in range(max(numbers, default=0)):
            active = (needed > number).nonzero()[:, 0]
            correct[active] += is_correct(
                defense, images[active], labels[active], chunk=1 if self.one_by_one else _CHUNK
            )
        return (correct / needed).tolist()


def _exact(ensemble: KnownMembers, images: Tensor, labels: Tensor) -> list[float]:
    chance = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for weight, member in zip(ensemble.weights, ensemble.members, strict=True):
        chance += weight * is_correct(member, images, labels).double()
    return chance.clamp(0, 1).tolist()


def plan_sampler(
    defense: Classifier, ensemble: KnownMembers | None, images: Tensor, *, pilot: int, margin: float
) -> tuple[Sampler, list[Finding]]:
    """How to judge a randomized defense, and what is unusual about it.

    Args:
        defense: as its users call it.
        ensemble: its members and their weights, if they are known.
        images: of the audit, N x C x H x W.
        pilot: samples that choose the worst of several points.
        margin: of the verdict. Sampling leaves a tenth of it as the standard deviation of an accuracy: the rest of the
            uncertainty is that of the images, which more samples do not reduce.

    Raises:
        DefenseError: members certainly answer more or less often than their weights say.
    """
    variance = len(images) * (margin / 10) ** 2
    findings = []
    if ensemble is not None:
        if members_answer(defense, ensemble, images[:1]):
            return Sampler(pilot=pilot, variance=variance, members=ensemble), []
        findings.append(
            Finding(
                "members-do-not-answer",
                "what the defense returns is not what one of the given members returns, each time: chances are "
                "estimated from repeated forwards of the defense itself",
            )
        )
    return Sampler(pilot=pilot, variance=variance, one_by_one=draws_shared(defense, images[:1])), findings


def label_wins(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label's logit is the largest of each row; bool, N. False for ties and for NaN."""
    logits = logits.float()
    label = logits.gather(1, labels[:, None]).squeeze(1)
    return label > logits.scatter(1, labels[:, None], float("-inf")).amax(1)


def is_correct(model: Classifier, images: Tensor, labels: Tensor, *, chunk: int = _CHUNK) -> Tensor:
    """Whether one forward classifies each image correctly; bool, N. NaN logits do not."""
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.bool, device=images.device)

    def part(start: int, end: int) -> Tensor:
        with torch.no_grad():
            return label_wins(model(images[start:end]), labels[start:end])

    return torch.cat(in_batches(part, len(images), chunk))


def samples_needed(share: float, pilot: int, variance: float) -> int:
    """How many samples hold the variance of an image's estimated chance below ``variance``, going by a pilot.

    Args:
        share: of correct answers in the pilot.
        pilot: samples of the pilot.
        variance: above 0.
    """
    guess = (share * pilot + 1) / (pilot + 2)  # Laplace's: a unanimous pilot does not mean that all will be
    return min(_MOST, max(1, math.ceil(guess * (1 - guess) / variance)))


def draws_shared(defense: Classifier, image: Tensor) -> bool:
    """Whether two copies of an image (1 x C x H x W) in one batch get answers that vary together."""
    with torch.no_grad():
        answers = torch.stack([defense(image.repeat(2, 1, 1, 1)) for _ in range(_WATCHED)]).double()
    first, second = (answers - answers.mean(0)).unbind(1)
    size = (first.square().sum() * second.square().sum()).sqrt()
    return bool((first * second).sum() > _CORRELATED * size)


def members_answer(defense: Classifier, ensemble: KnownMembers, image: Tensor) -> bool:
    """Whether every answer to an image (1 x C x H x W) is that of one of the members, none of which is random.

    Args:
        defense: as its users call it.
        ensemble: its members and their weights.

    Raises:
        DefenseError: members certainly answer more or less often than their weights say.
    """
    with torch.no_grad():
        own = torch.cat([member(image) for member in ensemble.members])
        again = torch.cat([member(image) for member in ensemble.members])
        answers = torch.cat([defense(image) for _ in range(_WATCHED)])
    near = _SAME * own.abs().amax().clamp_min(1e-12)
    if bool(((own - again).abs().amax(1) > near).any()):
        return False
    matches = torch.cdist(answers, own, p=float("inf")) <= near
    if not bool(matches.any(1).all()):
        return False
    if bool((matches.sum(1) == 1).all()):  # members that agree on this image cannot be counted
        _check_weights(matches.sum(0).tolist(), ensemble.weights)
    return True


def _check_weights(counts: Sequence[int], weights: Sequence[float]) -> None:
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        if binomtest(count, _WATCHED, weight).pvalue < _RARE / len(weights):
            raise DefenseError(
                f"weights: member {number} answers {count} of {_WATCHED} forwards, which a weight of {weight:.3g} "
                "makes next to impossible; give Defense(weights=...) as the model draws"
            )
