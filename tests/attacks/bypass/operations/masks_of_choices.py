"""Masks that compare, choose, sort, or write where an index or a comparison says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.attacks.bypass.operations.masked import LEVELS, mask

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
