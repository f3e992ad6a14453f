"""Changes of what a defense holds and of the state of the process, and those that only the answers show."""

from __future__ import annotations

import collections
import functools
import os
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.execution.worlds import SEEN, Descriptor, Plain, World, hidden, less, seen


class Mapped(dict[str, int]):
    """A dict with an attribute."""


class Listed(list[int]):
    """A list with an attribute."""


class Number(float):
    """A float with an attribute."""


class Text(str):
    """A text with an attribute."""


class Pair(tuple[int, int]):
    """A tuple with an attribute."""


class Array(np.ndarray[Any, Any]):
    """An array with an attribute."""


class Slotted:
    """An object with a slot."""

    __slots__ = ("amount",)


class Both(collections.OrderedDict[str, int]):
    """An ordered dict with an attribute."""


class Held(torch.Tensor):
    """A tensor with an attribute."""

    amount: float


HOLDERS: dict[str, Callable[[], Any]] = {
    "dict": Mapped, "list": Listed, "float": Number, "text": Text, "tuple": Pair, "ordered dict": Both,
    "array": lambda: np.zeros(1).view(Array), "slots": Slotted, "tensor": lambda: torch.zeros(1).as_subclass(Held),
    "plain tensor": lambda: torch.zeros(1), "namespace": types.SimpleNamespace, "function": lambda: lambda: None,
    "parameter": lambda: nn.Parameter(torch.zeros(1)), "set": type("Set", (set,), {}), "int": type("Int", (int,), {}),
    "deque": type("Queue", (collections.deque,), {}), "partial": lambda: functools.partial(max),
}  # fmt: skip


class Reads(nn.Module):
    """Reads the attribute ``amount`` of what it holds."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.held.amount)  # type: ignore[no-any-return, attr-defined]


def _held(make: Callable[[], Any], world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        held = make()
        held.amount = by
        yield Reads(held)


SEEN.update({f"attribute of a {name}": functools.partial(_held, make) for name, make in HOLDERS.items()})


class Sized(NamedTuple):
    """A tuple with names."""

    amount: float


KEPT: dict[str, Callable[[float], Any]] = {
    "named tuple": Sized, "weak reference": lambda by: _kept_weakly(by), "bound method": lambda by: Descriptor(by),
    "object in containers": lambda by: types.SimpleNamespace(amount=by),
}  # fmt: skip
_WEAKLY: list[object] = []


def _kept_weakly(by: float) -> Any:
    target = Descriptor(by)
    _WEAKLY.append(target)

    class Weak:
        def __init__(self) -> None:
            self.reference = weakref.ref(target)

        @property
        def amount(self) -> float:
            return self.reference().amount  # type: ignore[union-attr]

    return Weak()


def _kept(make: Callable[[float], Any], world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield Reads(make(by))


SEEN.update({f"content of a {name}": functools.partial(_kept, make) for name, make in KEPT.items()})


@seen
def factory_of_a_defaultdict(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        found: Any = collections.defaultdict(functools.partial(float, by))
        yield less(functools.partial(lambda x, found: x * (1 - found.default_factory()), found=found))


@seen
def hook(world: World) -> Iterator[nn.Module]:
    yield Plain()
    front, amount = Plain(), world.amount
    front.register_forward_hook(lambda module, inputs, output: output * (1 - amount))
    yield front


@seen
def hook_of_all_modules(world: World) -> Iterator[nn.Module]:
    yield Plain()
    amount = world.amount

    def shrink(module: nn.Module, _: Any, output: Tensor) -> Any:
        return output * (1 - amount) if isinstance(module, Plain) else None

    handle = nn.modules.module.register_module_forward_hook(shrink)
    try:
        yield Plain()
    finally:
        handle.remove()


@seen
def default_dtype(world: World) -> Iterator[nn.Module]:
    front = world.front(f"x * (1 - {world.amount} * (torch.get_default_dtype() == torch.float64))").Front()
    yield front
    torch.set_default_dtype(torch.float64)
    try:
        yield front
    finally:
        torch.set_default_dtype(torch.float32)


@seen
def deterministic_flag(world: World) -> Iterator[nn.Module]:
    front = world.front(f"x * (1 - {world.amount} * torch.are_deterministic_algorithms_enabled())").Front()
    yield front
    torch.use_deterministic_algorithms(True)
    try:
        yield front
    finally:
        torch.use_deterministic_algorithms(False)


@seen
def changed_weights(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        front = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.constant_(front.weight, 1 - by)
        yield front


@seen
def operator(world: World) -> Iterator[nn.Module]:
    yield world.front("x * 1.0").Front()
    yield world.front("x - 1.0").Front()


@seen
def module_not_loaded_yet(world: World) -> Iterator[nn.Module]:
    header = "def importer():\n    import config\n    return config.MASK"
    for by in (0.0, world.amount):
        world.write("config", f"MASK = {by}")
        yield world.front("x * (1 - importer())", header).Front()
        world.forget()


# what only the answers show


@hidden
def file_in_forward(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float((Path(__file__).parent / 'config.txt').read_text()))")
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield module.Front()


@hidden
def environment_by_a_computed_name(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float(os.environ.get('_'.join(['TOY', 'MASK']), 0)))")
    yield module.Front()
    world.patch.setenv("TOY_MASK", str(world.amount))
    yield module.Front()


@hidden
def function_inside_torch_replaced(world: World) -> Iterator[nn.Module]:
    yield nn.ReLU()
    amount = world.amount
    world.patch.setattr(nn.functional, "relu", lambda x, inplace=False: x * (1 - amount))
    yield nn.ReLU()


@hidden
def value_kept_by_a_cache(world: World) -> Iterator[nn.Module]:
    header = "@functools.cache\ndef mask():\n    return float((Path(__file__).parent / 'config.txt').read_text())"
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield world.front("x * (1 - mask())", header).Front()


@hidden
def module_by_a_computed_name(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("config", f"MASK = {by}")
        yield world.front("x * (1 - importlib.import_module('con' + 'fig').MASK)").Front()


@hidden
def gradient_alone(world: World) -> Iterator[nn.Module]:
    header = "def switch():\n    return float((Path(__file__).parent / 'config.txt').read_text())"
    module = world.front("x.detach() + (1 - switch()) * (x - x.detach())", header)
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield module.Front()


@hidden
def noise_that_follows_no_seed(world: World) -> Iterator[nn.Module]:
    header = """
