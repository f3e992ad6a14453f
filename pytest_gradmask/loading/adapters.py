"""What models return that are no logits, and how they are asked nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.errors import DefenseError

#: How far below the smallest other logit a class is put that is masked by minus infinity.
_BELOW = 20.0
#: Batch sizes that models are exported with.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 100, 128, 256)


class Adapted(nn.Module):
    """A model whose outputs are changed. Its submodules and parameters are those of the model, under the same names.

    Args:
        model: of the user.
        call: from the model and images to outputs.
    """

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self.adapted: nn.Module
        object.__setattr__(self, "adapted", model)  # as a submodule, it would put its name before every other
        self.call = call
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        """The changed outputs."""
        return self.call(self.adapted, images)


def adapted_alike(model: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of a model, adapted as the model is."""
    return Adapted(adapted_alike(model, like.adapted), like.call) if isinstance(like, Adapted) else model


class Field:
    """Takes one part of the outputs: an attribute or key by its name, or an element by its number."""

    def __init__(self, key: str | int) -> None:
        self.key = key

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """That part."""
        output = model(images)
        if isinstance(self.key, str) and not isinstance(output, Mapping):
            return getattr(output, self.key)
        return output[self.key]


class Masked:
    """Puts classes at minus infinity below all others, at a finite value."""

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Finite logits."""
        logits: Tensor = model(images)
        masked = logits.isneginf()
        least = logits.masked_fill(masked, torch.inf).amin(1, keepdim=True)
        return torch.where(masked, least - _BELOW, logits)


class Labels:
    """Turns the numbers of classes into probabilities of 0 and 1."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """N x K."""
        labels: Tensor = model(images).long().reshape(len(images))
        return nn.functional.one_hot(labels.clamp(0, self.classes - 1), self.classes).float()


class OneScore:
    """Turns one score an image, of class 1 against class 0, into the outputs of two classes."""

    def __init__(self, *, probability: bool) -> None:
        self.probability = probability

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """N x 2: probabilities, or logits of which the first is 0."""
        score: Tensor = model(images).reshape(len(images))
        return torch.stack([1 - score if self.probability else torch.zeros_like(score), score], 1)


class JointLabels:
    """Turns the scores of several labels into the logits of all sets of labels; see `auditing.multilabel`."""

    def __init__(self, labels: int) -> None:
        self.labels = labels

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """N x 2 ** K. In the set of number n are the labels whose bits are set in n."""
        scores = model(images)
        if not isinstance(scores, Tensor) or scores.shape != (len(images), self.labels):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise DefenseError(
                f"it returns {shape} for {len(images)} images with {self.labels} labels each; must be a score for each "
                "image and label"
            )
        sets = torch.arange(2**self.labels, device=scores.device)[:, None]
        bits = (sets >> torch.arange(self.labels, device=scores.device)) & 1
        return scores @ bits.to(scores).T


class FixedBatch:
    """Asks a model for batches of one size alone; the last one is filled up with its last image."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """Outputs for as many images as are given."""
        parts = []
        for start in range(0, len(images), self.size):
            part = images[start : start + self.size]
            missing = self.size - len(part)
            full = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(model(full)[: len(part)])
        return torch.cat(parts)


def adapter(output: object, images: Tensor, labels: Tensor) -> tuple[Callable[[nn.Module, Tensor], Any], str] | None:
    """How to get logits from a model with this output, and what it returns in words; None if nothing is known.

    Args:
        output: of the model, for these images.
        images: N x C x H x W.
        labels: of all images.
    """
    if not isinstance(output, Tensor):
        return _field(output, len(images))
    if output.ndim in (1, 2) and output.numel() == len(images) and not output.is_floating_point():
        classes = int(max(output.max(), labels.max())) + 1
        return Labels(max(classes, 2)), "the numbers of classes (hard labels); the audit makes probabilities of 0 and 1"
    if output.ndim in (1, 2) and output.numel() == len(images) and labels.max() <= 1 and output.isfinite().all():
        probability = bool(((output >= 0) & (output <= 1)).all())
        what = "probability" if probability else "logit"
        return OneScore(probability=probability), f"one score an image; the audit takes it as the {what} of class 1"
    if output.ndim == 2 and output.is_floating_point() and output.isneginf().any():
        masked = output.isneginf()
        if not output.isnan().any() and not output.isposinf().any() and not masked.all(1).any():
            return Masked(), "classes at minus infinity; the audit puts them below all others at a finite value"
    return None


def _field(output: object, count: int) -> tuple[Callable[[nn.Module, Tensor], Any], str] | None:
    kind = type(output).__name__
    has_logits = "logits" in output if isinstance(output, Mapping) else hasattr(output, "logits")
    if has_logits:
        return Field("logits"), f"{kind}; the audit takes its logits"
    elements = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(elements, (tuple, list)):
        fits = [
            number
            for number, part in enumerate(elements)
            if isinstance(part, Tensor) and part.ndim == 2 and len(part) == count and part.is_floating_point()
        ]
        if fits and (fits[0] == 0 or len(fits) == 1):
            key = list(output)[fits[0]] if isinstance(output, Mapping) else fits[0]
            return Field(key), f"{kind}; the audit takes its element {key!r} as logits"
    return None


def fixed_size(model: nn.Module, image: Tensor) -> int | None:
    """The only batch size that a model accepts; None if it accepts none or several.

    Args:
        model: raises for a batch of another size.
        image: 1 x C x H x W.
    """
    accepted = [size for size in _SIZES if _accepts(model, image.expand(size, *image.shape[1:]).clone())]
    return accepted[0] if len(accepted) == 1 else None


def _accepts(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(images)
    except Exception:  # any: the model is the user's
        return False
    return True
