"""Composites of front end and backbone, randomized ensembles, and their mixtures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_gradmask.checks import check_is
from pytest_gradmask.defense import listed_models, member_weights
from pytest_gradmask.errors import InputError


class Composite(nn.Module):
    """``composite(x) = backbone(front_end(x))``."""

    def __init__(self, front_end: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        check_is("front_end", front_end, "a torch.nn.Module", nn.Module)
        check_is("backbone", backbone, "a torch.nn.Module", nn.Module)
        self.front_end = front_end
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.front_end(images))  # type: ignore[no-any-return]


class RandomizedEnsemble(nn.Module):
    """Each forward draws one member from the global torch generator, which classifies the batch.

    Args:
        members: the classifiers.
        weights: probability of each member; equal by default.
        each_image: draw a member for each image instead of one for the whole batch.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None, *, each_image: bool = False
    ) -> None:
        super().__init__()
        check_is("each_image", each_image, "True or False", bool)
        members = listed_models("members", members)
        if len(members) < 2:
            raise InputError(f"members: a randomized ensemble needs at least 2, got {len(members)}")
        self.members = nn.ModuleList(members)
        self.weights = member_weights(weights, len(members))
        self.each_image = each_image

    def forward(self, images: Tensor) -> Tensor:
        count = len(images) if self.each_image else 1
        chosen = torch.multinomial(torch.tensor(self.weights), count, replacement=True)
        if not self.each_image:
            return self.members[int(chosen)](images)  # type: ignore[no-any-return]
        chosen = chosen.to(images.device)
        rows = [(chosen == number).nonzero()[:, 0] for number in range(len(self.members))]
        parts = [member(images[some]) for member, some in zip(self.members, rows, strict=True) if len(some)]
        order = torch.cat(rows).argsort()
        return torch.cat(parts)[order]


class Mixture(nn.Module):
    """The average of a randomized ensemble: the logarithm of the mean probabilities of its members.

    It is deterministic, so an attack on the expected output of the ensemble needs no sampling.

    Args:
        members: the classifiers.
        weights: probability of each member; equal by default.
        probabilities: whether the members return probabilities. The mixture then returns probabilities, too.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None, *, probabilities: bool = False
    ) -> None:
        super().__init__()
        check_is("probabilities", probabilities, "True or False", bool)
        members = listed_models("members", members)
        if not members:
            raise InputError("members: there are none; a mixture needs at least 1")
        self.members = nn.ModuleList(members)
        self.weights = member_weights(weights, len(members))
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Tensor:
        outputs = torch.stack([member(images).float() for member in self.members])
        weights = outputs.new_tensor(self.weights).view(-1, 1, 1)
        if self.probabilities:
            return (outputs * weights).sum(0)
        return (outputs.log_softmax(2) + weights.log()).logsumexp(0)
