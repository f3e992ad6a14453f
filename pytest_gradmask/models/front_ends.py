"""Front ends of the paper's kind: fully convolutional, differentiable, with a skip connection."""

from __future__ import annotations

import torch
from torch import nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.models.batch_norm import estimate_batch_norm


class DnCNN(nn.Module):
    """DnCNN (Zhang et al. 2017): ``x + residual(x)`` with a residual of convolutions, batch norm and ReLU.

    Args:
        depth: convolutions, at least 3. Zhang et al. use 17.
        width: channels between them. Zhang et al. use 64.
        channels: of the images.
    """

    def __init__(self, depth: int = 17, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        if depth < 3 or width < 1:
            raise InputError(
                f"depth={depth}, width={width}: a DnCNN needs a depth of at least 3 and a width of at least 1"
            )
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
        self.residual = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.residual(images)  # type: ignore[no-any-return]


def calibrate(front_end: DnCNN, images: torch.Tensor, residual_std: float) -> DnCNN:
    """Make an untrained front end nearly the identity, in place.

    Sets the batch norm statistics to those of ``images``, then scales the last convolution so that the residual
    has a standard deviation of ``residual_std`` over ``images``.

    Args:
        front_end: put into eval mode.
        images: N x C x H x W, a few hundred of the kind it will see.
        residual_std: in input units; 0.01 to 0.02 of [0, 1] keeps a classifier's clean accuracy.
    """
    estimate_batch_norm(front_end, images)
    with torch.no_grad():
        residual = front_end.residual(images)
        last = front_end.residual[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.mul_(residual_std / residual.std())
    return front_end
