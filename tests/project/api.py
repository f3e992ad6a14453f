"""The public functions and classes with arguments that work, and values that do not: for random calls."""

from __future__ import annotations

import collections
import decimal
import fractions
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pytest_gradmask as gradmask
from pytest_gradmask import Budget, Defense, ThreatModel
from tests.toys import IMAGES, Quantize, convolutional, linear, masked

FEW = IMAGES[:3]
LABELS = linear()(FEW).argmax(1)
TINIEST = Budget(
    name="tiniest",
    samples=3,
    margin=0.25,
    apgd_steps=1,
    targets=1,
    fab_steps=1,
    square_queries=5,
    bpda_steps=1,
    zero_order_steps=1,
    zero_order_pairs=1,
    eot=1,
    pilot_samples=2,
)


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


def matrix() -> gradmask.TransferMatrix:
    """A transfer matrix of two models."""
    outcomes = ((True, False), (True, True))
    return gradmask.TransferMatrix(
        names=("a", "b"),
        clean=((True, True),) * 2,
        correct=(outcomes, outcomes),
        attack="gradient",
        threat=ThreatModel(),
        confidence=0.99,
    )


@functools.cache
def finished() -> gradmask.Audit:
    """An audit."""
    return gradmask.audit(linear(), FEW, LABELS, budget=TINIEST)


def batch() -> dict[str, Any]:
    """Images with labels and a threat model."""
    return {"images": FEW.clone(), "labels": LABELS.clone(), "threat": ThreatModel()}


def attacked() -> dict[str, Any]:
    """Arguments of an attack."""
    return {
        "model": linear(),
        **batch(),
        "steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "restarts": 1,
        "eot": 1,
        "stop_early": True,
        "loss": lambda logits, labels: logits.sum(1),
    }


#: Each with a function that makes arguments that work, by name.
CALLS: Mapping[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "audit": (
        gradmask.audit,
        lambda: {
            "defense": linear(),
            **batch(),
            "budget": TINIEST,
            "margin": 0.25,
            "confidence": 0.99,
            "device": "cpu",
            "seed": 0,
            "exhaustive": False,
            "attempt": 1,
            "test": "",
            "probes": (),
            "cache": None,
            "engine": "local",
            "precision": "own",
            "deadline": None,
            "progress": print,
        },
    ),
    "transfer_matrix": (
        gradmask.transfer_matrix,
        lambda: {
            "models": [linear(), linear(seed=0)],
            **batch(),
            "attack": "gradient",
            "steps": 2,
            "bypass": None,
            "confidence": 0.99,
            "seed": 0,
            "device": "cpu",
        },
    ),
    "binarization_test": (
        gradmask.binarization_test,
        lambda: {
            "attack": functools.partial(gradmask.pgd, steps=2),
            "defense": linear(),
            **batch(),
            "generator": torch.Generator().manual_seed(0),
            "through": None,
            "separation": 0.05,
            "inner": 5,
            "boundary": 2,
            "forwards": None,
            "frozen": False,
            "confidence": 0.99,
        },
    ),
    "assert_attack_passes_binarization_test": (
        gradmask.assert_attack_passes_binarization_test,
        lambda: {
            "attack": functools.partial(gradmask.pgd, steps=2),
            "defense": linear(),
            **batch(),
            "generator": torch.Generator().manual_seed(0),
            "through": None,
            "confidence": 0.99,
        },
    ),
    "Defense": (
        gradmask.Defense,
        lambda: {
            "model": masked(Quantize),
            "bypass": ["0"],
            "members": (),
            "weights": None,
            "sources": (),
            "attacks": (),
            "outputs": "logits",
            "name": "it",
            "rejects": None,
        },
    ),
    "Attack": (
        gradmask.Attack,
        lambda: {
            "run": gradmask.pgd,
            "name": "mine",
            "kind": "adaptive",
            "through": None,
            "access": None,
        },
    ),
    "Budget": (
        gradmask.Budget,
        lambda: {name: getattr(TINIEST, name) for name in gradmask.Budget.__dataclass_fields__},
    ),
    "ThreatModel": (gradmask.ThreatModel, lambda: {"eps": 0.1, "norm": "Linf", "bounds": (0.0, 1.0)}),
    "Composite": (gradmask.Composite, lambda: {"front_end": nn.Identity(), "backbone": linear()}),
    "Mixture": (
        gradmask.Mixture,
        lambda: {"members": [linear(), linear()], "weights": (0.5, 0.5), "probabilities": False},
    ),
    "RandomizedEnsemble": (
        gradmask.RandomizedEnsemble,
        lambda: {
            "members": [linear(), linear()],
            "weights": (0.5, 0.5),
            "each_image": False,
        },
    ),
    "FromImages": (gradmask.FromImages, lambda: {"function": None}),
    "bypassed": (gradmask.bypassed, lambda: {"model": masked(Quantize), "approximations": {"0": None}}),
    "pgd": (gradmask.pgd, lambda: {**attacked(), "step_size": 0.01}),
    "apgd": (gradmask.apgd, attacked),
    "black_box": (gradmask.black_box, lambda: {"function": len}),
    "load_model": (gradmask.load_model, lambda: {"spec": "resnet-standard", "download": False}),
    "load_dataset": (
        gradmask.load_dataset,
        lambda: {
            "spec": "embedded",
            "split": "test",
            "samples": 3,
            "seed": 0,
            "download": False,
        },
    ),
    "plot_transfer_matrix": (gradmask.plot_transfer_matrix, lambda: {"matrix": matrix(), "file": "/nowhere/x.txt"}),
    "TransferMatrix": (
        gradmask.TransferMatrix,
        lambda: {name: getattr(matrix(), name) for name in gradmask.TransferMatrix.__dataclass_fields__},
    ),
    "assert_no_gradient_masking": (gradmask.assert_no_gradient_masking, lambda: {"audit": finished()}),
    "assert_gradient_masking": (gradmask.assert_gradient_masking, lambda: {"audit": finished()}),
    "assert_robust_accuracy": (gradmask.assert_robust_accuracy, lambda: {"audit": finished(), "at_least": 0.5}),
    "assert_claim": (
        gradmask.assert_claim,
        lambda: {"audit": finished(), "robust_accuracy": 0.0, "source": "a paper"},
    ),
    "assert_low_transferability": (gradmask.assert_low_transferability, lambda: {"matrix": matrix(), "at_most": 0.5}),
    "assert_members_diverse": (gradmask.assert_members_diverse, lambda: {"matrix": matrix(), "at_least": 0.5}),
    "assert_near_identity": (
        gradmask.assert_near_identity,
        lambda: {
            "front_end": nn.Identity(),
            "images": FEW.clone(),
            "atol": 0.1,
        },
    ),
    "assert_clean_accuracy_retained": (
        gradmask.assert_clean_accuracy_retained,
        lambda: {
            "defense": linear(),
            "backbone": linear(),
            "images": FEW.clone(),
            "labels": LABELS.clone(),
            "within": 0.02,
        },
    ),
}
