"""Front ends, backbones, composites and randomized ensembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models import backbones, front_ends

#: The architectures that a checkpoint card may name.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "dncnn": front_ends.DnCNN,
    "resnet": backbones.resnet,
    "vgg": backbones.vgg,
    "vit": backbones.vit,
}


def build_model(architecture: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an untrained model of a named architecture.

    Raises:
        InputError: the architecture is unknown, or does not take these arguments.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r}: unknown; use one of {', '.join(sorted(ARCHITECTURES))}")
    try:
        return ARCHITECTURES[architecture](**(arguments or {}))
    except TypeError as error:
        raise InputError(
            f"architecture {architecture!r}: cannot be built with {dict(arguments or {})} ({error})"
        ) from error
