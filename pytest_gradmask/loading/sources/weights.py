"""Weights of local files, and networks that take them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from torch import Tensor, nn

from pytest_gradmask.errors import CheckpointError

State = dict[str, Tensor]


def with_weights(build: Callable[..., nn.Module], file: Path, name: str) -> nn.Module:
    """A network with the weights of a local file.

    Tensors are matched by name. If a file shares no name with the network, and keeps their order, as those of
    ``torch.save`` do and safetensors do not, they are matched by order. Every shape has to fit.

    Args:
        build: makes the network; called with ``num_classes=`` if the file's last layer has another number.
        file: a state dict, or a checkpoint that holds one as ``state_dict`` or ``model``.
        name: of the network, for messages.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    given = _read_state(file)
    network = build()
    wanted = network.state_dict()
    by_order = not given.keys() & wanted.keys() and file.suffix != ".safetensors"
    last = list(wanted)[-1]  # of the classifier
    answers = list(given.values())[-1] if by_order and given else given.get(last)
    if answers is not None and answers.ndim and len(answers) != len(wanted[last]):
        network = build(num_classes=len(answers))
        wanted = network.state_dict()
    if by_order:
        given = _in_order(given, wanted, file, name)
    _check_fit(given, wanted, file, name)
    network.load_state_dict(given)
    return network


def _read_state(file: Path) -> State:
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # each format, and each damage to it, has an exception of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"weights {file}: cannot be read as a state dict ({reason}); no code of a file is run: save "
            "model.state_dict() alone, best as safetensors"
        ) from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"weights {file}: hold no state dict, which maps names to tensors")
    return dict(state)


def _in_order(given: State, wanted: State, file: Path, name: str) -> State:
    shapes = [(key, tuple(value.shape)) for key, value in given.items()]
    for (theirs, shape), (ours, tensor) in zip_longest(shapes, wanted.items(), fillvalue=("nothing", None)):
        if tensor is None or shape != tuple(tensor.shape):
            raise CheckpointError(
                f"weights {file}: do not fit {name}, neither by name nor in their order: {theirs!r} {shape} where it "
                f"has {ours!r} {'' if tensor is None else tuple(tensor.shape)}"
            )
    return dict(zip(wanted, given.values(), strict=True))


def _check_fit(given: State, wanted: State, file: Path, name: str) -> None:
    for key, tensor in wanted.items():
        if key not in given:
            raise CheckpointError(f"weights {file}: do not fit {name}: they have no {key!r}")
        if given[key].shape != tensor.shape:
            raise CheckpointError(
                f"weights {file}: do not fit {name}: {key!r} is {tuple(given[key].shape)}, there {tuple(tensor.shape)}"
            )
    surplus = [key for key in given if key not in wanted]
    if surplus:
        raise CheckpointError(f"weights {file}: do not fit {name}: it has no {surplus[0]!r}")
