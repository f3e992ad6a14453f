"""Front end before backbone, and the random choice among several of those."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_gradmask.defense import member_weights
from pytest_gradmask.errors import InputError


class Composite(nn.Module):
    """``composite(x) = backbone(front_end(x))``."""

    def __init__(self, front_end: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.front_end(images))  # type: ignore[no-any-return]


class RandomizedEnsemble(nn.Module):
    """One member answers, drawn from the global torch generator: for a whole batch, or for each image its own.

    Args:
        members: each a classifier.
        weights: with what chance each answers; by default all with the same.
        each_image: whether every image of a batch draws its own member.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None, *, each_image: bool = False
    ) -> None:
        super().__init__()
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
        own = [(chosen == number).nonzero()[:, 0] for number in range(len(self.members))]
        parts = [member(images[rows]) for member, rows in zip(self.members, own, strict=True) if len(rows)]
        order = torch.cat(own).argsort()
        return torch.cat(parts)[order]


class Mixture(nn.Module):
    """What a randomized ensemble does on average: the logarithm of its members' mean probabilities.

    Deterministic, so an attack on the ensemble's expected output needs no sampling.

    Args:
        members: each a classifier.
        weights: with what chance each answers; by default all with the same.
        probabilities: whether they return probabilities; the mixture then does so, too.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None, *, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = member_weights(weights, len(members))
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Tensor:
        outputs = torch.stack([member(images).float() for member in self.members])
        weights = outputs.new_tensor(self.weights).view(-1, 1, 1)
        if self.probabilities:
            return (outputs * weights).sum(0)
        return (outputs.log_softmax(2) + weights.log()).logsumexp(0)
