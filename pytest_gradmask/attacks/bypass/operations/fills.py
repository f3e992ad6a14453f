"""Code that writes constants over parts of a tensor, wherever a comparison says so.

``torch.where(x > 0, x, 0)`` has the gradient of a ReLU, which is right. Once constants cover all of a tensor, as after
``x[x > 0.5] = 1; x[x <= 0.5] = 0``, no gradient is left, and the comparisons alone decide what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pytest_gradmask.attacks.bypass.bpda import straight_through
from pytest_gradmask.attacks.bypass.operations.arguments import has_graph, whole
from pytest_gradmask.attacks.bypass.operations.carriers import Carriers

#: Operations that fill, without the underscore of those that write into their argument.
FILLING = {"where", "masked_fill", "__setitem__"}


class Fills:
    """What constants cover of each tensor, and what the tensor would be if comparisons were soft."""

    def __init__(self) -> None:
        self._filled: Any = WeakIdKeyDictionary()

    def fill(self, carriers: Carriers, function: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        """Run an operation of `FILLING` on a tensor with a graph. Where constants then cover all of it, it is soft."""
        parts = None if options or len(arguments) != 3 else _parts(carriers, name, arguments)
        if parts is None:
            return function(*arguments, **options)
        mask, share, constant, source = parts
        covered, soft, version = self._filled.get(source, (torch.zeros_like(mask), source, source._version))
        if version != source._version:  # something else was written into it in between
            covered, soft = torch.zeros_like(mask), source
        # A copy, because autograd keeps the numbers of a tensor that may be about to change.
        soft, covered = share * constant + (1 - share) * soft.clone(), covered | mask
        result = function(*arguments, **options)
        filled = source if result is None else result  # an assignment returns nothing
        if bool(whole(covered).all()) and soft.shape == filled.shape:
            with_gradient = straight_through(soft.to(filled.dtype), filled.detach().clone())
            filled = filled.copy_(with_gradient) if filled is source else with_gradient
            result = None if result is None else filled
        self._filled[filled] = covered, soft, filled._version
        return result


def _parts(carriers: Carriers, name: str, arguments: Any) -> tuple[Tensor, Tensor, Any, Tensor] | None:
    """Where a constant goes, softly, too, the constant, and the tensor it goes to; None if no comparison decides."""
    if name == "where":
        first, second, other = arguments
        mask, chosen = (first, second) if first.dtype == torch.bool else (second, first)
        swapped = isinstance(chosen, Tensor) and has_graph(chosen)
        source, constant = (chosen, other) if swapped else (other, chosen)
    else:
        (source, mask, constant), swapped = arguments, False
    if not all(isinstance(each, Tensor) for each in (mask, source)) or mask not in carriers:
        return None
    fits = isinstance(constant, int | float) or (isinstance(constant, Tensor) and constant.ndim == 0)
    if mask.dtype != torch.bool or not fits or (isinstance(constant, Tensor) and has_graph(constant)):
        return None
    share = carriers.values(mask)
    mask, share = (~mask, 1 - share) if swapped else (mask, share)
    rest = [1] * (source.ndim - mask.ndim) if name == "__setitem__" else []
    mask = mask.reshape(*mask.shape, *rest).expand(torch.broadcast_shapes((*mask.shape, *rest), source.shape))
    return mask, share.reshape(*share.shape, *rest), constant, source
