"""Adversarial training of a front end before a frozen backbone, resumable at every step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from audits.trained_masks.front_end import IdentityStart, batch_statistics
from audits.trained_masks.images import augmented, batch_rows, step_generator
from audits.trained_masks.package import Composite, Dataset, ThreatModel
from audits.trained_masks.recipes import Recipe
from audits.trained_masks.storage import load_run, save_run


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step saw.

    Attributes:
        step: steps taken, this one included.
        loss, accuracy: mean over the batch under the inner attack, batch norm in train mode.
    """

    step: int
    loss: float
    accuracy: float


def new_front_end(recipe: Recipe) -> IdentityStart:
    """The front end at the start of a run. The global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        front_end = IdentityStart(
            recipe.depth, recipe.width, architecture=recipe.architecture, normalized=recipe.normalized
        )
    return front_end.to(memory_format=torch.channels_last)


def new_optimizer(recipe: Recipe, front_end: IdentityStart) -> torch.optim.Optimizer:
    """The optimizer of a run, over all parameters of the front end that it trains."""
    trained = [front_end] if recipe.trained == "all" else front_end.readouts
    weights = [parameter for module in trained for parameter in module.parameters()]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)


def inner_attack(
    composite: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """PGD (Madry et al. 2018) as in the authors' toolkit: the last iterate, whatever its loss."""
    threat = ThreatModel(recipe.eps)
    half = torch.autocast("cpu", torch.bfloat16) if recipe.attack_precision == "bfloat16" else nullcontext()
    current = threat.random_start(images, generator) if recipe.random_start else images
    for _ in range(recipe.attack_steps):
        current = current.detach().requires_grad_()
        with half:
            logits = composite(current)
        (gradient,) = torch.autograd.grad(cross_entropy(logits.float(), labels, reduction="sum"), current)
        current = threat.project(current.detach() + recipe.step_size * threat.step(gradient), images)
    return current.detach()


class Run:
    """A training and where it stands.

    Args:
        recipe: what to do.
        backbone: frozen here, in place, and put into eval mode.
        data: training images.
        file: where the run is kept; resumed if it is there.
    """

    def __init__(self, recipe: Recipe, backbone: nn.Module, data: Dataset, file: Path) -> None:
        self.recipe = recipe
        self.data = data
        self.file = file
        self.front_end = new_front_end(recipe)
        self.optimizer = new_optimizer(recipe, self.front_end)
        self.composite = Composite(self.front_end, backbone.eval().requires_grad_(False))
        self.step = load_run(file, self.front_end, self.optimizer) if file.exists() else 0
        self.total = recipe.total_steps(len(data))

    def advance(self) -> Seen:
        """Take one step."""
        recipe, generator = self.recipe, step_generator(self.recipe.seed, self.step)
        rows = batch_rows(len(self.data), recipe.batch_size, self.step, recipe.seed)
        images = augmented(self.data.images[rows], generator, erase=recipe.erase)
        labels = self.data.labels[rows]
        self.front_end.requires_grad_(False)  # the inner attack needs no gradients of weights
        with batch_statistics(self.front_end, used=recipe.attack_statistics == "batch"):
            images = inner_attack(self.composite, images, labels, recipe, generator)
        self.front_end.requires_grad_(True).train()
        logits = self.composite(images)
        loss = cross_entropy(logits, labels, reduction=recipe.loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.front_end.eval()
        self.step += 1
        mean = loss.item() / (len(labels) if recipe.loss == "sum" else 1)
        return Seen(self.step, mean, (logits.argmax(1) == labels).float().mean().item())

    def save(self) -> None:
        """Write all that a later run needs."""
        save_run(self.file, self.front_end, self.optimizer, self.step, self.recipe)

    def go_on(self, until: int, proceed: Callable[[Seen], bool]) -> None:
        """Train until this many steps are taken, or until ``proceed``, called after each step, returns False."""
        while self.step < min(until, self.total) and proceed(self.advance()):
            pass
