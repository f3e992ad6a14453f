"""A perturbation set of the user's, inside of an audit: what goes wrong in it is not blamed on the defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.checks import is_a
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.threat import PerturbationSet, ThreatModel


@dataclass(frozen=True, slots=True)
class UsersSet:
    """A set that names its method where that raises, or returns something else than it should.

    It may work on some images only, for example not on a single one, so that one look at it is not enough.

    Attributes:
        original: as the user gave it.
    """

    original: PerturbationSet

    @property
    def eps(self) -> float:
        return self.original.eps

    @property
    def bounds(self) -> tuple[float, float]:
        return self.original.bounds

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return _like(images, "project()", self.original.project, perturbed, images)

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        return _like(images, "random_start()", self.original.random_start, images, generator)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:
        return _like(gradient, "step()", self.original.step, gradient, at=at)

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        returned: Tensor = _called("contains()", self.original.contains, perturbed, images)
        return returned


def named_if_it_fails(threat: PerturbationSet) -> PerturbationSet:
    """The same set. If it is the user's, and fails, the error is an `InputError` that says so."""
    return threat if isinstance(threat, ThreatModel | UsersSet) else UsersSet(threat)


def as_given(threat: PerturbationSet) -> PerturbationSet:
    """The set as the user gave it, for code of the user."""
    return threat.original if isinstance(threat, UsersSet) else threat


def _called(name: str, method: Callable[..., Any], *arguments: object, **named: object) -> Any:
    try:
        return method(*arguments, **named)
    except Exception as error:  # the set is not ours
        if out_of_memory(error):
            raise
        raise InputError(f"threat: {name} raised {type(error).__name__}: {error}") from error


def _like(wanted: Tensor, name: str, method: Callable[..., Any], *arguments: object, **named: object) -> Tensor:
    returned = _called(name, method, *arguments, **named)
    if not is_a(returned, Tensor) or returned.shape != wanted.shape or returned.dtype != wanted.dtype:
        raise InputError(f"threat: {name} does not return tensors of the shape and type of the images")
    result: Tensor = returned
    return result
