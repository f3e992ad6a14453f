"""Classifiers without a gradient: a plain function from arrays to arrays, whatever computes behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradmask.checks import check_callable, is_a, shown
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.loading.adapters import Adapted

#: From images (float32, N x C x H x W) to logits or probabilities (N x K), or to the numbers of classes (N).
ArrayFunction = Callable[[Any], Any]


class BlackBox(nn.Module):
    """A function of arrays as a module. It has no gradient: attacks may ask for its outputs alone.

    Attributes:
        function: of the user.
    """

    def __init__(self, function: ArrayFunction) -> None:
        super().__init__()
        self.function = function
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Its outputs as a tensor, on the device of the images."""
        # A copy: the function may write into it.
        outputs = self.function(images.detach().to("cpu", torch.float32, copy=True).contiguous().numpy())
        try:
            array = np.array(outputs)  # a copy: arrays of other libraries may be read-only
        except Exception as error:  # the object is not ours
            raise DefenseError(f"the function returned {shown(outputs)}, which is no array of numbers") from error
        if array.dtype.kind not in "fiub":
            raise DefenseError(f"the function returned {shown(outputs)}, which is no array of numbers")
        return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)).to(images.device)


def black_box(function: ArrayFunction) -> nn.Module:
    """A defense without a gradient, from a plain function: of NumPy, JAX, TensorFlow or ONNX Runtime, or a web service.

    An audit then asks another question. There is no gradient that could be masked, so its verdict is always
    ``INCONCLUSIVE``, with the finding ``no-gradient`` and the robust accuracy that attacks leave which need outputs
    alone: an upper bound of the black-box robustness. Transfer attacks run if ``Defense(sources=[...])`` names models
    to transfer from. The cache is not used: it cannot know whether the answers still are the same.

    Args:
        function: from a NumPy array of images (float32, N x C x H x W, C-contiguous, inside the bounds of the threat
            model) to logits or probabilities (N x K), as anything that ``numpy.array`` converts, or to the numbers of
            classes (whole numbers, N). It is called with batches of any size.

    Returns:
        A module in eval mode, for `Defense` or `audit`.

    Raises:
        InputError: it cannot be called, or is a `torch.nn.Module`, which has a gradient.
    """
    check_callable("function", function, "a function from an array of images to an array of logits")
    if is_a(function, nn.Module):
        raise InputError(
            f"function={type(function).__name__}: is a torch.nn.Module, and has a gradient; audit it as it is"
        )
    return BlackBox(function)


def is_black_box(model: nn.Module) -> bool:
    """Whether a model is a `BlackBox`, also one whose outputs are adapted."""
    while isinstance(model, Adapted):
        model = model.adapted
    return isinstance(model, BlackBox)
