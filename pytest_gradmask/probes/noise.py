"""Gradient noise: does the gradient say what the loss does at the distances at which attacks step?"""

from __future__ import annotations

import torch

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.trace import PGDTrace
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding

#: Distances at which the loss is measured, as shares of eps: from an attack's last, small steps to its largest.
RADII = (1 / 16, 1 / 4, 1.0)
#: Among them the one that decides whether there is a finding.
_TYPICAL = 1 / 4
#: Cosine below which a gradient is noise. Measured on 61 honest models and 12 threat models; 52 models have images
#: that a short PGD does not break, in 397 cases (audits/results/noise.json). The lowest is 0.916 at `_TYPICAL`, and
#: 0.969 at the best of all radii. A gradient whose cosine with the derivative is 0.55 has about 0.55 here, too.
_NOISE = 0.8
#: Pairs of queries an image and radius. On three images, chance moves the mean cosine of pure noise by about 0.3.
_PAIRS = 4
#: Differences below this multiple of the rounding error of the logits say nothing: layers add up their own.
_RESOLVED = 64.0


def gradient_noise(oracle: Oracle, trace: PGDTrace, generator: torch.Generator) -> list[Finding]:
    """Gradients that disagree with finite differences of the margin, at the images that the path did not break.

    In random directions, the change that the gradient promises and the change of the margin between two points are
    correlated as the gradient is with that of the loss smoothed over that distance: the correlation estimates their
    cosine. A smooth loss has 1 and shattered gradients (Balduzzi et al. 2017; Athalye et al. 2018, section 3) have 0.

    Costs 24 forwards for each of these images, and no backward; nothing where they are fewer than 3.
    """
    known = known_cosines(oracle, trace, generator)
    if not known.get(_TYPICAL, 1.0) < _NOISE:
        return []
    figures = ", ".join(f"{cosine:.2f} at {radius:.3g} eps" for radius, cosine in known.items())
    return [
        Finding(
            "gradient-noise",
            f"the cosine between the gradient and that of the smoothed loss is {figures}, on average over "
            f"{int(trace.standing(1.0).sum())} images; a gradient that attacks can follow has nearly 1",
            # Where the gradient is right at one scale, an attack with steps of that size can follow it.
            undermines_attacks=all(cosine < _NOISE for cosine in known.values()),
        )
    ]


def known_cosines(oracle: Oracle, trace: PGDTrace, generator: torch.Generator) -> dict[float, float]:
    """Mean cosine over the standing images, for each radius at which it can be measured."""
    asked = trace.asked(1.0)
    cosines = {radius: _cosines(oracle, trace, asked, radius, generator) for radius in RADII if len(asked)}
    return {radius: found.nanmean().item() for radius, found in cosines.items() if not found.isnan().all()}


def _cosines(
    oracle: Oracle, trace: PGDTrace, asked: torch.Tensor, radius: float, generator: torch.Generator
) -> torch.Tensor:
    """For each image asked about, the estimated cosine; NaN where it is broken, or the change too small to measure."""
    images, labels, gradient = trace.images[asked], trace.labels[asked], trace.gradient[asked]
    found = smoothed_cosines(
        oracle,
        images,
        labels,
        gradient,
        trace.gradient_norms[0, asked],
        trace.largest[asked],
        radius,
        trace.threat,
        generator,
    )
    return found.masked_fill(~trace.standing(1.0)[asked], float("nan"))


def smoothed_cosines(
    oracle: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    gradient: torch.Tensor,
    gradient_norms: torch.Tensor,
    largest: torch.Tensor,
    radius: float,
    threat: ThreatModel,
    generator: torch.Generator,
    pairs: int = _PAIRS,
) -> torch.Tensor:
    """Estimated cosine of a gradient with that of the margin smoothed over a distance; N.

    Args:
        oracle: the defense.
        images, labels: N x C x H x W and N.
        gradient: of the margin at the images, by whatever way; N x C x H x W.
        gradient_norms: its norms, N.
        largest: N, the largest absolute logit of each image, whose rounding nothing smaller can be told from.
        radius: the distance, as a share of eps.
        threat: of which eps and norm are taken.
        generator: draws the directions; a CPU generator.
        pairs: of queries an image.

    Returns:
        Between -1 and 1; NaN where the gradient is zero, or the change of the margin too small to measure.
    """
    products, promises, changes = (torch.zeros(len(images), device=images.device) for _ in range(3))
    finest = torch.full((), torch.finfo(torch.bfloat16).eps, device=images.device)
    size = radius * threat.eps
    if threat.norm == "L2":
        size /= images[0].numel() ** 0.5
    # Promises are sums of thousands of terms that may be huge: divided by the slope they stay in the range of a float.
    scaled = gradient / gradient_norms.view(-1, 1, 1, 1)
    with torch.no_grad():
        for _ in range(pairs):
            signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
            ends = ((images + sign * size * signs).clamp(*threat.bounds) for sign in (1, -1))
            up, down = (end.to(oracle.dtype).to(images.dtype) for end in ends)  # as the defense will see them
            promise = (scaled * (up - down)).flatten(1).sum(1)
            above, below = oracle(up), oracle(down)
            change = logit_margin(above, labels) - logit_margin(below, labels)
            finest = torch.minimum(finest, torch.minimum(_spacing(above), _spacing(below)))
            products += promise * change
            promises += promise**2
            changes += change**2
    rounding = finest.clamp_min(torch.finfo(oracle.dtype).eps) * largest
    measured = torch.maximum(promises.sqrt() * gradient_norms, changes.sqrt()) / pairs**0.5
    usable = (measured > _RESOLVED * rounding) & (promises > 0)
    cosine = products / (promises * changes).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
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
