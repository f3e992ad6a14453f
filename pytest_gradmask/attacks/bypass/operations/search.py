"""Find the operations that hide the gradient of a defense: those whose replacement changes it, and no more."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.operations.model import OperationsBypassed
from pytest_gradmask.attacks.bypass.operations.sites import Site
from pytest_gradmask.attacks.bypass.operations.watch import Watch
from pytest_gradmask.attacks.oracle import parameter_dtype
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import PerturbationSet

#: Two gradients with at least this cosine, and norms that differ by less than `_NORM`, are the same.
_COSINE, _NORM = 0.999, 0.02
#: Images on which one site after another is tried, and images in a batch of `hidden_at`.
_FEW, _BATCH = 4, 8
#: With more sites than this, those that matter are not told apart.
_MOST = 64

#: Makes a context in which the defense draws the same random numbers each time.
Repeats = Callable[[], AbstractContextManager[object]]


class ValuesChangedError(Exception):
    """Watching a defense has changed what it answers, so that its operations cannot be bypassed."""


def points_of_search(images: Tensor, threat: PerturbationSet) -> Tensor:
    """Every second image, and random points around the others. A gradient may be hidden only at one or the other."""
    points = images.clone()
    points[1::2] = threat.random_start(images[1::2], torch.Generator().manual_seed(0))
    return points


def find_operations(
    model: nn.Module, images: Tensor, *, forwards: int = 1, stream: RandomStream | None = None
) -> dict[Site, int]:
    """The operations of a defense that hide its gradient.

    The gradient of a fixed random mix of the logits is compared on a few images: with the gradients that the defense
    has, and with natural ones in their place. Of the sites that can be replaced, one after another is then given its
    own gradient back. Where that changes nothing, the site does not matter.

    Args:
        model: the defense, in eval mode.
        images: N x C x H x W, or points around images; eight are enough.
        forwards: passes to look at. A randomized ensemble uses another member in each.
        stream: random numbers of the defense.

    Returns:
        The sites, in the order of files and lines, and how often each of them runs in one forward pass. Empty if the
        gradient is the defense's own in any case.

    Raises:
        ValuesChangedError: the outputs are others while the defense is watched.
    """
    images = images.detach().to(parameter_dtype(model), copy=True)
    repeats = nullcontext if stream is None else partial(_repeating, stream)
    found: dict[Site, int] = {}
    for _ in range(forwards):
        found |= _fewest(model, images, repeats, found)
        if stream is not None:
            with stream.active():  # the next pass is to draw other numbers
                torch.rand(1), torch.rand(1, device=images.device), np.random.random(), random.random()  # nosec B311
    return dict(sorted(found.items()))


def hidden_at(
    model: nn.Module, images: Tensor, known: Collection[Site], *, stream: RandomStream | None = None
) -> Tensor:
    """At which points natural gradients of all operations give another gradient than those of some of them; bool, N.

    Args:
        model: the defense, in eval mode.
        images: N x C x H x W, or points around images. They are asked in small batches.
        known: the operations that are given natural gradients already.
        stream: random numbers of the defense.
    """
    images = images.detach().to(parameter_dtype(model), copy=True)
    repeats = nullcontext if stream is None else partial(_repeating, stream)
    hidden = []
    for some in images.split(_BATCH):
        own, natural, _, _ = _own_and_natural(model, some, repeats, known)
        hidden.append(natural.flatten(1).any(1) & ~_agree(own, natural))
    return torch.cat(hidden)


def scripted_parts(model: nn.Module) -> list[str]:
    """The outermost submodules in TorchScript, by name. Their operations cannot be watched."""
    if isinstance(model, torch.jit.ScriptModule):
        return ["the whole defense"]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), torch.jit.ScriptModule)
    ]


@contextmanager
def _repeating(stream: RandomStream) -> Iterator[None]:
    with stream.frozen(), stream.active():
        yield


def _fewest(model: nn.Module, images: Tensor, repeats: Repeats, known: Container[Site]) -> dict[Site, int]:
    """The fewest sites with the gradient of all of them, in one forward pass."""
    own, natural, chosen, watch = _own_and_natural(model, images, repeats)
    if not chosen or not bool(natural.any()) or _same(own, natural):
        return {}
    _check_values(model, OperationsBypassed(model, chosen), images, repeats)
    images = images[:_FEW]
    natural = _gradient_at(model, chosen, images, repeats)
    # The last ones first: of several that suffice, the first in the code stays, or one that is known already.
    order = [site for site in reversed(chosen) if site not in known] + [site for site in chosen if site in known]
    for site in order if len(chosen) <= _MOST else ():
        fewer = [other for other in chosen if other != site]
        if _same(_or_zeros(partial(_gradient_at, model, fewer, images, repeats), images), natural):
            chosen = fewer
    return {site: watch.seen[site] for site in chosen}


def _own_and_natural(
    model: nn.Module, images: Tensor, repeats: Repeats, known: Collection[Site] = ()
) -> tuple[Tensor, Tensor, list[Site], Watch]:
    """The gradient of a defense, and that with natural ones at all sites that can be replaced; and these sites.

    Where there is no such site, both are the same. The first has natural gradients at the ``known`` sites.
    """
    natural, watch = _followed(model, None, images, repeats)
    chosen = [site for site in watch.seen if site not in watch.opaque]
    if watch.opaque:
        natural, watch = _followed(model, chosen, images, repeats)
    take = partial(_gradient_at, model, known) if known else partial(_own_gradient, model)
    own = _or_zeros(partial(take, images, repeats), images) if chosen else natural
    return own, natural, chosen, watch


def _followed(
    model: nn.Module, sites: Collection[Site] | None, images: Tensor, repeats: Repeats
) -> tuple[Tensor, Watch]:
    """The gradient with replacements at some sites. Where no operation was seen, it is not taken: zeros."""
    point = images.clone().requires_grad_(True)
    with repeats(), torch.enable_grad():
        output, watch = OperationsBypassed(model, sites).watched(point)
        return _gradient(output, point) if watch.seen else torch.zeros_like(images), watch


def _own_gradient(model: nn.Module, images: Tensor, repeats: Repeats) -> Tensor:
    """The gradient that the defense has."""
    point = images.clone().requires_grad_(True)
    with repeats(), torch.enable_grad():
        return _gradient(model(point.clone()), point)


def _gradient_at(model: nn.Module, sites: Collection[Site], images: Tensor, repeats: Repeats) -> Tensor:
    return _followed(model, sites, images, repeats)[0]


def _or_zeros(gradient: Callable[[], Tensor], images: Tensor) -> Tensor:
    """A gradient; zeros where taking it raises, as that of an operation without a derivative does."""
    try:
        return at_second_try(gradient)
    except Exception:  # code of the user
        return torch.zeros_like(images)


def _gradient(output: Tensor, point: Tensor) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(point)
    mix = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    (gradient,) = torch.autograd.grad(output, point, mix, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient.nan_to_num()


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two gradients agree on every image."""
    return bool(_agree(first, second).all())


def _agree(first: Tensor, second: Tensor) -> Tensor:
    one, other = first.double().flatten(1), second.double().flatten(1)
    norms, others = one.norm(dim=1), other.norm(dim=1)
    aligned = (one * other).sum(1) >= _COSINE * norms * others
    agree: Tensor = aligned & ((norms - others).abs() <= _NORM * others)
    return agree


def _check_values(model: nn.Module, watched: nn.Module, images: Tensor, repeats: Repeats) -> None:
    def answer(of: nn.Module, *, requires_grad: bool) -> Tensor:
        with repeats(), torch.enable_grad():
            return of(images.clone().requires_grad_(requires_grad)).detach()  # type: ignore[no-any-return]

    first, seen = answer(model, requires_grad=False), answer(watched, requires_grad=True)
    if torch.equal(first, seen):
        return
    with suppress(Exception):  # with a graph, the defense may raise
        if torch.equal(seen, answer(model, requires_grad=True)):
            return  # some operations of torch round otherwise with a graph
    if torch.equal(first, answer(model, requires_grad=False)):
        raise ValuesChangedError("the outputs of the defense are others while its operations are watched")
