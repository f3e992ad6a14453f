"""One training loop for clean and adversarial training, resumable at any step."""

from __future__ import annotations

import copy
import logging
import math
import pickle  # nosec B403  # for its error only
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

logger = logging.getLogger(__name__)

_SAVE_EVERY_SECONDS = 120.0
_LOG_EVERY_STEPS = 50
_CROP_MARGIN = 4
_FEWEST_STEPS = 5  # the one-cycle schedule divides by zero for 4 and has no rise for fewer
_STATE_KEYS = frozenset({"model", "optimizer", "scheduler", "step", "seconds", "history", "recipe", "images"})
_CALIBRATION_IMAGES = 512


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels (reflected borders) and mirror half of them.

    The standard CIFAR augmentation, drawn image by image but applied to the whole batch at once.
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
    """The inner attack of adversarial training: Linf steps of the sign of the gradient from a random start."""
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
    """The recipe's untrained model, from its seed; the global random state is untouched."""
    with seeded_weights(recipe.seed):
        return build_model(recipe.architecture, recipe.arguments)


def frozen(backbone: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take no gradient: a front end learns before it, it does not."""
    return copy.deepcopy(backbone).eval().requires_grad_(False)


def total_steps(recipe: Recipe, images: int) -> int:
    """How many steps a recipe makes of so many training images.

    Raises:
        InputError: too few for its learning rate to rise and fall.
    """
    total = round(recipe.epochs * math.ceil(images / recipe.batch_size))
    if total < _FEWEST_STEPS:
        raise InputError(
            f"recipe {recipe.name!r}: epochs={recipe.epochs} over {images} images in batches of "
            f"batch_size={recipe.batch_size} are {total} steps; raise epochs or lower batch_size "
            f"for at least {_FEWEST_STEPS}"
        )
    return total


def load_state(file: Path, recipe: Recipe, images: int) -> dict[str, Any] | None:
    """Read the state in which a killed or finished run of a recipe left off.

    Args:
        file: where `train` saved it.
        recipe: what is to be continued.
        images: number of training images.

    Returns:
        The state, on the CPU; its ``seconds`` is the time trained so far and its ``history`` that of `train`. ``None``
        if there is no file.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another recipe or other data.
    """
    if not file.exists():
        return None
    remedy = f"delete it to train {recipe.name!r} anew, or keep states in another directory"
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"state {file}: cannot be read ({reason}); {remedy}") from error
    if not isinstance(state, dict) or not state.keys() >= _STATE_KEYS:
        raise CheckpointError(f"state {file}: is not the state of a training run; {remedy}")
    ours, theirs = {**asdict(recipe), "images": images}, {**state["recipe"], "images": state["images"]}
    different = [key for key in ours if theirs.get(key) != ours[key]]
    if different:
        told = ", ".join(f"{key} is {theirs.get(key)!r} there and {ours[key]!r} here" for key in different)
        raise CheckpointError(f"state {file}: belongs to another run ({told}); {remedy}")
    return state


class Progress(NamedTuple):
    """Where a run is after a step: that step's loss and accuracy, on perturbed images if any are."""

    step: int
    total: int
    loss: float
    accuracy: float


class _Run:
    """A model in training: what a state file holds, and how to go one step on."""

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
        """Write the state in one atomic step: a run killed meanwhile keeps the state before."""
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
        """The images and labels of this step, and a generator for what else it draws.

        Order and noise depend on the seed and the step alone, so a resumed run draws what it would have drawn.
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
        recipe: what to do.
        data: training images, kept in memory.
        initial: whose weights to start from, if the recipe has an ``initial``.
        backbone: the classifier behind the front end that is trained, if the recipe has a ``backbone``; unchanged.
        calibration: images for ``recalibrate`` and ``residual_std``; the training images if ``None``.
        device: torch device.
        state_file: if given, progress is saved there and a killed run continues from it; the result is
            that of an undisturbed run.
        report: called after every step.

    Returns:
        The trained model (of a front end: without its backbone) in eval mode, on the CPU.

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
        # In the memory format the model was trained in, and on its device.
        estimate_batch_norm(run.learner, (calibration or data).images.to(device))
    trained: nn.Module = run.learner.eval().cpu()
    return trained
