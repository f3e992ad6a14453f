"""Front end before backbone, and the random choice among several of those."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pytest_gradmask.errors import InputError


class Composite(nn.Module):
    """``composite(x) = backbone(front_end(x))``."""

    def __init__(self, front_end: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(self.front_end(images))  # type: ignore[no-any-return]


class RandomizedEnsemble(nn.Module):
    """Each forward pass of a batch is answered by one member, drawn uniformly from the global torch generator."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError(f"members: a randomized ensemble needs at least 2, got {len(members)}")
        self.members = nn.ModuleList(members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        chosen = int(torch.randint(len(self.members), ()))
        return self.members[chosen](images)  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """What a randomized ensemble does on average: the logarithm of its members' mean probabilities.

    Deterministic, so an attack on the ensemble's expected output needs no sampling.

    Args:
        members: each a classifier.
        probabilities: whether they return probabilities; the mixture then does so, too.
    """

    def __init__(self, members: Sequence[nn.Module], *, probabilities: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.probabilities = probabilities

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([member(images).float() for member in self.members])
        if self.probabilities:
            return outputs.mean(0)
        return outputs.log_softmax(2).logsumexp(0) - torch.tensor(float(len(self.members))).log()
