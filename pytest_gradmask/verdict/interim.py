"""Interim analyses: at how many images an audit judges its evidence, and what share of the error each may spend.

Blatant masking shows in tens of images, and so does its absence. An audit therefore attacks its images in growing
batches and stops once the verdict is decided. Each analysis is another chance to be wrong, so the analyses share the
error (alpha spending by Bonferroni's inequality). The errors of the gap's lower and upper bound are shared separately.
No torch.
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


@dataclass(frozen=True, slots=True)
class InterimAnalysis:
    """One analysis of the evidence.

    Attributes:
        images: attacked by then, those that are misclassified without an attack not counted.
        number: of all analyses of the audit.
        upper_share: its share of the error of ``NOT_MASKED``.
        last: whether it is the last.
        after_each_attack: whether the audit also decides after each adaptive attack, so that it may end there.
    """

    images: int
    number: int = 1
    upper_share: float = 1.0
    last: bool = True
    after_each_attack: bool = False

    def decisions(self, attacks: int) -> int:
        """How often an audit with this many adaptive attacks may decide that the defense masks."""
        return self.number * (max(attacks, 1) if self.after_each_attack else 1)

    def lower_share(self, attacks: int, *, complete: bool) -> float:
        """Share of the error of ``MASKED`` of a decision, so that all decisions together have the whole error.

        Args:
            attacks: adaptive attacks of the audit.
            complete: whether all of them have run by then.
        """
        decisions = self.decisions(attacks)
        if decisions == 1:
            return 1.0
        return _LAST_DECISION if self.last and complete else (1 - _LAST_DECISION) / (decisions - 1)

    def upper_level(self, confidence: float) -> float:
        """Level of the gap's upper bound at this analysis, so that all of them together have ``confidence``."""
        return 1 - (1 - confidence) * self.upper_share


def plan_analyses(images: int, margin: float, confidence: float) -> list[InterimAnalysis]:
    """The analyses of an audit, each at about twice as many images as the one before, the last at all.

    Args:
        images: of the audit that are classified correctly without an attack.
        margin: of the verdict, in (0, 1).
        confidence: in (0.5, 1).
    """
    # Nothing broken of so many images excludes a gap of the margin.
    enough = max(_FEWEST, math.ceil(math.log((1 - confidence) * _FIRST) / math.log1p(-margin)))
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
        InterimAnalysis(size, len(sizes), share, last=size == images, after_each_attack=True)
        for size, share in zip(sizes, shares, strict=True)
    ]
