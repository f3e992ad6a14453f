"""Audits of toy defenses with their evidence, each made once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from pytest_gradmask.defense import Defense
from pytest_gradmask.report.evidence.collection import collect_evidence
from pytest_gradmask.verdict.audit import Audit
from tests.toys import IMAGES, THREAT, KillGradient, audited, linear, masked, predictions


class Case(NamedTuple):
    defense: Defense
    labels: torch.Tensor
    audit: Audit
    evidence: dict[str, Any]


def case(defense: Defense) -> Case:
    labels = predictions(defense.model, IMAGES)
    audit = audited(defense, labels=labels)
    return Case(defense, labels, audit, collect(audit, defense, labels))


def collect(audit: Audit, defense: Defense, labels: torch.Tensor) -> dict[str, Any]:
    return collect_evidence(audit, defense, IMAGES, labels, threat=THREAT)


@functools.cache
def masked_case() -> Case:
    """A front end that kills the gradient."""
    return case(Defense(masked(KillGradient), name="killer"))


@functools.cache
def honest_case() -> Case:
    """An undefended model."""
    return case(Defense(linear(), name="honest"))
