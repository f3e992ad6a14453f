"""Perturbations restricted to few dimensions, in which a search without gradients finds nearly the best point.

The score of a binarized classifier that is reachable inside the ball is unknown, and only a gradient attack comes near
it in thousands of dimensions. In about a hundred, differences of forward passes are enough. So the attacker of a
binarized classifier may use any perturbation, but the classifier keeps only its part in a few fixed patterns. The
gradient passes through the clipping, too. Whatever is wrong with the gradient of an attack comes from the defense or
the attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pytest_gradmask.threat import ThreatModel, per_image

#: Side of the grid of cells. Each cell of each channel has a pattern: 108 dimensions for three channels.
_GRID = 6
#: Cells of an input that is no image: as many dimensions.
_ROW = 108
_ROUNDS = 6  # of the search, at most
_LEAST_GAIN = 0.02  # of a round, as a share of the score so far; the search ends after a smaller one
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the patterns that a step changes, those with the largest differences first
_STEPS = (0.25, 0.5, 1.0, 2.0)  # in units of eps
_CHUNK = 256  # points in one call of the score


class Restriction(nn.Module):
    """Keeps that part of a perturbation that is a combination of a few patterns.

    A pattern covers a cell of the image in one channel. Its pixels are 1 or -1. The coefficient of a pattern is the
    mean of the perturbation in the cell, times the pattern. So a perturbation in the ball stays in the ball.

    Args:
        image: the clean image, 1 x C x H x W. Other inputs, 1 x ..., are taken as one long row of pixels.
        signs: the patterns, side by side: C x H x W, of 1 and -1, or 1 x 1 x D.
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
        self.register_buffer("rows", _cells(signs.shape[1], _GRID).to(image))
        self.register_buffer("columns", _cells(signs.shape[2], _GRID if image.ndim == 4 else _ROW).to(image))
        self.bounds = bounds
        self.training = False

    @property
    def dimensions(self) -> int:
        """Number of patterns."""
        return math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the coefficients of one perturbation."""
        return (1, self.signs.shape[0], len(self.rows), len(self.columns))

    def forward(self, images: Tensor) -> Tensor:
        perturbed = self.image + self.expand(self.coefficients(images))
        # Half of the patterns would leave a black pixel without a gradient. So clipping is bypassed, as in BPDA.
        return perturbed + (perturbed.clamp(*self.bounds) - perturbed).detach()

    def coefficients(self, images: Tensor) -> Tensor:
        """The coefficients of the perturbations, N x C x rows x columns."""
        delta = (images.to(self.image) - self.image).view(-1, *self.signs.shape) * self.signs
        rows, columns = (cells / cells.sum(1, keepdim=True) for cells in (self.rows, self.columns))
        return rows @ delta @ columns.T

    def expand(self, coefficients: Tensor) -> Tensor:
        """The perturbation with these coefficients, from N x C x rows x columns to the shape of images."""
        perturbation = self.rows.T @ coefficients @ self.columns * self.signs
        return perturbation.view(-1, *self.image.shape[1:])

    def patterns(self, indices: Tensor) -> Tensor:
        """Some of the patterns, as perturbations: one for each index, N x C x H x W."""
        units = torch.zeros(len(indices), self.dimensions, device=self.image.device, dtype=self.image.dtype)
        units[torch.arange(len(indices), device=units.device), indices] = 1
        return self.expand(units.view(-1, *self.shape[1:]))

    def corners(self, count: int, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        """Random points at a distance of eps, clipped to the bounds, of patterns with random coefficients."""
        noise = torch.randn((count, *self.shape[1:]), generator=generator, dtype=self.image.dtype).to(self.image.device)
        return threat.project(self.image + threat.eps * threat.step(self.expand(noise)), self.image)


def _cells(size: int, most: int) -> Tensor:
    """Which pixels of a row belong to which of at most so many cells: cells x pixels, of 0 and 1."""
    count = min(size, most)
    return (torch.arange(size) * count // size == torch.arange(count)[:, None]).double()


def restricted_to_cells(image: Tensor, threat: ThreatModel, generator: torch.Generator, *, smooth: bool) -> Restriction:
    """Patterns for an image: constant cells if ``smooth``, otherwise cells of random signs."""
    plane = image.shape[1:] if image.ndim == 4 else torch.Size([1, 1, image.numel()])
    signs = torch.ones(plane).to(image)
    if not smooth:
        signs = torch.randint(2, plane, generator=generator).to(image) * 2 - 1
    return Restriction(image, signs, threat.bounds)


def search(
    score: Callable[[Tensor], Tensor],
    restriction: Restriction,
    start: Tensor,
    threat: ThreatModel,
    *,
    rounds: int = _ROUNDS,
) -> tuple[Tensor, float]:
    """Raise a score inside the ball, by forward passes alone.

    Each round changes one pattern at a time, as far as the ball allows, and moves along the differences of the scores.
    Such large changes work on a defense that quantizes its input as well. A round makes one query for each pattern and
    21 more. The search ends after a round with little gain.

    Args:
        score: from N x C x H x W, inside the ball, to N values.
        restriction: of the image.
        start: a point at the boundary of the ball, 1 x C x H x W.
        threat: the ball.
        rounds: the most.

    Returns:
        The best point, 1 x C x H x W, and its score.
    """
    image, shape = restriction.image, restriction.shape
    clean_score, best, best_score = float(score(image)), start, float(score(start))
    # In the Linf ball, a change leads from one side of the cube to the opposite one.
    reach = 2 * threat.pixel_eps(restriction.dimensions)
    for _ in range(rounds):
        inward = torch.where(restriction.coefficients(best).flatten() > 0, -1.0, 1.0).to(image)
        scores = []
        for indices in torch.arange(restriction.dimensions, device=image.device).split(_CHUNK):
            changes = per_image(inward[indices], image) * threat.step(restriction.patterns(indices))
            scores.append(score(threat.project(best + reach * changes, image)))
        derivatives = ((torch.cat(scores) - best_score) * inward).nan_to_num(nan=0.0)
        derivatives = derivatives / derivatives.abs().max().clamp_min(1e-38)
        ranks = derivatives.abs().argsort(descending=True).argsort()
        points = []
        for share in _SHARES:
            kept = torch.where(ranks < max(1, share * len(derivatives)), derivatives, 0.0).to(image)
            direction = threat.eps * threat.step(restriction.expand(kept.view(shape)))
            points += [image + direction, *(best + step * direction for step in _STEPS)]
        candidates = threat.project(torch.cat(points), image)
        candidate_scores = score(candidates).nan_to_num(nan=-torch.inf)
        top = int(candidate_scores.argmax())
        gain = float(candidate_scores[top]) - best_score
        if not gain > 0:
            break
        best, best_score = candidates[top][None], float(candidate_scores[top])
        if gain < _LEAST_GAIN * (best_score - clean_score):
            break
    return best, best_score
