"""What an audit returns: plain data, no torch, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal

from pytest_gradmask.verdict.stats import accuracy_bounds, clopper_pearson

Kind = Literal["gradient", "adaptive", "placebo"]
Status = Literal["done", "failed", "skipped", "skipped-early"]


class Verdict(Enum):
    """The three answers an audit can give."""

    MASKED = "MASKED"
    NOT_MASKED = "NOT_MASKED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a probe saw.

    Attributes:
        id: kebab-case name of the probe.
        message: what was seen, in a sentence.
        undermines_attacks: whether a failed attack proves nothing here, so that ``NOT_MASKED`` is refused.
        link: where it is explained; by default on our page, from the root of the repository.
    """

    id: str
    message: str
    undermines_attacks: bool = False
    link: str = ""

    def __post_init__(self) -> None:
        if not self.link:
            object.__setattr__(self, "link", f"docs/findings.md#{self.id}")


#: What AutoAttack runs on randomized defenses, its version ``rand``.
_RAND = ("apgd-ce", "apgd-dlr")


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a randomized defense answers at one point, over repeated forwards.

    Attributes:
        pilot: share of right answers in the forwards by which the worst of several points is chosen.
        correct: share of right answers in other forwards, of that point alone. These count: judged by the forwards by
            which it was chosen, the worst of several points would look worse than it is.
        number: of those other forwards; 0 where members and their weights are known, and both shares exact.
        first: whether the first forward of all was right, by which AutoAttack judges.
    """

    pilot: float
    correct: float
    number: int
    first: bool

    def interval(self, confidence: float) -> tuple[float, float]:
        """Exact one-sided bounds of the chance of a right answer, each valid at ``confidence``."""
        if self.number == 0:
            return self.correct, self.correct
        return clopper_pearson(round(self.correct * self.number), self.number, confidence)


@dataclass(frozen=True, slots=True)
class AttackResult:
    """One attack on the images that were still standing when it started.

    Attributes:
        name: unique within an audit.
        kind: its family.
        attacked: indices of the images it was given.
        broken: indices of the images it broke, re-scored by the audit; on a randomized defense, those that get a wrong
            answer more often than a right one.
        status: ``"done"``, ``"failed"`` (it raised), ``"skipped"`` (it cannot run on this defense) or
            ``"skipped-early"`` (the verdict was certain without it).
        note: why it is not ``"done"``.
        invalid: returned images outside the ball or the bounds, or not finite: counted as not broken.
        forwards, backwards: images passed through the defense in each direction.
        seconds: wall-clock time.
        autoattack: whether it is one of AutoAttack's attacks.
        predictions: of a randomized defense on each returned image, by index; empty for a deterministic one.
    """

    name: str
    kind: Kind
    attacked: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    status: Status = "done"
    note: str = ""
    invalid: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    autoattack: bool = False
    predictions: Mapping[int, Prediction] = field(default_factory=dict)

    @property
    def decided(self) -> set[int]:
        """Images that no other attack needs to be tried on: broken ones or, by votes, those never answered right."""
        return (
            {index for index, predictions in self.predictions.items() if predictions.pilot == 0}
            if self.predictions
            else set(self.broken)
        )


def chances(
    clean: Sequence[bool], predictions: Mapping[int, Prediction], attacks: Iterable[AttackResult]
) -> list[float]:
    """For each image, the chance of a right answer at the worst point that these attacks have found, or without any.

    Args:
        clean: whether each image is classified correctly without an attack.
        predictions: of a randomized defense without an attack, for every image; empty for a deterministic one, whose
            chances are 0 and 1.
        attacks: any; what they did not attack stays as it was.
    """
    if not predictions:
        broken = {index for result in attacks for index in result.broken}
        return [float(correct and index not in broken) for index, correct in enumerate(clean)]
    worst = dict(predictions)
    for result in attacks:
        for index, found in result.predictions.items():
            if found.pilot < worst[index].pilot:
                worst[index] = found
    return [worst[index].correct for index in range(len(clean))]


@dataclass(frozen=True, slots=True)
class Proportion:
    """``count`` of ``total`` images, with one-sided bounds each valid at the audit's confidence.

    Of a randomized defense, ``count`` is how many are answered right on average.
    """

    count: float
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int, confidence: float) -> Proportion:
        """With bounds each valid at ``confidence``."""
        return cls(count, total, *clopper_pearson(count, total, confidence))

    @classmethod
    def of_chances(cls, chances: Sequence[float], confidence: float) -> Proportion:
        """The mean of independent chances."""
        return cls(math.fsum(chances), len(chances), *accuracy_bounds(chances, confidence))

    @property
    def value(self) -> float:
        """``count / total``."""
        return self.count / self.total

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def accuracy(
    clean: Sequence[bool], predictions: Mapping[int, Prediction], attacks: Iterable[AttackResult], confidence: float
) -> Proportion:
    """The mean of `chances`; exact bounds of a deterministic defense, and of a randomized one those of a mean."""
    each = chances(clean, predictions, attacks)
    return (
        Proportion.of_chances(each, confidence) if predictions else Proportion.of(int(sum(each)), len(each), confidence)
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """The masking gap beyond the placebo, in shares of all images.

    On a randomized defense an image falls in part: by the difference of two chances of a right answer.

    Attributes:
        excess: images that survive every gradient attack and the placebo, and fall to an adaptive attack.
        placebo_only: images that survive every gradient attack and adaptive attack, and fall to the placebo.
        total: all images of the audit.
        estimate: ``(excess - placebo_only) / total``.
        low, high: bounds of it, each valid at the audit's confidence, however early the audit ended.
        p_value: of the paired test of all adaptive attacks that ran against the placebo, times ``analyses``.
        analyses: how often an audit may look at the evidence: once after each adaptive attack on each batch of images.
    """

    excess: float
    placebo_only: float
    total: int
    estimate: float
    low: float
    high: float
    p_value: float
    analyses: int

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} points [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Audit:
    """One defense, audited.

    Attributes:
        defense: its name.
        verdict: the answer.
        reasons: why, in sentences; the last may say what to do next.
        clean: for each image, whether the defense classifies it correctly without any attack; a randomized one, in at
            least half of all forwards.
        attacks: every attack in the order it ran.
        gap: the masking gap beyond the placebo; None where there was nothing to compare.
        findings: what the probes saw.
        images_needed: about how many images would settle an ``INCONCLUSIVE``; None if images are not what is missing.
        margin: the largest gap, as a share of images, that still counts as none.
        confidence: of every bound and test.
        bypassed: names of the submodules that BPDA bypassed.
        seconds: wall-clock time.
        test: name of the test that asked for the audit, if any.
        provenance: versions, device, seed, threat model, budget, data.
        predictions: of a randomized defense without any attack, for each image; empty for a deterministic one.
        images: for each image, its index among those that the audit was given.
        given: number of those. The verdict may be certain before all have been looked at.
        exhaustive: whether every attack was to run on every image.
        cached: whether it was found in a cache; ``seconds`` and ``provenance`` are then those of when it was made.
    """

    defense: str
    verdict: Verdict
    reasons: tuple[str, ...]
    clean: tuple[bool, ...]
    attacks: tuple[AttackResult, ...]
    gap: Gap | None
    findings: tuple[Finding, ...]
    images_needed: int | None
    margin: float
    confidence: float
    bypassed: tuple[str, ...] = ()
    seconds: float = 0.0
    test: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[int, Prediction] = field(default_factory=dict)
    images: tuple[int, ...] = ()
    given: int = 0
    exhaustive: bool = False
    cached: bool = False

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.clean)

    def attack(self, name: str) -> AttackResult:
        """The result of one attack, by name."""
        for result in self.attacks:
            if result.name == name:
                return result
        raise KeyError(f"no attack {name!r}; there are {', '.join(result.name for result in self.attacks)}")

    def survivors(self, attacks: Iterable[AttackResult]) -> set[int]:
        """Images classified correctly both without an attack and under each of ``attacks``.

        Of a randomized defense: in at least half of all forwards at each of their points.
        """
        return {index for index, correct in enumerate(self.clean) if correct} - {
            index for result in attacks for index in result.broken
        }

    def of_kind(self, *kinds: Kind) -> list[AttackResult]:
        """The attacks of one or more families."""
        return [result for result in self.attacks if result.kind in kinds]

    def _share(self, attacks: Iterable[AttackResult]) -> Proportion:
        return accuracy(self.clean, self.predictions, attacks, self.confidence)

    @property
    def clean_accuracy(self) -> Proportion:
        """Accuracy without any attack."""
        return self._share([])

    @property
    def gradient_accuracy(self) -> Proportion:
        """Robust accuracy under the gradient attacks together (pointwise worst case)."""
        return self._share(self.of_kind("gradient"))

    @property
    def robust_accuracy(self) -> Proportion:
        """Robust accuracy under every attack together, the placebo included (pointwise worst case)."""
        return self._share(self.attacks)

    @property
    def autoattack_accuracy(self) -> Proportion | None:
        """Robust accuracy under AutoAttack's attacks together, as the field quotes it.

        None if not all of them ran, and if another attack has spared them images: in all but exhaustive audits.
        """
        return self._under([result for result in self.attacks if result.autoattack]) if self.exhaustive else None

    @property
    def rand_accuracy(self) -> Proportion | None:
        """The same for the attacks of AutoAttack's version ``rand``, judged by votes; None for deterministic ones."""
        return self._under(self._rand()) if self.predictions else None

    @property
    def rand_claim(self) -> Proportion | None:
        """What AutoAttack's version ``rand`` would say itself, by one forward of each image before and after it."""
        results = self._rand()
        if not self.predictions or self._under(results) is None:
            return None
        firsts = [self.predictions, *(result.predictions for result in results)]
        fooled = {index for predictions in firsts for index, found in predictions.items() if not found.first}
        return Proportion.of(self.total - len(fooled), self.total, self.confidence)

    def _rand(self) -> list[AttackResult]:
        return [result for result in self.attacks if result.autoattack and result.name in _RAND]

    def _under(self, results: Sequence[AttackResult]) -> Proportion | None:
        complete = bool(results) and all(result.status == "done" for result in results)
        return self._share(results) if complete else None

    def accuracy_under(self, name: str) -> Proportion:
        """Robust accuracy once this attack has run.

        Attacks run on survivors only. A gradient attack's figure therefore includes the gradient attacks before
        it, and an adaptive attack's or the placebo's includes all gradient attacks, but no other adaptive attack.

        Raises:
            KeyError: there is no such attack.
            ValueError: it did not run to its end.
        """
        result = self.attack(name)
        if result.status != "done":
            raise ValueError(f"attack {name!r} has no accuracy: it was {result.status} ({result.note})")
        before = self.of_kind("gradient")
        if result.kind == "gradient":
            before = before[: before.index(result)]
        return self._share([*before, result])

    def broken_alone(self, name: str) -> int:
        """Images that fall to this attack and to no other that was given them."""
        return len(
            set(self.attack(name).broken)
            - {index for other in self.attacks if other.name != name for index in other.broken}
        )


def in_order(audit: Audit, images: Sequence[int]) -> Audit:
    """An audit whose images were looked at in another order, with its images in theirs.

    Args:
        audit: of images numbered as they were looked at.
        images: for each of them, its index among those given.
    """
    ranks = {image: rank for rank, image in enumerate(sorted(images))}
    place = [ranks[image] for image in images]

    def moved(predictions: Mapping[int, Prediction]) -> dict[int, Prediction]:
        return {place[index]: predictions[index] for index in sorted(predictions, key=place.__getitem__)}

    def sorted_places(indices: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(place[index] for index in indices))

    attacks = [
        replace(
            result,
            attacked=sorted_places(result.attacked),
            broken=sorted_places(result.broken),
            predictions=moved(result.predictions),
        )
        for result in audit.attacks
    ]
    clean = dict(zip(place, audit.clean, strict=True))
    return replace(
        audit,
        clean=tuple(clean[rank] for rank in range(len(place))),
        attacks=tuple(attacks),
        predictions=moved(audit.predictions),
        images=tuple(sorted(images)),
    )
