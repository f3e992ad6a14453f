"""Logits inside a defense that it disguises before it returns them: by a scale, a softmax, a disturbance, rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.bypass.hooks import hooked
from pytest_gradmask.attacks.oracle import as_logits, parameter_dtype
from pytest_gradmask.defense import Outputs


def find_inner_logits(model: nn.Module, images: torch.Tensor, outputs: Outputs = "logits", *, forwards: int = 1) -> str:
    """Find a submodule that returns the logits from which the model makes its outputs.

    In each pass it runs once, its output has the shape of the model's and the same largest class on every image, and
    is not the same but for a constant. Of several the one that finishes first is taken.

    Args:
        model: in eval mode.
        images: N x C x H x W; eight are enough.
        outputs: what the model returns.
        forwards: passes to watch; a randomized ensemble asks another member each time.

    Returns:
        Its dotted name; empty if there is none.
    """
    images = images.to(parameter_dtype(model))
    passes = [_inside_one_pass(model, images, outputs) for _ in range(forwards)]
    return next((name for name in passes[0] if all(name in others for others in passes)), "")


def _inside_one_pass(model: nn.Module, images: torch.Tensor, outputs: Outputs) -> list[str]:
    seen: dict[str, list[torch.Tensor]] = {}

    def leave(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 2 and output.is_floating_point():
            seen.setdefault(name, []).append(output.detach().float().clone())

    with hooked(model, leave=leave), torch.no_grad():
        final = as_logits(model(images.clone()), outputs)
    return [
        name
        for name, found in seen.items()
        if len(found) == 1 and found[0].shape == final.shape and _disguised(found[0], final)
    ]


def _disguised(inner: torch.Tensor, final: torch.Tensor) -> bool:
    same_class = bool((inner.argmax(1) == final.argmax(1)).all())
    inner, final = (each - each.mean(1, keepdim=True) for each in (inner, final))
    return same_class and not torch.allclose(inner, final, rtol=1e-3, atol=1e-4)


class InnerLogits(nn.Module):
    """A model that returns what one of its submodules does.

    Args:
        model: left as it is between calls.
        name: of the submodule, which runs once in each forward pass.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        inner = self.model.get_submodule(self.name)
        handle = inner.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self.model(images)
        finally:
            handle.remove()
        return found[0]
