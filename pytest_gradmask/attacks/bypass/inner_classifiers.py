"""Inner classifiers: a defense that purifies, votes, detects or optimizes mostly holds a plain classifier of images.

Such a wrapper hides the gradient of the classifier inside, and most adversarial examples of one fool the other. Croce
et al. (2022, arXiv:2202.13711) attack the static model inside adaptive test-time defenses for this reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask.attacks.bypass.approximations import Approximation, fit_affine
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.bypass.hooks import hooked, plainly
from pytest_gradmask.attacks.bypass.search import CLOSENESS
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import TINY_PROBABILITY, Oracle, as_logits
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.defense import FromImages, Outputs
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.threat import PerturbationSet

#: At most so many are returned. More of them mostly repeat what the best ones break.
MOST = 2
#: Share of clean images on which an inner classifier agrees with the defense; chance agrees on one of K.
_AGREES = 0.5
#: Error of an affine map that is exact but for rounding.
_EXACT = 1e-3
#: Least cosine between two gradients that lead to the same adversarial examples.
_ALIGNED = 0.9
#: Differences of outputs, as a share of them: by rounding alone, and of models that one attack suffices for.
_SAME, _SIMILAR = 1e-3, 0.1
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


def find_inner_classifiers(
    oracle: Oracle,
    images: Tensor,
    *,
    threat: PerturbationSet,
    approximations: Mapping[str, Any] | None = None,
    attacked: Sequence[Oracle] = (),
    forwards: int = 1,
) -> tuple[InnerClassifier, ...]:
    """Find submodules that classify images as the defense does, and whose adversarial examples may transfer to it.

    The input of such a submodule has the shape of the images. Its outputs are logits or probabilities of the same
    classes, and its answers are those of the defense on at least half of the images. It is left out if function and
    gradient are those of the defense itself, as behind a normalization, or of a model that other attacks use already.
    So an honest model has none.

    If there are more than `MOST`, those are taken whose adversarial examples, of a short PGD, fool the defense best.

    Args:
        oracle: the defense.
        images: N x C x H x W; eight are enough.
        threat: where PGD searches.
        approximations: submodules that BPDA bypasses. Those inside of an inner classifier are bypassed there, too.
        attacked: models that other attacks use already.
        forwards: number of forward passes to observe. A randomized ensemble uses another member in each.
    """
    images = images.detach().to(oracle.dtype)
    candidates = _candidates(oracle, images, approximations or {}, forwards)
    if not candidates:
        return ()
    view = _view_of(oracle, images)
    with torch.no_grad():
        answers = torch.stack([view(oracle, images).argmax(1) for _ in range(forwards)])
    found = [candidate for candidate in candidates if _agrees(view, candidate, images, answers)]
    if not found:
        return ()
    points = (images, threat.random_start(images, torch.Generator().manual_seed(0)))
    with oracle.frozen():
        defense, *known = [_behaviour(view, model, points) for model in (oracle, *attacked)]
        distinct = []
        for candidate in found:
            behaviour = _behaviour(view, candidate, points)
            if behaviour is None or not bool(behaviour.gradient.any()):
                continue  # its gradient leads nowhere
            if not behaviour.same_as(defense, _SAME) and not any(behaviour.same_as(each, _SIMILAR) for each in known):
                distinct.append(candidate)
                known.append(behaviour)
    if len(distinct) > MOST:
        margins = {each: _transferred_margin(view, oracle, each, images, answers, threat) for each in distinct}
        distinct.sort(key=margins.__getitem__, reverse=True)
    return tuple(distinct[:MOST])


#: Takes a model and images, and returns the logits of the classes, without "rejected".
_View = Callable[[nn.Module, Tensor], Tensor]


def _view_of(oracle: Oracle, images: Tensor) -> _View:
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


def _candidates(
    oracle: Oracle, images: Tensor, approximations: Mapping[str, Any], forwards: int
) -> list[InnerClassifier]:
    """The submodules that map an image to logits, in the order of ``named_modules()``: the outermost first."""
    model = oracle.model
    running: dict[str, Tensor] = {}
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}

    def enter(name: str, given: tuple[Any, ...]) -> None:
        running.pop(name, None)
        is_image = len(given) == 1 and isinstance(given[0], Tensor) and given[0].is_floating_point()
        if is_image and given[0].shape[1:] == images.shape[1:]:
            running[name] = given[0].detach().clone()

    def leave(name: str, output: Any) -> None:
        given = running.pop(name, None)
        if given is None or not isinstance(output, Tensor):
            return
        if output.ndim == 2 and output.is_floating_point() and len(output) == len(given):
            inputs.setdefault(name, []).append(given)
            outputs.setdefault(name, []).append(output.detach().clone())

    with oracle.drawing(), hooked(model, enter, leave), torch.no_grad():
        for _ in range(forwards):
            model(images.clone())
    modules = dict(model.named_modules())
    return [
        InnerClassifier(
            name,
            _bypassed_inside(name, modules[name], approximations),
            _before(images, inputs[name], approximations.get(name)),
            "probabilities" if all(_are_probabilities(each) for each in outputs[name]) else "logits",
            inputs[name][0].dtype,
        )
        for name in modules
        if name in inputs
    ]


def _bypassed_inside(name: str, module: nn.Module, approximations: Mapping[str, Any]) -> nn.Module:
    """The submodule around what BPDA bypasses in it. Code before a part in it is left: images are other images here."""
    inside = {
        other.removeprefix(f"{name}."): approximation
        for other, approximation in approximations.items()
        if other.startswith(f"{name}.") and not isinstance(approximation, FromImages)
    }
    return bypassed(module, inside) if inside else module


def _before(images: Tensor, inputs: Sequence[Tensor], approximation: Any) -> Approximation | None:
    """From images to the input of a submodule: a normalization, or else the identity, wherever that is near."""
    if isinstance(approximation, FromImages):  # as in BPDA
        return approximation.function
    fits = [fit_affine(images, each.to(images)) for each in inputs if each.shape == images.shape]
    affine, error = min(fits, key=lambda fit: fit[1], default=(None, torch.inf))
    if error <= _EXACT:
        return affine
    change = [float((each.to(images) - images).norm() / images.norm()) for each in inputs if each.shape == images.shape]
    return None if min(change, default=0.0) <= CLOSENESS or error > CLOSENESS else affine


def _are_probabilities(output: Tensor) -> bool:
    total = output.float().sum(1)
    return bool((output >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3)


def _agrees(view: _View, candidate: InnerClassifier, images: Tensor, answers: Tensor) -> bool:
    """Whether it knows the classes of the defense, and mostly agrees with its answers, a row for each forward."""
    try:
        with torch.no_grad():
            logits = at_second_try(partial(view, candidate, images))
            classes = int(answers.max()) + 1
    except Exception as error:  # called in another way than the defense calls it
        if out_of_memory(error):
            raise
        return False
    return logits.shape[1] >= classes and float((logits.argmax(1) == answers).float().mean()) >= _AGREES


@dataclass(frozen=True, slots=True)
class _Behaviour:
    """A classifier at some points.

    Attributes:
        log_probabilities: N x K.
        gradient: of the logit margin, N x C x H x W.
    """

    log_probabilities: Tensor
    gradient: Tensor

    def same_as(self, other: _Behaviour | None, tolerance: float) -> bool:
        """Whether attacks on both find the same adversarial examples: neither outputs nor gradients differ by more."""
        if other is None or self.log_probabilities.shape != other.log_probabilities.shape:
            return False
        finite = other.log_probabilities.isfinite().all(1)  # a defense may return NaN off the grid of 8 bits
        ours, theirs = self.log_probabilities[finite], other.log_probabilities[finite]
        if not bool((ours - theirs).norm() <= tolerance * theirs.norm()):
            return False
        cosine = functional.cosine_similarity(self.gradient[finite].flatten(), other.gradient[finite].flatten(), dim=0)
        return float(cosine) >= _ALIGNED


def _behaviour(view: _View, model: nn.Module, points: Sequence[Tensor]) -> _Behaviour | None:
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
    return _Behaviour(torch.cat(outputs).clamp_min(math.log(TINY_PROBABILITY)), torch.cat(gradients))


def _logits_and_gradient(view: _View, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    point = images.clone().requires_grad_(True)
    logits = view(model, point + 0)  # the model may write into its input
    margins = logit_margin(logits, logits.argmax(1)).sum()
    (gradient,) = torch.autograd.grad(margins, point, allow_unused=True)
    return logits.detach(), gradient


def _transferred_margin(
    view: _View, oracle: Oracle, candidate: InnerClassifier, images: Tensor, answers: Tensor, threat: PerturbationSet
) -> float:
    """Mean logit margin of the defense at adversarial examples of the candidate."""
    generator = torch.Generator().manual_seed(0)
    found = pgd(partial(view, candidate), images, answers[0], threat=threat, steps=_PGD_STEPS, generator=generator)
    with torch.no_grad():
        return float(torch.stack([logit_margin(view(oracle, found), answers[0]) for _ in answers]).mean())
