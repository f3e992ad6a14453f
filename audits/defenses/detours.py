"""Gradients cut or falsified in the code of a defense: no_grad, data, custom backward passes, hooks, votes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot, pad
from torch.utils.checkpoint import checkpoint

from audits.defenses.entry import Entry, Loader, around, story
from audits.defenses.pixels import Inside, plain
from audits.defenses.references import View, attack_views, bypass, instead, multi_targeted, view_of


def smooth(images: Tensor) -> Tensor:
    """Nine tenths of the image plus a tenth of its mean over 3 x 3 pixels."""
    return torch.lerp(images, avg_pool2d(pad(images, [1] * 4, mode="replicate"), 3, 1), 0.1)


class NoGradBranch(nn.Module):
    """A residual block of a ResNet, whose branch runs under ``no_grad``. The gradient follows the shortcuts alone.

    A construction: code that saves memory may look like this. The forward pass is that of the
    adversarially trained network. The gradient is neither zero nor noise, and nothing of the image's size is to be
    bypassed. The reference runs the same block with a graph (BPDA, Athalye, Carlini and Wagner 2018, arXiv:1802.00420).
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            branch = self._branch(hidden)
        return torch.relu(branch + self._shortcut(hidden))

    def with_graph(self, hidden: Tensor) -> Tensor:
        """The block with a graph."""
        return torch.relu(self._branch(hidden) + self._shortcut(hidden))

    def _branch(self, hidden: Tensor) -> Tensor:
        block: Any = self.block
        return block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(hidden)))))  # type: ignore[no-any-return]

    def _shortcut(self, hidden: Tensor) -> Tensor:
        block: Any = self.block
        return hidden if block.downsample is None else block.downsample(hidden)


def cut_branches(model: nn.Module) -> nn.Module:
    """Wrap every residual block of a ResNet in `NoGradBranch`. The model is changed itself.

    Returns:
        The model.
    """
    network = model.get_submodule("1")
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(network, name, nn.Sequential(*map(NoGradBranch, network.get_submodule(name).children())))
    return model.eval()


class _ClampsOld(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0.02, 0.98)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


