"""One known defense, as data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from pytest_gradmask import Composite, Defense

#: Loads a fixture by its name and returns the model in eval mode.
Loader = Callable[[str], nn.Module]
Build = Callable[[Loader], Defense | nn.Module]
#: ``reference(defense, images, labels, *, threat, generator)`` returns images; see `references.attack_views`.
Reference = Callable[..., Tensor]


def unchanged(labels: Tensor) -> Tensor:
    """Labels for a defense with the classes of the data."""
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A known defense.

    Attributes:
        name: lower-case letters, digits and dashes.
        backbone: the fixture that it is built around.
        build: returns what a user would audit, in eval mode. It gives an audit no hint on where masking may occur.
        reference: the attack of its literature, with full knowledge of the defense.
        story: who proposed it, who broke it, and how.
        suspicious: whether gradient attacks are said to fail on it, or seem likely to fail. The truth is measured, not
            assumed: see `audits.zoo.truth`.
        randomized: whether its logits are random.
        slow: whether a quick run leaves it out, because it is deep or similar to another. A quick run leaves out
            randomized defenses, too.
        labels: converts the labels of the data to those of the defense (both int64, N).
        keeps: the least share of the backbone's clean accuracy that it keeps.
        refused: the id of the finding that has to refuse ``NOT_MASKED``; empty for a defense that may pass. Some
            defenses have no behaviour of their own that an audit could judge, such as those that remember queries.
            ``INCONCLUSIVE`` is right about them, and so is ``MASKED`` if it is the truth.
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
    keeps: float = 0.6
    refused: str = ""


def story(subject: object) -> str:
    """The docstring of a class or function, without its indentation; empty if it has none."""
    return inspect.getdoc(subject) or ""


def behind(front_end: Callable[[], nn.Module], backbone: str) -> Build:
    """A function that builds ``backbone(front_end(x))``."""
    return partial(_behind, front_end, backbone)


def _behind(front_end: Callable[[], nn.Module], backbone: str, load: Loader) -> nn.Module:
    return Composite(front_end(), load(backbone)).eval()


def around(wrapper: Callable[[nn.Module], Defense | nn.Module], backbone: str) -> Build:
    """A function that builds ``wrapper(backbone)``."""
    return partial(_around, wrapper, backbone)


def _around(wrapper: Callable[[nn.Module], Defense | nn.Module], backbone: str, load: Loader) -> Defense | nn.Module:
    return wrapper(load(backbone))
