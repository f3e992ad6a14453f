"""Front ends whose code hides the gradient, one way each, in the middle of a function.

A comment ``# hides: NAME, ...`` names what is found on its line. Images are in [0, 1], and so is what a mask returns.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.dlpack import from_dlpack
from torchvision.transforms.functional import to_pil_image, to_tensor

MASKS: dict[str, Callable[[Tensor], Any]] = {}
LEVELS = torch.linspace(0.05, 0.95, 10)


def mask(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    MASKS[function.__name__] = function
    return function


class Masked(nn.Module):
    """A mask before a small network."""

    def __init__(self, front_end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.front_end = front_end
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convolution, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 10)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(functional.relu(self.convolution(self.front_end(images))).flatten(1))  # type: ignore[no-any-return]


# Rounding


@mask
def rounded(x: Tensor) -> Tensor:
    return torch.round(x * 15) / 15  # hides: torch.round


@mask
def rounded_in_place(x: Tensor) -> Tensor:
    return (x * 15).round_() / 15  # hides: torch.round


@mask
def rounded_by_overload(x: Tensor) -> Any:
    return torch.ops.aten.round.default(x * 15) / 15  # hides: torch.round


@mask
def floored(x: Tensor) -> Tensor:
    return torch.floor(x * 15) / 15  # hides: torch.floor


@mask
def floor_division(x: Tensor) -> Tensor:
    return (x // 0.1) * 0.1  # hides: torch.floordiv


@mask
def rounded_division(x: Tensor) -> Tensor:
    return torch.div(x, 0.1, rounding_mode="floor") * 0.1  # hides: torch.div


@mask
def without_remainder(x: Tensor) -> Tensor:
    return x - x % 0.1  # hides: torch.remainder


@mask
def signs(x: Tensor) -> Tensor:
    return torch.stack([(torch.sign(x - level) + 1) / 2 for level in LEVELS]).mean(0)  # hides: torch.sign


@mask
def steps(x: Tensor) -> Tensor:
    half = torch.full((1,), 0.5)
    return torch.stack([torch.heaviside(x - level, half) for level in LEVELS]).mean(0)  # hides: torch.heaviside


@mask
def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 1 / 15, 0, torch.quint8).dequantize()  # hides: torch.quantize_per_tensor


@mask
def rounded_into_buffer(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    with torch.no_grad():  # hides: torch.no_grad
        torch.round(x * 15, out=out)  # hides: torch.round
    return out / 15


# Integers


@mask
def as_integer(x: Tensor) -> Tensor:
    return (x * 16).int() / 16  # hides: cast to int32


@mask
def as_byte(x: Tensor) -> Tensor:
    return (x * 255).to(torch.uint8).float() / 255  # hides: cast to uint8


@mask
def fewer_levels(x: Tensor) -> Tensor:
    levels = (x * 255).byte()  # hides: cast to uint8
    levels = levels // 16 * 16
    return levels.float() / 255


@mask
def shifted_bits(x: Tensor) -> Tensor:
    levels = (x * 255).long()  # hides: cast to int64
    return ((levels >> 4) << 4) / 255


@mask
def masked_bits(x: Tensor) -> Tensor:
    levels = (x * 255).to(torch.int32)  # hides: cast to int32
    return (levels & 0xF0).float() / 255


@mask
def bits_of_floats(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)  # hides: cast to int32
    return (bits & ~0xFFFFF).view(torch.float32)


@mask
def bit_planes(x: Tensor) -> Tensor:
    levels = (x * 255).int()  # hides: cast to int32
    return torch.stack([((levels >> plane) & 1) * 2**plane for plane in range(8)]).sum(0).float() / 255


@mask
def equalised(x: Tensor) -> Tensor:
    levels = (x * 255).long().clamp(0, 255)  # hides: cast to int64
    shares = torch.bincount(levels.flatten(), minlength=256).float().cumsum(0) / levels.numel()
    return shares[levels]


# Decisions


@mask
def thermometer(x: Tensor) -> Tensor:
    return (x[..., None] > LEVELS).float().mean(-1)  # hides: torch.gt


@mask
def chosen_by_level(x: Tensor) -> Tensor:
    return torch.stack([torch.where(x > level, 1.0, 0.0) for level in LEVELS]).mean(0)  # hides: torch.gt


@mask
def filled_by_level(x: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(x).masked_fill(x > level, 1.0) for level in LEVELS]).mean(0)  # hides: torch.gt


@mask
def buckets(x: Tensor) -> Tensor:
    return torch.bucketize(x, torch.linspace(0, 1, 16)) / 16  # hides: torch.bucketize


@mask
def sorted_position(x: Tensor) -> Tensor:
    return torch.searchsorted(torch.linspace(0, 1, 16), x.contiguous()) / 16  # hides: torch.searchsorted


@mask
def centres_of_buckets(x: Tensor) -> Tensor:
    ends = torch.linspace(0, 1, 17)
    return ((ends[1:] + ends[:-1]) / 2)[torch.bucketize(x, ends[1:-1])]  # hides: torch.bucketize


@mask
def nearest_colour(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    return colours[(x[..., None] - colours).abs().argmin(-1)]  # hides: torch.argmin


@mask
def embedded_colour(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)[:, None]
    nearest = (x[..., None] - colours[:, 0]).abs().argmin(-1)  # hides: torch.argmin
    return functional.embedding(nearest, colours)[..., 0]


@mask
def one_hot_colour(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    nearest = (-((x[..., None] - colours) ** 2)).argmax(-1)  # hides: torch.argmax
    return functional.one_hot(nearest, 8).float() @ colours


@mask
def table_of_levels(x: Tensor) -> Tensor:
    return torch.take(torch.linspace(0, 1, 256), (x * 255).long())  # hides: cast to int64


@mask
def one_hot_level(x: Tensor) -> Tensor:
    level = (x * 7).round().long()  # hides: torch.round, cast to int64
    return functional.one_hot(level, 8).float() @ torch.linspace(0, 1, 8)


# What comes first


@mask
def nearest_colour_by_min(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    return colours[(x[..., None] - colours).abs().min(-1)[1]]  # hides: torch.min


@mask
def nearest_colour_by_topk(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    nearest = (x[..., None] - colours).abs().topk(1, largest=False).indices  # hides: torch.topk
    return torch.zeros(*x.shape, 8).scatter_(-1, nearest, 1.0) @ colours


@mask
def nearest_colours_by_sort(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    return colours[(x[..., None] - colours).abs().sort(-1).indices[..., :2]].mean(-1)  # hides: torch.sort


@mask
def label_of_neighbours(x: Tensor) -> Tensor:
    colours, labels = torch.linspace(0, 1, 32), torch.arange(32) // 4
    nearest = (x[..., None] - colours).abs().topk(3, largest=False).indices  # hides: torch.topk
    return functional.one_hot(labels[nearest], 8).float().mean(-2) @ torch.linspace(0, 1, 8)


@mask
def ranked(x: Tensor) -> Tensor:
    return x.flatten(1).argsort(1).argsort(1).view_as(x) / x[0].numel()  # hides: torch.argsort


@mask
def ranks_put_in_order(x: Tensor) -> Tensor:
    order = x.flatten(1).argsort(1)  # hides: torch.argsort
    places = torch.linspace(0, 1, order.shape[1]).expand(len(x), -1)
    return torch.zeros(order.shape).scatter(1, order, places).view_as(x)


# Writing where an index or a mask says


@mask
def written_by_level(x: Tensor) -> Tensor:
    levels = torch.zeros(len(LEVELS), *x.shape)
    for number, level in enumerate(LEVELS):
        levels[number][x > level] = 1.0  # hides: torch.gt
    return levels.mean(0)


@mask
def written_in_other_view(x: Tensor) -> Tensor:
    levels = torch.zeros(len(LEVELS), *x.shape)
    for level, written in zip(LEVELS, levels, strict=True):  # autograd does not let write into such views
        written[x > level] = 1.0
    return levels.mean(0) / 2 + torch.round(x * 15) / 15  # hides: torch.round


@mask
def counted_by_level(x: Tensor) -> Tensor:
    count = torch.zeros(x.shape)
    for level in LEVELS:
        count[x > level] += 0.1  # hides: torch.gt
    return count


@mask
def written_at_index(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    nearest = (x[..., None] - colours).abs().flatten(0, -2).argmin(-1)  # hides: torch.argmin
    chosen = torch.zeros(len(nearest), 8)
    chosen[torch.arange(len(nearest)), nearest] = 1.0
    return (chosen @ colours).view_as(x)


@mask
def read_at_index(x: Tensor) -> Tensor:
    colours = torch.linspace(0, 1, 8)
    nearest = (x[..., None] - colours).abs().flatten(0, -2).argmin(-1)  # hides: torch.argmin
    return colours.expand(len(nearest), -1)[torch.arange(len(nearest)), nearest].view_as(x)


@mask
def filled_twice(x: Tensor) -> Tensor:
    filled = []
    for level in LEVELS:
        copy, bright = x * 1.0, x > level  # hides: torch.gt
        copy[bright] = 1.0
        copy[~bright] = 0.0
        filled.append(copy)
    return torch.stack(filled).mean(0)


@mask
def filled_twice_elsewhere(x: Tensor) -> Tensor:
    filled = [x.masked_fill(x > each, 1.0).masked_fill(x <= each, 0.0) for each in LEVELS]  # hides: torch.gt, torch.le
    return torch.stack(filled).mean(0)


@mask
def chosen_twice(x: Tensor) -> Tensor:
    above = [torch.where(x > each, 1.0, x).where(x > each, 0.0) for each in LEVELS]  # hides: torch.gt
    return torch.stack(above).mean(0)


@mask
def above_levels(x: Tensor) -> Tensor:
    return torch.stack([(x > level).to(x) + (x > level).type_as(x) for level in LEVELS]).mean(0) / 2  # hides: torch.gt


# Signs by other names


@mask
def copied_signs(x: Tensor) -> Tensor:
    halves = torch.full(x.shape, 0.5)
    return torch.stack([torch.copysign(halves, x - level) + 0.5 for level in LEVELS]).mean(0)  # hides: torch.copysign


@mask
def sign_bits(x: Tensor) -> Tensor:
    return torch.stack([1.0 - torch.signbit(x - level).float() for level in LEVELS]).mean(0)  # hides: torch.signbit


@mask
def by_its_size(x: Tensor) -> Tensor:
    sides = [x - level for level in LEVELS]
    return torch.stack([(side / side.abs() + 1) / 2 for side in sides]).mean(0)  # hides: torch.div


@mask
def without_fraction(x: Tensor) -> Tensor:
    return x - torch.frac(x * 15) / 15  # hides: torch.frac


@mask
def same_bits(x: Tensor) -> Tensor:
    bits, code = x[..., None] > LEVELS, torch.tensor([True, False] * 5)  # hides: torch.gt
    return ((bits == code) == code).float().mean(-1)


@mask
def distance_of_bits(x: Tensor) -> Tensor:
    bits = (x[..., None] > LEVELS).float().flatten(0, -2)  # hides: torch.gt
    return (torch.cdist(bits, torch.zeros(1, 10), p=0) / 10).view_as(x)  # hides: torch.cdist


@mask
def drawn(x: Tensor) -> Tensor:
    return torch.stack([torch.bernoulli(x) for _ in range(8)]).mean(0)  # hides: torch.bernoulli


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
