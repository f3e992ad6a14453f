"""The attacks of AutoAttack, run by the original code, with workarounds for its side effects.

The original code (Croce and Hein 2020, arXiv:2003.01690), called upstream here, is the package ``autoattack`` if that
is installed, and ``pyautoattack`` otherwise. Its attacks are called one by one, with the parameters of its
``standard`` and ``rand`` versions, or with fewer steps. Its ``run_standard_evaluation`` is not used: it removes the
trace function of coverage and debuggers, keeps a count of dynamic models that is never reset, and crashes with four
classes or fewer.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.hopeless import GiveUp
from pytest_gradmask.execution.generators import random_state_kept
from pytest_gradmask.execution.precision import guiding
from pytest_gradmask.threat import ThreatModel

# Not part of the logging tree, whose levels and handlers belong to the user.
_silent = logging.Logger("pytest_gradmask.autoattack", level=logging.CRITICAL + 1)

#: Where Square asks roughly, points are asked exactly whose margin is below so many times the largest difference.
_NEAR = 16
#: Square's L2 version needs images of so many pixels a side.
_LEAST_SIDE = 5


def upstream(module: str) -> Any:
    """A module of upstream's package, by its name."""
    try:
        return importlib.import_module(f"autoattack.{module}")
    except ModuleNotFoundError:
        return importlib.import_module(f"pyautoattack.{module}")


class _UnitRange(nn.Module):
    """A model for inputs in [0, 1], which upstream assumes: they are scaled to the bounds of the pixels."""

    def __init__(self, model: nn.Module, low: float, width: float) -> None:
        super().__init__()
        self.model, self.low, self.width = model, low, width

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.width + self.low)  # type: ignore[no-any-return]


def _run(
    attack_class: Callable[..., Any],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    prepare: Callable[[Any], None] = lambda attack: None,
    **parameters: Any,
) -> Tensor:
    low, high = threat.bounds
    width = high - low
    if width > 0 and (low, width) != (0.0, 1.0):
        model = _UnitRange(model, low, width)
    unit = (
        (images - low) / width
    ).contiguous()  # upstream calls view() on the gradient, which has the layout of the images
    seed = int(torch.randint(2**31, (1,), generator=generator))
    attack = attack_class(
        model, norm=threat.norm, eps=threat.eps / width, seed=seed, device=images.device, **parameters
    )
    if threat.norm == "L1" and hasattr(attack, "use_largereps"):
        attack.use_largereps = True  # as upstream's own versions for L1 do
    prepare(attack)
    with random_state_kept(images.device), torch.no_grad():  # upstream seeds the global generators
        result = attack.perturb(unit, labels)
    adversarial: Tensor = result[-1] if isinstance(result, tuple) else result
    # Scaling back rounds, and the projection corrects that. NaN values stay, so that the audit can report them.
    return threat.project(adversarial * width + low, images)


class _Inside(nn.Module):
    """The model, which sees the first rows and columns of an image."""

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.model, self.height, self.width = model, height, width
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[:, :, : self.height, : self.width])  # type: ignore[no-any-return]


def apgd_ce(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    eot: int = 1,
    loss: str = "ce",
) -> Tensor:
    """Upstream's APGD on cross-entropy, or on DLR with ``loss="dlr"`` (three classes or more).

    ``standard``: 100 steps.
    """
    attack_class = upstream("autopgd_base").APGDAttack
    return _run(
        attack_class, model, images, labels, threat, generator,
        n_iter=steps, n_restarts=1, loss=loss, eot_iter=eot, rho=0.75, logger=_silent,
    )  # fmt: skip


def apgd_dlr(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    eot: int = 1,
) -> Tensor:
    """Upstream's APGD on the difference of logits ratio; ``rand``: 100 steps with 20 forward passes each."""
    return apgd_ce(model, images, labels, threat=threat, steps=steps, generator=generator, eot=eot, loss="dlr")


def apgd_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    targets: int = 9,
    eot: int = 1,
) -> Tensor:
    """Upstream's targeted APGD (four classes or more); ``standard``: 100 steps for each of 9 target classes."""
    attack_class = upstream("autopgd_base").APGDAttack_targeted
    return _run(
        attack_class, model, images, labels, threat, generator,
        n_iter=steps, n_restarts=1, n_target_classes=targets, eot_iter=eot, rho=0.75, logger=_silent,
    )  # fmt: skip


def fab_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    targets: int = 9,
) -> Tensor:
    """Upstream's targeted FAB (Croce and Hein 2020, arXiv:1907.02044).

    ``standard``: 100 steps for each of 9 target classes.
    """
    attack_class = upstream("fab_pt").FABAttack_PT

    def prepare(attack: Any) -> None:
        attack.targeted = True

    return _run(
        attack_class, model, images, labels, threat, generator, prepare,
        n_iter=steps, n_restarts=1, n_target_classes=targets, verbose=False,
    )  # fmt: skip


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    give_up: GiveUp | None = None,
) -> Tensor:
    """Upstream's Square attack (Andriushchenko et al. 2020, arXiv:1912.00049).

    ``steps`` is its number of queries; ``standard``: 5,000. ``give_up`` is asked after each query which images are
    hopeless, at the cost of one query more. The versions for L2 and L1 divide by zero on images of less than five
    pixels a side, so these get a margin that the model does not see.
    """
    height, width = images.shape[2:]
    if threat.norm != "Linf" and min(height, width) < _LEAST_SIDE:
        margin = (0, max(0, _LEAST_SIDE - width), 0, max(0, _LEAST_SIDE - height))
        larger = torch.nn.functional.pad(images, margin, value=threat.bounds[0])
        inner = _Inside(model, height, width)
        attacked = square(inner, larger, labels, threat=threat, steps=steps, generator=generator, give_up=give_up)
        return attacked[:, :, :height, :width]
    attack_class = upstream("square").SquareAttack
    return _run(
        attack_class, model, images, labels, threat, generator, partial(_let_give_up, give_up, steps),
        n_queries=steps, n_restarts=1, p_init=0.8, resc_schedule=steps < 5000, verbose=False,
    )  # fmt: skip


def _let_give_up(give_up: GiveUp | None, queries: int, attack: Any) -> None:
    """Have upstream's Square take hopeless images for broken ones, which it leaves out.

    Upstream passes on only the images that it still attacks, and does not say which. They are those whose margin is
    above zero so far, in order.
    """
    if give_up is None:
        return
    margin_and_loss, single_run = attack.margin_and_loss, attack.attack_single_run

    def run(images: Tensor, labels: Tensor) -> Any:
        before = -margin_and_loss(images, labels)[0]
        best, active, calls = torch.full_like(before, -torch.inf), torch.arange(len(before), device=before.device), 0
        with guiding() as rough:
            differ = (margin_and_loss(images, labels)[0] + before).abs().max() if rough else before.new_zeros(())

        def watched(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal active, calls
            with guiding() as rough:
                margins, losses = margin_and_loss(points, labels)
            if rough and (close := margins <= _NEAR * differ).any():
                margins[close], losses[close] = margin_and_loss(points[close], labels[close])
            if len(margins) != len(active):  # this is not the version of upstream's that was read
                return margins, losses
            calls += 1
            best[active] = torch.maximum(best[active], -margins)
            hopeless = give_up(before[active], best[active], calls / queries)
            margins, losses = (values.masked_fill(hopeless, -torch.inf) for values in (margins, losses))
            active = active[~hopeless & (best[active] < 0)]
            return margins, losses

        attack.margin_and_loss = watched
        return single_run(images, labels)

    attack.attack_single_run = run
