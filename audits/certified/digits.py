"""The digits of scikit-learn, and small classifiers of them that are trained for their certificates."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audits.certified.bounds import layers_of, worst_logits

EPS = 0.1
#: Names of the classifiers: width of the two hidden layers, and seed.
NETWORKS = {"narrow": (64, 0), "wide": (200, 1)}
CHECKPOINTS = Path(__file__).parent / "checkpoints"
_TRAIN, _EPOCHS, _BATCH, _RATE = 1297, 200, 100, 1e-3
#: Share of the epochs until the radius has grown to `EPS`, and the largest weight of the worst case in the loss.
_GROWING, _WORST = 0.6, 0.7


def digits(*, train: bool) -> tuple[Tensor, Tensor]:
    """Images (float32, N x 1 x 8 x 8, in [0, 1]) and labels (int64, N): 1,297 to train, the other 500 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = order[:_TRAIN] if train else order[_TRAIN:]
    return images[chosen], torch.tensor(data.target)[chosen].long()


def network(width: int) -> nn.Sequential:
    """64 inputs, two hidden layers, 10 logits."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def trained(width: int, seed: int, *, epochs: int = _EPOCHS) -> nn.Sequential:
    """A classifier trained on the worst logits that interval bounds allow (Gowal et al. 2018, arXiv:1810.12715)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(width)
    images, labels = digits(train=True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    for epoch in range(epochs):
        grown = min(1.0, epoch / (_GROWING * epochs))
        for chosen in torch.randperm(len(images), generator=generator).split(_BATCH):
            worst = worst_logits(layers_of(model), images[chosen], labels[chosen], grown * EPS)
            loss = (1 - _WORST * grown) * nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss = loss + _WORST * grown * nn.functional.cross_entropy(worst, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def load(name: str) -> nn.Sequential:
    """A stored classifier, in eval mode."""
    model = network(NETWORKS[name][0])
    model.load_state_dict(load_file(CHECKPOINTS / f"{name}.safetensors"))
    return model.eval()


def store(name: str) -> None:
    """Train a classifier and store it."""
    CHECKPOINTS.mkdir(exist_ok=True)
    save_file(trained(*NETWORKS[name]).state_dict(), CHECKPOINTS / f"{name}.safetensors")
