"""A surrogate trained by queries, beside the attacks that need only queries: what does it break at equal queries?

It is not part of an audit unless this measurement says that it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask import Dataset, Defense, ThreatModel
from pytest_gradmask.auditing.research import bench, get_budget, logit_margin

#: Rounds of asking and training.
_ROUNDS = 5
#: Share of the queries that goes to candidates in the end.
_FINAL = 0.1
_EPOCHS, _BATCH, _RATE = 3, 128, 2e-3
#: Steps of an attack on the surrogate.
_STEPS = 10
Progress = Callable[[object], None]


def surrogates(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    budget: str = "smoke",
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Images that each attack breaks, of those that are classified correctly, with the budget's queries."""
    rows = []
    with bench(defense, data.images, data.labels, budget=budget, device=device, seed=seed) as prepared:
        # No query is repeated in another precision, so that they can be counted.
        prepared = replace(prepared, scorer=replace(prepared.scorer, search_precision="own"))
        own: dict[str, Any] = {attack: prepared.attacks[attack].run for attack in ("square", "zero-order")}
        trained = partial(trained_surrogate, queries=get_budget(budget).square_queries)
        for attack, run in {**own, "trained surrogate": trained}.items():
            progress(attack)
            result = prepared.runner(run)()
            if result.status != "done":
                raise RuntimeError(f"{attack}: {result.note}")
            rows.append(
                {
                    "attack": attack, "broken": len(result.broken), "of": len(result.attacked),
                    "queries": result.passes, "seconds": round(result.seconds, 1),
                }
            )  # fmt: skip
    return {"defense": name, "images": len(data.labels), "budget": budget, "seed": seed, "rows": rows}


def trained_surrogate(
    model: Any, images: Tensor, labels: Tensor, *, threat: ThreatModel, generator: Any, queries: int
) -> Tensor:
    """Train a small network on the defense's answers around the images, and attack it (Papernot et al. 2017).

    The network learns how answers differ from those on the clean image, as these differences guide an attack. In each
    round the defense is asked about points to which attacks on the network lead, and about random ones (Papernot et al.
    2017, arXiv:1602.02697, section 4). Those that come closest to another class are where the next attacks begin.
    """
    with torch.no_grad():
        clean = model(images).float()
    student = _network(images, clean.shape[1], generator)
    optimizer = torch.optim.Adam(student.parameters(), lr=_RATE)
    best, lowest = images.clone(), -logit_margin(clean, labels)
    asked: list[tuple[Tensor, Tensor, Tensor]] = []  # points, differences of answers, and of which image
    scale = torch.ones(())

    def margin(points: Tensor) -> Tensor:
        return logit_margin(clean + scale * (student(points) - student(images)), labels)

    each = int(queries * (1 - _FINAL)) // _ROUNDS
    indices = torch.arange(len(images))
    for number in range(_ROUNDS):
        for query in range(each):
            trained = number > 0 and query % 2 == 0
            start = best if query % 4 == 0 else threat.random_start(images, generator)
            points = _attacked(margin, start, images, threat, 3) if trained else _corner(images, threat, generator)
            answers = _ask(model, points)
            asked.append((points, answers - clean, indices))
            best, lowest = _better(points, answers, labels, best, lowest)
        scale = torch.cat([differences for _, differences, _ in asked]).std().clamp_min(1e-6)
        _train(student, optimizer, images, asked, scale, generator)
    for number in range(queries - 1 - _ROUNDS * each):
        start = best if number % 2 == 0 else threat.random_start(images, generator)
        points = _attacked(margin, start, images, threat, _STEPS)
        best, lowest = _better(points, _ask(model, points), labels, best, lowest)
    return best


def _ask(model: Any, points: Tensor) -> Tensor:
    with torch.no_grad():
        return model(points).float()  # type: ignore[no-any-return]


def _better(points: Tensor, answers: Tensor, labels: Tensor, best: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    margin = -logit_margin(answers, labels)
    closer = margin < lowest
    return torch.where(closer.view(-1, 1, 1, 1), points, best), torch.where(closer, margin, lowest)


def _corner(images: Tensor, threat: ThreatModel, generator: Any) -> Tensor:
    """A random step of the whole radius, in blocks of pixels: smooth directions change answers more."""
    coarse = torch.randn((*images.shape[:2], 8, 8), generator=generator)
    direction = functional.interpolate(coarse, images.shape[2:], mode="nearest").to(images.device)
    return threat.project(images + threat.eps * threat.step(direction), images)


def _attacked(
    margin: Callable[[Tensor], Tensor], start: Tensor, images: Tensor, threat: ThreatModel, steps: int
) -> Tensor:
    """A few steps along the gradient of a margin."""
    current = start
    for _ in range(steps):
        point = current.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(margin(point).sum(), point)
        current = threat.project(current + threat.eps / 2 * threat.step(gradient), images)
    return current


def _train(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    asked: list[tuple[Tensor, Tensor, Tensor]],
    scale: Tensor,
    generator: Any,
) -> None:
    points, differences, of = (torch.cat(parts) for parts in zip(*asked, strict=True))
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(points), generator=generator).split(_BATCH):
            found = student(points[chosen]) - student(images[of[chosen]])
            loss = functional.mse_loss(found, differences[chosen] / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _network(images: Tensor, classes: int, generator: Any) -> nn.Module:
    """A small convolutional network for images of this shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        channels, side = images.shape[1], 4
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(128 * side * side, classes),
        ).to(images.device)  # fmt: skip
