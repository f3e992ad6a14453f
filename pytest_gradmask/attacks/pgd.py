"""PGD and APGD: attacks that follow the gradient of the model they are given.

On the defense itself they are gradient attacks. On a defense with a replaced backward pass (`bypassed`) they are BPDA.
On another model they are transfer attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import cycle, islice

import torch
from torch import Tensor

from pytest_gradmask.attacks.arguments import check_attack
from pytest_gradmask.attacks.evaluate import (
    SYNC_EVERY,
    BestIterates,
    finite_value_and_grad,
    logit_margins_and_fooled,
    should_sync,
)
from pytest_gradmask.attacks.losses import Loss, cross_entropy
from pytest_gradmask.attacks.protocol import Classifier
from pytest_gradmask.attacks.users_code import errors_attributed_to
from pytest_gradmask.attacks.users_set import named_if_it_fails
from pytest_gradmask.threat import PerturbationSet, per_image


def pgd(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss | Sequence[Loss] = cross_entropy,
    eot: int = 1,
    stop_early: bool = False,
) -> Tensor:
    """Projected gradient descent from random starts (Madry et al. 2018, arXiv:1706.06083).

    Args:
        model: maps images to logits.
        images: N x C x H x W in the bounds of ``threat``.
        labels: int64, N.
        threat: where to search.
        steps: gradient steps of each restart.
        generator: draws the random starts; a CPU generator.
        step_size: in input units; by default ``2.5 * eps / steps``.
        restarts: independent starts; the best iterate of all is returned.
        loss: what to maximise. Of several, each restart takes the next one.
        eot: passes over which loss and gradient are averaged in each step, for randomized defenses. If ``model`` is
            an `Oracle` with known members, there is one pass of each member instead, weighted.
        stop_early: stop attacking an image once ``model`` misclassifies it. Without this, the search goes on to
            larger margins: such an image transfers better to other models, and fools a randomized defense more often.

    Returns:
        For each image the iterate with the largest mean logit margin or, where the members are known, the one that
        fools the largest share of them; in the ball and the bounds.

    Raises:
        InputError: an argument is unusable.
        DefenseError: the model or the loss raises.
    """
    check_attack(
        model, images, labels, threat=threat, generator=generator, loss=loss, stop_early=stop_early,
        step_size=step_size, steps=steps, restarts=restarts, eot=eot,
    )  # fmt: skip
    alpha = 2.5 * threat.eps / steps if step_size is None else step_size
    run = partial(
        _pgd_run, model, images, labels, threat=named_if_it_fails(threat), steps=steps, generator=generator,
        alpha=alpha, eot=eot, stop_early=stop_early,
    )  # fmt: skip
    return _restarted(run, images, loss, restarts, until_fooled=True)


def _restarted(
    run: Callable[..., None], images: Tensor, loss: Loss | Sequence[Loss], restarts: int, *, until_fooled: bool
) -> Tensor:
    """The best iterates of several runs, which take the losses in turn; of fewer, if these may end once all fool."""
    best = BestIterates.start(images)
    with errors_attributed_to("the model or the loss", images):
        for one in islice(cycle([loss] if callable(loss) else loss), restarts):
            run(loss=one, best=best)
            if until_fooled and best.all_fooled():
                break
    return best.adv_best


def _pgd_run(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    steps: int,
    generator: torch.Generator,
    alpha: float,
    loss: Loss,
    eot: int,
    stop_early: bool,
    best: BestIterates,
) -> None:
    """One run from a random start, which updates ``best``."""
    x_adv, active = threat.random_start(images, generator), _all_indices(images)
    for step in range(steps):
        if stop_early and should_sync(images, step % SYNC_EVERY):
            still_active = best.is_active(active)
            x_adv, active = x_adv[still_active], active[still_active]
            if len(active) == 0:
                return
        evaluation = finite_value_and_grad(model, x_adv, labels[active], loss, eot)
        best.update(x_adv, evaluation.logit_margins, evaluation.fooled, active)
        x_adv = threat.project(x_adv + alpha * threat.step(evaluation.gradient, at=x_adv), images[active])
    best.update(x_adv, *logit_margins_and_fooled(model, x_adv, labels[active], eot), active)


def apgd(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    steps: int,
    generator: torch.Generator,
    restarts: int = 1,
    loss: Loss | Sequence[Loss] = cross_entropy,
    eot: int = 1,
    stop_early: bool = True,
) -> Tensor:
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, Algorithm 1): PGD with momentum and an adaptive step size.

    The step size is halved where the loss no longer increases, and the search goes on from the best iterate. Of
    iterates with the same loss this is the last one, where the paper has the first: a loss that does not change at all,
    as that of a defense which returns votes, is no reason to give the way so far up. The arguments and the result are
    those of `pgd`; ``steps`` counts gradient steps of each restart.

    Raises:
        InputError, DefenseError: see `pgd`.
    """
    check_attack(
        model, images, labels, threat=threat, generator=generator, loss=loss, stop_early=stop_early, steps=steps,
        restarts=restarts, eot=eot,
    )  # fmt: skip
    run = partial(
        _apgd_run, model, images, labels, threat=named_if_it_fails(threat), steps=steps, generator=generator, eot=eot,
        stop_early=stop_early,
    )  # fmt: skip
    return _restarted(run, images, loss, restarts, until_fooled=stop_early)


