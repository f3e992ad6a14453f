"""One training loop for clean and adversarial training, resumable at any step."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from pytest_gradmask.errors import CheckpointError, InputError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.execution.generators import seeded_weights
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.batch_norm import estimate_batch_norm
from pytest_gradmask.loading.models.composites import Composite
from pytest_gradmask.loading.models.front_ends import DnCNN, calibrate
from pytest_gradmask.training.recipes import Recipe
from pytest_gradmask.training.state import load_state

logger = logging.getLogger(__name__)

_SAVE_EVERY_SECONDS = 120.0
_LOG_EVERY_STEPS = 50
_CROP_MARGIN = 4
_FEWEST_STEPS = 5  # the one-cycle schedule divides by zero for 4 and has no rise for fewer
_CALIBRATION_IMAGES = 512


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels (reflected borders), and mirror it with probability 1/2.

    The standard CIFAR augmentation. It is drawn for each image and applied to the whole batch at once.
    """
    count, _, height, width = images.shape
    padded = pad(images, [_CROP_MARGIN] * 4, mode="reflect")
    offsets = torch.randint(2 * _CROP_MARGIN + 1, (2, count), generator=generator)
    rows = offsets[0, :, None] + torch.arange(height)
    columns = offsets[1, :, None] + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns[mirrored] = columns[mirrored].flip(1)
    rows, columns = rows.to(images.device), columns.to(images.device)
    index = torch.arange(count, device=images.device)
    # Advanced indices around a slice put the indexed axes first: N x H x W x C.
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def perturb(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """The inner attack of adversarial training: signed gradient steps in the Linf ball from a random start."""
    noise = torch.empty(images.shape).uniform_(-recipe.eps, recipe.eps, generator=generator).to(images.device)
    adversarial = (images + noise).clamp(0, 1)
    for _ in range(recipe.attack_steps):
        adversarial.requires_grad_(True)
        loss = cross_entropy(model(adversarial).float(), labels)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + recipe.attack_step_size * recipe.eps * gradient.sign()
        adversarial = torch.clamp(adversarial, images - recipe.eps, images + recipe.eps).clamp(0, 1)
    return adversarial


def initialised(recipe: Recipe) -> nn.Module:
    """The untrained model of a recipe, drawn from its seed. The global random state does not change."""
    with seeded_weights(recipe.seed):
        return build_model(recipe.architecture, recipe.arguments)


def frozen(backbone: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters require no gradient, so that only the front end before it is trained."""
    return copy.deepcopy(backbone).eval().requires_grad_(False)


def total_steps(recipe: Recipe, images: int) -> int:
    """Number of training steps of a recipe on this many images.

    Raises:
        InputError: too few steps for the one-cycle learning rate.
    """
    total = round(recipe.epochs * math.ceil(images / recipe.batch_size))
    if total < _FEWEST_STEPS:
        raise InputError(
            f"recipe {recipe.name!r}: epochs={recipe.epochs} over {images} images in batches of "
            f"batch_size={recipe.batch_size} are {total} steps; raise epochs or lower batch_size "
            f"for at least {_FEWEST_STEPS}"
        )
    return total


class Progress(NamedTuple):
    """Progress after a step: its loss and accuracy, on adversarial images if the recipe trains on them."""

    step: int
    total: int
    loss: float
    accuracy: float


class _Run:
    """A model in training: its state, and how to make one step."""

    def __init__(self, recipe: Recipe, data: Dataset, backbone: nn.Module | None, calibration: Dataset, device: str):
        self.recipe, self.images, self.device = recipe, len(data), device
        self.steps_per_epoch = math.ceil(self.images / recipe.batch_size)
        self.total = total_steps(recipe, self.images)
        self.learner = initialised(recipe)
        if isinstance(self.learner, DnCNN) and recipe.residual_std:
            count = min(_CALIBRATION_IMAGES, len(calibration))
            calibrate(self.learner, calibration.subset(count, recipe.seed).images, recipe.residual_std)
        self.backbone = backbone and frozen(backbone)
        model = self.learner if self.backbone is None else Composite(self.learner, self.backbone)
        # Channels-last is what both cuDNN and oneDNN run fastest.
        self.model: nn.Module = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=rate, weight_decay=decay)
        else:
            self.optimizer = torch.optim.SGD(
                self.learner.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay
            )
        self.scheduler: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "constant":
            self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 1.0)
        else:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, rate, total_steps=self.total, pct_start=0.25
            )
        self.step = 0
        self.seconds = 0.0
        self.history: list[tuple[int, float, float]] = []

    def start_from(self, model: nn.Module) -> None:
        try:
            self.learner.load_state_dict(model.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"recipe {self.recipe.name!r}: initial={self.recipe.initial!r} does not fit architecture "
                f"{self.recipe.architecture!r} with arguments {self.recipe.arguments} ({error})"
            ) from error

    def restore(self, state: dict[str, Any], file: Path) -> None:
        try:
            self.learner.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"state {file}: does not fit recipe {self.recipe.name!r} ({error}); delete it to train anew"
            ) from error
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def save(self, file: Path) -> None:
        """Write the state in one atomic step: if the run is killed meanwhile, the previous state stays."""
        state = {
            "model": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "recipe": asdict(self.recipe),
            "images": self.images,
        }
        with replaced(file) as part:
            torch.save(state, part)

    def batch(self, data: Dataset) -> tuple[Tensor, Tensor, torch.Generator]:
        """The images and labels of this step, and a generator for its other random numbers.

        Order and noise depend on the seed and the step alone, so a resumed run draws the same numbers.
        """
        epoch, position = divmod(self.step, self.steps_per_epoch)
        seed, size = self.recipe.seed * 1_000_003, self.recipe.batch_size
        order = torch.randperm(self.images, generator=torch.Generator().manual_seed(seed + epoch))
        generator = torch.Generator().manual_seed(seed + 500_000 + self.step)
        chosen = order[position * size : (position + 1) * size]
        images = augment(data.images[chosen].to(self.device), generator).contiguous(memory_format=torch.channels_last)
        return images, data.labels[chosen].to(self.device), generator

    def advance(self, data: Dataset) -> Progress:
        """Make one step."""
        started = time.monotonic()
        images, labels, generator = self.batch(data)
        self.learner.train()
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda")):
            if self.recipe.eps > 0:
                images = perturb(self.model, images, labels, self.recipe, generator)
            logits = self.model(images)
        loss = cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(
                f"recipe {self.recipe.name!r}: the loss is {value} at step {self.step + 1} of {self.total}; "
                f"lower learning_rate={self.recipe.learning_rate} and train anew"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        self.seconds += time.monotonic() - started
        return Progress(self.step, self.total, value, (logits.argmax(1) == labels).float().mean().item())


def train(
    recipe: Recipe,
    data: Dataset,
    *,
    initial: nn.Module | None = None,
    backbone: nn.Module | None = None,
    calibration: Dataset | None = None,
    device: str = "cpu",
    state_file: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """Train one model.

    Args:
        recipe: how to train.
        data: training images, in memory.
        initial: model with the weights to start from, if the recipe has an ``initial``.
        backbone: classifier behind the front end to train, if the recipe has a ``backbone``. It is not changed.
        calibration: images for ``recalibrate`` and ``residual_std``; the training images if ``None``.
        device: torch device.
        state_file: file for the progress. A killed run continues from it, and ends with the result of an uninterrupted
            run. If ``None``, nothing is saved.
        report: called after every step.

    Returns:
        The trained model in eval mode, on the CPU. A front end is returned without its backbone.

    Raises:
        InputError: the recipe makes too few steps, lacks its backbone, or its loss is no longer finite.
        CheckpointError: the state file cannot be read, or belongs to another recipe or other data.
    """
    if bool(recipe.backbone) != (backbone is not None):
        raise InputError(f"backbone: recipe {recipe.name!r} has backbone={recipe.backbone!r}; pass what it asks for")
    run = _Run(recipe, data, backbone, calibration or data, device)
    if initial is not None:
        run.start_from(initial)
    state = load_state(state_file, recipe, len(data)) if state_file is not None else None
    if state is not None:
        assert state_file is not None
        run.restore(state, state_file)
        logger.info("%s: resumed at step %d of %d", recipe.name, run.step, run.total)
    started, saved, first = time.monotonic(), time.monotonic(), run.step
    while run.step < run.total:
        progress = run.advance(data)
        report(progress)
        done = run.step == run.total
        if done or run.step % _LOG_EVERY_STEPS == 0:
            run.history.append((run.step, progress.loss, progress.accuracy))
            left = (run.total - run.step) * (time.monotonic() - started) / (run.step - first)
            logger.info(
                "%s: step %d/%d, loss %.3f, training accuracy %.3f, %.0f s left",
                recipe.name, run.step, run.total, progress.loss, progress.accuracy, left,
            )  # fmt: skip
        if state_file is not None and (done or time.monotonic() - saved > _SAVE_EVERY_SECONDS):
            run.save(state_file)
            saved = time.monotonic()
    if recipe.recalibrate:
        # In the memory format of the training, and on its device.
        estimate_batch_norm(run.learner, (calibration or data).images.to(device))
    trained: nn.Module = run.learner.eval().cpu()
    return trained
