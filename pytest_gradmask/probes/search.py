"""Signs that a gradient attack does not optimise: something simpler finds more, or more room finds nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from pytest_gradmask.attacks.evaluate import mean_logit_margins, value_and_grad
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.trace import FEWEST, PGDTrace
from pytest_gradmask.verdict.results import Finding

#: A gradient attack of this many steps in an unbounded ball should reach any image, in one of two runs.
_UNBOUNDED_STEPS, _UNBOUNDED_RUNS = 20, 2
#: Share of images that may survive it before the attack counts as failing.
_UNBOUNDED_SHARE = 0.1
#: Random points an image, as many as the steps that the path took to the edge of the ball.
_RANDOM_POINTS = 10
#: Share of the standing images at which random points may come further than the gradient. On undefended and
#: adversarially trained models there is none; where the gradient is noise, most.
_RANDOM_SHARE = 0.25
#: Share at which one step may come further than many, and by how much it has to: where a loss is linear, one large
#: step is best by a hair.
_ONE_STEP_SHARE, _ONE_STEP_LEAD = 0.5, 1.1
#: Share of the standing images that may fall on the way from half of eps to twice eps for that to count as none.
_NO_FALL = 0.1
#: Images that lose a success again. One may lie on the decision boundary, on any model.
_SILENT = 2
#: Rise of the margin up to twice eps, as a share of what the gradient promises (and at most of the margin itself).
_KEPT = 0.3


def unbounded_attack(oracle: Oracle, trace: PGDTrace, generator: torch.Generator, eot: int = 1) -> list[Finding]:
    """Whether PGD breaks (nearly) every image once the ball is as large as the bounds (Carlini et al. 2019).

    It starts inside the ball of radius eps: from a random point of the large one, which is no image any more, a
    misclassification would be luck. An image is followed until it breaks, so one on which the gradient is a guide costs
    about 3 passes, and one on which it is none 42 forwards and 40 backwards. Images that the path has broken within
    twice eps cost nothing.
    """
    left = trace.standing(2.0)
    images, labels = trace.images[left], trace.labels[left]
    wide = replace(trace.threat, eps=trace.across(1.0))
    size = 2.5 * wide.eps / _UNBOUNDED_STEPS
    for _ in range(_UNBOUNDED_RUNS):
        points = trace.threat.random_start(images, generator)
        for step in range(_UNBOUNDED_STEPS + 1):
            if len(images) == 0:
                return []
            if step == _UNBOUNDED_STEPS:
                logit_margins = mean_logit_margins(oracle, points, labels, eot)
            else:
                seen = value_and_grad(oracle, points, labels, logit_margin, eot)
                logit_margins, gradient = seen.logit_margins, seen.gradient
                points = wide.project(points + size * wide.step(gradient.nan_to_num(nan=0.0)), images)
            # Broken at the look before the step; NaN logits are no classification, and no success of a gradient either.
            stands = ~(logit_margins > 0)
            images, labels, points = images[stands], labels[stands], points[stands]
    standing = len(images)
    if standing <= _UNBOUNDED_SHARE * len(trace.images):
        return []
    return [
        Finding(
            "unbounded-attack-fails",
            f"PGD with unlimited perturbations leaves {standing} of {len(trace.images)} images standing: "
            "the gradient is no guide",
            undermines_attacks=True,
        )
    ]


def random_search(oracle: Oracle, trace: PGDTrace, generator: torch.Generator) -> list[Finding]:
    """Whether random points of the ball come further than the gradient with as many steps (Athalye et al. 2018).

    Costs 10 forwards for each image that the path left standing within eps; nothing where they are fewer than 3.
    """
    asked, standing = trace.asked(1.0), trace.standing(1.0)
    if len(asked) == 0:
        return []
    images, labels = trace.images[asked], trace.labels[asked]
    found = torch.full((len(images),), float("-inf"), device=images.device)
    with torch.no_grad():
        for _ in range(_RANDOM_POINTS):
            signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
            points = trace.threat.project(images + trace.threat.eps * trace.threat.step(signs), images)
            found = torch.maximum(found, logit_margin(oracle(points), labels))
    ahead = int(((found > trace.best(1.0)[asked]) & standing[asked]).sum())
    broken = int(((found > 0) & standing[asked]).sum())
    if ahead < max(FEWEST, _RANDOM_SHARE * int(standing.sum())):
        return []
    return [
        Finding(
            "random-beats-gradient",
            f"at {ahead} of {int(standing.sum())} images that ten steps along the gradient leave standing, as many "
            f"random points of the ball come closer to a misclassification; {broken} of them are one",
            undermines_attacks=True,
        )
    ]


def one_step(oracle: Oracle, trace: PGDTrace) -> list[Finding]:
    """Whether one step of size eps (FGSM) comes further than the ten steps of the path (Athalye et al. 2018).

    Costs one forward for each image that the path left standing within eps; nothing where they are fewer than 3.
    """
    asked, standing = trace.asked(1.0), trace.standing(1.0)
    if len(asked) == 0:
        return []
    images, threat = trace.images[asked], trace.threat
    with torch.no_grad():
        points = threat.project(images + threat.eps * threat.step(trace.gradient[asked].nan_to_num(0, 0, 0)), images)
        found = logit_margin(oracle(points), trace.labels[asked])
    start = trace.logit_margins[0][asked]
    ahead = (found - start > _ONE_STEP_LEAD * (trace.best(1.0)[asked] - start)) & standing[asked]
    count, total = int(ahead.sum()), int(standing.sum())
    if count < max(FEWEST, _ONE_STEP_SHARE * total):
        return []
    return [
        Finding(
            "one-step-beats-many",
            f"one step comes closer to a misclassification than ten at {count} of {total} images that those leave "
            f"standing, and breaks {int((ahead & (found > 0)).sum())}",
            undermines_attacks=True,
        )
    ]


def no_fall_with_eps(trace: PGDTrace) -> list[Finding]:
    """Whether robust accuracy stays where it is from half of eps to twice eps, though the gradient says otherwise.

    A tiny eps changes no prediction either; but then the margin rises as the gradient promises. No pass of its own.
    """
    before, after = trace.standing(0.5), trace.standing(2.0)
    if int(after.sum()) < FEWEST or int((before & ~after).sum()) > _NO_FALL * int(before.sum()):
        return []
    start = trace.logit_margins[0][after]
    promised = torch.minimum(2 * trace.threat.eps * trace.gradient_norms[0][after], -start)
    kept = (trace.best(2.0)[after] - start >= _KEPT * promised) & (promised > 0)
    if 2 * int(kept.sum()) >= len(kept):
        return []
    counts = "/".join(str(int(trace.standing(radius).sum())) for radius in (0.5, 1.0, 2.0))
    return [
        Finding(
            "no-fall-with-eps",
            f"of {len(trace.images)} images {counts} stand within eps/2, eps and 2 eps: more room does not help the "
            "gradient",
        )
    ]


def silent_success(trace: PGDTrace) -> list[Finding]:
    """Images that are misclassified somewhere on the path within eps and no longer at its end (Pintor et al. 2022).

    The attacks of an audit return their best iterate; what undermines those that return the last one does not
    undermine them. No pass of its own.
    """
    within = torch.tensor([radius <= 1 for radius in trace.radii], device=trace.logit_margins.device)
    logit_margins = trace.logit_margins[within]
    seen = ~logit_margins.isnan()
    last = torch.where(seen, torch.arange(len(logit_margins), device=logit_margins.device)[:, None], -1).amax(0)
    final = logit_margins.gather(0, last[None].clamp_min(0)).squeeze(0)
    count = int(((logit_margins > 0).any(0) & ~(logit_margins[0] > 0) & (final <= 0)).sum())
    if count < _SILENT:
        return []
    return [
        Finding(
            "silent-success",
            f"at {count} of {len(trace.images)} images an attack passes an adversarial example and ends at none",
        )
    ]
