"""Randomized defenses of a classifier of handwritten digits: noise on the image, and a randomized ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

EPS = 0.1


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Handwritten digits of scikit-learn: float32 in [0, 1], N x 1 x 8 x 8, and int64 labels; ``train`` or ``test``."""
    data = load_digits()
    images = torch.from_numpy(data.images / 16).float()[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = order[:1400] if split == "train" else order[1400:]
    return images[chosen], torch.from_numpy(data.target).long()[chosen]


class Noise(nn.Module):
    """Adds new normal noise to every pixel at each forward pass."""

    def __init__(self, deviation: float = 0.05) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, images: Tensor) -> Tensor:
        return images + self.deviation * torch.randn_like(images)


class Rounded(nn.Module):
    """Rounds pixels to a few levels, so that the gradient is lost."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels


class RandomizedEnsemble(nn.Module):
    """Uses one of its members, chosen at random for each batch."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        chosen = int(torch.randint(len(self.members), ()))
        logits: Tensor = self.members[chosen](images)
        return logits


def classifier(width: int = 16) -> nn.Sequential:
    """A small convolutional network for digits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * 4 * 4, 10),
    )  # fmt: skip


def trained(model: nn.Sequential, epochs: int = 10) -> nn.Sequential:
    """Train a model in place, in seconds; in eval mode."""
    images, labels = digits("train")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            loss = cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()