class _Normalizes(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (images - mean) / std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (std,) = ctx.saved_tensors
        return gradients[0].flip(-1) / std, None, None


class FunctionClamp(Inside):
    """Clamps pixels to [0.02, 0.98] in a custom ``autograd.Function``, whose backward pass returns zeros.

    A backward pass that was forgotten: masking as named by Papernot et al. (2017, arXiv:1602.02697), in code between
    two other lines. The reference differentiates the same line without the function.
    """

    def forward(self, images: Tensor) -> Tensor:
        clamped = _ClampsOld.apply(images.flatten(1)).view_as(images)
        return self.model(clamped)  # type: ignore[no-any-return]


class FunctionNormalize(Inside):
    """A classifier whose normalisation is a custom ``autograd.Function`` with a context, and a wrong backward pass.

    The pass mirrors the gradient, as if the images were mirrored. The function changes scale and offset, so that it is
    not near the identity. A construction, as `FunctionClamp`, in the form that new code has (``setup_context``).
    The reference differentiates the normalisation itself.

    Args:
        model: a normalisation and the network behind it.
    """

    def forward(self, images: Tensor) -> Tensor:
        first: Any = self.model.get_submodule("0")
        return self.model.get_submodule("1")(_Normalizes.apply(images, first.mean, first.std))  # type: ignore[no-any-return]


class DataSmoothing(Inside):
    """A mild smoothing of ``images.data``, the old way to leave the autograd graph.

    Code of the first versions of PyTorch is full of it. See `Detached` for the history of smoothing without a gradient.
    The attack differentiates the same smoothing inside the graph (Carlini et al. 2019, arXiv:1902.06705).
    """

    def forward(self, images: Tensor) -> Tensor:
        return self.model(smooth(images.data))  # type: ignore[no-any-return]

    def differentiable(self, images: Tensor) -> Tensor:
        """The same inside the graph."""
        return self.model(smooth(images))  # type: ignore[no-any-return]


class InferenceSmoothing(DataSmoothing):
    """A mild smoothing under ``torch.inference_mode``, whose result is copied into a normal tensor.

    Serving code runs under inference mode, which is stricter than ``no_grad``: no graph can be recorded later. See
    `Detached` for the history of smoothing without a gradient. The attack differentiates the same smoothing inside the
    graph (Carlini et al. 2019, arXiv:1902.06705).
    """

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            smoothed = smooth(images)
        return self.model(smoothed.clone())  # type: ignore[no-any-return]


class CheckpointedDetail(Inside):
    """Adds the brightness of an image, with a graph, to its details, without one; all under a re-entrant checkpoint.

    A construction: activation checkpointing (Chen et al. 2016, arXiv:1604.06174) runs a function again on the backward
    pass, so that what happens inside does not appear in the graph. The gradient that is left moves all pixels of a
    channel alike. The attack differentiates the classifier inside (Carlini et al. 2019, arXiv:1902.06705).
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            return self.model(checkpoint(self._split, images, use_reentrant=True))  # type: ignore[no-any-return]
        return self.model(self._split(images))  # type: ignore[no-any-return]

    def _split(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            detail = images - images.mean((2, 3), keepdim=True)
        return detail + images.mean((2, 3), keepdim=True)


class HardVote(nn.Module):
    """The share of votes for each class, of three classifiers that each vote for their largest logit.

    Sen, Ravindran and Raghunathan ("EMPIR", ICLR 2020, arXiv:2004.10162) let networks of different precision vote. A
    vote has no gradient. Tramèr et al. (NeurIPS 2020, arXiv:2002.08347) break EMPIR through the mean of its members'
    probabilities instead, as the reference does here.
    """

    def __init__(self, *voters: nn.Module) -> None:
        super().__init__()
        self.voters = nn.ModuleList(voters)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        chosen = torch.stack([one_hot(voter(images).argmax(1), 10) for voter in self.voters])
        return chosen.to(images.dtype).mean(0) * 10

    def differentiable(self, images: Tensor) -> Tensor:
        """Logits of the mean probabilities."""
        return torch.stack([voter(images).softmax(1) for voter in self.voters]).mean(0).log()


def hook_stage(model: nn.Module) -> nn.Module:
    """A ResNet with a full backward hook on its second stage, which shifts each gradient by four pixels.

    Hooks change gradients without a line in any ``forward``. The shift keeps the values of the gradient, but not their
    places. A construction around an adversarially trained network. The reference attacks a copy without hooks (Carlini
    et al. 2019, arXiv:1902.06705).
    """
    model.get_submodule("1.layer2").register_full_backward_hook(_shifted)
    return model.eval()


def _shifted(_: nn.Module, of_inputs: Any, __: Any) -> tuple[Tensor, ...]:
    (gradient,) = of_inputs
    return (gradient.roll((4, 4), dims=(2, 3)),)


def _without_hooks(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        module._backward_hooks.clear()
    return model


def _voters(load: Loader) -> nn.Module:
    return HardVote(load("vgg-standard"), load("resnet-standard"), load("vgg-mildly-adversarial"))


ENTRIES = (
    Entry(
        name="no-grad-branches",
        backbone="resnet-adversarial",
        build=around(cut_branches, "resnet-adversarial"),
        reference=partial(
            attack_views, views=[bypass(NoGradBranch, NoGradBranch.with_graph)], losses=multi_targeted(10), steps=40
        ),
        story=story(NoGradBranch),
        suspicious=True,
        slow=True,
    ),
    *(
        Entry(
            name=name,
            backbone="vgg-standard",
            build=around(kind, "vgg-standard"),
            reference=partial(attack_views, views=[instead(function)], restarts=2),
            story=story(kind),
            suspicious=True,
            slow=name != "function-normalize",
        )
        for name, kind, function in (
            ("function-clamp", FunctionClamp, plain),
            ("function-normalize", FunctionNormalize, plain),
            ("data-smoothing", DataSmoothing, DataSmoothing.differentiable),
            ("inference-smoothing", InferenceSmoothing, DataSmoothing.differentiable),
            ("checkpointed-detail", CheckpointedDetail, plain),
        )
    ),
    Entry(
        name="hard-vote",
        backbone="vgg-standard",
        build=_voters,
        reference=partial(
            attack_views, views=[instead(HardVote.differentiable), view_of(HardVote.differentiable)], restarts=2
        ),
        story=story(HardVote),
        suspicious=True,
        slow=True,
    ),
    Entry(
        name="hooked-stage",
        backbone="resnet-adversarial",
        build=around(hook_stage, "resnet-adversarial"),
        reference=partial(attack_views, views=[View(_without_hooks)], losses=multi_targeted(10), steps=40),
        story=story(hook_stage),
        suspicious=True,
        slow=True,
    ),
)
