"""Monte Carlo prediction: the probability that a randomized defense classifies an image correctly.

It is estimated from repeated forward passes. A single forward pass, which AutoAttack uses, is not enough. "Broken in
any of n forward passes" is not a valid criterion either: noise alone satisfies it if n is large enough.
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

_CHUNK = 250  # images of one forward pass
_MAX_SAMPLES = 1000  # of one image
#: Forward passes that show whether the images of a batch share their randomness, and which members answer.
_OBSERVED = 64
#: Correlations above this are rare for 64 independent pairs. If it is wrong, predictions only take longer.
_CORRELATED = 0.3
_SAME = 0.02  # outputs that differ by less, relative to their size, are equal: rounding depends on the batch
_ERROR_RATE = 1e-4  # probability of an error about correct weights


class KnownMembers(Protocol):
    """A randomized ensemble whose members are known, and the probability of each to answer."""

    @property
    def members(self) -> Sequence[Classifier]: ...

    @property
    def weights(self) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """How many samples (forward passes) each image gets, and how they are drawn.

    Attributes:
        pilot: number of samples that choose the worst of several perturbed images. They also decide how many further
            samples the chosen one gets.
        variance: largest variance that the further samples may leave in the estimated probability of one image.
        one_by_one: whether the images of a batch share their randomness, because one member answers them all. Each
            image is then a batch of its own. Otherwise the samples of different images would not be independent.
        members: the known members of an ensemble. Probabilities are then exact, and only one sample is drawn.
    """

    pilot: int
    variance: float
    one_by_one: bool = False
    members: KnownMembers | None = None

    def predict(self, defense: Classifier, images: Tensor, labels: Tensor) -> list[Prediction]:
        """The prediction for each image.

        Args:
            defense: the defense in the form that its users call.
            images: N x C x H x W.
            labels: int64, N.
        """
        first = is_correct(defense, images, labels)
        if self.members is not None:
            exact = _exact(self.members, images, labels)
            return [
                Prediction(pilot=chance, correct=chance, number=0, first=is_first_correct)
                for chance, is_first_correct in zip(exact, first.tolist(), strict=True)
            ]
        count = first.double()
        for _ in range(self.pilot - 1):
            count += is_correct(defense, images, labels)
        pilot = (count / self.pilot).tolist()
        numbers = [samples_needed(share, self.pilot, self.variance) for share in pilot]
        correct = self._sample(defense, images, labels, numbers)
        return [
            Prediction(pilot=share, correct=chance, number=number, first=is_first_correct)
            for share, chance, number, is_first_correct in zip(pilot, correct, numbers, first.tolist(), strict=True)
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
    """How to sample a randomized defense, and findings about unusual behaviour.

    Args:
        defense: the defense in the form that its users call.
        ensemble: its members and their weights, if they are known.
        images: of the audit, N x C x H x W.
        pilot: number of samples that choose the worst of several perturbed images.
        margin: of the verdict. The standard deviation of an accuracy due to sampling is a tenth of it. More samples
            would not reduce the rest of the uncertainty, which is due to the choice of the images.

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
                "some outputs of the defense are not those of any given member: probabilities are estimated from "
                "repeated forward passes of the defense itself",
            )
        )
    return Sampler(pilot=pilot, variance=variance, one_by_one=draws_shared(defense, images[:1])), findings


def label_wins(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label's logit is the largest of each row; bool, N. False for ties and for NaN."""
    logits = logits.float()
    label = logits.gather(1, labels[:, None]).squeeze(1)
    return label > logits.scatter(1, labels[:, None], float("-inf")).amax(1)


def is_correct(model: Classifier, images: Tensor, labels: Tensor, *, chunk: int = _CHUNK) -> Tensor:
    """Whether one forward pass classifies each image correctly; bool, N. False for NaN logits."""
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.bool, device=images.device)

    def part(start: int, end: int) -> Tensor:
        with torch.no_grad():
            return label_wins(model(images[start:end]), labels[start:end])

    return torch.cat(in_batches(part, len(images), chunk))


def samples_needed(share: float, pilot: int, variance: float) -> int:
    """How many samples keep the variance of an image's estimated probability below ``variance``, after a pilot.

    Args:
        share: of the pilot's samples that are correct.
        pilot: number of samples of the pilot.
        variance: above 0.
    """
    estimate = (share * pilot + 1) / (pilot + 2)  # Laplace smoothing: more samples may differ from a unanimous pilot
    return min(_MAX_SAMPLES, max(1, math.ceil(estimate * (1 - estimate) / variance)))


def draws_shared(defense: Classifier, image: Tensor) -> bool:
    """Whether two copies of an image (1 x C x H x W) in one batch get correlated outputs."""
    with torch.no_grad():
        outputs = torch.stack([defense(torch.cat([image, image])) for _ in range(_OBSERVED)]).double()
    first, second = (outputs - outputs.mean(0)).unbind(1)
    size = (first.square().sum() * second.square().sum()).sqrt()
    return bool((first * second).sum() > _CORRELATED * size)


def members_answer(defense: Classifier, ensemble: KnownMembers, image: Tensor) -> bool:
    """Whether each output for an image (1 x C x H x W) is that of one member, and all members are deterministic.

    Args:
        defense: the defense in the form that its users call.
        ensemble: its members and their weights.

    Raises:
        DefenseError: members certainly answer more or less often than their weights say.
    """
    with torch.no_grad():
        of_members = torch.cat([member(image) for member in ensemble.members])
        repeated = torch.cat([member(image) for member in ensemble.members])
        outputs = torch.cat([defense(image) for _ in range(_OBSERVED)])
    tolerance = _SAME * of_members.abs().amax().clamp_min(1e-12)
    if bool(((of_members - repeated).abs().amax(1) > tolerance).any()):
        return False
    matches = torch.cdist(outputs, of_members, p=float("inf")) <= tolerance
    if not bool(matches.any(1).all()):
        return False
    if bool((matches.sum(1) == 1).all()):  # members with equal outputs for this image cannot be counted
        _check_weights(matches.sum(0).tolist(), ensemble.weights)
    return True


def _check_weights(counts: Sequence[int], weights: Sequence[float]) -> None:
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        if binomtest(count, _OBSERVED, weight).pvalue < _ERROR_RATE / len(weights):
            raise DefenseError(
                f"weights: member {number} answers {count} of {_OBSERVED} forwards, which a weight of {weight:.3g} "
                "makes almost impossible; give Defense(weights=...) as the model draws"
            )
