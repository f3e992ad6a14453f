"""Inner logits: logits that a defense changes before it returns them, by a scale, a softmax, noise or rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.hooks import hooked, hooked_module, plainly
from pytest_gradmask.attacks.oracle import as_logits, parameter_dtype
from pytest_gradmask.defense import Outputs


def find_inner_logits(model: nn.Module, images: Tensor, outputs: Outputs = "logits", *, forwards: int = 1) -> str:
    """Find a submodule that returns the logits from which the model computes its outputs.

    The submodule runs once in each forward pass. Its output has the shape of the model's output and the same largest
    class for every image, but differs from it by more than a constant. If there are several such submodules, the one
    that finishes first is taken.

    Args:
        model: in eval mode.
        images: N x C x H x W; eight are enough.
        outputs: what the model returns.
        forwards: number of forward passes to observe. A randomized ensemble uses another member in each.

    Returns:
        The dotted name of the submodule; empty if there is none.
    """
    images = images.to(parameter_dtype(model))
    candidates = [_candidates_in_one_pass(model, images, outputs) for _ in range(forwards)]
    return next((name for name in candidates[0] if all(name in others for others in candidates)), "")


def _candidates_in_one_pass(model: nn.Module, images: Tensor, outputs: Outputs) -> list[str]:
    found: dict[str, list[Tensor]] = {}

    def leave(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
            found.setdefault(name, []).append(output.detach().float().clone())

    with hooked(model, leave=leave), torch.no_grad():
        final = as_logits(model(images.clone()), outputs)
    return [
        name
        for name, inner in found.items()
        if len(inner) == 1 and inner[0].shape == final.shape and _same_class_but_changed(inner[0], final)
    ]


def _same_class_but_changed(inner: Tensor, final: Tensor) -> bool:
    same_class = bool((inner.argmax(1) == final.argmax(1)).all())
    inner, final = (each - each.mean(1, keepdim=True) for each in (inner, final))
    return same_class and not torch.allclose(inner, final, rtol=1e-3, atol=1e-4)


class InnerLogits(nn.Module):
    """A model that returns the output of one of its submodules.

    Args:
        model: not changed between calls.
        name: dotted name of the submodule, which must run once in each forward pass.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, images: Tensor) -> Tensor:
        logits: list[Tensor] = []
        inner = self.model.get_submodule(self.name)
        with plainly(), hooked_module(self.name, inner, leave=lambda _, output: logits.append(output)):
            self.model(images)
        return logits[0]
