"""Batch norm statistics of chosen images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_CHUNK = 512


def estimate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Set every batch norm's running statistics to those of ``images``, in place; weights stay as they are.

    For a model that meets images of another kind than it was trained on (Li et al. 2016, "AdaBN").

    Args:
        model: put into eval mode.
        images: N x C x H x W; passed in equal parts of up to 512.
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
