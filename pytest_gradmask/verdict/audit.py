"""What an audit returns: plain data, no torch, ready for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_gradmask.verdict.results import (
    AttackResult,
    Finding,
    Gap,
    Kind,
    Operation,
    Prediction,
    Proportion,
    Verdict,
    accuracy,
    always_correct,
    has_gradient,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The result of one audit of one defense.

    Attributes:
        defense: its name.
        verdict: the answer.
        reasons: why, in sentences; the last may say what to do next.
        clean: for each image, whether the defense classifies it correctly without any attack; a randomized one, in at
            least half of all samples.
        attacks: every attack in the order it ran.
        gap: the masking gap beyond the placebo; None where there was nothing to compare.
        findings: of the probes.
        images_needed: about how many images would decide an ``INCONCLUSIVE`` audit; None if more images would not.
        margin: the largest gap, as a share of images, that still counts as no masking.
        confidence: of every bound and test.
        bypassed: what attacks bypassed: submodules, all before or after one, or all around an inner classifier.
        operations: in the code of the defense, those that hide its gradient. Operation-level BPDA replaces theirs.
        seconds: wall-clock time.
        test: name of the test that asked for the audit, if any.
        provenance: versions, device, seed, threat model, budget, data.
        predictions: of a randomized defense without any attack, for each image; empty for a deterministic one.
        images: for each image, its index among those that the audit was given.
        given: how many images the audit was given. The verdict may be decided before all have been attacked.
        exhaustive: whether every attack was to run on every image.
        rejected: for each image, whether a defense with a reject option rejects it without any attack. Such an image is
            not correct. Empty for a defense without a reject option.
        attempt: which audit of this defense under this threat model it is, from 1. Each has a share of the error.
        earlier: how many different audits of it the cache knew before this one. They change nothing in it.
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
    operations: tuple[Operation, ...] = ()
    seconds: float = 0.0
    test: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[int, Prediction] = field(default_factory=dict)
    images: tuple[int, ...] = ()
    given: int = 0
    exhaustive: bool = False
    rejected: tuple[bool, ...] = ()
    attempt: int = 1
    earlier: int = 0
    cached: bool = False

    def __repr__(self) -> str:
        """Short: pytest prints it above a failure."""
        return f"<{self.verdict.name}: {self.defense}, {self.total} images>"

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.clean)

    @property
    def next_attempt(self) -> int:
        """The number of the next audit of this defense. One that could not compare anything is no attempt."""
        return self.attempt + (self.gap is not None)

    @property
    def has_gradient(self) -> bool:
        """Whether gradient attacks could run at all, which they cannot on a plain function."""
        return has_gradient(self.attacks)

    def attack(self, name: str) -> AttackResult:
        """The result of one attack, by name."""
        for result in self.attacks:
            if result.name == name:
                return result
        raise KeyError(f"no attack {name!r}; there are {', '.join(result.name for result in self.attacks)}")

    def survivors(self, attacks: Iterable[AttackResult]) -> set[int]:
        """Images classified correctly both without an attack and under each of ``attacks``.

        Of a randomized defense: in at least half of all samples at each of their points.
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
    def clean_rejected(self) -> Proportion | None:
        """Share of the images that are rejected without any attack; None for a defense without a reject option."""
        return Proportion.of(sum(self.rejected), self.total, self.confidence) if self.rejected else None

    @property
    def selective_accuracy(self) -> Proportion | None:
        """Accuracy without any attack on the accepted images alone; None if there are none, or no reject option."""
        accepted = [correct for correct, rejected in zip(self.clean, self.rejected, strict=False) if not rejected]
        return Proportion.of(sum(accepted), len(accepted), self.confidence) if accepted else None

    @property
    def gradient_accuracy(self) -> Proportion:
        """Robust accuracy under the gradient attacks together (pointwise worst case)."""
        return self._share(self.of_kind("gradient"))

    @property
    def robust_accuracy(self) -> Proportion:
        """Robust accuracy under every attack together, the placebo included (pointwise worst case)."""
        return self._share(self.attacks)

    @property
    def worst_draw_accuracy(self) -> Proportion | None:
        """Share of images that a randomized defense never gets wrong; None for a deterministic defense.

        The worst of many draws, apart from their mean, which is `robust_accuracy`: one wrong answer counts as broken,
        in any of the budget's ``pilot_samples`` forwards at any point that an attack returned. It is what is left
        against an attacker who may ask that often (Kassis et al. 2025, arXiv:2411.16598). It falls with the number of
        forwards, by noise alone too, so no verdict rests on it.
        """
        if not self.predictions:
            return None
        right = always_correct(self.total, self.predictions, self.attacks)
        return Proportion.of(sum(right), self.total, self.confidence)

    @property
    def autoattack_accuracy(self) -> Proportion | None:
        """Robust accuracy under AutoAttack's attacks together, as the field quotes it.

        None unless all of them ran on every image, which only an exhaustive audit makes sure of.
        """
        return self._under([result for result in self.attacks if result.autoattack]) if self.exhaustive else None

    @property
    def rand_accuracy(self) -> Proportion | None:
        """The same for AutoAttack's version ``rand``, by Monte Carlo prediction; None for a deterministic defense."""
        return self._under(self._rand()) if self.predictions else None

    @property
    def rand_claim(self) -> Proportion | None:
        """What AutoAttack's version ``rand`` would report itself: it judges by one forward of each image."""
        results = self._rand()
        if not self.predictions or self._under(results) is None:
            return None
        firsts = [self.predictions, *(result.predictions for result in results)]
        fooled = {index for predictions in firsts for index, each in predictions.items() if not each.first}
        return Proportion.of(self.total - len(fooled), self.total, self.confidence)

    def _rand(self) -> list[AttackResult]:
        return [result for result in self.attacks if "rand" in result.autoattack]

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
        """Images that this attack breaks and no other attack does."""
        return len(
            set(self.attack(name).broken)
            - {index for other in self.attacks if other.name != name for index in other.broken}
        )


def in_order(audit: Audit, images: Sequence[int]) -> Audit:
    """The audit with its images in the order in which they were given.

    Args:
        audit: its images are numbered in the order in which they were attacked.
        images: for each of them, its index among those that the audit was given.
    """
    ranks = {image: rank for rank, image in enumerate(sorted(images))}
    rank_of = [ranks[image] for image in images]

    def moved(predictions: Mapping[int, Prediction]) -> dict[int, Prediction]:
        return {rank_of[index]: predictions[index] for index in sorted(predictions, key=rank_of.__getitem__)}

    def ranked(indices: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(rank_of[index] for index in indices))

    attacks = [
        replace(
            result,
            attacked=ranked(result.attacked),
            broken=ranked(result.broken),
            predictions=moved(result.predictions),
        )
        for result in audit.attacks
    ]
    clean = dict(zip(rank_of, audit.clean, strict=True))
    rejected = dict(zip(rank_of, audit.rejected, strict=False))
    return replace(
        audit,
        clean=tuple(clean[rank] for rank in range(len(rank_of))),
        attacks=tuple(attacks),
        predictions=moved(audit.predictions),
        rejected=tuple(rejected[rank] for rank in sorted(rejected)),
        images=tuple(sorted(images)),
    )
