"""What cuts the graph of a defense: it is ignored, where that is to be."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.operations.arguments import cut, name_of, tracked
from pytest_gradmask.attacks.bypass.operations.carriers import Carriers
from pytest_gradmask.attacks.bypass.operations.exits import Exits
from pytest_gradmask.attacks.bypass.operations.sites import Site, site_here

Call = Callable[..., Any]


class Watch(Protocol):
    """What these functions need of a `watch.Watch`, which has the meaning of each attribute."""

    carriers: Carriers
    exits: Exits
    block: Site | None
    inference: Site | None
    optimised: list[Tensor]

    def replaces(self, site: Site) -> bool: ...


#: The functions behind ``tensor.data``, ``tensor.grad_fn`` and ``tensor.requires_grad = ...``.
PROPERTIES: dict[str, Call] = {
    "data": torch.Tensor.data.__get__,  # type: ignore[attr-defined]
    "grad_fn": torch.Tensor.grad_fn.__get__,  # type: ignore[union-attr]
}
_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]


@contextmanager
def recording() -> Iterator[None]:
    """Inside, autograd records, whatever the defense has switched off."""
    normal = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with normal, torch.enable_grad():
        yield


def set_grad_enabled(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """A block without gradients begins or ends. Code that asks for the mode still sees its own."""
    watch.inference = None
    (enabled,) = args
    if not enabled and torch.is_grad_enabled():
        watch.block = site_here("torch.no_grad")
    elif enabled:
        watch.block = None
    return function(*args, **kwargs)


# What cuts the graph


def detach(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """``detach``, ``detach_`` and ``.data``: the tensor itself, as a view of it."""
    source = args[0]
    operation = "Tensor.data" if function == PROPERTIES["data"] else f"Tensor.{name_of(function)}"
    if not tracked(source) or not watch.replaces(site_here(operation)):
        result = function(*args, **kwargs)
        if source in watch.carriers and isinstance(result, Tensor):
            watch.carriers.adopt(result, watch.carriers.values(source))
        return result
    if name_of(function) == "detach_":
        return source
    with recording():
        return source.view_as(source)


def copy(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """``torch.tensor(x)``, ``x.new_tensor`` and deep copies, which have no graph."""
    source = args[-1] if function.__name__ == "new_tensor" else args[0]
    followed = isinstance(source, Tensor) and tracked(source)
    if not followed or not watch.replaces(site_here(f"torch.{function.__name__.strip('_')}")):
        return function(*args, **kwargs)
    made = function(*(cut(each) if isinstance(each, Tensor) else each for each in args), **kwargs)
    with recording():
        return watch.carriers.attach(made, source)


def leave(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """A tensor becomes an array of NumPy, a list, or a tensor of another library."""
    source = args[0]
    values = watch.carriers.values(source)
    if tracked(values) and watch.replaces(site_here(f"Tensor.{function.__name__.strip('_')}")):
        watch.exits.add(values)
    return function(cut(source), *args[1:], **kwargs)


def one_by_one(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """``apply_`` and ``map_``: Python code for each number, which refuses a tensor with a graph."""
    target = args[0]
    if not tracked(target) or not watch.replaces(site_here(f"Tensor.{function.__name__}")):
        return function(*args, **kwargs)
    others = (cut(each) if isinstance(each, Tensor) else each for each in args[1:])
    value = function(target.detach().clone(), *others, **kwargs)
    with recording():
        return target.copy_(watch.carriers.attach(value, target.clone()))


def read(_: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """A number of Python is read from a tensor. It has no gradient, and needs no warning that it had one."""
    return function(cut(args[0]), *args[1:], **kwargs)


def hook(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """A hook on a tensor may change its gradient. It is not registered."""
    if not tracked(args[0]) or not watch.replaces(site_here("Tensor.register_hook")):
        return function(*args, **kwargs)
    return torch.utils.hooks.RemovableHandle(OrderedDict())


def node(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """``grad_fn``, whose hooks may change the gradient: that of a view which nothing else uses."""
    source = args[0]
    if not tracked(source) or not watch.replaces(site_here("Tensor.grad_fn")):
        return function(*args, **kwargs)
    with recording():
        return function(source.view_as(source))


# An optimisation inside of the defense


def require(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """``requires_grad_``. What the defense then optimises is no leaf here, and keeps its ``.grad`` all the same."""
    source = args[0]
    wanted = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
    if function.__name__ == "__set__" and function != _REQUIRES_GRAD:
        return function(*args, **kwargs)
    if not tracked(source):
        result = function(*args, **kwargs)
    elif wanted:
        source.retain_grad()
        result = source
    elif watch.replaces(site_here("Tensor.requires_grad_")):
        return source
    else:
        return function(*args, **kwargs)
    if wanted:
        watch.optimised.append(source)
    return result


def differentiate(watch: Watch, function: Call, args: Any, kwargs: Any) -> Any:
    """``grad`` and ``backward`` inside of a defense, which must not free the graph of the whole."""
    kwargs = {**kwargs, "retain_graph": True}
    if function.__name__ == "backward" and watch.optimised and kwargs.get("inputs") is None:
        kwargs["inputs"] = watch.optimised
    return function(*args, **kwargs)


#: By the name of the function that torch reports.
TAMPERING: dict[str, Callable[[Watch, Call, Any, Any], Any]] = {
    "_set_grad_enabled": set_grad_enabled,
    **dict.fromkeys(("detach", "detach_", "data"), detach),
    **dict.fromkeys(("tensor", "as_tensor", "new_tensor", "__deepcopy__"), copy),
    **dict.fromkeys(("numpy", "__array__", "tolist", "__dlpack__"), leave),
    **dict.fromkeys(("item", "__float__", "__int__", "__bool__", "__index__"), read),
    **dict.fromkeys(("apply_", "map_"), one_by_one),
    "register_hook": hook,
    "grad_fn": node,
    **dict.fromkeys(("requires_grad_", "__set__"), require),
    **dict.fromkeys(("grad", "backward"), differentiate),
}
