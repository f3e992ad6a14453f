"""Reference attacks: each defense is attacked as in its literature, with full knowledge of how it works.

They run the package's APGD on *views* of a defense. A view is a module that an adaptive attacker differentiates instead
of the defense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel, apgd, bypassed
from pytest_gradmask.auditing.research import (
    Loss,
    Oracle,
    Outputs,
    RandomStream,
    RejectOption,
    as_defense,
    cross_entropy,
    logit_margin,
    under_attack,
)


@dataclass(frozen=True, slots=True)
class View:
    """A module that an attacker differentiates instead of the defense.

    Attributes:
        of: makes the module to differentiate from the defense's model.
        outputs: whether the module returns logits or probabilities; ``None`` if it returns what the defense returns.
        draws: forwards of the view to average for each forward of the defense, if the view adds randomness.
    """

    of: Callable[[nn.Module], nn.Module]
    outputs: Outputs | None = None
    draws: int = 1


#: The defense as it is: a plain white-box attack (with EOT where the defense is randomized).
ITSELF = View(lambda model: model)


def bypass(kind: type[nn.Module], approximation: Callable[..., Tensor] | None = None) -> View:
    """BPDA (Athalye, Carlini and Wagner 2018, arXiv:1802.00420): all modules of a class get another backward pass.

    Args:
        kind: class of the modules.
        approximation: ``approximation(module, inputs)`` is differentiable and shaped like ``module(inputs)``; ``None``
            is the identity.
    """

    def of(model: nn.Module) -> nn.Module:
        found = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
        return bypassed(
            model, {name: approximation and partial(approximation, module) for name, module in found.items()}
        )

    return View(of)


def inside(name: str) -> View:
    """A submodule that returns logits, such as the classifier inside a defense that changes its outputs."""
    return View(lambda model: model.get_submodule(name), "logits")


def view_of(function: Callable[..., Tensor]) -> View:
    """A version of the whole defense written by hand: ``function(model, images)`` returns its logits."""
    return View(lambda model: _Function(partial(function, model)), "logits")


def instead(function: Callable[..., Tensor]) -> View:
    """BPDA with a version of the whole defense written by hand: its gradient, at the outputs of the defense.

    Args:
        function: ``function(model, images)`` is differentiable, and returns logits as the defense does.
    """

    def of(model: nn.Module) -> nn.Module:
        def logits(images: Tensor) -> Tensor:
            with torch.no_grad():
                outputs = model(images)
            return straight_through(function(model, images), outputs)

        return _Function(logits)

    return View(of)


def straight_through(approximation: Tensor, value: Tensor) -> Tensor:
    """A tensor with the values of ``value`` and the gradient of ``approximation``, of the same shape."""
    return approximation + (value - approximation).detach()


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def smoothed(std: float, draws: int = 10) -> View:
    """The defense at images with normal noise of this standard deviation, in input units, averaged over draws.

    Its gradient, averaged over forwards, is that of the defense convolved with the noise. It is useful where the
    gradient of the defense is rough or zero (Tramèr et al. 2020, arXiv:2002.08347).
    """
    return View(lambda model: _Smoothed(model, std), draws=draws)


class _Smoothed(nn.Module):
    def __init__(self, model: nn.Module, std: float) -> None:
        super().__init__()
        self.model, self.std = model, std

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + self.std * torch.randn_like(images))  # type: ignore[no-any-return]


def through(first: View, second: View) -> View:
    """A view of a view, such as a smoothed view of a bypassed one."""
    return View(lambda model: second.of(first.of(model)), second.outputs or first.outputs, first.draws * second.draws)


def toward(target: int) -> Loss:
    """A loss: the logit of one class minus that of the label. It is constant for images of that class."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        return logits[:, target] - logits.gather(1, labels[:, None]).squeeze(1)

    return loss


def multi_targeted(classes: int) -> list[Loss]:
    """Cross-entropy, the logit margin, and each class as the target (Gowal et al. 2019, arXiv:1910.09338).

    These losses are used to evaluate adversarially trained classifiers, some of whose images only a targeted loss
    breaks.
    """
    return [cross_entropy, logit_margin, *(toward(target) for target in range(classes))]


def attack_views(
    defense: Defense | nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    generator: torch.Generator,
    views: Sequence[View] = (ITSELF,),
    losses: Sequence[Loss] = (cross_entropy, logit_margin),
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    samples: int = 1,
) -> Tensor:
    """Attack a defense through each view with each loss, and return the strongest adversarial image of each image.

    The defense draws from its own random stream, which is seeded from ``generator``. The same generator therefore gives
    the same images, for a randomized defense, too. Images that are always misclassified are not attacked any further.
    A detector is attacked with the joint objective of `RejectOption`: misclassified, and accepted.

    Args:
        defense: the defense that a user would audit.
        images: float32, N x C x H x W, in the bounds of ``threat``.
        labels: int64, N, of the defense.
        threat: where to search.
        generator: a CPU generator.
        views, losses: all pairs are used, view by view.
        steps, restarts: of each APGD.
        eot: forwards of the defense to average in each step.
        samples: forwards of the defense over which an image is scored.

    Returns:
        Images in the ball and in the bounds, N x C x H x W.
    """
    defense = as_defense(defense)
    stream = RandomStream(int(torch.randint(2**31, (1,), generator=generator)), images.device)
    option = None if defense.rejects is None else RejectOption(defense.rejects)
    attack = partial(
        _attack, defense, option, stream, threat=threat, generator=generator, views=views, losses=losses, steps=steps,
        restarts=restarts, eot=eot, samples=samples,
    )  # fmt: skip
    if option is None:
        return attack(images, labels)
    found = images.clone()
    for label in labels.unique():
        chosen = labels == label
        with under_attack(option, labels[chosen]) as safe:
            found[chosen] = attack(images[chosen], safe)
    return found


def _attack(
    defense: Defense,
    option: RejectOption | None,
    stream: RandomStream,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    generator: torch.Generator,
    views: Sequence[View],
    losses: Sequence[Loss],
    steps: int,
    restarts: int,
    eot: int,
    samples: int,
) -> Tensor:
    oracle = Oracle(defense.model, stream, defense.outputs, rejection=option)
    best = images.clone()
    wrong, logit_margins = _score(oracle, best, labels, samples)
    for view in views:
        source = Oracle(view.of(defense.model), stream, view.outputs or defense.outputs, rejection=option)
        forwards = eot * view.draws
        for loss in losses:
            active = (wrong < 1).nonzero().squeeze(1)
            if len(active) == 0:
                return best
            found = apgd(
                source, images[active], labels[active], threat=threat, steps=steps, generator=generator,
                restarts=restarts, loss=loss, eot=forwards, stop_early=forwards == 1,
            )  # fmt: skip
            found_wrong, found_margins = _score(oracle, found, labels[active], samples)
            better = (found_wrong > wrong[active]) | (
                (found_wrong == wrong[active]) & (found_margins > logit_margins[active])
            )
            chosen = active[better]
            best[chosen], wrong[chosen], logit_margins[chosen] = (
                found[better],
                found_wrong[better],
                found_margins[better],
            )
    return best


def _score(oracle: Oracle, images: Tensor, labels: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """For each image, the share of forwards that misclassify it, and the mean logit margin."""
    with torch.no_grad():
        logit_margins = torch.stack([logit_margin(oracle(images), labels) for _ in range(samples)])
    return (logit_margins > 0).float().mean(0), logit_margins.mean(0)
