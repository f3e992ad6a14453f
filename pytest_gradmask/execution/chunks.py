"""How many images an attack gets at a time: as many as the memory of the machine has room for.

The random numbers of an attack belong to a chunk of images: in another size of chunks, they are others. The size
therefore follows from what does not change between two runs: what an image of this defense takes, which is measured,
and the memory that the device has. What happens to be free is another amount each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.compiled import eagerly
from pytest_gradmask.execution.second_try import at_second_try

_GIB = 2**30
#: Of the memory of a device, what the graphs of one chunk may fill. The rest is for the model, the gradients on their
#: way back, the attack's own tensors, and others who use the device.
_SHARE = 1 / 4
#: The same for a CPU, whose memory is shared by all workers of pytest-xdist. Linux ends a process that takes too much:
#: there is no error after which a chunk could be halved.
_MOST_CPU = 2 * _GIB
#: A CPU is as fast with 100 images as with more, unless all of them fit into its cache: `docs/scaling.md` has figures.
_USUAL_CPU, _CACHE_CPU = 100, 2**24
#: Copies of an image that an attack holds: points, best points, gradients, steps.
_COPIES = 16


def graph_bytes(forward: Callable[[Tensor], object], images: Tensor) -> int:
    """Bytes of memory that one more image takes until the backward pass: what autograd keeps of the forward pass.

    Measured as the difference between two images and one, so that weights and constants do not count. 0 if the forward
    pass raises, which an audit reports elsewhere, or if the tensors of the device are not in memory of their own.

    Args:
        forward: from images to logits; it is called twice.
        images: at least one, N x ...; the first is taken.
    """
    try:
        few = [images[:1].repeat(number, *[1] * (images.ndim - 1)) for number in (1, 2)]
        one, two = (at_second_try(partial(_kept, forward, some)) for some in few)
    except Exception as error:  # the code of the defense may raise anything
        return _memory(images.device) if out_of_memory(error) else 0
    return max(0, two - one)


def _kept(forward: Callable[[Tensor], object], images: Tensor) -> int:
    kept: list[Tensor] = []  # none is freed before all are counted, or its memory would be given to the next

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return kept[-1]  # with its graph, it would be part of what it belongs to, and never be freed

    with eagerly(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(images.clone().requires_grad_(True))
    storages = [tensor.untyped_storage() for tensor in kept]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def chunk_size(image: Tensor, graph: int, graphs: int = 1) -> int:
    """How many images an attack gets at a time, at least 1; the same on the same machine.

    Args:
        image: one or more of the images, N x ..., on the device.
        graph: what `graph_bytes` returned.
        graphs: of the defense that the attack holds in memory at once.
    """
    each = max(1, graph * graphs + _COPIES * image[0].nbytes)
    most = int(_SHARE * _memory(image.device))
    if image.device.type == "cuda":
        return max(1, most // each)
    return max(1, min(min(most, _MOST_CPU) // each, max(_USUAL_CPU, _CACHE_CPU // each)))


def _memory(device: torch.device) -> int:
    """Bytes of memory that a device has, free or not; for a CPU where the system does not say, 16 GiB."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 16 * _GIB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
