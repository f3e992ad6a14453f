"""The models about which something was published: tiny ones of timm, trained on handwritten digits in seconds.

Use real weights instead with ``pytest --gradmask --model=NAME --claim=SHARE``: see `published`.
"""

from __future__ import annotations

import functools

import timm
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


@functools.cache
def adversarial() -> nn.Module:
    """A small ResNet, trained on the digits after one gradient step from a random start."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10, channels=(16, 24, 32, 48), stem_width=8)
    images, labels = digits("train")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(12):
        for batch in torch.randperm(len(images)).split(100):
            clean, target = images[batch], labels[batch]
            inputs = (clean + EPS * (2 * torch.rand_like(clean) - 1)).clamp(0, 1).requires_grad_(True)
            (gradient,) = torch.autograd.grad(cross_entropy(model(inputs), target), inputs)
            inputs = (inputs.detach() + EPS * gradient.sign()).clamp(clean - EPS, clean + EPS).clamp(0, 1)
            loss = cross_entropy(model(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()  # type: ignore[no-any-return]


class _Rounded(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images * 8).round() / 8


def rounded() -> nn.Module:
    """The same model behind a front end that rounds. Gradient attacks then report a far higher accuracy."""
    return nn.Sequential(_Rounded(), adversarial()).eval()


class _Normalized(nn.Module):
    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


def published(name: str) -> nn.Module:
    """A model with its real weights, from images in [0, 1] to logits.

    Args:
        name: one that timm knows or ``hf-hub:ORGANISATION/MODEL``, which are downloaded, or ``local-dir:FOLDER``.
            For one of RobustBench, return ``robustbench.utils.load_model(name, threat_model="Linf")`` here instead:
            it normalises by itself.
    """
    model = timm.create_model(name, pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    return _Normalized(model, config["mean"], config["std"]).eval()
