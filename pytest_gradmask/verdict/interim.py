"""Interim analyses: at how many images an audit judges its evidence, and what share of the error each may spend.

Blatant masking shows in tens of images, and so does its absence. An audit therefore attacks its images in growing
batches and stops once the verdict is decided. Each analysis is another chance to be wrong, so the analyses share the
error (alpha spending by Bonferroni's inequality). The errors of the gap's lower and upper bound are shared separately.

An audit that is repeated, with more images or another seed, is one more chance to be wrong, too. So the audits of one
defense share the error first (`attempt_share`), and the analyses of each audit share what it has. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Fewer images than this get no analysis of their own.
_FEWEST = 20
#: An analysis at more than this share of all images saves too little to be worth its share of the error.
_LATEST = 0.75
#: Parts of the error of ``NOT_MASKED``: of the first analysis that may end an honest defense's audit, of the others,
#: and of the last. The last should exclude nearly as much as a single analysis would (at 99 % confidence, a gap of 5
#: percentage points where 3 of 200 images were broken).
_FIRST, _OTHERS, _LAST = 0.07, 0.01, 0.92
#: Share of the error of ``MASKED`` for the last of all decisions. The others share the rest equally. A blatant gap is
#: so significant that it passes an early decision with a small share; a small gap needs all images and the last one.
_LAST_DECISION = 0.8
#: Share of the error for the first audit of a defense. All others together have the rest. With 0.9, a first audit of
#: 200 images at a margin of 5 points would say ``MASKED`` from 7 broken images on instead of 6, and ``NOT_MASKED`` up
#: to 2 instead of 3. A second audit would exclude a gap of the margin with a fifth fewer images.
_FIRST_ATTEMPT = 0.985


def attempt_share(attempt: int) -> float:
    """Share of the error, of ``MASKED`` and of ``NOT_MASKED`` each, that an attempt has: 0.985, 0.0075, 0.0025, ...

    Attempt k > 1 has 0.015 / ((k - 1) k), which is 0.015 (1 / (k - 1) - 1 / k). So the first k attempts together have
    0.985 + 0.015 (1 - 1 / k), less than the whole error for every k. The chance that some attempt has a wrong verdict
    is at most the sum of the chances that each is made and has one (Bonferroni's inequality). That holds however the
    attempts depend on each other, also if they share images, and if the verdicts so far decide whether there is another
    attempt. Only what an attempt is like must not depend on outcomes on images that it attacks again. The share falls
    with k squared: attempt 11 has 1/55 of what attempt 2 has. If each had half of the one before, it would have 1/512.

    Args:
        attempt: 1 for the first audit of a defense, 2 for the next one, and so on.
    """
    return _FIRST_ATTEMPT if attempt == 1 else (1 - _FIRST_ATTEMPT) / (attempt * (attempt - 1))


@dataclass(frozen=True, slots=True)
class InterimAnalysis:
    """One analysis of the evidence.

    Attributes:
        images: attacked by then, those that are misclassified without an attack not counted.
        number: of all analyses of the audit.
        upper_share: its share of the audit's error of ``NOT_MASKED``.
        last: whether it is the last.
        after_each_attack: whether the audit also decides after each adaptive attack, so that it may end there.
        attempt: which audit of the defense this is, from 1.
    """

    images: int
    number: int = 1
    upper_share: float = 1.0
    last: bool = True
    after_each_attack: bool = False
    attempt: int = 1

    def decisions(self, attacks: int) -> int:
        """How often an audit with this many adaptive attacks may decide that the defense masks."""
        return self.number * (max(attacks, 1) if self.after_each_attack else 1)

    def lower_share(self, attacks: int, *, complete: bool) -> float:
        """Share of the error of ``MASKED`` of a decision, so that all decisions of all attempts have the whole error.

        Args:
            attacks: adaptive attacks of the audit.
            complete: whether all of them have run by then.
        """
        whole, decisions = attempt_share(self.attempt), self.decisions(attacks)
        if decisions == 1:
            return whole
        return whole * (_LAST_DECISION if self.last and complete else (1 - _LAST_DECISION) / (decisions - 1))

    def upper_level(self, confidence: float) -> float:
        """Level of the gap's upper bound at this analysis; those of all attempts together have ``confidence``."""
        return 1 - (1 - confidence) * attempt_share(self.attempt) * self.upper_share


def plan_analyses(images: int, margin: float, confidence: float, attempt: int = 1) -> list[InterimAnalysis]:
    """The analyses of an audit, each at about twice as many images as the one before, the last at all.

    Args:
        images: of the audit that are classified correctly without an attack.
        margin: of the verdict, in (0, 1).
        confidence: in (0.5, 1).
        attempt: which audit of the defense this is, from 1.
    """
    # Nothing broken of so many images excludes a gap of the margin.
    error = (1 - confidence) * attempt_share(attempt) * _FIRST
    enough = max(_FEWEST, math.ceil(math.log(error) / math.log1p(-margin)))
    first = enough if enough <= _LATEST * images else images
    sizes = [first]
    while -(-sizes[0] // 2) >= _FEWEST:
        sizes.insert(0, -(-sizes[0] // 2))
    while 2 * sizes[-1] <= _LATEST * images:
        sizes.append(2 * sizes[-1])
    if sizes[-1] < images:
        sizes.append(images)
    parts = [_LAST if size == images else _FIRST if size == first else _OTHERS for size in sizes]
    shares = [part / parts.count(part) / sum(set(parts)) for part in parts]
    return [
        InterimAnalysis(size, len(sizes), share, last=size == images, after_each_attack=True, attempt=attempt)
        for size, share in zip(sizes, shares, strict=True)
    ]
