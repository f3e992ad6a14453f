"""Operations that read or write at an index with a gradient: the index chooses softly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.operations.arguments import views_bits
from pytest_gradmask.attacks.bypass.operations.choices import Carried, expected, put_in_order


class Carriers(Protocol):
    """What these functions need of `carriers.Carriers`, which has the meaning of each method."""

    def values(self, tensor: Tensor) -> Tensor: ...

    def lookup(self, table: Tensor, index: Tensor) -> Carried | Tensor | None: ...

    def one_hot(self, index: Tensor, classes: int) -> Carried | Tensor | None: ...

    def weights(self, index: Tensor) -> Tensor | None: ...


def _get_item(carriers: Carriers, arguments: Any, _: Any) -> Any:
    table, index = arguments[0], arguments[1]
    if isinstance(index, tuple) and len(index) == 1:
        (index,) = index
    if isinstance(index, Tensor):
        return carriers.lookup(table, index)
    chosen = _chosen(carriers, table, index)
    if chosen is None:
        return None
    place, weights, others = chosen
    return (weights * table.movedim(place, -1)[others]).sum(-1)


def _set_item(carriers: Carriers, arguments: Any, _: Any) -> Any:
    base, index, value = arguments[:3]
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        written, share = _number(carriers, value), carriers.values(index)
        if isinstance(value, Tensor) and value.ndim:  # one number for each place where the mask is true
            written = base.clone().index_put((index,), written)
        share = share.reshape(*share.shape, *[1] * (base.ndim - share.ndim))
        return share * written + (1 - share) * base
    chosen = _chosen(carriers, base, index)
    if chosen is None or len(index) < 2:
        return None
    place, weights, others = chosen
    written = weights * torch.as_tensor(_number(carriers, value)).unsqueeze(-1)
    return base.movedim(place, -1).to(written).index_put(others, written, accumulate=True).movedim(-1, place)


def _chosen(carriers: Carriers, table: Tensor, index: Any) -> tuple[int, Tensor, tuple[Tensor, ...]] | None:
    """The dimension along which an index chooses, the probabilities, and the indices of the other dimensions.

    None if an index chooses along none or several, or not all dimensions have an index.
    """
    if not isinstance(index, tuple | list) or len(index) != table.ndim:
        return None
    if not all(isinstance(each, Tensor) for each in index):
        return None
    known = {number: carriers.weights(each) for number, each in enumerate(index)}
    chosen = [(number, each) for number, each in known.items() if each is not None]
    if len(chosen) != 1 or chosen[0][1].shape[-1] != table.shape[chosen[0][0]]:
        return None
    ((place, weights),) = chosen
    return place, weights, tuple(each for number, each in enumerate(index) if number != place)


def _embedding(carriers: Carriers, arguments: Any, options: Any) -> Any:
    weight = arguments[1] if len(arguments) > 1 else options["weight"]
    # The function takes the index first, the operation below it the table.
    index, table = (arguments[0], weight) if weight.is_floating_point() else (weight, arguments[0])
    return carriers.lookup(table, index)


def _take(carriers: Carriers, arguments: Any, _: Any) -> Any:
    return carriers.lookup(arguments[0].flatten(), arguments[1])


def _index_select(carriers: Carriers, arguments: Any, options: Any) -> Any:
    values: list[Any] = [*arguments, *options.values()]
    table, dim, index = values
    found = carriers.lookup(table.movedim(dim, 0), index)
    return found.movedim(0, dim) if isinstance(found, Tensor) else found


def _index_add(carriers: Carriers, arguments: Any, options: Any) -> Any:
    values: list[Any] = [*arguments, *options.values()]
    base, dim, index, source = values[:4]
    weights = carriers.weights(index)
    if weights is None or len(values) > 4:
        return None
    return base + torch.tensordot(weights, source.movedim(dim, 0), dims=([0], [0])).movedim(0, dim)


def _gather(carriers: Carriers, arguments: Any, options: Any) -> Any:
    values: list[Any] = [*arguments, *options.values()]
    table, dim, index = values[:3]
    if isinstance(dim, Tensor):  # ``take_along_dim``
        dim, index = index, dim
    weights = carriers.weights(index)
    return None if weights is None else (weights * table.movedim(dim, -1).unsqueeze(dim)).sum(-1)


def _scatter(carriers: Carriers, arguments: Any, options: Any) -> Any:
    values: list[Any] = [*arguments, *options.values()]
    base, dim, index, source = values[:4]
    weights = carriers.weights(index)
    if weights is None or len(values) > 4:
        return None
    return put_in_order(weights, _number(carriers, source), dim) + base.to(weights)


def _one_hot(carriers: Carriers, arguments: Any, options: Any) -> Any:
    classes = arguments[1] if len(arguments) > 1 else options.get("num_classes", -1)
    return carriers.one_hot(arguments[0], classes)


def _where(carriers: Carriers, arguments: Any, _: Any) -> Any:
    condition, chosen, other = arguments
    if condition.dtype != torch.bool:  # ``x.where(condition, other)``
        condition, chosen = chosen, condition
    share = carriers.values(condition)
    return share * _number(carriers, chosen) + (1 - share) * _number(carriers, other)


def _number(carriers: Carriers, value: Any) -> Any:
    return carriers.values(value) if isinstance(value, Tensor) else value


def _masked_fill(carriers: Carriers, arguments: Any, _: Any) -> Any:
    source, mask, number = arguments
    return _where(carriers, (mask, number, source), {})


def _mode(carriers: Carriers, arguments: Any, options: Any) -> Any:
    answers = arguments[0]
    dim = arguments[1] if len(arguments) > 1 else options.get("dim", -1)
    weights = carriers.weights(answers)
    if weights is None:
        return None
    return expected(weights.mean(dim if dim >= 0 else dim - 1)), None


def _bincount(carriers: Carriers, arguments: Any, _: Any) -> Any:
    weights = carriers.weights(arguments[0])
    return None if weights is None else weights.flatten(0, -2).sum(0)


def _argsort(carriers: Carriers, arguments: Any, options: Any) -> Any:
    """Of the result of another ``argsort``: the rank of each element."""
    weights = carriers.weights(arguments[0])
    dim = arguments[1] if len(arguments) > 1 else options.get("dim", -1)
    if weights is None or weights.shape[-1] != arguments[0].shape[dim]:
        return None
    places = torch.arange(weights.shape[-1]).to(weights).expand_as(arguments[0].movedim(dim, -1))
    return put_in_order(weights, places.movedim(-1, dim), dim)


def _dequantize(carriers: Carriers, arguments: Any, _: Any) -> Any:
    return carriers.values(arguments[0])


def _view(carriers: Carriers, arguments: Any, options: Any) -> Any:
    """With another type, the same bits. Autograd does not record it, not even from a type to itself."""
    return carriers.values(arguments[0]) if views_bits(arguments, options) else None


#: Each takes the carriers, the arguments and the options of a call. None: the operation does as with other numbers.
LOOKUPS: dict[str, Callable[[Carriers, Any, Any], Any]] = {
    "__getitem__": _get_item,
    **dict.fromkeys(("__setitem__", "index_put"), _set_item),
    "embedding": _embedding,
    "take": _take,
    "index_select": _index_select,
    "index_add": _index_add,
    **dict.fromkeys(("gather", "take_along_dim"), _gather),
    **dict.fromkeys(("scatter", "scatter_add"), _scatter),
    "one_hot": _one_hot,
    "where": _where,
    "masked_fill": _masked_fill,
    "mode": _mode,
    "bincount": _bincount,
    "argsort": _argsort,
    "view": _view,
    **dict.fromkeys(("dequantize", "int_repr"), _dequantize),
}
