"""Inner classifiers: a defense that purifies, votes, detects or optimizes mostly holds a plain classifier of images.

Such a wrapper hides the gradient of the classifier inside, and most adversarial examples of one fool the other. Croce
et al. (2022, arXiv:2202.13711) attack the static model inside adaptive test-time defenses for this reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.approximations import Approximation, fit_affine
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.bypass.classifiers import (
    InnerClassifier,
    JointClassifier,
    View,
    behaviour,
    how_many_transfer,
    view_of,
)
from pytest_gradmask.attacks.bypass.hooks import hooked
from pytest_gradmask.attacks.bypass.search import CLOSENESS
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.defense import FromImages
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.threat import PerturbationSet

#: At most so many are returned. More of them mostly repeat what the best ones break.
MOST = 2
#: Sets of at most so many are tried together.
_JOINED = 4
#: Share of clean images on which an inner classifier agrees with the defense; chance agrees on one of K.
_AGREES = 0.5
#: Error of an affine map that is exact but for rounding.
_EXACT = 1e-3
#: Differences of outputs, as a share of them: by rounding alone, and of models that one attack suffices for.
_SAME, _SIMILAR = 1e-3, 0.1


def find_inner_classifiers(
    oracle: Oracle,
    images: Tensor,
    *,
    threat: PerturbationSet,
    approximations: Mapping[str, Any] | None = None,
    attacked: Sequence[Oracle] = (),
    forwards: int = 1,
) -> tuple[InnerClassifier | JointClassifier, ...]:
    """Find submodules that classify images as the defense does, and whose adversarial examples may transfer to it.

    The input of such a submodule has the shape of the images. Its outputs are logits or probabilities of the same
    classes, and its answers are those of the defense on at least half of the images. It is left out if function and
    gradient are those of the defense itself, as behind a normalization, or of a model that other attacks use already.
    So an honest model has none.

    If there are more than `MOST`, those are taken whose adversarial examples, of a short PGD, fool the defense best.
    Several submodules as one come last, if attacks on all of them at once differ from those on the defense: a defense
    that asks whether they agree. Those that are left out by themselves count there. Of all sets, the one is taken whose
    adversarial examples fool the defense best.

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
    view = view_of(oracle, images)
    with torch.no_grad():
        answers = torch.stack([view(oracle, images).argmax(1) for _ in range(forwards)])
    found = [candidate for candidate in candidates if _agrees(view, candidate, images, answers)]
    if not found:
        return ()
    points = (images, threat.random_start(images, torch.Generator().manual_seed(0)))
    with oracle.frozen():
        defense, *known = [behaviour(view, model, points) for model in (oracle, *attacked)]
        seen = {each: behaviour(view, each, points) for each in found}
        distinct: list[InnerClassifier] = []
        parts: list[InnerClassifier] = []
        for candidate, its in seen.items():
            if its is None or not bool(its.gradient.any()):
                continue  # its gradient leads nowhere
            if not any(its.same_as(seen[part], _SIMILAR) for part in parts):
                parts.append(candidate)
            if not its.same_as(defense, _SAME) and not any(its.same_as(each, _SIMILAR) for each in known):
                distinct.append(candidate)
                known.append(its)

        def differs(joint: JointClassifier) -> bool:
            its = behaviour(view, joint, points)
            return its is not None and not any(its.same_as(other, _SIMILAR) for other in (defense, *known))

        joint = [each for each in map(JointClassifier, _groups(parts[:_JOINED])) if differs(each)]
    fooled = partial(how_many_transfer, view, oracle, images=images, answers=answers, threat=threat)
    if len(distinct) > MOST:
        success = {each: fooled(each) for each in distinct}
        distinct.sort(key=success.__getitem__, reverse=True)
    best = [max(joint, key=fooled)] if len(joint) > 1 else joint
    return (*distinct[:MOST], *best)


def _groups(classifiers: Sequence[InnerClassifier]) -> list[tuple[InnerClassifier, ...]]:
    """All sets of two or more, none of which is inside of another."""
    sets = (group for size in range(2, len(classifiers) + 1) for group in combinations(classifiers, size))
    return [
        group
        for group in sets
        if not any(one.name.startswith(f"{other.name}.") for one, other in permutations(group, 2))
    ]


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


def _agrees(view: View, candidate: InnerClassifier, images: Tensor, answers: Tensor) -> bool:
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
