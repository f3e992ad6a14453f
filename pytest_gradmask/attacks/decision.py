"""An attack that sees nothing but decisions, through foolbox: for defenses whose scores are no guide.

foolbox (Rauber et al. 2017, 2020) is optional: ``pip install pytest-gradmask[decision]``.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import torch
from torch import nn

from pytest_gradmask.errors import DependencyError
from pytest_gradmask.execution.generators import seeded_by
from pytest_gradmask.threat import ThreatModel

_START_TRIES = 20  # batches of noise in which an image that is misclassified is looked for
_SEARCH = 200  # queries of an iteration beside the gradient's: its two line searches take fewer on a model that repeats


class _QueriesSpentError(Exception):
    """Ends an attack that would search forever."""


class _Decisions(nn.Module):
    """The model as foolbox sees it; keeps for each image the nearest query that is misclassified.

    foolbox returns its last iterate, and gives up by an assertion where a model contradicts itself. What was found on
    the way counts all the same.
    """

    def __init__(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel, queries: int
    ) -> None:
        super().__init__()
        self.model, self.images, self.labels, self.threat = model, images, labels, threat
        self.left = queries
        self.asking = False  # true after an error: it is the model that raised it
        self.nearest = images.clone()
        self.distances = images.new_full((len(images),), math.inf)
        self.training = False  # foolbox warns otherwise; eval() would change the model's own flags

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        if self.left == 0:
            raise _QueriesSpentError
        self.left -= 1
        points = _stretched(unit, self.threat)
        self.asking = True
        logits: torch.Tensor = self.model(points)
        self.asking = False
        distances = self.threat.distance(points, self.images)
        nearer = (logits.argmax(1) != self.labels) & (distances < self.distances)
        self.nearest = torch.where(nearer.view(-1, 1, 1, 1), points, self.nearest)
        self.distances = torch.where(nearer, distances, self.distances)
        return logits


def hop_skip_jump(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    evaluations: int = 100,
) -> torch.Tensor:
    """HopSkipJump (Chen, Jordan and Wainwright 2020), foolbox's: walks along the decision boundary towards the image.

    Starts from another image of the batch or from noise, whatever is misclassified, and needs no gradient and no
    score. Step t estimates the boundary's normal from ``evaluations * sqrt(t)`` queries. A randomized defense
    contradicts the attack, which then ends early with what it has.

    Args:
        steps: iterations; Chen et al. use up to 64.
        evaluations: queries in the first step.

    The other arguments are those of `pgd`.

    Returns:
        For each image the nearest misclassified point seen, drawn into the ball: an adversarial example if it was
        there, and probably none otherwise. Images for which nothing misclassified was found come back as they are.

    Raises:
        DependencyError: foolbox is not installed.
    """
    foolbox = _foolbox()
    with seeded_by(generator, images.device), torch.no_grad():  # foolbox draws from the global generators
        return _run(foolbox, model, images, labels, threat, steps, generator, evaluations)


def foolbox_installed() -> bool:
    """Whether `hop_skip_jump` can run."""
    return importlib.util.find_spec("foolbox") is not None


def _foolbox() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of scipy, at names that foolbox imports
            return importlib.import_module("foolbox")
    except ModuleNotFoundError as error:
        if error.name != "foolbox":  # something that foolbox itself is missing
            raise
        raise DependencyError(
            "hop_skip_jump needs foolbox, which is not installed; run: pip install 'pytest-gradmask[decision]'"
        ) from error


def _run(
    foolbox: Any,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    evaluations: int,
) -> torch.Tensor:
    low, high = threat.bounds
    # foolbox clips to [0, 1] whatever the bounds are, so it is given just that.
    unit = ((images - low) / (high - low)).clamp(0, 1)
    starts = _starts(model, unit, labels, threat, generator)
    found = images.clone()
    (ready,) = (starts != unit).flatten(1).any(1).nonzero(as_tuple=True)
    if len(ready) == 0:
        return found
    queries = sum(int(evaluations * math.sqrt(step + 1)) + _SEARCH for step in range(steps)) + _SEARCH
    decisions = _Decisions(model, images[ready], labels[ready], threat, queries)
    attack = foolbox.attacks.HopSkipJumpAttack(
        steps=steps, initial_gradient_eval_steps=evaluations, constraint=threat.norm.lower()
    )
    try:
        attack.run(
            foolbox.PyTorchModel(decisions, bounds=(0, 1), device=images.device),
            unit[ready],
            foolbox.criteria.Misclassification(labels[ready]),
            starting_points=starts[ready],
        )
    except _QueriesSpentError:
        pass
    except (AssertionError, ValueError) as error:
        contradicted = isinstance(error, AssertionError) or "starting_points" in str(error)
        if decisions.asking or not contradicted:
            raise
    found[ready] = threat.project(decisions.nearest, images[ready])
    return found


def _stretched(unit: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    low, high = threat.bounds
    return (unit * (high - low) + low).clamp(low, high)


def _starts(
    model: nn.Module, unit: torch.Tensor, labels: torch.Tensor, threat: ThreatModel, generator: torch.Generator
) -> torch.Tensor:
    """For each image a misclassified one: another of the batch or noise; itself where there is none or no need.

    All in [0, 1], as foolbox will ask the model again.
    """
    starts = unit.clone()
    needy = model(_stretched(unit, threat)).argmax(1) == labels
    for attempt in range(len(unit) - 1 + _START_TRIES):
        if not needy.any():
            break
        if attempt < len(unit) - 1:
            candidates = unit.roll(attempt + 1, 0)
        else:
            candidates = torch.rand(unit.shape, generator=generator, dtype=unit.dtype).to(unit.device)
        hit = needy & (model(_stretched(candidates, threat)).argmax(1) != labels)
        starts = torch.where(hit.view(-1, 1, 1, 1), candidates, starts)
        needy = needy & ~hit
    return starts
