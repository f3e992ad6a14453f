"""Values that hardly any argument takes: for random calls of public functions."""

from __future__ import annotations

import collections
import decimal
import fractions
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pytest_gradmask as gradmask
from pytest_gradmask import Defense, ThreatModel
from tests.project.api import TINIEST
from tests.toys import Quantize, convolutional, linear, masked


def raising(*methods: str) -> Any:
    """An object whose methods of these names raise."""

    def fail(*_: object) -> Any:
        raise ZeroDivisionError("odd")

    return type("Odd", (), dict.fromkeys(methods, fail))()


class OddClass:
    """Its class cannot be asked for."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise ZeroDivisionError("odd")


class Outputs(nn.Module):
    """Returns one thing, whatever it is given."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Any) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def knot() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _same(value: Any) -> Any:
    return value


_PLAIN: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    10**400,
    -(10**400),
    2**63,
    1.5,
    0.5,
    float("nan"),
    float("inf"),
    1e-320,
    1j,
    "",
    "dir",
    "cpu",
    "cuda:99",
    "meta",
    "full",
    "ci",
    "gradient",
    "L2",
    "a\udcffb\x1b",
    b"x",
    "0",
    "x" * 10_000,
    "/",
    "\0",
    [],
    [None],
    (),
    (1, 2),
    {},
    {1: 2},
    {"0": None},
    {"a": 3},
    {None: "b"},
    frozenset(),
    {1},
    ...,
    NotImplemented,
    int,
    str,
    nn.Linear,
    ThreatModel,
    print,
    len,
    torch.relu,
    Path("x"),
    Path("/dev/null"),
    torch.float16,
    torch.device("cpu"),
    slice(3),
    range(3),
    np.float64(0.5),
    np.int64(2),
    np.nan,
    decimal.Decimal("0.5"),
    fractions.Fraction(1, 2),
    torch,
    gradmask.Verdict.MASKED,
    ThreatModel(),
    ThreatModel(0.5, "L2"),
    TINIEST,
)
#: Made anew for each call.
ODD: list[Callable[[], Any]] = [
    *(functools.partial(_same, value) for value in _PLAIN),
    *(
        functools.partial(raising, *methods)
        for methods in (
            ("__repr__", "__str__"),
            ("__bool__",),
            ("__len__",),
            ("__iter__",),
            ("__eq__",),
            ("__hash__",),
            ("__getattr__",),
            ("__call__",),
            ("__float__", "__int__", "__index__"),
            ("__fspath__",),
            ("__lt__", "__le__", "__gt__", "__ge__"),
            ("__repr__", "__bool__", "__len__", "__iter__", "__eq__", "__call__", "__getattr__", "__fspath__"),
        )
    ),
    OddClass,
    object,
    knot,
    nested,
    lambda: iter([1, 2]),
    lambda: (1 for _ in range(2)),
    lambda: itertools.count(),
    lambda: lambda: None,
    lambda: lambda *args, **kwargs: args[0],
    lambda: lambda *args, **kwargs: 1 / 0,
    lambda: lambda *args, **kwargs: None,
    collections.UserDict,
    lambda: bytearray(3),
    lambda: torch.Generator(),
    lambda: np.zeros(3),
    lambda: np.zeros((3, 3, 8, 8), np.float32),
    lambda: np.array([object()]),
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.zeros(3, dtype=torch.long),
    lambda: torch.ones(3, dtype=torch.long) * 99,
    lambda: torch.zeros(3, dtype=torch.bool),
    lambda: torch.zeros(3, 3, 8, 8),
    lambda: torch.zeros(3, 3, 8, 8, dtype=torch.complex64),
    lambda: torch.zeros(3, 3, 8, 8, device="meta"),
    lambda: torch.zeros(3, 3, 8, 8).to_sparse(),
    lambda: torch.full((3, 3, 8, 8), float("nan")),
    lambda: torch.zeros(0, 3, 8, 8),
    lambda: torch.zeros(3, 8, 8, 3),
    lambda: torch.zeros(3, dtype=torch.uint16),
    lambda: torch.zeros(3, 3, 8, 8, dtype=torch.float64),
    lambda: torch.quantize_per_tensor(torch.zeros(3, 3, 8, 8), 0.1, 0, torch.quint8),
    lambda: nn.Parameter(torch.zeros(3, 3, 8, 8)),
    linear,
    lambda: linear().train(),
    lambda: linear(3),
    nn.Identity,
    nn.ReLU,
    nn.Flatten,
    lambda: nn.Linear(3, 3),
    lambda: nn.Dropout(0.5),
    lambda: nn.BatchNorm2d(3),
    lambda: nn.ModuleList([linear(), linear(seed=1)]),
    lambda: nn.ModuleDict({"a": linear(), "b": linear(seed=1)}),
    lambda: masked(Quantize),
    convolutional,
    nn.Sequential,
    *(
        functools.partial(Outputs, value)
        for value in (
            None,
            3,
            torch.zeros(()),
            torch.zeros(3, 4),
            torch.zeros(3, 4, dtype=torch.complex64),
            torch.full((3, 4), float("nan")),
            torch.zeros(3, 4, device="meta"),
            (torch.zeros(3, 4),),
            {"logits": torch.zeros(3, 4)},
            ZeroDivisionError("odd"),
            RuntimeError("a\udcff"),
            AssertionError("odd"),
            KeyError("odd"),
            StopIteration("odd"),
            RecursionError("odd"),
        )
    ),
    lambda: [linear(), linear(seed=1)],
    lambda: {"a": linear(), "b": linear(seed=1)},
    lambda: [linear(), None],
    lambda: [linear(), linear(5)],
    lambda: Defense(linear()),
    lambda: Defense(linear(), members=[linear(), linear()]),
    lambda: [Defense(linear())],
    lambda: gradmask.Attack(print),
    lambda: [gradmask.pgd],
    lambda: gradmask.FromImages(),
]
