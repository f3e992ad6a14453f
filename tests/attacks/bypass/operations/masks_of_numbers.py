"""Masks that round, cast to integers, or keep signs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.attacks.bypass.operations.masked import LEVELS, mask

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


# Functions that saturate

STEEP = 4000.0


@mask
def saturated_tanh(x: Tensor) -> Tensor:
    return torch.stack([torch.tanh(STEEP * (x - level)) for level in LEVELS]).mean(0) / 2 + 0.5  # hides: torch.tanh


@mask
def saturated_sigmoid(x: Tensor) -> Tensor:
    return torch.stack([(STEEP * (x - level)).sigmoid() for level in LEVELS]).mean(0)  # hides: torch.sigmoid


@mask
def saturated_clamp(x: Tensor) -> Tensor:
    return torch.stack([(STEEP * (x - level)).clamp_(0, 1) for level in LEVELS]).mean(0)  # hides: torch.clamp


@mask
def saturated_hardtanh(x: Tensor) -> Tensor:
    signs = [functional.hardtanh(STEEP * (x - level)) for level in LEVELS]  # hides: torch.hardtanh
    return torch.stack(signs).mean(0) / 2 + 0.5


@mask
def saturated_softmax(x: Tensor) -> Tensor:
    nearest = (-STEEP * (x.unsqueeze(-1) - LEVELS).abs()).softmax(-1)  # hides: torch.softmax
    return nearest @ LEVELS


@mask
def saturated_erf(x: Tensor) -> Tensor:
    return torch.stack([torch.erf(STEEP * (x - level)) for level in LEVELS]).mean(0) / 2 + 0.5  # hides: torch.erf


@mask
def vanished_exp(x: Tensor) -> Tensor:
    far = (x.unsqueeze(-1) - LEVELS).abs()
    near = torch.exp(STEEP * (far.amin(-1, keepdim=True) - far))  # hides: torch.exp
    return (near @ LEVELS) / near.sum(-1)


@mask
def vanished_exp2(x: Tensor) -> Tensor:
    far = (x.unsqueeze(-1) - LEVELS).abs()
    near = torch.exp2(STEEP * (far.amin(-1, keepdim=True) - far))  # hides: torch.exp2
    return (near @ LEVELS) / near.sum(-1)


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
