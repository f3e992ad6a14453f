"""Masks that cut the graph, tamper with gradients, or optimise inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.attacks.bypass.operations.masked import mask

# Tampering


@mask
def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():  # hides: torch.no_grad
        return x * 1.0


@mask
def no_grad_with_writes(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    with torch.no_grad():  # hides: torch.no_grad
        view = out[:, :1]
        view.copy_(x[:, :1])
        out[:, 1:] = x[:, 1:]
    return out


@mask
def switched_off(x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)  # hides: torch.no_grad
    result = x * 1.0
    torch.set_grad_enabled(True)
    return result


@torch.no_grad()  # hides: torch.no_grad
def _decorated(x: Tensor) -> Tensor:
    return x * 1.0


@mask
def decorated(x: Tensor) -> Tensor:
    return _decorated(x)


@mask
def inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        result = x * 1.0  # hides: torch.inference_mode
    return result.clone()


@mask
def detached(x: Tensor) -> Tensor:
    return x.detach() * 1.0  # hides: Tensor.detach


@mask
def detached_by_overload(x: Tensor) -> Any:
    return torch.ops.aten.detach.default(x)  # hides: Tensor.detach


@mask
def data(x: Tensor) -> Tensor:
    result = x.data.clone()  # hides: Tensor.data
    return result.mul_(15).round_().div_(15)  # hides: torch.round


@mask
def copied(x: Tensor) -> Tensor:
    return torch.tensor(x)  # hides: torch.tensor


@mask
def rounded_image_by_image(x: Tensor) -> Any:
    return torch.vmap(lambda image: torch.round(image * 15) / 15)(x)  # hides: torch.round


@mask
def detached_image_by_image(x: Tensor) -> Any:
    return torch.vmap(lambda image: image.detach() * 1.0)(x)  # hides: Tensor.detach


@mask
def hooked(x: Tensor) -> Tensor:
    result = x * 1.0
    if result.requires_grad:
        result.register_hook(lambda gradient: 0 * gradient)  # hides: Tensor.register_hook
    return result


@mask
def hooked_node(x: Tensor) -> Tensor:
    result = x * 1.0
    node = result.grad_fn  # hides: Tensor.grad_fn
    if node is not None:
        node.register_prehook(lambda gradients: tuple(0 * each for each in gradients))
    return result


@mask
def forgotten_activations(x: Tensor) -> Tensor:
    with saved_tensors_hooks(lambda saved: saved.shape, torch.zeros):  # hides: torch.saved_tensors_hooks
        return x * torch.ones_like(x)


@mask
def no_grad_in_checkpoint(x: Tensor) -> Any:
    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():  # hides: torch.no_grad
            return inputs * 1.0

    return checkpoint(run, x, use_reentrant=False)


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0 * gradient


@mask
def backward_of_zeros(x: Tensor) -> Any:
    return _Zero.apply(x)  # hides: Function _Zero


class _ZeroWithSetup(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return 0 * gradient, None


@mask
def backward_of_zeros_with_setup(x: Tensor) -> Any:
    return _ZeroWithSetup.apply(x, 1.0)  # hides: Function _ZeroWithSetup


@torch.library.custom_op("masks::same", mutates_args=())
def same(x: Tensor) -> Tensor:
    return x * 1.0


same.register_autograd(lambda ctx, gradient: 0 * gradient)


@mask
def operator_with_backward_of_zeros(x: Tensor) -> Any:
    return same(x)  # hides: operator masks::same


@torch.library.custom_op("masks::rounded", mutates_args=())
def rounded_by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.round(x.numpy() * 15) / 15)  # hides: Tensor.numpy


@mask
def operator_without_backward(x: Tensor) -> Any:
    return torch.ops.masks.rounded(x)  # hides: operator masks::rounded


# Optimisation inside


@mask
def optimised_by_grad(x: Tensor) -> Tensor:
    result = x.detach().clone().requires_grad_(True)  # hides: Tensor.detach
    for _ in range(3):
        with torch.enable_grad():
            loss = ((result - x.detach()) ** 2).sum() + 0.1 * result.diff(dim=3).abs().sum()
            (gradient,) = torch.autograd.grad(loss, result)
        result = (result - 0.01 * gradient).detach().requires_grad_(True)  # hides: Tensor.detach
    return result.detach()  # hides: Tensor.detach


@mask
def optimised_by_adam(x: Tensor) -> Tensor:
    with torch.enable_grad():
        result = x.detach().clone().requires_grad_(True)  # hides: Tensor.detach
        optimizer = torch.optim.Adam([result], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss = ((result - x.detach()) ** 2).sum() + 0.01 * result.diff(dim=3).abs().sum()
            loss.backward()
            optimizer.step()
    return result.detach()  # hides: Tensor.detach


@mask
def optimised_difference(x: Tensor) -> Tensor:
    with torch.enable_grad():
        delta = torch.zeros_like(x, requires_grad=True)
        for _ in range(3):
            (x.detach() + delta).square().sum().backward()
            assert delta.grad is not None
            delta.data -= 0.001 * delta.grad.sign()
            delta.grad.zero_()
    return (x + delta).detach()  # hides: Tensor.detach
