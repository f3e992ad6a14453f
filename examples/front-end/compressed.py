"""A defense with a front end: lossy compression before a classifier of handwritten digits.

Compression removes details that the eye does not see, so it should remove adversarial noise, too. `Compressed` is this
idea in its usual published form: rounding has no gradient, and gradient attacks fail. `LowPass` is the same idea
without
masking: it drops fine detail and does not round, so that attacks and adversarial training get a correct gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dct
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


class Compressed(nn.Module):
    """Rounds the coefficients of the 8 x 8 cosine transform to whole steps, as JPEG does in each block of an image."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.from_numpy(dct(np.eye(8), axis=0, norm="ortho")).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.basis.T @ self.lossy(self.basis @ images @ self.basis.T) @ self.basis

    def lossy(self, coefficients: Tensor) -> Tensor:
        """Rounds to multiples of a quarter. The derivative is zero almost everywhere, so that the gradient is lost."""
        return (coefficients * 4).round() / 4


class LowPass(Compressed):
    """Drops the finest frequencies and keeps the others: a linear map with a correct gradient."""

    def lossy(self, coefficients: Tensor) -> Tensor:
        """Zero where the frequencies along both axes sum to more than 8 (of 14)."""
        frequency = torch.arange(8, device=coefficients.device)
        return coefficients * (frequency[:, None] + frequency <= 8)


def classifier() -> nn.Sequential:
    """A small convolutional network for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip


def trained(model: nn.Sequential, *, adversarially: bool = False, epochs: int = 15) -> nn.Sequential:
    """Train a model in place, in seconds, on clean images or after two steps of PGD. Returns it in eval mode."""
    images, labels = digits("train")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            inputs = images[batch]
            if adversarially:
                inputs = _perturbed(model, inputs, labels[batch])
            loss = cross_entropy(model(inputs), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def _perturbed(model: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    inputs = (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(2):
        inputs.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(inputs), labels), inputs)
        inputs = (inputs.detach() + EPS * gradient.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    return inputs
