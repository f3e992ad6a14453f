"""What only a GPU can say: throughput, overhead, repeatability, verdicts and the paper's ensembles at their real size.

Each part is stored by itself, and one that is stored already is not measured again: a run that is cut off goes on.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import clock
from pytest_gradmask import Dataset, Defense, ThreatModel, apgd, audit, bypassed, load_model
from pytest_gradmask.auditing.research import Oracle, RandomStream, moved, no_trace

_STEPS = 20
Progress = Callable[[object], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        models: names of `build`.
        largest: images of a batch, at most; less where memory ends.
        rounds: of each timing, after one that warms up.
        images: of each audit of the paper's ensembles.
        budget: of these audits, and of the times to a verdict.
        verdicts: defenses whose time to a verdict is measured.
    """

    models: tuple[str, ...]
    largest: int
    rounds: int
    images: int
    budget: str
    verdicts: tuple[str, ...]


WHOLE = Size(
    models=("resnet-20", "resnet-50", "vit-b-16"), largest=4096, rounds=5, images=1000, budget="full",
    verdicts=("resnet-adversarial", "resnet-standard-composite", "adversarial-ensemble"),
)  # fmt: skip
#: A few seconds on a CPU: shows that every line runs.
DRY = Size(models=("resnet-20",), largest=2, rounds=1, images=8, budget="smoke", verdicts=("resnet-standard",))


def build(name: str) -> tuple[nn.Module, int]:
    """A classifier and the side of its images. ResNet-50 and ViT-B/16 have random weights."""
    if name == "resnet-20":
        return load_model("resnet-standard"), 32
    from torchvision.models import resnet50, vit_b_16

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = resnet50() if name == "resnet-50" else vit_b_16()
    return model.eval(), 224


def parts(size: Size, data: Dataset, device: str, progress: Progress) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The name of each part, and what measures it."""
    for name in size.models:
        yield f"throughput-{name}", partial(throughput, name, size, device, progress)
        yield f"repeatability-{name}", partial(repeatability, name, min(size.largest, 64), device)
    for name in size.verdicts:
        yield f"verdict-{name}", partial(verdict, name, size, data, device)
    yield "precision", partial(precision, size.verdicts[0], size, data, device)


def throughput(name: str, size: Size, device: str, progress: Progress) -> list[dict[str, Any]]:
    """Images a second at doubling batch sizes: of the model, of APGD and of APGD as BPDA; until memory ends."""
    model, side = build(name)
    rows: list[dict[str, Any]] = []
    with moved([model], torch.device(device)), no_trace([model], torch.device(device)):
        for batch in itertools.takewhile(lambda number: number <= size.largest, (2**power for power in range(32))):
            progress(f"{name}, batches of {batch}")
            try:
                rows.append({"batch": batch, **_speeds(model, batch, side, device, size.rounds)})
            except torch.OutOfMemoryError:
                break
    return rows


def _speeds(model: nn.Module, batch: int, side: int, device: str, rounds: int) -> dict[str, float]:
    where = torch.device(device)
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(where)
    with torch.no_grad():
        labels = model(images).argmax(1)
    stream = RandomStream(0, where)
    # A tiny ball: no image breaks, so every step attacks all of them.
    run = partial(apgd, images=images, labels=labels, threat=ThreatModel(1e-6), steps=_STEPS, stop_early=False)
    own = _seconds(lambda: [_pass(model, images) for _ in range(_STEPS + 1)], device, rounds)
    attack = _seconds(lambda: run(Oracle(model, stream), generator=torch.Generator().manual_seed(0)), device, rounds)
    around = bypassed(nn.Sequential(nn.Identity(), model).eval(), {"0": None})
    bpda = _seconds(lambda: run(Oracle(around, stream), generator=torch.Generator().manual_seed(0)), device, rounds)
    steps = batch * (_STEPS + 1)
    return {
        "model": steps / own, "apgd": steps / attack, "bpda": steps / bpda,
        "overhead": max(0.0, attack / own - 1),
    }  # fmt: skip


def _pass(model: nn.Module, images: Tensor) -> Tensor:
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(point).float().logsumexp(1).sum(), point)
    return gradient


def _seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    now, times = clock(device), []
    for _ in range(1 + rounds):
        started = now()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(now() - started)
    return statistics.median(times[1:])


def repeatability(name: str, batch: int, device: str) -> dict[str, Any]:
    """Whether the same seed gives the same bits twice, and how many images end with another class than on the CPU."""
    model, side = build(name)
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    found = {}
    for where, number in ((device, 0), (device, 1), ("cpu", 0)):
        with moved([model], torch.device(where)), no_trace([model], torch.device(where)):
            oracle = Oracle(model, RandomStream(0, torch.device(where)))
            points = apgd(
                oracle, images.to(where), labels.to(where), threat=ThreatModel(), steps=_STEPS,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            with torch.no_grad():
                found[where, number] = points.cpu(), model(points).argmax(1).cpu()
    (first, classes), (second, _), (_, on_cpu) = found[device, 0], found[device, 1], found["cpu", 0]
    return {
        "images": batch, "same_bits": bool(torch.equal(first, second)),
        "other_class_than_cpu": int((classes != on_cpu).sum()),
    }  # fmt: skip


def verdict(name: str, size: Size, data: Dataset, device: str) -> dict[str, Any]:
    """Time to a verdict, and all accuracies of an exhaustive audit."""
    defense, now = Defense(load_model(name), name=name), clock(device)
    images, labels = data.images[: size.images], data.labels[: size.images]
    seconds, results = {}, {}
    for exhaustive in (False, True):
        started = now()
        results[exhaustive] = audit(
            defense, images, labels, budget=size.budget, device=device, exhaustive=exhaustive, margin=0.05
        )
        seconds[exhaustive] = now() - started
    whole, autoattack = results[True], results[True].autoattack_accuracy
    return {
        "images": len(labels), "budget": size.budget, "verdict": results[False].verdict.name,
        "exhaustive": whole.verdict.name, "seconds": seconds[False], "seconds_exhaustive": seconds[True],
        "clean": _share(whole.clean_accuracy), "autoattack": None if autoattack is None else _share(autoattack),
        "rand": None if whole.rand_accuracy is None else _share(whole.rand_accuracy),
        "all": _share(whole.robust_accuracy),
    }  # fmt: skip


def precision(name: str, size: Size, data: Dataset, device: str) -> dict[str, Any]:
    """The verdict and its time with attacks in each precision."""
    defense, now = Defense(load_model(name), name=name), clock(device)
    images, labels = data.images[: size.images], data.labels[: size.images]
    found = {}
    for kind in ("own", "tf32", "bfloat16"):
        started = now()
        result = audit(
            defense,
            images,
            labels,
            budget="smoke",
            device=device,
            precision=kind,
            margin=0.1,
        )
        found[kind] = {"verdict": result.verdict.name, "seconds": now() - started}
    return {"defense": name, "images": len(labels), **found}


def _share(proportion: Any) -> list[float]:
    return [proportion.value, proportion.low, proportion.high]


def unmeasured(folder: Path, names: Iterator[tuple[str, Callable[[], Any]]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The parts that the folder does not have yet."""
    return ((name, measure) for name, measure in names if not (folder / f"gpu-{name}.json").exists())
