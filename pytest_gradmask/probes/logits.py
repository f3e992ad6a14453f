"""Logits whose scale is in the way of an attack: so large that a softmax saturates, or too small for a float."""

from __future__ import annotations

from pytest_gradmask.probes.trace import PGDTrace
from pytest_gradmask.verdict.results import Finding

#: A spread of the logits below this leaves the cross-entropy, which is about 1, a few hundred steps of a float32.
_TINY = 1e-4
#: The same as a share of the largest logit, for those that share a large offset.
_TINY_SHARE = 1e-5


def saturated_logits(trace: PGDTrace) -> list[Finding]:
    """Clean images whose label has a probability of 1 to the last bit of a float32 (Carlini and Wagner 2017)."""
    count = int(trace.saturated[0].sum())
    if count == 0:
        return []
    # Attacks on the margin, DLR among them, do not go through the softmax.
    return [
        Finding(
            "saturated-logits",
            f"the softmax saturates at {count} of {len(trace.images)} images, so the gradient of the cross-entropy "
            f"underflows there: logits are up to {trace.spreads.max().item():.3g} apart",
        )
    ]


def tiny_logits(trace: PGDTrace) -> list[Finding]:
    """Logits that differ so little that rounding hides what an attack changes about them."""
    small = (trace.spreads < _TINY) | (trace.spreads < _TINY_SHARE * trace.largest)
    if 2 * int(small.sum()) <= len(trace.images):
        return []
    return [
        Finding(
            "tiny-logits",
            f"the logits of an image are only {trace.spreads.median().item():.2g} apart, of a size of "
            f"{trace.largest.median().item():.2g}: rounding hides what an attack changes about a loss",
        )
    ]
