"""What leaves PyTorch, for NumPy or Pillow, and comes back as a new tensor without a graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

#: Least size of the correlation of what came back with what left, for both to be the same image, or its negative.
_CORRELATION = 0.5
#: A batch of more images than this is not searched for the one that came back.
_BATCH = 512


class Exits:
    """The tensors that have left PyTorch in one forward pass, each with its graph."""

    def __init__(self) -> None:
        self._left: list[Tensor] = []
        self._before = WeakIdKeyDictionary()
        self._strangers = WeakIdKeyDictionary()  # tensors that none of the first so many have become

    def __len__(self) -> int:
        return len(self._left)

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that have not come back, because they were there before."""
        for tensor in tensors:
            self._before[tensor] = True

    def add(self, tensor: Tensor) -> None:
        """A tensor with a graph leaves."""
        self._left.append(tensor)

    def link(self, tensor: Tensor) -> Tensor | None:
        """What has left and come back as this tensor, with the same shape and scale; None if nothing has.

        The newest of those that correlate is taken. Its axes may have been exchanged, and its scale and offset, too.
        """
        if tensor in self._before or self._strangers.get(tensor) == len(self._left):
            return None
        if tensor.numel() < 2 or tensor.is_complex():
            return None
        for candidate in self._candidates(tensor):
            linked = _matched(candidate, tensor)
            if linked is not None:
                return linked
        self._strangers[tensor] = len(self._left)
        return None

    def _candidates(self, tensor: Tensor) -> Iterator[Tensor]:
        for source in reversed(self._left):
            if source.numel() == tensor.numel():
                yield source
            elif source.ndim and len(source) <= _BATCH and source.numel() == len(source) * tensor.numel():
                yield from source
        count = len(tensor) if tensor.ndim else 0
        parts = self._left[-count:] if 1 < count <= len(self._left) else []
        if parts and all(part.shape == parts[0].shape and part.numel() * count == tensor.numel() for part in parts):
            yield torch.stack(parts)


def _matched(source: Tensor, tensor: Tensor) -> Tensor | None:
    target = tensor.detach().double().flatten()
    target = target - target.mean()
    for order in itertools.permutations(range(source.ndim)):
        turned = source.permute(order)
        if turned.shape != tensor.shape:
            continue
        values = turned.detach().double().flatten()
        mean = values.mean()
        values = values - mean
        product, size = values @ target, (values @ values) * (target @ target)
        if size > 0 and product.abs() >= _CORRELATION * size.sqrt():
            return turned * float(product / (values @ values))
    return None
