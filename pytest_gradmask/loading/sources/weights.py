"""Load the weights of local files into networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from pytest_gradmask.checks import shown
from pytest_gradmask.errors import CheckpointError
from pytest_gradmask.loading.limits import check_limit

State = dict[str, Tensor]


def with_weights(build: Callable[..., nn.Module], file: Path, name: str) -> nn.Module:
    """A network with the weights of a local file.

    Tensors are matched by name. If the file shares no name with the network, they are matched by order; not for files
    of safetensors, which do not preserve the order. Every shape has to fit.

    Args:
        build: makes the network. It is called again with ``num_classes=`` if the last layer in the file has another
            number of classes.
        file: a state dict, or a checkpoint with one as ``state_dict`` or ``model``.
        name: name of the network, for messages.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    loaded = _read_state(file)
    network = build()
    expected = network.state_dict()
    by_order = not loaded.keys() & expected.keys() and file.suffix != ".safetensors"
    last = list(expected)[-1]  # a tensor of the classifier
    classifier = list(loaded.values())[-1] if by_order and loaded else loaded.get(last)
    if classifier is not None and classifier.ndim and len(classifier) != len(expected[last]):
        check_limit(f"weights {file}", "CLASSES", len(classifier))
        network = build(num_classes=len(classifier))
        expected = network.state_dict()
    if by_order:
        loaded = _in_order(loaded, expected, file, name)
    _check_fit(loaded, expected, file, name)
    network.load_state_dict(loaded)
    return network


def _read_state(file: Path) -> State:
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # every format and every kind of damage raises another error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"weights {file}: cannot be read as a state dict ({reason}); no code of a file is run: save "
            "model.state_dict() alone, best as safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"weights {file}: hold no state dict (names mapped to tensors)")
    for key, value in state.items():
        if (
            value.is_nested
            or value.is_quantized
            or value.is_meta
            or value.is_complex()
            or value.layout is not torch.strided
        ):
            raise CheckpointError(
                f"weights {file}: {shown(key)} is of layout {value.layout}, type {value.dtype} and on {value.device}; "
                "must be a plain tensor of real numbers"
            )
    return dict(state)


def _in_order(loaded: State, expected: State, file: Path, name: str) -> State:
    shapes = [(key, tuple(value.shape)) for key, value in loaded.items()]
    for (theirs, shape), (ours, tensor) in zip_longest(shapes, expected.items(), fillvalue=("nothing", None)):
        if tensor is None or shape != tuple(tensor.shape):
            raise CheckpointError(
                f"weights {file}: do not fit {name}, neither by name nor in their order: {theirs!r} {shape} where it "
                f"has {ours!r} {'' if tensor is None else tuple(tensor.shape)}"
            )
    return dict(zip(expected, loaded.values(), strict=True))


def _check_fit(loaded: State, expected: State, file: Path, name: str) -> None:
    for key, tensor in expected.items():
        if key not in loaded:
            raise CheckpointError(f"weights {file}: do not fit {name}: they have no {key!r}")
        if loaded[key].shape != tensor.shape:
            raise CheckpointError(
                f"weights {file}: do not fit {name}: {key!r} is {tuple(loaded[key].shape)}, there {tuple(tensor.shape)}"
            )
    surplus = [key for key in loaded if key not in expected]
    if surplus:
        raise CheckpointError(f"weights {file}: do not fit {name}: it has no {surplus[0]!r}")
