"""Lower bounds of logit margins over an Linf ball, for networks of linear layers and ReLUs.

Interval bounds (IBP; Gowal et al. 2018, arXiv:1810.12715) push a box through the network, layer by layer. Linear bounds
(CROWN; Zhang et al. 2018, arXiv:1811.00866) go back from the margins, and replace each ReLU by a line below it and one
above it. They use the interval bounds before each ReLU.

A certificate is a margin that is above zero all over the ball: no point of it is misclassified. The ball in L2 or L1 of
the same radius lies inside, so the certificate holds there, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Box = tuple[Tensor, Tensor]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The linear layers and ReLUs of a sequential model, in order.

    Raises:
        TypeError: it has any other layer.
    """
    layers = [layer for layer in model.modules() if not isinstance(layer, (nn.Sequential, nn.Flatten))]
    for layer in layers:
        if not isinstance(layer, (nn.Linear, nn.ReLU)):
            raise TypeError(f"{type(layer).__name__}: only Flatten, Linear and ReLU have bounds here")
    return layers


def interval_bounds(layers: Sequence[nn.Module], low: Tensor, high: Tensor) -> list[Box]:
    """Bounds of the input of each layer, and of the output of the last; each N x D."""
    boxes = [(low, high)]
    for layer in layers:
        low, high = boxes[-1]
        if isinstance(layer, nn.Linear):
            centre, reach = (low + high) / 2, (high - low) / 2
            middle, around = layer(centre), reach @ layer.weight.abs().T
            boxes.append((middle - around, middle + around))
        else:
            boxes.append((low.relu(), high.relu()))
    return boxes


def ball(images: Tensor, eps: float) -> Box:
    """The Linf ball around images in [0, 1], and within these bounds; each N x D."""
    flat = images.flatten(1)
    return (flat - eps).clamp(0, 1), (flat + eps).clamp(0, 1)


def worst_logits(layers: Sequence[nn.Module], images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """By interval bounds: the label's lowest logit and the largest of every other; N x K. For training."""
    low, high = interval_bounds(layers, *ball(images, eps))[-1]
    label = nn.functional.one_hot(labels, low.shape[1]).bool()
    return torch.where(label, low, high)


def certified(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Whether no point of the ball is misclassified, by interval or by linear bounds; bool, N. In double precision.

    Args:
        model: of `layers_of`.
        images: N x ..., in [0, 1].
        labels: int64, N.
        eps: radius of the ball in Linf.
    """
    with torch.no_grad():
        layers = [_double(layer) for layer in layers_of(model)]
        by_intervals = worst_logits(layers, images.double(), labels, eps).argmax(1) == labels
        return by_intervals | (linear_margins(model, images, labels, eps) > 0).all(1)


@torch.no_grad()
def linear_margins(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Lower bounds of the label's logit minus each other logit over the ball; N x (K - 1), float64."""
    layers = [_double(layer) for layer in layers_of(model)]
    low, high = ball(images.double(), eps)
    boxes = interval_bounds(layers, low, high)
    count, classes = len(images), boxes[-1][0].shape[1]
    others = torch.stack([torch.arange(classes)[torch.arange(classes) != label] for label in labels])
    # Each row is a linear function of the layer's output; at first, the label's logit minus another.
    rows = torch.zeros(count, classes - 1, classes, dtype=torch.float64)
    rows.scatter_(2, others[:, :, None], -1.0)
    rows[torch.arange(count), :, labels] = 1.0
    constant = torch.zeros(count, classes - 1, dtype=torch.float64)
    for layer, (below, above) in zip(reversed(layers), reversed(boxes[:-1]), strict=True):
        if isinstance(layer, nn.Linear):
            constant = constant + rows @ layer.bias
            rows = rows @ layer.weight
        else:
            rows, offset = _through_relu(rows, below, above)
            constant = constant + offset
    centre, reach = (low + high) / 2, (high - low) / 2
    return (rows @ centre[:, :, None]).squeeze(2) + constant - (rows.abs() @ reach[:, :, None]).squeeze(2)


def _through_relu(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Linear functions of a ReLU's output, bounded from below by linear functions of its input, and a constant."""
    unstable = (low < 0) & (high > 0)
    slope_above = torch.where(unstable, high / (high - low).clamp_min(1e-300), (low >= 0).double())
    offset_above = torch.where(unstable, -slope_above * low, 0.0)
    slope_below = torch.where(unstable, (high > -low).double(), slope_above)
    positive, negative = rows.clamp_min(0), rows.clamp_max(0)
    through = positive * slope_below[:, None] + negative * slope_above[:, None]
    return through, (negative * offset_above[:, None]).sum(2)


def _double(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Linear):
        return layer
    copy = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
    copy.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    return copy
