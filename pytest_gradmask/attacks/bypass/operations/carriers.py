"""Floats beside integers, which carry the gradient that an integer cannot have."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pytest_gradmask.attacks.bypass.bpda import straight_through
from pytest_gradmask.attacks.bypass.operations.arguments import has_graph, in_place, mapped, tensors_in
from pytest_gradmask.attacks.bypass.operations.choices import Carried
from pytest_gradmask.attacks.bypass.operations.lookups import LOOKUPS
from pytest_gradmask.attacks.bypass.operations.surrogates import ON_INTEGERS, ON_NUMBERS, SURROGATES, Surrogate

#: Operations that only move numbers: what holds for an index holds for the probabilities of each class.
_MOVES = {
    *("unsqueeze", "squeeze", "view", "reshape", "flatten", "permute", "transpose", "t", "stack", "cat", "concat"),
    *("expand", "expand_as", "repeat", "unbind", "__getitem__", "clone", "contiguous", "cpu", "cuda", "long", "int"),
    *("movedim", "to", "swapaxes", "unflatten", "concatenate", "hstack", "vstack"),
}
_WRITES = {"__iadd__", "__isub__", "__imul__", "__itruediv__"}
#: What an operation raises that does not know floats.
_UNKNOWN = (TypeError, ValueError, RuntimeError, IndexError, KeyError, NotImplementedError)
#: Classes up to which probabilities are moved along.
_CLASSES = 1000


class Carriers:
    """For each tensor without a graph that should have one, a float with the same values that has it."""

    def __init__(self) -> None:
        self._carried: Any = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._carried)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._carried

    def values(self, tensor: Tensor) -> Tensor:
        """The tensor or, if there is one, the float that carries its gradient."""
        carried = self._carried.get(tensor)
        return tensor if carried is None else carried.values

    def attach(self, value: Any, stand_in: Any) -> Any:
        """The result of an operation, with the gradient of a stand-in; several results with one stand-in each.

        A float gets it at once. An integer is returned as it is, and remembered together with the float that carries
        its gradient. What does not fit is left out.
        """
        if isinstance(value, list | tuple) and isinstance(stand_in, list | tuple) and len(value) == len(stand_in):
            attached = [self.attach(*pair) for pair in zip(value, stand_in, strict=True)]
            return type(value)(*attached) if hasattr(value, "_fields") else type(value)(attached)
        if isinstance(stand_in, Tensor):
            stand_in = Carried(stand_in)
        if not isinstance(value, Tensor) or not isinstance(stand_in, Carried):
            return value
        gradient = stand_in.values
        if gradient.shape != value.shape or not has_graph(gradient) or not gradient.is_floating_point():
            return value
        if value.is_floating_point():
            return straight_through(gradient.to(value.dtype), value)
        self._carried[value] = Carried(straight_through(gradient, _as_float(value, gradient)), stand_in.weights)
        return value

    def adopt(self, tensor: Tensor, gradient: Tensor) -> None:
        """Give a tensor that is there already the gradient of another, wherever it is used from now on."""
        self._carried[tensor] = Carried(straight_through(gradient, _as_float(tensor.detach(), gradient)))

    def follow(self, function: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        """Run an operation on tensors some of which have carriers, and give its result their gradient."""
        if name == "__setitem__" or in_place(name) or name in _WRITES:
            return self._written(function, name, arguments, options)
        value = function(*arguments, **options)
        return self.attach(value, self._stand_in(function, name, arguments, options))

    def _stand_in(self, function: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        floats, named = mapped(self.values, arguments), mapped(self.values, options)
        try:
            if name in LOOKUPS:
                found = LOOKUPS[name](self, arguments, options)
                if found is not None:
                    return found
            build = _special(name, arguments)
            special = None if build is None else build(floats, named)
            if special is not None:
                return special
            result = function(*floats, **named)
        except _UNKNOWN:
            return None  # the operation does not know floats: its result has no gradient
        if name in _MOVES:
            return self._moved(function, arguments, options, result)
        return result

    def _moved(self, function: Callable[..., Any], arguments: Any, options: Any, result: Any) -> Any:
        """The result together with the probabilities of each class, where all arguments have them."""
        if not isinstance(result, Tensor):
            return result
        every = [self._carried.get(each) for each in tensors_in((arguments, options))]
        classes = {each.weights.shape[-1] for each in every if each is not None and each.weights is not None}
        if len(classes) != 1 or any(each is None or each.weights is None for each in every):
            return result
        (number,) = classes
        if number > _CLASSES:
            return result

        def of_class(index: int) -> Any:
            return function(*mapped(lambda each: self._carried[each].weights[..., index], arguments), **options)

        return Carried(result, torch.stack([of_class(index) for index in range(number)], -1))

    def _written(self, function: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        """An operation that writes into its first argument."""
        target = arguments[0]
        if not isinstance(target, Tensor):
            return function(*arguments, **options)
        floats, named = mapped(self.values, arguments[1:]), mapped(self.values, options)
        if target.is_floating_point():
            return self._written_into_float(function, name, arguments, options)
        before = self.values(target)
        before = before.clone() if before.is_floating_point() else target.to(torch.get_default_dtype())
        result = function(*arguments, **options)
        try:
            function(before, *floats, **named)
        except _UNKNOWN:
            return result
        self.attach(target, before)
        return result

    def _written_into_float(self, function: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        target, floats, named = arguments[0], mapped(self.values, arguments[1:]), mapped(self.values, options)
        look_up = LOOKUPS.get(name if name == "__setitem__" else name.rstrip("_"))
        stand_in = None
        if look_up is not None:
            with suppress(*_UNKNOWN):
                # A copy, because autograd keeps the numbers of the target, which are about to change.
                stand_in = look_up(self, (target.clone(), *arguments[1:]), options)
        if stand_in is None:
            try:  # autograd follows what is written into a float
                return function(target, *floats, **named)
            except _UNKNOWN:
                return function(*arguments, **options)
        result = function(*arguments, **options)
        with suppress(RuntimeError):  # into one of several views, autograd does not let write
            target.copy_(self.attach(target.detach().clone(), stand_in))
        return result

    # Look-ups: an index that has a gradient chooses from a table that has none.

    def lookup(self, table: Tensor, index: Tensor) -> Carried | Tensor | None:
        """``table[index]`` along its first dimension."""
        carried = self._carried.get(index)
        if carried is None or not len(table) or index.dtype == torch.bool:
            return None
        numbers = _as_float(table, carried.values)
        if carried.weights is not None and carried.weights.shape[-1] == len(table):
            found = torch.tensordot(carried.weights, numbers, dims=([-1], [0]))
            return Carried(found, _of_classes(carried.weights, table))
        if len(table) < 2:
            return None
        rates = torch.gradient(numbers, dim=0)[0][index]
        followed: Tensor = rates * carried.values.reshape(*index.shape, *[1] * (rates.ndim - index.ndim))
        return followed

    def one_hot(self, index: Tensor, classes: int) -> Carried | Tensor | None:
        """The soft version of ``one_hot``."""
        carried = self._carried.get(index)
        if carried is None:
            return None
        if classes < 0:
            classes = int(index.max()) + 1
        return self.lookup(torch.eye(classes, device=index.device, dtype=carried.values.dtype), index)

    def weights(self, index: Tensor) -> Tensor | None:
        """The probability of each class, for a tensor of indices; None where it is not known."""
        carried = self._carried.get(index)
        return None if carried is None else carried.weights


def _of_classes(weights: Tensor, table: Tensor) -> Tensor | None:
    """The probability of each class, where a table has the classes of what is chosen, as in nearest neighbours."""
    if table.ndim != 1 or table.dtype != torch.int64 or not 0 <= int(table.min()) <= int(table.max()) < _CLASSES:
        return None
    return weights @ torch.nn.functional.one_hot(table).to(weights)


def _as_float(tensor: Tensor, like: Tensor) -> Tensor:
    return (tensor.dequantize() if tensor.is_quantized else tensor).to(like.dtype)


def _special(name: str, arguments: Any) -> Any:
    """The stand-in of an operation on integers that floats do not know, if it has one."""
    truth = isinstance(arguments[0], Tensor) and arguments[0].dtype == torch.bool
    table = ON_INTEGERS if truth or name.startswith("logical") else ON_NUMBERS
    known = table.get(name)
    if known is None and name in SURROGATES:
        surrogate: Surrogate = SURROGATES[name]
        return surrogate.build
    return known
