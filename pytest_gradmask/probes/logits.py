"""Probes for logits whose scale hinders an attack: too large for a softmax, or too small for a float."""

from __future__ import annotations

from pytest_gradmask.probes.trace import PGDTrace
from pytest_gradmask.verdict.results import Finding

#: A smaller range of the logits leaves only a few hundred float32 values for the cross-entropy, which is about 1.
_TINY = 1e-4
#: The same as a share of the largest logit, for logits with a large common offset.
_TINY_SHARE = 1e-5


def saturated_logits(trace: PGDTrace) -> list[Finding]:
    """Clean images whose label has a probability of exactly 1 as a float32 (Carlini and Wagner, arXiv:1608.04644)."""
    count = int(trace.saturated[0].sum())
    if count == 0:
        return []
    # Attacks on the logit margin, such as DLR, do not use the softmax.
    return [
        Finding(
            "saturated-logits",
            f"the softmax saturates at {count} of {len(trace.images)} images, so the gradient of the cross-entropy "
            f"underflows there: logits differ by up to {trace.logit_ranges.max().item():.3g}",
        )
    ]


def tiny_logits(trace: PGDTrace) -> list[Finding]:
    """Logits that differ so little that rounding hides the changes of an attack."""
    small = (trace.logit_ranges < _TINY) | (trace.logit_ranges < _TINY_SHARE * trace.largest_logits)
    if 2 * int(small.sum()) <= len(trace.images):
        return []
    return [
        Finding(
            "tiny-logits",
            f"the logits of an image differ only by {trace.logit_ranges.median().item():.2g}, at a size of "
            f"{trace.largest_logits.median().item():.2g}: rounding hides the changes of a loss during an attack",
        )
    ]
