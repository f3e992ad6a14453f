"""Classifiers inside of a defense, one or several as one, and how alike two classifiers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask.attacks.bypass.approximations import Approximation
from pytest_gradmask.attacks.bypass.hooks import plainly
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import TINY_PROBABILITY, Oracle, as_logits
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.defense import Outputs
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.threat import PerturbationSet

#: Least cosine between two gradients that lead to the same adversarial examples.
_ALIGNED = 0.9
_PGD_STEPS = 10


class InnerClassifier(nn.Module):
    """A submodule of a defense as a classifier of the defense's images.

    Args:
        name: dotted name of the submodule in the defense.
        module: maps images to logits or probabilities, N x K.
        before: from images to the input of the submodule; None for the identity.
        outputs: what the submodule returns.
        dtype: floating-point type of its input.
    """

    def __init__(
        self, name: str, module: nn.Module, before: Approximation | None, outputs: Outputs, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.name, self.module, self.before, self.outputs, self.dtype = name, module, before, outputs, dtype
        self.training = False  # eval() would change the flags of the submodule, which belong to the user

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32, N x K."""
        inputs = images.clone() if self.before is None else self.before(images)
        return as_logits(self.module(inputs.to(self.dtype)), self.outputs)


class JointClassifier(nn.Module):
    """Several inner classifiers as one: the mean of their log-probabilities, so that an attack has to fool all of them.

    A defense that asks whether they agree is fooled by images that fool them all at once, and mostly not by those that
    fool one of them.
    """

    def __init__(self, classifiers: Sequence[InnerClassifier]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.training = False

    @property
    def name(self) -> str:
        """The dotted names of the submodules."""
        return " and ".join(each.name for each in self.classifiers)  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32, N x K."""
        return torch.stack([each(images).log_softmax(1) for each in self.classifiers]).mean(0)


#: Takes a model and images, and returns the logits of the classes, without "rejected".
View = Callable[[nn.Module, Tensor], Tensor]


def view_of(oracle: Oracle, images: Tensor) -> View:
    """How to see the defense, or a model with or without its class "rejected", as a classifier of the same classes."""
    rejects = oracle.rejection.rejects if oracle.rejection is not None else None
    with oracle.without_rejection(), torch.no_grad():
        width = oracle(images[:1]).shape[1]

    def view(model: nn.Module, points: Tensor) -> Tensor:
        if isinstance(model, Oracle):
            with model.without_rejection():
                logits = model(points)
        else:
            with oracle.drawing():
                logits = model(points.clone())
        if isinstance(rejects, int) and logits.shape[1] == width:
            return torch.cat([logits[:, :rejects], logits[:, rejects + 1 :]], 1)
        return logits  # type: ignore[no-any-return]

    return view


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A classifier at some points.

    Attributes:
        log_probabilities: N x K.
        gradient: of the logit margin, N x C x H x W.
    """

    log_probabilities: Tensor
    gradient: Tensor

    def same_as(self, other: Behaviour | None, tolerance: float) -> bool:
        """Whether attacks on both find the same adversarial examples: neither outputs nor gradients differ by more."""
        if other is None or self.log_probabilities.shape != other.log_probabilities.shape:
            return False
        finite = other.log_probabilities.isfinite().all(1)  # a defense may return NaN off the grid of 8 bits
        ours, theirs = self.log_probabilities[finite], other.log_probabilities[finite]
        if not bool((ours - theirs).norm() <= tolerance * theirs.norm()):
            return False
        cosine = functional.cosine_similarity(self.gradient[finite].flatten(), other.gradient[finite].flatten(), dim=0)
        return float(cosine) >= _ALIGNED


def behaviour(view: View, model: nn.Module, points: Sequence[Tensor]) -> Behaviour | None:
    """None if it cannot be differentiated."""
    outputs, gradients = [], []
    for part in points:
        try:
            with plainly(), torch.enable_grad():
                logits, gradient = at_second_try(partial(_logits_and_gradient, view, model, part))
        except Exception as error:  # code of the user
            if out_of_memory(error):
                raise
            return None
        gradients.append(torch.zeros_like(part) if gradient is None else gradient.nan_to_num())
        outputs.append(logits.log_softmax(1))
    # Probabilities of the defense are no smaller than that either, see `as_logits`.
    return Behaviour(torch.cat(outputs).clamp_min(math.log(TINY_PROBABILITY)), torch.cat(gradients))


def _logits_and_gradient(view: View, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    point = images.clone().requires_grad_(True)
    logits = view(model, point + 0)  # the model may write into its input
    margins = logit_margin(logits, logits.argmax(1)).sum()
    (gradient,) = torch.autograd.grad(margins, point, allow_unused=True)
    return logits.detach(), gradient


def how_many_transfer(
    view: View, oracle: Oracle, candidate: nn.Module, *, images: Tensor, answers: Tensor, threat: PerturbationSet
) -> tuple[float, float]:
    """Share of the adversarial examples of the candidate that fool the defense, and its mean logit margin there."""
    generator = torch.Generator().manual_seed(0)
    found = pgd(partial(view, candidate), images, answers[0], threat=threat, steps=_PGD_STEPS, generator=generator)
    with torch.no_grad():
        margins = torch.stack([logit_margin(view(oracle, found), answers[0]) for _ in answers])
    return float((margins > 0).float().mean()), float(margins.mean())
