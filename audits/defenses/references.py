"""Reference attacks: each defense attacked as its literature does, with full knowledge of how it works.

They are made of the package's APGD on *views* of a defense: what an adaptive attacker differentiates in its place.
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
    as_defense,
    cross_entropy,
    logit_margin,
)


@dataclass(frozen=True, slots=True)
class View:
    """What an attacker differentiates instead of the defense.

    Attributes:
        of: from the defense's model to the module to differentiate.
        outputs: what that module returns; ``None`` for what the defense returns.
        draws: forwards to average for each one of the defense, where the view adds randomness of its own.
    """

    of: Callable[[nn.Module], nn.Module]
    outputs: Outputs | None = None
    draws: int = 1


#: The defense as it is: a plain white-box attack (with EOT where the defense is randomized).
ITSELF = View(lambda model: model)


def bypass(kind: type[nn.Module], approximation: Callable[..., Tensor] | None = None) -> View:
    """BPDA (Athalye, Carlini and Wagner 2018): every module of a kind has another backward pass.

    Args:
        kind: class of the modules to replace.
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
    """A submodule that returns logits: the classifier before its outputs are disguised."""
    return View(lambda model: model.get_submodule(name), "logits")


def smoothed(std: float, draws: int = 10) -> View:
    """The defense at images with normal noise of this standard deviation, in input units, averaged over draws.

    Its gradient, averaged over forwards, is that of the defense convolved with the noise: it exists, and tells of the
    neighbourhood, where the defense's own gradient is rough or nil (Tramèr et al. 2020).
    """
    return View(lambda model: _Smoothed(model, std), draws=draws)


class _Smoothed(nn.Module):
    def __init__(self, model: nn.Module, std: float) -> None:
        super().__init__()
        self.model, self.std = model, std

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + self.std * torch.randn_like(images))  # type: ignore[no-any-return]


def through(first: View, second: View) -> View:
    """One view of another, such as a smoothed one of a bypassed one."""
    return View(lambda model: second.of(first.of(model)), second.outputs or first.outputs, first.draws * second.draws)


def toward(target: int) -> Loss:
    """How far the logit of one class is ahead of the label's; flat for images of that class."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        return logits[:, target] - logits.gather(1, labels[:, None]).squeeze(1)

    return loss


def multi_targeted(classes: int) -> list[Loss]:
    """Cross-entropy, the margin, and each class in turn as the target (Gowal et al. 2019, "MultiTargeted").

    What adversarially trained classifiers are evaluated with: their last points fall to some target and to no
    untargeted loss.
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
    """Attack a defense through each view with each loss, and keep for each image what the defense gets most wrong.

    The defense's random numbers come from a stream of its own, seeded from ``generator``: the same generator gives the
    same images, for a randomized defense, too. Images that are always misclassified are left alone from then on.

    Args:
        defense: as a user hands it over.
        images: float32, N x C x H x W, in the bounds of ``threat``.
        labels: int64, N, of the defense.
        threat: where to search.
        generator: a CPU generator.
        views, losses: all pairs are tried, view by view.
        steps, restarts: of each APGD.
        eot: forwards of the defense to average in each step.
        samples: forwards by which the defense judges an image.

    Returns:
        Images in the ball and in the bounds, N x C x H x W.
    """
    defense = as_defense(defense)
    stream = RandomStream(int(torch.randint(2**31, (1,), generator=generator)), images.device)
    judge = Oracle(defense.model, stream, defense.outputs)
    best = images.clone()
    wrong, logit_margins = _judged(judge, best, labels, samples)
    for view in views:
        source = Oracle(view.of(defense.model), stream, view.outputs or defense.outputs)
        forwards = eot * view.draws
        for loss in losses:
            left = (wrong < 1).nonzero().squeeze(1)
            if len(left) == 0:
                return best
            found = apgd(
                source, images[left], labels[left], threat=threat, steps=steps, generator=generator,
                restarts=restarts, loss=loss, eot=forwards, stop_early=forwards == 1,
            )  # fmt: skip
            found_wrong, found_margins = _judged(judge, found, labels[left], samples)
            better = (found_wrong > wrong[left]) | (
                (found_wrong == wrong[left]) & (found_margins > logit_margins[left])
            )
            chosen = left[better]
            best[chosen], wrong[chosen], logit_margins[chosen] = (
                found[better],
                found_wrong[better],
                found_margins[better],
            )
    return best


def _judged(judge: nn.Module, images: Tensor, labels: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """For each image, the share of forwards that misclassify it and the mean margin."""
    with torch.no_grad():
        logit_margins = torch.stack([logit_margin(judge(images), labels) for _ in range(samples)])
    return (logit_margins > 0).float().mean(0), logit_margins.mean(0)
