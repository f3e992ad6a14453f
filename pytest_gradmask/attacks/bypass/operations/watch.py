"""Watch every operation of a forward pass, and give those that hide the gradient another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from pytest_gradmask.attacks.bypass.operations.arguments import (
    cut,
    has_graph,
    in_place,
    mapped,
    name_of,
    tensors_in,
    tracked,
    views_bits,
    writes_into_leaf,
)
from pytest_gradmask.attacks.bypass.operations.carriers import Carriers
from pytest_gradmask.attacks.bypass.operations.choices import Carried
from pytest_gradmask.attacks.bypass.operations.exits import Exits
from pytest_gradmask.attacks.bypass.operations.fills import FILLING, Fills
from pytest_gradmask.attacks.bypass.operations.functions import APPLY, is_of_torch, operator_code, through_forward
from pytest_gradmask.attacks.bypass.operations.saved import SavedTensorsHooks
from pytest_gradmask.attacks.bypass.operations.sites import Site, site_here
from pytest_gradmask.attacks.bypass.operations.surrogates import SURROGATES, Build
from pytest_gradmask.attacks.bypass.operations.tampering import PROPERTIES, TAMPERING, recording

Call = Callable[..., Any]

_CASTS = {"to", "_to_copy", "type", "type_as", "byte", "char", "short", "int", "long", "bool", "half", "bfloat16"}
#: Of the second tensor of these, only shape and type are taken; or it holds statistics, which have no derivative.
_OF_FIRST = {"to", "type_as", "view_as", "reshape_as", "expand_as", "batch_norm", "instance_norm"}


class Watch(TorchFunctionMode):
    """Inside, operations keep their values, but those at chosen sites have another gradient.

    Args:
        chosen: sites whose gradient is replaced; None: all.

    Attributes:
        seen: how often each site that can be replaced ran on something that depends on the images.
        opaque: custom functions whose forward pass has no gradient that can be followed.
        carriers: floats beside what cannot have a gradient.
        exits: what has left PyTorch.
        fills: what constants cover.
        block, inference: the site that has switched gradients off; None outside of such a block.
        optimised: tensors that the defense itself optimises.
    """

    def __init__(self, chosen: Collection[Site] | None = None) -> None:
        super().__init__()
        self.seen: Counter[Site] = Counter()
        self.opaque: set[Site] = set()
        self._chosen = chosen
        self.carriers, self.exits, self.fills = Carriers(), Exits(), Fills()
        self.block: Site | None = None
        self.inference: Site | None = None
        self.optimised: list[Tensor] = []
        self._inside_function = 0

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch, in this thread."""
        with APPLY.run_by(self._run_function), SavedTensorsHooks(self.replaces).left_out(), self:
            yield self

    def replaces(self, site: Site) -> bool:
        """Count a site, and say whether its gradient is replaced."""
        self.seen[site] += 1
        return self._chosen is None or site in self._chosen

    def __torch_function__(self, function: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs) if kwargs else {}
        if self._inside_function:
            return function(*args, **kwargs)
        name = name_of(function)
        if name == "__get__":
            name = next((known for known, read in PROPERTIES.items() if function == read), "")
            if not name:
                return function(*args, **kwargs)
        tampering = TAMPERING.get(name)
        if tampering is not None:
            return tampering(self, function, args, kwargs)
        operator = operator_code(function, args)
        if operator is not None:
            named, code = operator
            return self._through(f"operator {named}", partial(code, *args, **kwargs), function, args, kwargs)
        blocked = not torch.is_grad_enabled()
        build = _surrogate(name)
        if not (blocked or build or _casts(name, args, kwargs) or self.carriers or self.exits):
            return function(*args, **kwargs)
        return self._watched(function, name, build, args, kwargs, blocked)

    def _watched(self, function: Call, name: str, build: Build | None, args: Any, kwargs: Any, blocked: bool) -> Any:
        inputs = list(tensors_in(args[0] if name in _OF_FIRST and args else (args, kwargs)))
        self._adopt(inputs)
        with_graph = any(tracked(each) for each in inputs)
        carried = bool(self.carriers) and any(each in self.carriers for each in inputs)
        if blocked and (writes_into_leaf(name, args) or not self._unblocks(with_graph or carried)):
            return function(*args, **kwargs)
        with recording() if blocked else nullcontext():
            if not (with_graph or carried):
                return function(*args, **kwargs)
            out = kwargs.pop("out", None) if with_graph else None
            if build is not None and with_graph:
                stand_in = build(*_floats(self.carriers, args, kwargs))
                if stand_in is not None and self.replaces(site_here(f"torch.{name.strip('_')}")):
                    if out is not None:
                        return self._into(out, stand_in, function, args, kwargs)
                    return self._replaced(function, name, stand_in, args, kwargs)
            if isinstance(out, Tensor):
                return self._into(out, function(*args, **kwargs), function, args, kwargs)
            if with_graph and _casts(name, args, kwargs):
                return self._cast(function, args, kwargs)
            if carried and not with_graph:
                return self.carriers.follow(function, name, args, kwargs)
            if carried and (name in FILLING or name.rstrip("_") in FILLING):
                return self.fills.fill(self.carriers, function, name, args, kwargs)
            if carried:
                # Of an integer beside a float with a gradient, only the float's is followed: it is the true one.
                args, kwargs = (mapped(self._float_only, each) for each in (args, kwargs))
            return function(*args, **kwargs)

    def _float_only(self, tensor: Tensor) -> Tensor:
        return self.carriers.values(tensor) if tensor.is_floating_point() else tensor

    def _replaced(self, function: Call, name: str, stand_in: Any, args: Any, kwargs: Any) -> Any:
        if in_place(name):
            target = args[0]
            gradient = stand_in.values if isinstance(stand_in, Carried) else stand_in
            gradient = gradient.clone() if gradient is target else gradient
            with torch.no_grad():
                value = target.detach().clone()
                function(value, *mapped(cut, args[1:]), **mapped(cut, kwargs))
            return target.copy_(self.carriers.attach(value, gradient))
        with torch.no_grad():
            value = function(*mapped(cut, args), **mapped(cut, kwargs))
        return self.carriers.attach(value, stand_in)

    def _into(self, out: Tensor, gradient: Any, function: Call, args: Any, kwargs: Any) -> Tensor:
        """An operation with ``out=``, which autograd does not record."""
        with torch.no_grad():
            function(*mapped(cut, args), **mapped(cut, kwargs), out=out)
        gradient = gradient.values if isinstance(gradient, Carried) else gradient
        if isinstance(gradient, Tensor) and gradient.shape == out.shape:
            self.carriers.adopt(out, gradient)
        return out

    def _cast(self, function: Call, args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        source = args[0]
        if not isinstance(result, Tensor) or result.is_floating_point() or not source.is_floating_point():
            return result
        if self.replaces(site_here(f"cast to {str(result.dtype).removeprefix('torch.')}")):
            self.carriers.attach(result, source)
        return result

    def _adopt(self, inputs: list[Tensor]) -> None:
        """Link tensors that came in from outside of PyTorch to those that left it."""
        for each in inputs if self.exits else ():
            if not (has_graph(each) or isinstance(each, nn.Parameter) or each in self.carriers):
                linked = self.exits.link(each)
                if linked is not None:
                    self.carriers.adopt(each, linked)

    def returned(self, output: Any) -> Any:
        """What the defense returns, with its gradient, also where it has just come in from outside of PyTorch."""
        if isinstance(output, Tensor):
            self._adopt([output])
            if output in self.carriers:
                return self.carriers.values(output).to(output.dtype)
        return output

    def _unblocks(self, matters: bool) -> bool:
        """Whether the block without gradients that the operation is in is to have them."""
        if torch.is_inference_mode_enabled():
            self.inference = self.inference or site_here("torch.inference_mode")
            site: Site | None = self.inference
        else:
            site = self.block
        if site is None:
            return False
        if matters:
            return self.replaces(site)
        return self._chosen is None or site in self._chosen

    # Custom functions

    def _run_function(self, cls: type[Function], own: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_of_torch(cls):
            return self._own(own, args, kwargs)
        return self._through(f"Function {cls.__name__}", partial(through_forward, cls, args), own, args, kwargs)

    def _through(self, operation: str, forward: Call, own: Call, args: Any, kwargs: Any) -> Any:
        """Run the forward pass of code that has a backward pass of its own."""
        matters = any(tracked(each) or each in self.carriers for each in tensors_in((args, kwargs)))
        if self._inside_function or not matters:
            return self._own(own, args, kwargs)
        site = site_here(operation)
        if not self.replaces(site):
            return self._own(own, args, kwargs)
        # PyTorch has switched this mode off, where it calls a function of torch.
        with nullcontext() if self in torch.overrides._get_current_function_mode_stack() else self:
            outputs = forward()
        found = list(tensors_in(outputs))
        self._adopt(found)
        if not any(has_graph(each) or each in self.carriers for each in found):
            self.opaque.add(site)
        return outputs

    def _own(self, own: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._inside_function += 1
        try:
            return own(*args, **kwargs)
        finally:
            self._inside_function -= 1


def _casts(name: str, args: Any, kwargs: Any) -> bool:
    return name in _CASTS or (name == "view" and views_bits(args, kwargs))


def _surrogate(name: str) -> Build | None:
    found = SURROGATES.get(name if name.endswith("__") else name.rstrip("_"))
    return None if found is None else found.build


def _floats(carriers: Carriers, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return mapped(carriers.values, args), mapped(carriers.values, kwargs)
