"""What the zoo knows of one defense."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from pytest_gradmask import Composite, Defense

#: From the name of a fixture to the model, in eval mode.
Loader = Callable[[str], nn.Module]
Build = Callable[[Loader], Defense | nn.Module]
#: ``reference(defense, images, labels, *, threat, generator)`` returns images; see `references.attack_views`.
Reference = Callable[..., Tensor]


def unchanged(labels: Tensor) -> Tensor:
    """The labels of the data are those of the defense."""
    return labels


@dataclass(frozen=True, slots=True)
class Entry:
    """A known defense.

    Attributes:
        name: lower-case letters, digits and dashes.
        backbone: the fixture it is built around, whose clean accuracy it should nearly keep.
        build: returns what a user would hand over, in eval mode: nothing in it tells an audit where a mask may be.
        reference: the attack of its literature, which knows all of that.
        story: who proposed it, who broke it and how.
        suspicious: whether its gradient attacks are said to fail, or it looks as if they might. What is true is
            measured, not assumed: see `audits.truth`.
        randomized: whether its logits are random.
        slow: whether a quick run leaves it out: it is deep, or much like another. What is randomized is left out, too.
        labels: from the labels of the data to those of the defense (int64, N, both).
    """

    name: str
    backbone: str
    build: Build
    reference: Reference
    story: str
    suspicious: bool
    randomized: bool = False
    slow: bool = False
    labels: Callable[[Tensor], Tensor] = unchanged


def story(told: object) -> str:
    """The docstring of a class or function, without its indentation; empty if it has none."""
    return inspect.getdoc(told) or ""


def behind(front_end: Callable[[], nn.Module], backbone: str) -> Build:
    """Builds ``backbone(front_end(x))``."""
    return partial(_behind, front_end, backbone)


def _behind(front_end: Callable[[], nn.Module], backbone: str, load: Loader) -> nn.Module:
    return Composite(front_end(), load(backbone)).eval()


def around(wrapper: Callable[[nn.Module], Defense | nn.Module], backbone: str) -> Build:
    """Builds ``wrapper(backbone)``."""
    return partial(_around, wrapper, backbone)


def _around(wrapper: Callable[[nn.Module], Defense | nn.Module], backbone: str, load: Loader) -> Defense | nn.Module:
    return wrapper(load(backbone))
