"""How useful a gradient is to an attack: its agreement with the loss at several distances, and the loss along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.bpda import bypassed, described
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits
from pytest_gradmask.attacks.evaluate import mean_logit_margins, value_and_grad
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import under_attack
from pytest_gradmask.auditing.bench import Bench
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.execution.batching import in_batches
from pytest_gradmask.probes.noise import smoothed_cosines
from pytest_gradmask.probes.trace import dual_norm
from pytest_gradmask.threat import ThreatModel, ball_of, per_image

#: Distances at which gradients are compared with the loss, as shares of eps.
_RADII = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)
_PAIRS = 4  # pairs of queries for each image and distance
_IMAGES = 8  # images for gradient noise
_LANDSCAPES = 2  # images for loss landscapes
_LINE, _GRID = 33, 17  # points along a direction, and along each side of a map; both odd, so that 0 is one of them
_CHUNK = 100
DEFENSE_GRADIENT = "the defense's own gradient"


@dataclass(frozen=True, slots=True)
class Views:
    """A defense and the ways to differentiate it.

    Attributes:
        bench: with the images.
        oracle: the defense or, if the members of an ensemble are known, their mixture.
        ways: by name, the defense's gradient and, if BPDA bypasses something, the gradient around that.
    """

    bench: Bench
    oracle: Oracle
    ways: dict[str, Oracle]

    @classmethod
    def of(cls, bench: Bench) -> Views:
        """The views of a defense on the bench."""
        surface = bench.surface
        oracle = surface.oracle(surface.attacked)
        ways = {DEFENSE_GRADIENT: oracle}
        names = [*described(surface.approximations), *([f"all after {surface.inner}"] if surface.inner else [])]
        if names:
            around = surface.rewired(bypassed)
            model = InnerLogits(around, f"model.{surface.inner}") if surface.inner else around
            ways[f"the gradient around what BPDA bypasses ({', '.join(names)})"] = (
                surface.inner_oracle(model) if surface.inner else surface.oracle(model)
            )
        return cls(bench, oracle, ways)

    @property
    def threat(self) -> ThreatModel:
        """The threat model of the audit, or the ball of its probes."""
        return ball_of(self.bench.scorer.threat)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images at these indices, and their labels."""
        chosen = list(indices)
        return self.bench.scorer.images[chosen], self.bench.scorer.labels[chosen]

    def generator(self, name: str) -> torch.Generator:
        """Random numbers for one purpose. The random numbers of the defense are seeded anew, too."""
        seed = self.bench.scorer.seed
        self.oracle.reseed(subseed(seed, f"defense under {name}"))
        return torch.Generator().manual_seed(subseed(seed, name))

    def gradients(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradient of the logit margin at the images, N x C x H x W, for each way to differentiate."""
        rejection = self.bench.surface.rejection
        size = len(images) if rejection is None else 1  # with a reject option, a loss is one of a single label

        def gradient(way: Oracle, some: Tensor, of_some: Tensor) -> Tensor:
            with under_attack(rejection, of_some) as safe:
                return value_and_grad(way, some, safe, logit_margin, self.bench.surface.eot).gradient

        return {
            name: torch.cat([gradient(way, *each) for each in zip(images.split(size), labels.split(size), strict=True)])
            for name, way in self.ways.items()
        }


def noise(views: Views, indices: Sequence[int]) -> dict[str, Any]:
    """For each gradient, its cosines with the gradient of the loss smoothed over several distances.

    Args:
        views: of the defense.
        indices: of images that are classified correctly; the first 8 are used.
    """
    if not indices:
        raise RuntimeError("no image of the sample is classified correctly without an attack")
    rejection, labels = views.bench.surface.rejection, views.bench.scorer.labels
    if rejection is not None:
        indices = [index for index in indices if labels[index] == labels[indices[0]]]
    images, labels = views.batch(indices[:_IMAGES])
    generator = views.generator("gradient noise of evidence")
    with views.oracle.frozen():  # one draw of a randomized defense, if its random numbers can be frozen
        with torch.no_grad():
            largest = views.oracle(images).abs().amax(1)
        ways = []
        for name, gradient in views.gradients(images, labels).items():
            gradient_norms = dual_norm(gradient, views.threat)
            with under_attack(rejection, labels) as safe:
                cosines = [
                    smoothed_cosines(
                        views.oracle,
                        images,
                        safe,
                        gradient,
                        gradient_norms,
                        largest,
                        radius,
                        views.threat,
                        generator,
                        _PAIRS,
                    ).tolist()
                    for radius in _RADII
                ]
            ways.append(
                {
                    "name": name,
                    "cosines": [[_plain(value) for value in values] for values in cosines],
                    "zero": int((gradient_norms == 0).sum()),
                    "not_finite": int((~gradient_norms.isfinite()).sum()),
                }
            )
    return {"images": len(images), "radii": list(_RADII), "eps": views.threat.eps, "ways": ways}


def landscapes(views: Views, indices: Sequence[int], numbers: Sequence[int]) -> dict[str, Any]:
    """The logit margin inside the ball around two images, along gradients and a random direction of signs.

    Args:
        views: of the defense.
        indices: of images that are classified correctly, the most informative first.
        numbers: for each image of the bench, its number in the report.
    """
    chosen = list(dict.fromkeys(indices))[:_LANDSCAPES]
    images, labels = views.batch(chosen)
    generator = views.generator("landscapes of evidence")
    signs = (torch.randint(0, 2, images.shape, generator=generator) * 2 - 1).to(images)
    random = views.threat.step(signs)
    with views.oracle.frozen():
        steps = {
            name: views.threat.step(gradient.nan_to_num(0, 0, 0))
            for name, gradient in views.gradients(images, labels).items()
        }
        drawn = []
        for row, index in enumerate(chosen):
            image, label = images[row : row + 1], labels[row : row + 1]
            across = random[row]
            directions = {name: step[row] for name, step in steps.items()}
            drawn.append(
                {
                    "image": numbers[index],
                    "label": int(label),
                    "lines": [
                        {"along": name, "zero": not bool(along.any()), "margins": _line(views, image, label, along)}
                        for name, along in {**directions, "a random direction": across}.items()
                    ],
                    "maps": [
                        {"along": name, "margins": _map(views, image, label, along, across)}
                        for name, along in directions.items()
                    ],
                }
            )
    return {"eps": views.threat.eps, "norm": views.threat.norm, "images": drawn}


def _line(views: Views, image: Tensor, label: Tensor, along: Tensor) -> list[float | None]:
    sizes = torch.linspace(-1, 1, _LINE).to(image) * views.threat.eps
    return _margins(views, image, label, per_image(sizes, image) * along)


def _map(views: Views, image: Tensor, label: Tensor, along: Tensor, across: Tensor) -> list[list[float | None]]:
    """The logit margins on a grid. Rows vary the random direction, columns the other one. None outside of the ball."""
    sizes = per_image(torch.linspace(-1, 1, _GRID).to(image) * views.threat.eps, image)
    rows = []
    for size in sizes:
        offsets = sizes * along + size * across
        inside = views.threat.distance(image + offsets, image) <= views.threat.eps + views.threat.tolerance
        margins = iter(_margins(views, image, label, offsets[inside]))
        rows.append([next(margins) if is_inside else None for is_inside in inside.tolist()])
    return rows


def _margins(views: Views, image: Tensor, label: Tensor, offsets: Tensor) -> list[float | None]:
    points = (image + offsets).clamp(*views.threat.bounds)

    def part(start: int, end: int) -> Tensor:
        some = points[start:end]
        with under_attack(views.bench.surface.rejection, label) as safe:
            return mean_logit_margins(views.oracle, some, safe.expand(len(some)), views.bench.surface.eot)

    return [_plain(value) for value in torch.cat(in_batches(part, len(points), _CHUNK)).tolist()]


def _plain(value: float) -> float | None:
    """The value with five digits, or None if JSON cannot represent it."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
