"""What more images at a time cost and save: memory, and time for each image."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import apart
from benchmarks.records import clock
from pytest_gradmask import InputError, ThreatModel, apgd, load_model
from pytest_gradmask.auditing.research import Oracle, RandomStream, chunk_size, graph_bytes, moved, no_trace

_STEPS = 4
#: Images at a time, of each network: on both sides of what a CPU with 8 GiB or more gets, as far as memory allows.
SIZES: dict[str, tuple[int, ...]] = {
    "two-layers": (25, 100, 1000, 3744),
    "resnet-standard": (25, 100, 200),
    "resnet-standard-composite": (25, 100, 200),
    "resnet-50": (2, 8, 22),
}


def chunk_costs(name: str, *, device: str = "cpu", sizes: tuple[int, ...] = ()) -> dict[str, Any]:
    """Time and memory of APGD with so many images at a time. Each size runs in a process of its own.

    Args:
        name: a key of `SIZES`.
        device: torch device.
        sizes: other numbers of images than those of `SIZES`.

    Returns:
        ``graph``: MiB that the graph of an image takes; ``chunk``: how many images an audit attacks at a time; and
        ``rows``: for each size the number of ``images``, the ``microseconds`` for an image and step, and the
        ``mebibytes`` above those of a process that has the network.

    Raises:
        InputError: there is no such network.
    """
    if name not in SIZES:
        raise InputError(f"chunks: {name!r} is not known; it can be {', '.join(SIZES)}")
    start = apart(_attacked, name, 0, device, device=device)
    rows = []
    for images in sizes or SIZES[name]:
        cost = apart(_attacked, name, images, device, device=device).above(start)
        rows.append({"images": images, "microseconds": 1e6 * cost.result, "mebibytes": cost.mebibytes})
    graph, chunk = apart(_planned, name, device, device=device).result
    return {"model": name, "side": _network(name)[1].shape[-1], "graph": graph / 2**20, "chunk": chunk, "rows": rows}


def _network(name: str) -> tuple[nn.Module, Tensor]:
    """A network, and one image for it. Those without a fixture have random weights."""
    torch.manual_seed(0)
    if name == "two-layers":
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        return layers.eval(), torch.rand(1, 1, 8, 8)
    if name == "resnet-50":
        from torchvision.models import resnet50

        return resnet50().eval(), torch.rand(1, 3, 224, 224)
    return load_model(name), torch.rand(1, 3, 32, 32)


def _planned(name: str, device: str) -> tuple[int, int]:
    model, image = _network(name)
    where = torch.device(device)
    with moved([model], where), no_trace([model], where):
        image = image.to(where)
        graph = graph_bytes(Oracle(model, RandomStream(0, where)), image)
        return graph, chunk_size(image, graph)


def _attacked(name: str, count: int, device: str) -> float:
    """Seconds for each image and step, after one that warms up; 0 for no images."""
    model, image = _network(name)
    where = torch.device(device)
    with moved([model], where), no_trace([model], where):
        if not count:
            return 0.0
        images = torch.rand(count, *image.shape[1:]).to(where)
        with torch.no_grad():
            labels = torch.cat([model(some).argmax(1) for some in images.split(8)])
        # A tiny ball: no image breaks, so every step attacks all of them.
        run = partial(apgd, Oracle(model, RandomStream(0, where)), images, labels, threat=ThreatModel(1e-6))
        run(steps=1, generator=torch.Generator().manual_seed(0))
        now = clock(device)
        started = now()
        run(steps=_STEPS, generator=torch.Generator().manual_seed(0), stop_early=False)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return (now() - started) / count / (_STEPS + 1)
