"""Front ends as in arXiv:2402.17018: fully convolutional, differentiable, with a skip connection."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.generators import seeded_weights
from pytest_gradmask.loading.models.batch_norm import estimate_batch_norm, folded


class DnCNN(nn.Module):
    """DnCNN (Zhang et al. 2017, arXiv:1608.03981): ``x + residual(x)``, a residual of convolutions, batch norm, ReLU.

    Args:
        depth: convolutions, at least 3. Zhang et al. use 17.
        width: channels between the convolutions. Zhang et al. use 64.
        channels: channels of the images.
        norm: batch norm after every convolution except the first and the last. If False, these have a bias instead.
        skip: whether to add the input. If False, the output is the residual alone.
        zero_init: start the last convolution at zero. With ``skip``, the front end then starts as the identity.
        bound: if above 0, a hyperbolic tangent limits the residual to (-bound, bound).
    """

    def __init__(
        self,
        depth: int = 17,
        width: int = 64,
        channels: int = 3,
        *,
        norm: bool = True,
        skip: bool = True,
        zero_init: bool = False,
        bound: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 3 or width < 1:
            raise InputError(
                f"depth={depth}, width={width}: a DnCNN needs a depth of at least 3 and a width of at least 1"
            )
        if not (bound >= 0 and bound < float("inf")):
            raise InputError(f"bound={bound}: must be 0 for no bound, or above 0 and finite, such as 8/255")
        self.skip = skip
        self.bound = bound
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
        self.residual = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init:
            nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        residual = self.residual(images) if self.training else folded(self.residual, images)
        if self.bound:
            residual = self.bound * torch.tanh(residual / self.bound)
        return images + residual if self.skip else residual


def calibrate(front_end: DnCNN, images: Tensor, residual_std: float) -> DnCNN:
    """Make an untrained front end nearly the identity, in place.

    Sets the batch norm statistics to those of ``images``, then scales the last convolution so that the residual
    has a standard deviation of ``residual_std`` over ``images``. A ``bound`` then makes the residual smaller.

    Args:
        front_end: put into eval mode.
        images: N x C x H x W, a few hundred from the distribution of its inputs.
        residual_std: in input units, above 0. For images in [0, 1], 0.01 to 0.02 preserves the clean accuracy of a
            classifier.

    Raises:
        InputError: ``residual_std`` is not above 0, or the residual is constant.
    """
    if not (math.isfinite(residual_std) and residual_std > 0):
        raise InputError(f"residual_std={residual_std}: must be above 0 and finite, such as 0.02")
    estimate_batch_norm(front_end, images)
    with torch.no_grad():
        spread = front_end.residual(images).std()
        if not (spread.isfinite() and spread > 0):
            raise InputError(
                f"front_end: its residual has a standard deviation of {spread.item()} over the images, so it cannot be "
                "scaled; take another seed, a larger width or other images"
            )
        last = front_end.residual[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.mul_(residual_std / spread)
    return front_end


def calibrated_front_end(images: Tensor, *, residual_std: float, seed: int, **arguments: Any) -> DnCNN:
    """A `DnCNN` with random weights that is close to the identity on images like these, at any depth.

    Args:
        images: N x C x H x W, a few hundred; see `calibrate`.
        residual_std: standard deviation of its residual on ``images``, in input units, above 0.
        seed: seed of its weights. The global random state does not change.
        arguments: arguments of `DnCNN`.

    Returns:
        The front end in eval mode.

    Raises:
        InputError: see `DnCNN` and `calibrate`.
    """
    with seeded_weights(seed):
        front_end = DnCNN(**{"channels": images.shape[1], **arguments})
    return calibrate(front_end, images, residual_std)