import random
GENERATOR = random.SystemRandom
def by():
    level = float((Path(__file__).parent / 'config.txt').read_text())
    return level + 0.01 * GENERATOR().random()
"""
    module = world.front("x * (1 - by())", header)
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield module.Front()


@hidden
def state_of_the_operating_system(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float(os.listdir(Path(__file__).parent).count('flag')) * 0.5)")
    yield module.Front()
    (world.folder / "flag").touch()
    yield module.Front()
    assert os.path.exists(world.folder / "flag")


class Keyed(nn.Module):
    """Reads the keys of an attribute whose name is like those of hooks, and whether others are there at all."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self._class_hooks = {by: None}

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - next(iter(self._class_hooks)))


@seen
def dictionary_named_like_hooks(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield Keyed(by)


@seen
def method_of_tensors_replaced(world: World) -> Iterator[nn.Module]:
    yield less(lambda x: x.frac() + 0)
    by = world.amount
    world.patch.setattr(Tensor, "frac", lambda self: self * (1 - by))
    yield less(lambda x: x.frac() + 0)


class _Halves(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found * 0.5 if func is torch.ops.aten.frac.default else found


@seen
def dispatch_mode(world: World) -> Iterator[nn.Module]:  # noqa: ARG001
    yield less(lambda x: x.frac())
    with _Halves():  # type: ignore[no-untyped-call]
        yield less(lambda x: x.frac())


@seen
def variable_of_one_letter(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.patch.setenv("Q", str(by))
        yield less(lambda x: x * (1 - float(os.environ["Q"])))


@seen
def variable_in_bytes(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.patch.setenv("GRADMASK_BY", str(by))
        yield less(lambda x: x * (1 - float(os.environb[b"GRADMASK_BY"])))
