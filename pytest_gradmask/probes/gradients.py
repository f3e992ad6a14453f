"""Probes for useless gradients: zero, vanishing, exploding, not finite, or not connected to the images."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.trace import PGDTrace
from pytest_gradmask.verdict.results import Finding

#: Share of the evaluations of an image that must have a zero gradient for a finding. In a single one, the gradient may
#: be zero by chance, and the trace then goes on from a random point.
_MOSTLY = 0.5
#: A gradient vanishes if it predicts, for a change over the whole range of the inputs, a change of the logit margin
#: below this share of the margin. Undefended and adversarially trained models have 5 and more.
_VANISHED = 0.1
#: A gradient explodes if it predicts, for a change by a 255th of the range, a change of the logit margin above this
#: multiple of the range of the logits. Undefended and adversarially trained models have 0.02 to 0.4.
_EXPLODED = 10.0


def zero_gradient(oracle: Oracle, trace: PGDTrace) -> list[Finding]:
    """Gradients of the logit margin that are exactly zero in most evaluations before the image is broken.

    A graph that does not lead to the images is a finding of its own. The logit margin is used because the gradient of
    the cross-entropy also vanishes where a model is merely very confident. Costs one pass each way of one image, and
    only if there are zero gradients.
    """
    gradient_norms, logit_margins = _of_logit_margin(trace)
    evaluated = gradient_norms.isfinite() & ~(logit_margins > 0)
    zeros = ((gradient_norms == 0) & evaluated).sum(0)
    count = int(((zeros > 0) & (zeros >= _MOSTLY * evaluated.sum(0))).sum())
    if count == 0:
        return []
    findings = [
        Finding(
            "zero-gradient",
            f"the gradient of the logit margin is exactly zero at {count} of {len(trace.images)} images",
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
    """Gradients, of the logit margin or of the cross-entropy, that are NaN or infinite anywhere in the trace."""
    count = int(trace.gradient_norms.isinf().any(0).sum())
    if count == 0:
        return []
    return [
        Finding(
            "nan-gradient",
            f"{count} of {len(trace.images)} images have NaN or infinite gradients during an attack",
            undermines_attacks=True,
        )
    ]


def vanishing_gradient(trace: PGDTrace) -> list[Finding]:
    """Gradients so small that, to first order, even a change of all inputs would hardly change the logit margin."""
    gradient_norms, logit_margins = _of_logit_margin(trace)
    small = trace.size_of_change(1.0) * gradient_norms < _VANISHED * logit_margins.abs()
    count = int((small & (gradient_norms > 0) & ~(logit_margins > 0)).any(0).sum())
    if 2 * count <= len(trace.images):
        return []
    # Does not undermine the attacks: their step size does not depend on the size of the gradient.
    return [
        Finding(
            "vanishing-gradient",
            f"at {count} of {len(trace.images)} images the gradient predicts, for a change over the whole range of the "
            f"inputs, a change of less than {_VANISHED:.0%} of the logit margin",
        )
    ]


def exploding_gradient(trace: PGDTrace) -> list[Finding]:
    """Gradients so large that, to first order, an invisible change of the image would reverse all logits."""
    gradient_norms, _ = _of_logit_margin(trace)
    predicted = (
        trace.size_of_change(1 / 255) * gradient_norms / trace.logit_ranges.clamp_min(torch.finfo(torch.float32).tiny)
    ).masked_fill(gradient_norms.isinf(), float("nan"))
    typical = predicted.nanmedian().item()
    if not typical > _EXPLODED:
        return []
    return [
        Finding(
            "exploding-gradient",
            f"for a change of every pixel by a 255th of its range, the gradient predicts a change of {typical:.3g} "
            "times the range of the logits",
        )
    ]


def _of_logit_margin(trace: PGDTrace) -> tuple[Tensor, Tensor]:
    """Gradient norms and logit margins of the evaluations with the gradient of the logit margin."""
    mask = torch.tensor(trace.by_logit_margin, device=trace.gradient_norms.device)
    return trace.gradient_norms[mask], trace.logit_margins[mask]
