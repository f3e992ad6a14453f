"""Front ends, backbones, composites and randomized ensembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pytest_gradmask.checks import is_a, shown
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models import backbones, front_ends

#: The architectures that a checkpoint card may name.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "dncnn": front_ends.DnCNN,
    "resnet": backbones.resnet,
    "vgg": backbones.vgg,
    "vit": backbones.vit,
}


#: No width or depth of an architecture is larger. A larger one would fill the memory before it could fail.
_LARGEST = 10_000


def build_model(architecture: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an untrained model of a named architecture.

    Raises:
        InputError: the architecture is unknown, or does not take these arguments.
    """
    if not is_a(architecture, str) or architecture not in ARCHITECTURES:
        raise InputError(f"architecture {shown(architecture)}: unknown; use one of {', '.join(sorted(ARCHITECTURES))}")
    try:
        given = dict(arguments or {})
        large = [name for name, value in given.items() if is_a(value, int) and abs(value) > _LARGEST]
        if large:
            raise ValueError(f"{large[0]} is above {_LARGEST}")
        return ARCHITECTURES[architecture](**given)
    except Exception as error:  # layers raise various errors on arguments that do not fit
        raise InputError(
            f"architecture {architecture!r}: cannot be built with {shown(arguments)} ({type(error).__name__}: {error})"
        ) from error