@dataclass(kw_only=True, slots=True)
class _APGDState:
    """The state of one run of APGD. Each tensor has one row for each active image.

    Attributes:
        active: indices of the active images.
        images: the clean images.
        labels: their labels.
        x_adv, x_prev: the last iterate and the one before it.
        grad, loss: gradient and loss at ``x_adv``.
        x_best, loss_best, grad_best: the last iterate of this run with the highest loss, that loss, and its gradient.
        loss_increases: number of steps since the last checkpoint that increased the loss.
        halved_last: whether the last checkpoint halved the step size.
        loss_best_last: ``loss_best`` at the last checkpoint.
        step_size: of the next step.
    """

    active: Tensor
    images: Tensor
    labels: Tensor
    x_adv: Tensor
    x_prev: Tensor
    grad: Tensor
    loss: Tensor
    x_best: Tensor
    loss_best: Tensor
    grad_best: Tensor
    loss_increases: Tensor
    halved_last: Tensor
    loss_best_last: Tensor
    step_size: Tensor

    def select(self, mask: Tensor) -> _APGDState:
        """The state of some of the active images; ``mask`` is bool, one value for each."""
        if bool(mask.all()):
            return self
        return _APGDState(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def _apgd_run(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    steps: int,
    generator: torch.Generator,
    loss: Loss,
    eot: int,
    stop_early: bool,
    best: BestIterates,
) -> None:
    """One run from a random start, which updates ``best``."""
    window, window_min, window_decrease = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    active = best.active_indices() if stop_early else _all_indices(images)
    x_init = threat.random_start(images, generator)[active]
    evaluation = finite_value_and_grad(model, x_init, labels[active], loss, eot)
    best.update(x_init, evaluation.logit_margins, evaluation.fooled, active)
    state = _APGDState(
        active=active,
        images=images[active],
        labels=labels[active],
        x_adv=x_init,
        x_prev=x_init,
        grad=evaluation.gradient,
        loss=evaluation.losses,
        x_best=x_init,
        loss_best=evaluation.losses,
        grad_best=evaluation.gradient,
        loss_increases=torch.zeros_like(evaluation.losses),
        halved_last=torch.ones_like(evaluation.losses, dtype=torch.bool),
        loss_best_last=evaluation.losses,
        step_size=per_image(x_init.new_full((len(x_init),), 2 * threat.eps), x_init),
    )
    steps_since_checkpoint = 0
    for step in range(steps):
        if stop_early and should_sync(images, steps_since_checkpoint):
            state = state.select(best.is_active(state.active))
            if len(state.active) == 0:
                return
        _apgd_step(state, threat, momentum=1.0 if step == 0 else 0.75)
        evaluation = finite_value_and_grad(model, state.x_adv, state.labels, loss, eot)
        best.update(state.x_adv, evaluation.logit_margins, evaluation.fooled, state.active)
        state.loss_increases = state.loss_increases + (evaluation.losses > state.loss)
        state.grad, state.loss = evaluation.gradient, evaluation.losses
        # The later of two equal ones: where the loss does not change at all, the way so far is not given up.
        improved = state.loss >= state.loss_best
        mask = per_image(improved, state.x_adv)
        state.x_best = torch.where(mask, state.x_adv, state.x_best)
        state.grad_best = torch.where(mask, state.grad, state.grad_best)
        state.loss_best = torch.where(improved, state.loss, state.loss_best)
        steps_since_checkpoint += 1
        if steps_since_checkpoint == window:
            _apgd_checkpoint(state, window)
            steps_since_checkpoint = 0
            window = max(window - window_decrease, window_min)


def _apgd_step(state: _APGDState, threat: PerturbationSet, momentum: float) -> None:
    """Replace the iterate by the next one."""
    z = threat.project(state.x_adv + state.step_size * threat.step(state.grad, at=state.x_adv), state.images)
    change = momentum * (z - state.x_adv) + (1 - momentum) * (state.x_adv - state.x_prev)
    state.x_prev, state.x_adv = state.x_adv, threat.project(state.x_adv + change, state.images)


def _apgd_checkpoint(state: _APGDState, window: int) -> None:
    """Halve the step size where the loss stalls, and go on from the best iterate there.

    The loss stalls if at most three quarters of the last ``window`` steps increased it, or if its best value has not
    changed since the last checkpoint, unless that one halved the step size.
    """
    stalled = (state.loss_increases <= 0.75 * window) | (~state.halved_last & (state.loss_best_last >= state.loss_best))
    mask = per_image(stalled, state.x_adv)
    state.step_size = torch.where(mask, state.step_size / 2, state.step_size)
    state.x_adv = torch.where(mask, state.x_best, state.x_adv)
    state.grad = torch.where(mask, state.grad_best, state.grad)
    state.halved_last, state.loss_best_last = stalled, state.loss_best
    state.loss_increases = torch.zeros_like(state.loss_increases)


def _all_indices(images: Tensor) -> Tensor:
    return torch.arange(len(images), device=images.device)
