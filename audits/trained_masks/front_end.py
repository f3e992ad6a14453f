"""The front end of the paper's authors: a DnCNN that starts as the identity. Others can take its place.

Architecture and start are those of the toolkit that the paper's authors publish (``bcai_art`` of Bosch Research, its
``models/dncnn.py``, after Salman et al. 2020, "Denoised smoothing", arXiv:2003.01908): Zhang et al.'s DnCNN (2017)
whose convolutions start orthogonal and whose last one starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from audits.trained_masks.package import CIFAR10_MEAN, CIFAR10_STD, folded
from audits.trained_masks.residuals import ARCHITECTURES


class IdentityStart(nn.Module):
    """``x - residual(x)``, with a residual of convolutions, batch norm and ReLU that starts at zero.

    Args:
        depth: convolutions along the longest path, at least 3.
        width: channels between them.
        architecture: of the residual, a key of `ARCHITECTURES`.
        normalized: whether the front end works on normalised images, as in the authors' toolkit, which normalises
            before the front end and not behind it. The residual is then in units of each channel's deviation.
        momentum: share of the newest batch in the running statistics.
        eps: of batch norm.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        depth: int = 17,
        width: int = 64,
        *,
        architecture: str = "dncnn",
        normalized: bool = False,
        momentum: float = 0.95,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        build = ARCHITECTURES[architecture]
        self.residual, self.readouts = build(depth, width, partial(nn.BatchNorm2d, eps=eps, momentum=momentum))
        for module in self.residual.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for readout in self.readouts:
            nn.init.zeros_(readout.weight)
        mean, std = (CIFAR10_MEAN, CIFAR10_STD) if normalized else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if isinstance(self.residual, nn.Sequential) and not self.training:
            residual = folded(self.residual, hidden)
        else:
            residual = self.residual(hidden)
        return images - self.std * residual

    def norms(self) -> list[nn.BatchNorm2d]:
        """Its batch norms, first layer first."""
        return [module for module in self.residual.modules() if isinstance(module, nn.BatchNorm2d)]


@contextmanager
def batch_statistics(front_end: IdentityStart, *, used: bool = True) -> Iterator[None]:
    """Within, batch norm takes the statistics of each batch (or, unless ``used``, the running ones), and keeps none.

    The mode of before comes back afterwards.
    """
    training, counts = front_end.training, [int(norm.num_batches_tracked or 0) for norm in front_end.norms()]
    front_end.train(used)
    for norm in front_end.norms():
        norm.momentum = 0.0
    try:
        yield
    finally:
        front_end.train(training)
        for norm, count in zip(front_end.norms(), counts, strict=True):
            norm.momentum = front_end.momentum
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(count)
