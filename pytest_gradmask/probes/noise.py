"""Probe for gradient noise: does the gradient predict the change of the loss over the step sizes of attacks?"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.trace import PGDTrace
from pytest_gradmask.threat import ThreatModel, per_image
from pytest_gradmask.verdict.results import Finding

#: Distances at which the loss is measured, as shares of eps: from the last, small steps of an attack to its largest.
RADII = (1 / 16, 1 / 4, 1.0)
#: The distance that decides whether there is a finding.
_TYPICAL = 1 / 4
#: Cosine below which a gradient is noise. Measured on 61 honest models and 12 threat models; 52 models have images
#: that a short PGD does not break, in 397 cases (audits/honest/noise.json). The lowest is 0.916 at `_TYPICAL`, and
#: 0.969 at the best of all radii. A gradient whose cosine with the derivative is 0.55 has about 0.55 here, too.
_NOISE = 0.8
#: Pairs of queries for each image and radius. With three images, the mean cosine of pure noise varies by about 0.3.
_PAIRS = 4
#: Differences below this multiple of the logits' rounding error are not used: each layer adds a rounding error.
_RESOLVED = 64.0


def gradient_noise(oracle: Oracle, trace: PGDTrace, generator: torch.Generator) -> list[Finding]:
    """Gradients that contradict finite differences of the logit margin, at the images that survive the trace.

    For random directions, the probe compares the change of the logit margin that the gradient predicts with the actual
    change between two points. The correlation of the two estimates the cosine between the gradient and that of the loss
    smoothed over this distance. It is 1 for a smooth loss and 0 for shattered gradients (Balduzzi et al. 2017,
    arXiv:1702.08591; Athalye et al. 2018, arXiv:1802.00420, section 3).

    Costs 24 forward passes for each of these images, and no backward pass. It costs nothing if there are fewer than 3
    such images.
    """
    known = known_cosines(oracle, trace, generator)
    if not known.get(_TYPICAL, 1.0) < _NOISE:
        return []
    figures = ", ".join(f"{cosine:.2f} at {radius:.3g} eps" for radius, cosine in known.items())
    return [
        Finding(
            "gradient-noise",
            f"the cosine between the gradient and that of the smoothed loss is {figures}, on average over "
            f"{int(trace.survivors(1.0).sum())} images; it is nearly 1 if attacks can follow the gradient",
            # If the gradient is right at one distance, an attack with steps of this size can follow it.
            undermines_attacks=all(cosine < _NOISE for cosine in known.values()),
        )
    ]


def known_cosines(oracle: Oracle, trace: PGDTrace, generator: torch.Generator) -> dict[float, float]:
    """Mean cosine over the survivors of the trace, for each radius at which it can be measured."""
    queried = trace.indices_to_query(1.0)
    cosines = {radius: _cosines(oracle, trace, queried, radius, generator) for radius in RADII if len(queried)}
    return {radius: found.nanmean().item() for radius, found in cosines.items() if not found.isnan().all()}


def _cosines(oracle: Oracle, trace: PGDTrace, queried: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """For each queried image, the estimated cosine; NaN if it is broken, or if the change is too small to measure."""
    images, labels, gradient = trace.images[queried], trace.labels[queried], trace.clean_gradient[queried]
    found = smoothed_cosines(
        oracle,
        images,
        labels,
        gradient,
        trace.gradient_norms[0, queried],
        trace.largest_logits[queried],
        radius,
        trace.threat,
        generator,
    )
    return found.masked_fill(~trace.survivors(1.0)[queried], float("nan"))


def smoothed_cosines(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    gradient: Tensor,
    gradient_norms: Tensor,
    largest_logits: Tensor,
    radius: float,
    threat: ThreatModel,
    generator: torch.Generator,
    pairs: int = _PAIRS,
) -> Tensor:
    """Estimated cosine between a gradient and that of the logit margin smoothed over a distance; N.

    Args:
        oracle: the defense.
        images, labels: N x C x H x W and N.
        gradient: of the logit margin at the images, computed in any way; N x C x H x W.
        gradient_norms: the norms of the gradient, N.
        largest_logits: largest absolute logit of each image, N. Changes below its rounding error are not used.
        radius: the distance, as a share of eps.
        threat: gives eps, norm and bounds.
        generator: draws the directions; a CPU generator.
        pairs: pairs of queries for each image.

    Returns:
        Between -1 and 1; NaN where the gradient is zero, or where the logit margin changes too little to measure.
    """
    products, predictions, changes = (torch.zeros(len(images), device=images.device) for _ in range(3))
    finest = torch.full((), torch.finfo(torch.bfloat16).eps, device=images.device)
    size = radius * threat.pixel_eps(images[0].numel())
    # Divided by the norm: predictions are sums of thousands of terms, which may leave the range of a float.
    scaled = gradient / per_image(gradient_norms, gradient)
    with torch.no_grad():
        for _ in range(pairs):
            signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
            ends = ((images + sign * size * signs).clamp(*threat.bounds) for sign in (1, -1))
            up, down = (end.to(oracle.dtype).to(images.dtype) for end in ends)  # in the precision of the defense
            prediction = (scaled * (up - down)).flatten(1).sum(1)
            above, below = oracle(up), oracle(down)
            change = logit_margin(above, labels) - logit_margin(below, labels)
            finest = torch.minimum(finest, torch.minimum(_spacing(above), _spacing(below)))
            products += prediction * change
            predictions += prediction**2
            changes += change**2
    rounding = finest.clamp_min(torch.finfo(oracle.dtype).eps) * largest_logits
    measured = torch.maximum(predictions.sqrt() * gradient_norms, changes.sqrt()) / pairs**0.5
    usable = (measured > _RESOLVED * rounding) & (predictions > 0)
    cosine = products / (predictions * changes).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return cosine.masked_fill(~usable, float("nan"))


def _spacing(logits: torch.Tensor) -> torch.Tensor:
    """Rounding error, as a share, of the coarsest format that holds all of these logits; a scalar tensor.

    A defense in float32 may compute in bfloat16 by autocast; its logits show it.
    """
    spacing = torch.full((), torch.finfo(torch.float32).eps, device=logits.device)
    for dtype in (torch.float16, torch.bfloat16):
        fits = (logits == logits.to(dtype).to(logits.dtype)).all()
        spacing = torch.where(fits, torch.finfo(dtype).eps, spacing)
    return spacing
