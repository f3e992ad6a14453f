"""Set batch norm statistics to those of some images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_CHUNK = 512


def estimate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every batch norm layer to those of ``images``, in place. Weights do not change.

    For a model that is applied to images from another distribution than its training data (AdaBN, Li et al. 2016,
    arXiv:1603.04779).

    Args:
        model: put into eval mode.
        images: N x C x H x W; the model processes them in equal parts of up to 512.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the parts
    model.train()
    with torch.no_grad():
        for part in images.chunk(math.ceil(len(images) / _CHUNK)):
            model(part)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
