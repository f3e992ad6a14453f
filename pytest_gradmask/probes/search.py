"""Probes for gradient attacks that do not optimise: something simpler is better, or a larger ball does not help."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pytest_gradmask.attacks.evaluate import mean_logit_margins, value_and_grad
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.trace import MIN_SURVIVORS, PGDTrace
from pytest_gradmask.verdict.results import Finding

#: A gradient attack of this many steps in an unbounded ball should break any image, in one of two runs.
_UNBOUNDED_STEPS, _UNBOUNDED_RUNS = 20, 2
#: Share of images that may survive it before the attack counts as failing.
_UNBOUNDED_SHARE = 0.1
#: Random points for each image, as many as the steps of the trace within eps.
_RANDOM_POINTS = 10
#: Share of the survivors at which random points may be better than the gradient. On undefended and adversarially
#: trained models there are none; where the gradient is noise, most.
_RANDOM_SHARE = 0.25
#: Share of the survivors at which one step may be better than many, and by which factor it has to be better: where a
#: loss is linear, one large step is better by very little.
_ONE_STEP_SHARE, _ONE_STEP_LEAD = 0.5, 1.1
#: As many steps as the trace has within eps.
_MANY_STEPS = 10
#: Accuracy counts as constant if at most this share of the survivors at half of eps is broken up to twice eps.
_NO_FALL = 0.1
#: Number of images that must lose a success again. One may be on the decision boundary, on any model.
_SILENT = 2
#: Increase of the logit margin up to twice eps, as a share of the increase that the gradient predicts. The predicted
#: increase is at most the one that breaks the image.
_AS_PREDICTED = 0.3


def unbounded_attack(oracle: Oracle, trace: PGDTrace, generator: torch.Generator, *, eot: int = 1) -> list[Finding]:
    """Whether PGD breaks (nearly) every image if the ball is as large as the bounds (Carlini et al. 2019).

    See arXiv:1902.06705. The attack starts inside the ball of radius eps: a random point of the large ball is not an
    image any more, and a misclassification there would be luck. It attacks an image until it is broken. So an image
    costs about 3 passes if the gradient is useful, and 42 forward and 40 backward passes if it is not. Images that the
    trace has broken within twice eps cost nothing.
    """
    survivors = trace.survivors(2.0)
    images, labels = trace.images[survivors], trace.labels[survivors]
    unbounded = replace(trace.threat, eps=trace.size_of_change(1.0))
    if trace.threat.norm == "L1":  # steps along few pixels would not get anywhere
        low, high = trace.threat.bounds
        unbounded = replace(trace.threat, eps=high - low, norm="Linf")
    step_size = 2.5 * unbounded.eps / _UNBOUNDED_STEPS
    for _ in range(_UNBOUNDED_RUNS):
        x_adv = trace.threat.random_start(images, generator)
        for step in range(_UNBOUNDED_STEPS + 1):
            if len(images) == 0:
                return []
            if step == _UNBOUNDED_STEPS:
                logit_margins = mean_logit_margins(oracle, x_adv, labels, eot)
            else:
                evaluation = value_and_grad(oracle, x_adv, labels, logit_margin, eot)
                logit_margins, gradient = evaluation.logit_margins, evaluation.gradient
                x_adv = unbounded.project(x_adv + step_size * unbounded.step(gradient.nan_to_num(nan=0.0)), images)
            # The margins are from before the step. NaN logits are no success of the gradient.
            active = ~(logit_margins > 0)
            images, labels, x_adv = images[active], labels[active], x_adv[active]
    count = len(images)
    if count <= _UNBOUNDED_SHARE * len(trace.images):
        return []
    return [
        Finding(
            "unbounded-attack-fails",
            f"{count} of {len(trace.images)} images survive PGD with unlimited perturbations: the gradient does not "
            "lead to adversarial examples",
            undermines_attacks=True,
        )
    ]


def random_search(oracle: Oracle, trace: PGDTrace, generator: torch.Generator) -> list[Finding]:
    """Whether random points of the ball are better than as many steps of the gradient (Athalye et al. 2018).

    See arXiv:1802.00420. Costs 10 forward passes for each image that survives the trace within eps, and nothing if
    there are fewer than 3.
    """
    queried, survivors = trace.indices_to_query(1.0), trace.survivors(1.0)
    if len(queried) == 0:
        return []
    images, labels, threat = trace.images[queried], trace.labels[queried], trace.threat
    random_best = torch.full((len(images),), float("-inf"), device=images.device)
    with torch.no_grad():
        for _ in range(_RANDOM_POINTS):
            signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
            points = threat.project(images + threat.eps * threat.step(signs), images)
            random_best = torch.maximum(random_best, logit_margin(oracle(points), labels))
    ahead = int(((random_best > trace.best_logit_margins(1.0)[queried]) & survivors[queried]).sum())
    broken = int(((random_best > 0) & survivors[queried]).sum())
    if ahead < max(MIN_SURVIVORS, _RANDOM_SHARE * int(survivors.sum())):
        return []
    return [
        Finding(
            "random-beats-gradient",
            f"of {int(survivors.sum())} images that survive ten gradient steps, {ahead} come closer to a "
            f"misclassification by ten random points of the ball; broken by one: {broken}",
            undermines_attacks=True,
        )
    ]


def one_step(oracle: Oracle, trace: PGDTrace) -> list[Finding]:
    """Whether one step of size eps (FGSM) is better than the ten steps of the trace (Athalye et al. 2018).

    See arXiv:1802.00420. Both follow the logit margin. The trace also follows the cross-entropy, whose gradient may be
    rounded away where a model is very confident. So where one step is better than the trace, ten steps along the
    logit margin have to be worse, too.

    Costs one forward pass for each image that survives the trace within eps, and nothing if there are fewer than 3. If
    one step is better than the trace, each of them costs another 11 forward and 10 backward passes.
    """
    queried, survivors = trace.indices_to_query(1.0), trace.survivors(1.0)
    if len(queried) == 0:
        return []
    images, threat = trace.images[queried], trace.threat
    with torch.no_grad():
        direction = threat.step(trace.clean_gradient[queried].nan_to_num(0, 0, 0))
        points = threat.project(images + threat.eps * direction, images)
        one_step_margins = logit_margin(oracle(points), trace.labels[queried])
    clean, total = trace.logit_margins[0][queried], int(survivors.sum())

    def is_ahead(best: Tensor) -> Tensor:
        return (one_step_margins - clean > _ONE_STEP_LEAD * (best - clean)) & survivors[queried]

    fewest = max(MIN_SURVIVORS, _ONE_STEP_SHARE * total)
    best = trace.best_logit_margins(1.0)[queried]
    if int(is_ahead(best).sum()) < fewest:
        return []
    ahead = is_ahead(torch.maximum(best, _many_steps(oracle, trace, queried)))
    count = int(ahead.sum())
    if count < fewest:
        return []
    return [
        Finding(
            "one-step-beats-many",
            f"of {total} images that survive ten gradient steps, {count} come closer to a misclassification by one "
            f"large step; {int((ahead & (one_step_margins > 0)).sum())} are broken by it",
            undermines_attacks=True,
        )
    ]


def _many_steps(oracle: Oracle, trace: PGDTrace, queried: Tensor) -> Tensor:
    """The largest logit margin of ten steps along its gradient within eps, from each of these images."""
    images, labels, threat = trace.images[queried], trace.labels[queried], trace.threat
    x_adv, best = images, torch.full((len(images),), float("-inf"), device=images.device)
    for _ in range(_MANY_STEPS):
        evaluation = value_and_grad(oracle, x_adv, labels, logit_margin, 1)
        best = torch.fmax(best, evaluation.logit_margins)
        direction = threat.step(evaluation.gradient.nan_to_num(0, 0, 0))
        x_adv = threat.project(x_adv + 2.5 * threat.eps / _MANY_STEPS * direction, images)
    return torch.fmax(best, mean_logit_margins(oracle, x_adv, labels, 1))


def no_fall_with_eps(trace: PGDTrace) -> list[Finding]:
    """Whether robust accuracy is constant from half of eps to twice eps, although the gradient predicts a decrease.

    A tiny eps changes no prediction either, but then the logit margin increases as the gradient predicts. Costs no
    pass.
    """
    before, after = trace.survivors(0.5), trace.survivors(2.0)
    if int(after.sum()) < MIN_SURVIVORS or int((before & ~after).sum()) > _NO_FALL * int(before.sum()):
        return []
    clean = trace.logit_margins[0][after]
    predicted = torch.minimum(2 * trace.threat.eps * trace.gradient_norms[0][after], -clean)
    as_predicted = (trace.best_logit_margins(2.0)[after] - clean >= _AS_PREDICTED * predicted) & (predicted > 0)
    if 2 * int(as_predicted.sum()) >= len(as_predicted):
        return []
    counts = "/".join(str(int(trace.survivors(radius).sum())) for radius in (0.5, 1.0, 2.0))
    return [
        Finding(
            "no-fall-with-eps",
            f"of {len(trace.images)} images, {counts} survive within eps/2, eps and 2 eps: a larger ball does not help "
            "the gradient",
        )
    ]


def silent_success(trace: PGDTrace) -> list[Finding]:
    """Images that are misclassified in the trace within eps, but not at its end (Pintor et al. 2022).

    See arXiv:2106.09947. This undermines attacks that return their last iterate. The attacks of an audit return their
    best iterate, so it does not undermine them. Costs no pass.
    """
    within = torch.tensor([radius <= 1 for radius in trace.radii], device=trace.logit_margins.device)
    logit_margins = trace.logit_margins[within]
    evaluated = ~logit_margins.isnan()
    indices = torch.arange(len(logit_margins), device=logit_margins.device)[:, None]
    last = torch.where(evaluated, indices, -1).amax(0)
    final = logit_margins.gather(0, last[None].clamp_min(0)).squeeze(0)
    count = int(((logit_margins > 0).any(0) & ~(logit_margins[0] > 0) & (final <= 0)).sum())
    if count < _SILENT:
        return []
    return [
        Finding(
            "silent-success",
            f"at {count} of {len(trace.images)} images an attack finds an adversarial example on its way, but does not "
            "end at one",
        )
    ]
