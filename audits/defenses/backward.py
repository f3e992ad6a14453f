"""Adversarially trained networks whose backward pass is wrong in the middle. The forward pass is untouched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audits.defenses.entry import Entry, around, story
from audits.defenses.references import attack_views, bypass, multi_targeted


class _AddsVector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vector: Tensor) -> Tensor:
        ctx.save_for_backward(vector)
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (vector,) = gradients, ctx.saved_tensors
        lengths = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return gradient + lengths * vector, None


class AddedVector(nn.Module):
    """A stage of a network, whose backward pass adds a fixed vector to each gradient.

    A construction: a custom backward pass with an error that no test of outputs can show. The vector is ``strength``
    times as long as the gradient. The cosine between the two gradients at the images is about 0.55 then, as the layers
    before the stage filter the vector. Gradient attacks get weaker, but they do not fail: the gradient is neither zero
    nor noise. The reference follows the true gradient, as in BPDA (Athalye, Carlini and Wagner 2018, arXiv:1802.00420).

    Args:
        stage: from hidden activations to hidden activations, N x C x H x W.
        strength: length of the vector, as a multiple of the length of each image's gradient.
    """

    def __init__(self, stage: nn.Module, strength: float = 4.5) -> None:
        super().__init__()
        self.stage, self.strength = stage, strength

    def forward(self, hidden: Tensor) -> Tensor:
        output = self.stage(hidden)
        vector = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(0)).to(output)
        return _AddsVector.apply(output, self.strength * vector / vector.norm())  # type: ignore[no-any-return]

    def true(self, hidden: Tensor) -> Tensor:
        """The stage alone."""
        return self.stage(hidden)  # type: ignore[no-any-return]


class SwappedChannels(nn.Module):
    """A stage of a network, with a hook on its output that gives each channel the gradient of another one.

    A construction, as `AddedVector`: hooks on tensors are used to clip or log gradients, and belong to no module. The
    gradient keeps its length and all of its values. The reference follows the true gradient, as in BPDA (Athalye,
    Carlini and Wagner 2018, arXiv:1802.00420).

    Args:
        stage: from hidden activations to hidden activations, N x C x H x W.
        share: of the channels, which are exchanged in pairs. The others keep their gradient.
    """

    def __init__(self, stage: nn.Module, share: float = 0.75) -> None:
        super().__init__()
        self.stage, self.share = stage, share

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.stage(hidden)
        if output.requires_grad:
            output.register_hook(self._exchanged)
        return output

    def _exchanged(self, gradient: Tensor) -> Tensor:
        count = round(self.share * gradient.shape[1])
        return torch.cat([gradient[:, :count].flip(1), gradient[:, count:]], 1)

    def true(self, hidden: Tensor) -> Tensor:
        """The stage alone."""
        return self.stage(hidden)  # type: ignore[no-any-return]


class FlippedSign(nn.Module):
    """A stage of a network, whose output is multiplied by one in a way that turns the sign of a part of the gradient.

    A construction: ``2 * x.detach() - x`` has the value of ``x`` and the gradient of ``-x``. As a whole, it would turn
    ascent into descent. Here it is applied to every fourth channel. The reference follows the true gradient.

    Args:
        stage: from hidden activations to hidden activations, N x C x H x W.
        every: one channel of so many has the wrong sign.
    """

    def __init__(self, stage: nn.Module, every: int = 4) -> None:
        super().__init__()
        self.stage, self.every = stage, every

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.stage(hidden)
        flipped = torch.arange(output.shape[1], device=output.device) % self.every == 0
        return torch.where(flipped.view(-1, 1, 1), 2 * output.detach() - output, output)

    def true(self, hidden: Tensor) -> Tensor:
        """The stage alone."""
        return self.stage(hidden)  # type: ignore[no-any-return]


def replace_first_stage(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace the first of the four stages of a ResNet. The model is changed itself.

    Returns:
        The model.
    """
    network = model.get_submodule("1")
    network.layer1 = make(network.get_submodule("layer1"))
    return model.eval()


ENTRIES = tuple(
    Entry(
        name=name,
        backbone="resnet-adversarial",
        build=around(partial(replace_first_stage, make=kind), "resnet-adversarial"),
        reference=partial(attack_views, views=[bypass(kind, kind.true)], losses=multi_targeted(10), steps=40),
        story=story(kind),
        suspicious=True,
        slow=name != "added-vector",
    )
    for name, kind in (
        ("added-vector", AddedVector),
        ("swapped-channels", SwappedChannels),
        ("flipped-sign", FlippedSign),
    )
)
