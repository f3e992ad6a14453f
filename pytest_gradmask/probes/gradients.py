"""Gradients that lead nowhere: zero, vanishing, exploding, not finite, or cut off from the images."""

from __future__ import annotations

import torch

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.trace import PGDTrace
from pytest_gradmask.verdict.results import Finding

#: Share of the looks at an image with a gradient of zero that makes it one without a gradient. One look alone may
#: be a point at which a gradient happens to be zero, and the path goes on from a random point then.
_MOSTLY = 0.5
#: Change of the margin that the gradient promises for the whole range of the inputs, as a share of the margin, below
#: which it has vanished. Undefended and adversarially trained models promise 5 times the margin and more.
_VANISHED = 0.1
#: Change of the margin that it promises for a change of a 255th of the range, as a multiple of the spread of the
#: logits, above which it has exploded. On undefended and adversarially trained models it is 0.02 to 0.4.
_EXPLODED = 10.0


def zero_gradient(oracle: Oracle, trace: PGDTrace) -> list[Finding]:
    """Gradients of the margin that are exactly zero at most looks before the image is broken, and a cut graph.

    The margin, because a cross-entropy's gradient also vanishes where a model is merely very sure. Costs one pass
    each way of one image, and only where there are gradients of zero.
    """
    gradient_norms, logit_margins = _by_margin(trace)
    looked = gradient_norms.isfinite() & ~(logit_margins > 0)
    zeros = ((gradient_norms == 0) & looked).sum(0)
    stuck = int(((zeros > 0) & (zeros >= _MOSTLY * looked.sum(0))).sum())
    if stuck == 0:
        return []
    findings = [
        Finding(
            "zero-gradient",
            f"the gradient of the margin is exactly zero at {stuck} of {len(trace.images)} images",
            undermines_attacks=True,
        )
    ]
    if not oracle.connected(trace.images[:1]):
        findings.append(
            Finding(
                "interrupted-graph",
                "autograd's graph does not lead from the logits back to the images",
                undermines_attacks=True,
            )
        )
    return findings


def nan_gradient(trace: PGDTrace) -> list[Finding]:
    """Gradients, of the margin or of the cross-entropy, that are NaN or infinite anywhere on the path."""
    bad = int(trace.gradient_norms.isinf().any(0).sum())
    if bad == 0:
        return []
    return [
        Finding(
            "nan-gradient",
            f"{bad} of {len(trace.images)} images have NaN or infinite gradients on the way of an attack",
            undermines_attacks=True,
        )
    ]


def vanishing_gradient(trace: PGDTrace) -> list[Finding]:
    """Gradients so small that even a step across all inputs would hardly change the margin, to first order."""
    gradient_norms, logit_margins = _by_margin(trace)
    small = trace.across(1.0) * gradient_norms < _VANISHED * logit_margins.abs()
    vanished = int((small & (gradient_norms > 0) & ~(logit_margins > 0)).any(0).sum())
    if 2 * vanished <= len(trace.images):
        return []
    # Steps of a fixed size do not care how large a gradient is, so a failed attack may well prove something.
    return [
        Finding(
            "vanishing-gradient",
            f"at {vanished} of {len(trace.images)} images the gradient promises less than {_VANISHED:.0%} of the "
            "margin for a step across the whole range of the inputs",
        )
    ]


def exploding_gradient(trace: PGDTrace) -> list[Finding]:
    """Gradients so large that a change nobody sees would, to first order, turn every logit over."""
    gradient_norms, _ = _by_margin(trace)
    promised = (
        trace.across(1 / 255) * gradient_norms / trace.spreads.clamp_min(torch.finfo(torch.float32).tiny)
    ).masked_fill(gradient_norms.isinf(), float("nan"))
    typical = promised.nanmedian().item()
    if not typical > _EXPLODED:
        return []
    return [
        Finding(
            "exploding-gradient",
            f"for a change of every pixel by a 255th of its range, the gradient promises {typical:.3g} times the whole "
            "spread of the logits",
        )
    ]


def _by_margin(trace: PGDTrace) -> tuple[torch.Tensor, torch.Tensor]:
    """Slopes and margins of the looks at which the gradient is that of the margin."""
    analyses = torch.tensor(trace.by_logit_margin, device=trace.gradient_norms.device)
    return trace.gradient_norms[analyses], trace.logit_margins[analyses]
