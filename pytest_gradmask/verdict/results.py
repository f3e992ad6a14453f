"""What attacks and probes found, image by image: plain data, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Literal

from pytest_gradmask.threat import Access
from pytest_gradmask.verdict.stats import accuracy_bounds, clopper_pearson

Kind = Literal["gradient", "adaptive", "placebo"]
Status = Literal["done", "failed", "skipped", "skipped-early"]
#: Versions of AutoAttack, ``rand`` for randomized defenses.
AutoAttackVersion = Literal["standard", "rand"]


class Verdict(Enum):
    """The three answers an audit can give."""

    MASKED = "MASKED"
    NOT_MASKED = "NOT_MASKED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom that a probe found.

    Attributes:
        id: kebab-case name.
        message: what was found, in a sentence.
        undermines_attacks: whether a failed attack proves nothing on this defense. ``NOT_MASKED`` is then refused.
        link: where it is explained. By default a section of docs/findings.md, from the root of the repository.
    """

    id: str
    message: str
    undermines_attacks: bool = False
    link: str = ""

    def __post_init__(self) -> None:
        if not self.link:
            object.__setattr__(self, "link", f"docs/findings.md#{self.id}")


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation in the code of a defense that hides its gradient.

    Attributes:
        name: such as ``torch.round``.
        file: path; relative to the working directory where the file is inside it.
        line: in the file.
        count: how often it runs in one forward pass.
    """

    name: str
    file: str
    line: int
    count: int

    def __str__(self) -> str:
        return f"`{self.name}` at {self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Monte Carlo prediction: how a randomized defense answers at one point, over repeated forwards.

    Attributes:
        pilot: share of correct answers in the samples that choose the worst of several points.
        correct: share of correct answers in further samples of that point alone. The verdict rests on these: judged by
            the samples that chose it, the worst of several points would look worse than it is.
        number: of those further samples. It is 0 where members and their weights are known, and both shares exact.
        first: whether the very first sample was correct. AutoAttack judges by one sample.
    """

    pilot: float
    correct: float
    number: int
    first: bool

    def interval(self, confidence: float) -> tuple[float, float]:
        """Exact one-sided bounds of the chance of a correct answer, each valid at ``confidence``."""
        if self.number == 0:
            return self.correct, self.correct
        return clopper_pearson(round(self.correct * self.number), self.number, confidence)


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What one attack did to the images that it was given.

    Attributes:
        name: unique within an audit.
        kind: its family.
        access: what it sees of the defense.
        attacked: indices of the images it was given.
        broken: indices of the images it broke, scored again by the audit. Of a randomized defense: those that get a
            wrong answer more often than a correct one.
        status: ``"done"``, ``"failed"`` (it raised), ``"skipped"`` (it cannot run on this defense) or
            ``"skipped-early"`` (the verdict was decided without it).
        note: why it is not ``"done"``.
        invalid: returned images outside the ball or the bounds, or not finite. They count as not broken.
        rejected: returned images that a defense with a reject option rejects. They count as not broken.
        forwards, backwards: images passed through the defense in each direction.
        seconds: wall-clock time.
        autoattack: versions of AutoAttack that this attack is part of.
        by_user: whether it is an attack of the user's.
        passes: forward and backward passes that an image faced which the attack did not break.
        predictions: of a randomized defense on each returned image, by index; empty for a deterministic defense.
    """

    name: str
    kind: Kind
    _: KW_ONLY
    access: Access = "gradient"
    attacked: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    status: Status = "done"
    note: str = ""
    invalid: int = 0
    rejected: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    autoattack: tuple[AutoAttackVersion, ...] = ()
    by_user: bool = False
    passes: int = 0
    predictions: Mapping[int, Prediction] = field(default_factory=dict)

    @property
    def decided(self) -> set[int]:
        """Images that no further attack needs to try: broken ones or, if randomized, those never answered correctly."""
        if not self.predictions:
            return set(self.broken)
        return {index for index, prediction in self.predictions.items() if prediction.pilot == 0}


def has_gradient(attacks: Iterable[AttackResult]) -> bool:
    """Whether gradient attacks could run at all. On a plain function they cannot, and the placebo is skipped, too."""
    return not any(result.kind == "placebo" and result.status == "skipped" for result in attacks)


def chances(
    clean: Sequence[bool], predictions: Mapping[int, Prediction], attacks: Iterable[AttackResult]
) -> list[float]:
    """For each image, the chance of a correct answer at the worst point that these attacks found, or without any.

    Args:
        clean: whether each image is classified correctly without an attack.
        predictions: of a randomized defense without an attack, for every image. Empty for a deterministic defense,
            whose chances are 0 and 1.
        attacks: any. An image that none of them attacked keeps its clean chance.
    """
    if not predictions:
        broken = {index for result in attacks for index in result.broken}
        return [float(correct and index not in broken) for index, correct in enumerate(clean)]
    worst = dict(predictions)
    for result in attacks:
        for index, prediction in result.predictions.items():
            if prediction.pilot < worst[index].pilot:
                worst[index] = prediction
    return [worst[index].correct for index in range(len(clean))]


def always_correct(total: int, predictions: Mapping[int, Prediction], attacks: Iterable[AttackResult]) -> list[bool]:
    """For each image, whether a randomized defense was right in every sample, with and without these attacks.

    Counts the samples that choose the worst of several points, whose number is the same at each point. Where members
    are known, every member has to be right.

    Args:
        total: number of images.
        predictions: without an attack, for every image.
        attacks: any.
    """
    every = [predictions, *(result.predictions for result in attacks)]
    # Exact chances are sums of weights, which may be a little below 1.
    return [all(each[index].pilot > 1 - 1e-9 for each in every if index in each) for index in range(total)]


@dataclass(frozen=True, slots=True)
class Proportion:
    """``count`` of ``total`` images, with one-sided bounds each valid at the audit's confidence.

    Of a randomized defense, ``count`` is how many are answered correctly on average.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The masking gap beyond the placebo, as a share of the images that are classified correctly without an attack.

    Misclassified images cannot be broken. As a share of all images, a gap could not reach the margin where few are
    classified correctly.

    On a randomized defense an image is broken in part: by the difference of two chances of a correct answer.

    Attributes:
        excess: images that an adaptive attack breaks, and neither a gradient attack nor the placebo.
        placebo_only: images that the placebo breaks, and neither a gradient attack nor an adaptive attack.
        total: images that are classified correctly without an attack.
        estimate: ``(excess - placebo_only) / total``.
        low, high: bounds of it, each valid at the audit's confidence, however early the audit ended, and over all
            attempts at this defense.
        low_level, high_level: the confidence of each bound alone. It is higher, as decisions and attempts share the
            error.
        p_value: of the paired test of all adaptive attacks that ran against the placebo, divided by this decision's
            share of the error.
        analyses: how often the audit may decide: once after each adaptive attack on each batch of images.
    """

    excess: float
    placebo_only: float
    total: int
    estimate: float
    low: float
    high: float
    low_level: float
    high_level: float
    p_value: float
    analyses: int

    @property
    def bounds(self) -> str:
        """Its bounds in percentage points, for text: ``[26.5, 51.2]``."""
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} percentage points {self.bounds}"
