"""Ways of asking a defense about the same points, and which of them change its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.answers import change, described, differing_points, enough, size
from pytest_gradmask.threat import PerturbationSet

#: Changes of a pixel in 255ths that the grid of 8 bits does not show, and how many points are changed so.
_OFF_GRID, _BESIDE = (0.1, 0.49), 4
#: A point on the grid is unlike those around it if it differs from each by this multiple of their largest difference.
#: At most 1.3 at all points of the package's 12 trained models at two eps, and 2.3 at those of 37 known defenses.
_LEAP = 4.0

_Ask = Callable[[Oracle, Tensor], Tensor]


def differing_ways(
    oracle: Oracle,
    points: Tensor,
    threat: PerturbationSet,
    generator: torch.Generator,
    *,
    trainable: Sequence[nn.Parameter],
    in_batches: bool,
    tolerance: float,
) -> list[str]:
    """In words, each way of asking that changes answers."""
    expected = _answer(oracle, points)
    found = []

    def compare(words: str, ask: _Ask, count: int = len(points)) -> None:
        try:
            with oracle.frozen():
                answers = ask(oracle, points[:count])
        except Exception:  # one way of asking that the defense does not bear says nothing about the others
            return
        differing = differing_points(answers, expected[:count], tolerance)
        if enough(differing):
            found.append(f"{words} ({described(answers, expected[:count], differing)})")

    compare("with autograd and without", _with_autograd)
    with _requiring_gradients(trainable):
        compare("while parameters require gradients and while they do not", _without_autograd)
        if not found:
            compare("with autograd while parameters require gradients and while they do not", _with_autograd)
    if in_batches:
        noise = threat.bounds[0] + (threat.bounds[1] - threat.bounds[0]) * torch.rand(
            points.shape, generator=generator
        ).to(points)
        count = min(6, len(points))
        compare("alone and in a batch", lambda ask, some: torch.cat([ask(one) for one in some.split(1)]), count)
        compare("in small batches and in larger ones", lambda ask, some: torch.cat([ask(one) for one in some.split(5)]))
        compare("beside other images", lambda ask, some: ask(torch.cat([noise, some]))[len(noise) :])
    with suppress(Exception), oracle.frozen():  # as above
        found += _off_grid(oracle, points, threat, generator, tolerance)
    return found


def _off_grid(
    oracle: Oracle, points: Tensor, threat: PerturbationSet, generator: torch.Generator, tolerance: float
) -> list[str]:
    """Whether images of 8 bits are answered unlike those within less than half a grey level, which are all alike."""
    low, width = threat.bounds[0], threat.bounds[1] - threat.bounds[0]
    on_grid = low + ((points - low) / width * 255).round() / 255 * width

    def beside() -> Tensor:
        shares, signs = torch.rand(2, *points.shape, generator=generator).to(points)
        distance = (_OFF_GRID[0] + (_OFF_GRID[1] - _OFF_GRID[0]) * shares) * width / 255
        moved = on_grid + torch.where(signs < 0.5, distance, -distance)
        return torch.where((moved >= low) & (moved <= low + width), moved, 2 * on_grid - moved)

    on, *off = (oracle(some) for some in (on_grid, *(beside() for _ in range(_BESIDE))))
    away = torch.stack([change(on, one) for one in off]).amin(0)
    among = torch.stack([change(one, other) for one, other in combinations(off, 2)]).amax(0)
    differing = (away > tolerance * size(on)) & (away > _LEAP * among)
    return [f"on the grid of 8 bits and off it ({described(off[0], on, differing)})"] if enough(differing) else []


def under_inference_mode(oracle: Oracle, points: Tensor, expected: Tensor, seed: int, tolerance: float) -> list[str]:
    """In words, whether inference mode changes answers; nothing where the defense cannot run in it."""
    oracle.reseed(seed)
    try:
        with torch.inference_mode(), oracle.frozen():
            answers = oracle(points)
    except Exception:  # not every operation is allowed there
        return []
    differing = differing_points(answers, expected, tolerance)
    return [f"under torch.inference_mode ({described(answers, expected, differing)})"] if enough(differing) else []


def _answer(oracle: Oracle, points: Tensor) -> Tensor:
    with oracle.frozen():
        return oracle(points)  # type: ignore[no-any-return]


def _without_autograd(oracle: Oracle, points: Tensor) -> Tensor:
    return oracle(points)  # type: ignore[no-any-return]


def _with_autograd(oracle: Oracle, points: Tensor) -> Tensor:
    with torch.enable_grad():
        return oracle(points.clone().requires_grad_(True)).detach()  # type: ignore[no-any-return]


@contextmanager
def _requiring_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """An audit switches them off; inside, they are as outside of it."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
