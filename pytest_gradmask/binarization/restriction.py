"""Perturbations restricted to few dimensions, in which a search without gradients finds nearly the best point.

The score of a binarized classifier that is reachable inside the ball is unknown, and only a gradient attack comes near
it in thousands of dimensions. In about a hundred, differences of forward passes are enough. So the attacker of a
binarized classifier may use any perturbation, but the classifier keeps only its part in a few fixed patterns. The
gradient of this linear map is exact. Whatever is wrong with an attack's gradient comes from the defense or the attack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pytest_gradmask.threat import ThreatModel

#: Side of the grid of cells. Each cell of each channel has a pattern: 192 dimensions for three channels.
_GRID = 8
_ROUNDS = 4  # of the search
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the patterns that a step changes, those with the largest differences first
_STEPS = (0.25, 0.5, 1.0, 2.0)  # in units of eps
_CHUNK = 256  # points in one call of the score


class Restriction(nn.Module):
    """Keeps that part of a perturbation that is a combination of a few patterns.

    A pattern covers a cell of the image in one channel. Its pixels are 1 or -1. The coefficient of a pattern is the
    mean of the perturbation in the cell, times the pattern. So a perturbation in the ball stays in the ball.

    Args:
        image: the clean image, 1 x C x H x W.
        signs: the patterns, side by side: C x H x W, of 1 and -1.
        bounds: the restricted image is clipped to them.
    """

    image: Tensor
    signs: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, image: Tensor, signs: Tensor, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.register_buffer("image", image)
        self.register_buffer("signs", signs)
        self.register_buffer("rows", _cells(image.shape[2]).to(image))
        self.register_buffer("columns", _cells(image.shape[3]).to(image))
        self.bounds = bounds
        self.training = False

    @property
    def dimensions(self) -> int:
        """Number of patterns."""
        return self.image.shape[1] * len(self.rows) * len(self.columns)

    def forward(self, images: Tensor) -> Tensor:
        delta = (images.to(self.image) - self.image) * self.signs
        rows, columns = (cells / cells.sum(1, keepdim=True) for cells in (self.rows, self.columns))
        restricted = self.expand(rows @ delta @ columns.T)
        return (self.image + restricted).clamp(*self.bounds).to(images.dtype)

    def expand(self, coefficients: Tensor) -> Tensor:
        """The perturbation with these coefficients, from N x C x rows x columns to N x C x H x W."""
        return self.rows.T @ coefficients @ self.columns * self.signs

    def patterns(self, indices: Tensor) -> Tensor:
        """Some of the patterns, as perturbations: one for each index, N x C x H x W."""
        units = torch.zeros(len(indices), self.dimensions, device=self.image.device, dtype=self.image.dtype)
        units[torch.arange(len(indices), device=units.device), indices] = 1
        return self.expand(units.view(-1, self.image.shape[1], len(self.rows), len(self.columns)))

    def corners(self, count: int, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        """Random points at a distance of eps, clipped to the bounds, of patterns with random coefficients."""
        shape = (count, self.image.shape[1], len(self.rows), len(self.columns))
        noise = torch.randn(shape, generator=generator, dtype=self.image.dtype).to(self.image.device)
        return threat.project(self.image + threat.eps * threat.step(self.expand(noise)), self.image)


def _cells(size: int) -> Tensor:
    """Which pixels of a row belong to which cell: cells x pixels, of 0 and 1."""
    count = min(size, _GRID)
    return (torch.arange(size) * count // size == torch.arange(count)[:, None]).double()


def restriction(image: Tensor, threat: ThreatModel, generator: torch.Generator, smooth: bool) -> Restriction:
    """Patterns for an image: constant cells if ``smooth``, otherwise cells of random signs."""
    signs = torch.ones_like(image[0])
    if not smooth:
        signs = torch.randint(2, image.shape[1:], generator=generator).to(image) * 2 - 1
    return Restriction(image, signs, threat.bounds)


def search(
    score: Callable[[Tensor], Tensor], restricted: Restriction, threat: ThreatModel, rounds: int = _ROUNDS
) -> tuple[Tensor, float]:
    """Raise a score inside the ball, by forward passes alone.

    Each round changes one pattern at a time in both directions, as far as the ball allows (Linf), and moves along the
    differences of the scores. Such large changes work on a defense that quantizes its input as well. A round makes two
    queries for each pattern and 21 more.

    Args:
        score: from N x C x H x W, inside the ball, to N values.
        restricted: of the image.
        threat: the ball.

    Returns:
        The best point, 1 x C x H x W, and its score.
    """
    image = restricted.image
    best, best_score = image, float(score(image))
    # From a corner, one of the two changes leads to the opposite corner and the other leads nowhere.
    reach = 2 * threat.eps / (1 if threat.norm == "Linf" else restricted.dimensions**0.5)
    for _ in range(rounds):
        differences = []
        for indices in torch.arange(restricted.dimensions, device=image.device).split(_CHUNK // 2):
            change = reach * threat.step(restricted.patterns(indices))
            plus, minus = (threat.project(best + sign * change, image) for sign in (1, -1))
            differences.append(score(torch.cat([plus, minus])).view(2, -1))
        slopes = torch.cat(differences, 1)
        slopes = (slopes[0] - slopes[1]).nan_to_num(nan=0.0)
        ranks = slopes.abs().argsort(descending=True).argsort()
        points = []
        for share in _SHARES:
            kept = torch.where(ranks < max(1, share * len(slopes)), slopes, 0)
            shape = (1, image.shape[1], len(restricted.rows), len(restricted.columns))
            direction = threat.step(restricted.expand((kept / slopes.abs().max().clamp_min(1e-38)).to(image).view(shape)))
            points += [image + threat.eps * direction, *(best + step * threat.eps * direction for step in _STEPS)]
        candidates = threat.project(torch.cat(points), image)
        scores = score(candidates).nan_to_num(nan=-torch.inf)
        top = int(scores.argmax())
        if not float(scores[top]) > best_score:
            break
        best, best_score = candidates[top][None], float(scores[top])
    return best, best_score
