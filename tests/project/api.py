"""The public functions and classes with arguments that work: for random calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import pytest_gradmask as gradmask
from pytest_gradmask import Budget, ThreatModel
from tests.toys import IMAGES, Quantize, linear, masked

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
            "precision": "auto",
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
