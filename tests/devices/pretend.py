"""A pretend device: its tensors live in the memory of the CPU, and may not mix with the CPU's own.

On a GPU, an operation on tensors of two devices raises, and so it does here. PyTorch lets a backend be written in
Python, for the key that is kept for backends outside of it (`torch.utils.backend_registration`, since PyTorch 2.10).
Every operation comes to `_run`, which computes on the CPU and counts what would make a GPU wait.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
#: Whether this version of PyTorch allows it.
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
#: Operations for which a GPU has to finish all work before: they bring a value to Python, or a shape depends on values.
_WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "tolist", "to the CPU"}
#: Operations that take tensors of two devices, also on a GPU.
_BETWEEN_DEVICES = {"copy_", "_to_copy", "_copy_from", "index", "index_put", "index_put_"}
#: Operations that PyTorch would otherwise make of others in a way that needs an own implementation.
_OWN = (
    "empty.memory_format", "empty_strided", "copy_", "_copy_from", "_to_copy", "index.Tensor", "fill_.Scalar", "zero_",
    "_local_scalar_dense", "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m",
)  # fmt: skip

_counts: Counter[str] = Counter()
#: Operations after which the device is lost, and how many numbers a tensor may have.
_faults: dict[str, float] = {"operations": math.inf, "numbers": math.inf}
#: The device that is meant where no number is given. Gradients exist on number 0 only: PyTorch knows of no other here.
_current = {"index": 0}
_libraries: list[torch.library.Library] = []  # an implementation lives as long as its library


class PretendTensor(Tensor):
    """A tensor of the device. ``held`` is the tensor of the CPU behind it, and views share memory as theirs do."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, index: int) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, index),
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """The values, for which a GPU would have to wait."""
        _counts["tolist"] += 1
        return _held(self.detach()).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as by a GPU."""
        raise TypeError(f"can't convert a tensor of {NAME} to numpy; use Tensor.cpu() first")

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({_held(self.detach())})"


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    ours = [each for each in tensors if isinstance(each, PretendTensor)]
    name = operation._schema.name.removeprefix("aten::")
    # A scalar tensor of the CPU may meet tensors of a GPU.
    others = [each for each in tensors if not isinstance(each, PretendTensor) and each.dim() > 0]
    places = {str(each.device) for each in ours if each.dim() > 0} | ({"cpu"} if ours and others else set())
    if len(places) > 1 and name not in _BETWEEN_DEVICES:
        found = " and ".join(sorted(places))
        raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} got {found}")
    _counts[name] += 1
    # Autograd has a thread for each device, which an exception in the midst of its own operations would abort.
    safe = threading.current_thread() is threading.main_thread()
    if _faults["operations"] <= 0 and safe and (ours or _target_is_here(kwargs)):
        raise RuntimeError(f"{NAME} error: unspecified launch failure")
    _faults["operations"] -= 1
    target, here = kwargs.get("device"), bool(ours)
    index = ours[0].device.index if ours else _current["index"]
    if target is not None:
        where = torch.device(target)
        here, index = where.type == NAME, _current["index"] if where.index is None else where.index
        kwargs = {**kwargs, "device": "cpu"}
        _counts["to the CPU"] += bool(ours) and not here
    result = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    for each in ours:
        if each.shape != each.held.shape:
            raise NotImplementedError(f"{operation} resizes a tensor of {NAME}")
    if name.endswith("_") and operation._schema.is_mutable:
        return args[0]
    made = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)] if here else []
    if safe and any(each.numel() > _faults["numbers"] for each in made):
        raise torch.OutOfMemoryError(f"{NAME} out of memory")
    known = {id(each.held): each for each in ours}
    return tree_map(lambda each: _wrapped(each, known, index) if here else each, result)


def _held(each: Any) -> Any:
    return each.held if isinstance(each, PretendTensor) else each


def _wrapped(each: Any, known: dict[int, PretendTensor], index: int) -> Any:
    if not isinstance(each, Tensor):
        return each
    return known[id(each)] if id(each) in known else PretendTensor(each, index)


_Dummy: Any = getattr(backend_registration, "_DummyBackendModule", object)


class _Module(_Dummy):  # type: ignore[misc]
    """``torch.pretend``. Its random numbers are drawn by the generator of the CPU, so it has no state of its own."""

    def get_rng_state(self, _device: Any = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, _state: Tensor, _device: Any = None) -> None:
        return

    def current_device(self) -> int:
        return _current["index"]

    def device_count(self) -> int:
        return 2

    def manual_seed_all(self, _seed: int) -> None:
        return


def set_up() -> None:
    """Register the device, once in a process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
    named = torch.library.Library("aten", "IMPL")
    for name in _OWN:
        base, _, overload = name.partition(".")
        named.impl(name, _implementation(getattr(getattr(torch.ops.aten, base), overload or "default")), "PrivateUse1")
    _libraries.extend([everything, named])


def _implementation(operation: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(operation, args, kwargs)


def _target_is_here(kwargs: dict[str, Any]) -> bool:
    """Whether an operation makes a tensor of the device."""
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME


@contextmanager
def faulty(*, operations: float = math.inf, numbers: float = math.inf) -> Iterator[None]:
    """Inside, the device is lost after so many operations, or has no memory for tensors of more numbers."""
    before = dict(_faults)
    _faults.update(operations=operations, numbers=numbers)
    try:
        yield
    finally:
        _faults.update(before)


@contextmanager
def another_is_current() -> Iterator[None]:
    """Inside, a device without a number is not the one with number 0."""
    _current["index"] = 1
    try:
        yield
    finally:
        _current["index"] = 0


@contextmanager
def waiting() -> Iterator[Counter[str]]:
    """Count, inside, how often each operation runs for which a GPU has to wait."""
    before = Counter(_counts)
    counted: Counter[str] = Counter()
    yield counted
    counted.update({name: _counts[name] - before[name] for name in _WAITING if _counts[name] > before[name]})
