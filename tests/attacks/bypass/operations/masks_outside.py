"""Masks whose numbers leave PyTorch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from torchvision.transforms.functional import to_pil_image, to_tensor

from tests.attacks.bypass.operations.masked import mask

# Outside of PyTorch


@mask
def numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.round(x.detach().numpy() * 15) / 15).float()  # hides: Tensor.detach, Tensor.numpy


@mask
def numpy_bytes(x: Tensor) -> Tensor:
    pixels = x.detach().permute(0, 2, 3, 1).numpy() * 255  # hides: Tensor.detach, Tensor.numpy
    return torch.from_numpy(pixels.astype(np.uint8)).permute(0, 3, 1, 2).float() / 255


@mask
def numpy_one_by_one(x: Tensor) -> Tensor:
    found = []
    for image in x:
        pixels = image.detach().numpy().transpose(1, 2, 0)  # hides: Tensor.detach, Tensor.numpy
        found.append(torch.tensor(np.round(pixels * 15).transpose(2, 0, 1) / 15))
    return torch.stack(found).float()


@mask
def numpy_stacked(x: Tensor) -> Tensor:
    rounded = [np.round(each.detach().numpy() * 15) / 15 for each in x]  # hides: Tensor.detach, Tensor.numpy
    return torch.as_tensor(np.stack(rounded)).float()


@mask
def numpy_negative(x: Tensor) -> Tensor:
    return 1 - torch.from_numpy((31 * (1 - x.detach().numpy())).round() / 31)  # hides: Tensor.detach, Tensor.numpy


@mask
def handed_over(x: Tensor) -> Any:
    return from_dlpack(x.detach())  # hides: Tensor.detach, Tensor.dlpack


@mask
def lists(x: Tensor) -> Tensor:
    return torch.tensor(x.detach().tolist())  # hides: Tensor.detach, Tensor.tolist


@mask
def applied(x: Tensor) -> Tensor:
    copy = x.detach().clone()  # hides: Tensor.detach
    return copy.apply_(lambda value: round(15 * value) / 15)  # hides: Tensor.apply_


@mask
def mapped(x: Tensor) -> Tensor:
    copy = x.detach().clone()  # hides: Tensor.detach
    return copy.map_(x.detach(), lambda value, _: round(15 * value) / 15)  # hides: Tensor.map_, Tensor.detach


@mask
def pillow(x: Tensor) -> Tensor:
    found = []
    for image in x:
        file = io.BytesIO()
        to_pil_image(image).save(file, format="PNG")  # hides: Tensor.numpy
        found.append(to_tensor(Image.open(file)))
    return torch.stack(found)


class _InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.round(x.detach().numpy() * 15) / 15)  # hides: Tensor.detach, Tensor.numpy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0 * gradient


@mask
def function_in_numpy(x: Tensor) -> Any:
    return _InNumpy.apply(x)  # hides: Function _InNumpy
