"""One training loop for clean and adversarial training, resumable at any step."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from pytest_gradmask.datasets import Dataset
from pytest_gradmask.models import build_model
from pytest_gradmask.training.recipes import Recipe

logger = logging.getLogger(__name__)

_SAVE_EVERY_SECONDS = 120.0
_LOG_EVERY_STEPS = 50
_CROP_MARGIN = 4


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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


def perturb(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> torch.Tensor:
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


def train(recipe: Recipe, data: Dataset, *, device: str = "cpu", state_file: Path | None = None) -> nn.Module:
    """Train one model from scratch.

    Args:
        recipe: what to do.
        data: training images, kept in memory.
        device: torch device.
        state_file: if given, progress is saved there and a killed run continues from it; the result is
            that of an undisturbed run.

    Returns:
        The trained model in eval mode, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.architecture, recipe.arguments)
    # Channels-last is what both cuDNN and oneDNN run fastest.
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps_per_epoch = math.ceil(len(data) / recipe.batch_size)
    total = round(recipe.epochs * steps_per_epoch)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=total, pct_start=0.25)
    step = 0
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        step = state["step"]
        logger.info("%s: resumed at step %d of %d", recipe.name, step, total)

    started, saved, first = time.monotonic(), time.monotonic(), step
    use_amp = device.startswith("cuda")
    while step < total:
        epoch, position = divmod(step, steps_per_epoch)
        # Order and noise depend on the seed and the step alone, so a resumed run draws what it would have drawn.
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch))
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + 500_000 + step)
        chosen = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        images = augment(data.images[chosen].to(device), generator).contiguous(memory_format=torch.channels_last)
        labels = data.labels[chosen].to(device)
        model.train()
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=use_amp):
            if recipe.eps > 0:
                images = perturb(model, images, labels, recipe, generator)
            logits = model(images)
        loss = cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        step += 1
        if step % _LOG_EVERY_STEPS == 0 or step == total:
            accuracy = (logits.argmax(1) == labels).float().mean().item()
            left = (total - step) * (time.monotonic() - started) / (step - first)
            logger.info(
                "%s: step %d/%d, loss %.3f, training accuracy %.3f, %.0f s left",
                recipe.name, step, total, loss.item(), accuracy, left,
            )  # fmt: skip
        if state_file is not None and (time.monotonic() - saved > _SAVE_EVERY_SECONDS or step == total):
            temporary = state_file.with_suffix(".part")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "step": step,
                },
                temporary,
            )
            os.replace(temporary, state_file)
            saved = time.monotonic()
    trained: nn.Module = model.eval().cpu()
    return trained
