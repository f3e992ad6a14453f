"""A decision-based attack, run by foolbox: for defenses whose scores do not help an attack.

foolbox (Rauber et al. 2017, arXiv:1707.04131) is optional: ``pip install pytest-gradmask[decision]``.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.errors import DependencyError
from pytest_gradmask.execution.generators import seeded_by
from pytest_gradmask.threat import ThreatModel

_NOISE_BATCHES = 20  # of random images, tried as starting points
#: Upper limit of the queries of the two line searches in one iteration. A deterministic model needs fewer.
_LINE_SEARCH_QUERIES = 200


class _QueriesSpentError(Exception):
    """Stops an attack that would not end by itself."""


class _Decisions(nn.Module):
    """The model that foolbox queries. It remembers for each image the nearest query that was misclassified.

    foolbox returns its last iterate only. If a randomized model contradicts an earlier answer, foolbox stops with an
    assertion. The misclassified queries before that count all the same.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, queries: int) -> None:
        super().__init__()
        self.model, self.images, self.labels, self.threat = model, images, labels, threat
        self.queries_left = queries
        self.model_is_running = False  # true after an error that the model raised
        self.nearest = images.clone()
        self.distances = images.new_full((len(images),), math.inf)
        self.training = False  # foolbox warns otherwise; eval() would change the flags of the model

    def forward(self, unit: Tensor) -> Tensor:
        if self.queries_left == 0:
            raise _QueriesSpentError
        self.queries_left -= 1
        x = _scaled_to_bounds(unit, self.threat)
        self.model_is_running = True
        logits: Tensor = self.model(x)
        self.model_is_running = False
        distances = self.threat.distance(x, self.images)
        nearer = (logits.argmax(1) != self.labels) & (distances < self.distances)
        self.nearest = torch.where(nearer.view(-1, 1, 1, 1), x, self.nearest)
        self.distances = torch.where(nearer, distances, self.distances)
        return logits


def hop_skip_jump(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    evaluations: int = 100,
) -> Tensor:
    """HopSkipJump (Chen, Jordan and Wainwright 2020, arXiv:1904.02144) of foolbox.

    It starts from a misclassified point, which is another image of the batch or noise, and moves along the decision
    boundary towards the image. It needs no gradient and no score. Step t estimates the normal of the boundary from
    ``evaluations * sqrt(t)`` queries. If a randomized defense contradicts an earlier answer, the attack ends early
    and returns what it has found by then.

    Args:
        steps: iterations; Chen et al. use up to 64.
        evaluations: queries in the first step.

    The other arguments are those of `pgd`.

    Returns:
        For each image the nearest misclassified point of all queries, projected into the ball. It is an adversarial
        example if that point was inside the ball, and probably not otherwise. Images without a misclassified point
        are returned unchanged.

    Raises:
        DependencyError: foolbox is not installed.
    """
    foolbox = _foolbox()
    with seeded_by(generator, images.device), torch.no_grad():  # foolbox uses the global generators
        return _hop_skip_jump(foolbox, model, images, labels, threat, steps, generator, evaluations)


def foolbox_installed() -> bool:
    """Whether `hop_skip_jump` can run."""
    return importlib.util.find_spec("foolbox") is not None


def _foolbox() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from scipy, for names that foolbox imports
            return importlib.import_module("foolbox")
    except ModuleNotFoundError as error:
        if error.name != "foolbox":  # a package that foolbox needs is missing
            raise
        raise DependencyError(
            "hop_skip_jump needs foolbox, which is not installed; run: pip install 'pytest-gradmask[decision]'"
        ) from error


def _hop_skip_jump(
    foolbox: Any,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    evaluations: int,
) -> Tensor:
    low, high = threat.bounds
    # foolbox clips to [0, 1] whatever the bounds are, so it gets images in this range.
    unit = ((images - low) / (high - low)).clamp(0, 1)
    starts = _starts(model, unit, labels, threat, generator)
    x_adv = images.clone()
    (ready,) = (starts != unit).flatten(1).any(1).nonzero(as_tuple=True)
    if len(ready) == 0:
        return x_adv
    queries = (
        sum(int(evaluations * math.sqrt(step + 1)) + _LINE_SEARCH_QUERIES for step in range(steps))
        + _LINE_SEARCH_QUERIES
    )
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
        if decisions.model_is_running or not contradicted:
            raise
    x_adv[ready] = threat.project(decisions.nearest, images[ready])
    return x_adv


def _scaled_to_bounds(unit: Tensor, threat: ThreatModel) -> Tensor:
    low, high = threat.bounds
    return (unit * (high - low) + low).clamp(low, high)


def _starts(model: nn.Module, unit: Tensor, labels: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """For each image a misclassified starting point: another image of the batch, or noise. All are in [0, 1].

    It is the image itself if that is misclassified already, or if no misclassified point was found.
    """
    starts = unit.clone()
    without_start = model(_scaled_to_bounds(unit, threat)).argmax(1) == labels
    for attempt in range(len(unit) - 1 + _NOISE_BATCHES):
        if not without_start.any():
            break
        if attempt < len(unit) - 1:
            candidates = unit.roll(attempt + 1, 0)
        else:
            candidates = torch.rand(unit.shape, generator=generator, dtype=unit.dtype).to(unit.device)
        found = without_start & (model(_scaled_to_bounds(candidates, threat)).argmax(1) != labels)
        starts = torch.where(found.view(-1, 1, 1, 1), candidates, starts)
        without_start = without_start & ~found
    return starts
