"""Reject options on clean images: whether they fit the outputs, whom they reject, and whether one was not declared."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_gradmask.attacks.rejection import RejectOption
from pytest_gradmask.attacks.users_code import errors_attributed_to
from pytest_gradmask.defense import Defense, Rejects
from pytest_gradmask.errors import InputError
from pytest_gradmask.randomized.prediction import label_wins
from pytest_gradmask.verdict.results import Finding

#: Detectors are published with 5 % of clean images rejected, or fewer (Tramer 2022, arXiv:2107.11630). Twice that is
#: a cost that belongs beside every robust accuracy.
_MANY = 0.1
#: Largest probability that a class of average frequency has no label by chance.
_BY_CHANCE = 0.01


def check_rejects(defense: Defense, raw: Tensor, labels: Tensor) -> None:
    """Raise `InputError` unless ``rejects`` fits the outputs for clean images, N x K, and their labels."""
    rejects, classes = defense.rejects, raw.shape[1]
    if rejects is None:
        return
    if isinstance(rejects, int):
        if rejects >= classes or classes < 3:
            raise InputError(
                f"rejects={rejects}: {defense.name} has {classes} outputs; it must be the index of one of them, "
                f"0..{classes - 1}, and leave two classes at least"
            )
        if bool((labels == rejects).any()):
            raise InputError(
                f"labels: {int((labels == rejects).sum())} images have the label {rejects}, which means rejected; "
                "give every image its true class"
            )
        return
    with errors_attributed_to(f"rejects of {defense.name}", raw):
        rejected = rejects(raw)
    if not isinstance(rejected, Tensor):
        raise InputError(f"rejects: returns {type(rejected).__name__}, not a tensor of bool or float")
    if rejected.shape != (len(raw),):
        raise InputError(
            f"rejects: maps outputs of shape {tuple(raw.shape)} to shape {tuple(rejected.shape)}; must be "
            f"({len(raw)},), one answer an image"
        )
    if not (rejected.dtype == torch.bool or rejected.is_floating_point()):
        raise InputError(f"rejects: returns {rejected.dtype}; must be bool, or a floating-point score")
    if rejected.device != raw.device:
        raise InputError(f"rejects: returns a tensor on {rejected.device} for outputs on {raw.device}")
    if bool(rejected.isnan().any()):
        raise InputError(f"rejects: returns NaN for {int(rejected.isnan().sum())} of {len(raw)} clean images")


def examine_rejections(rejects: Rejects, raw: Tensor, logits: Tensor) -> tuple[list[Finding], tuple[bool, ...]]:
    """Findings about a reject option, and whether it rejects each clean image.

    Args:
        rejects: of the `Defense`, checked.
        raw: outputs for clean images, N x K.
        logits: the same as logits.
    """
    rejection, findings = RejectOption(rejects), []
    rejected = label_wins(rejection(raw, logits), raw.new_full((len(raw),), rejection.column, dtype=torch.long))
    count = int(rejected.sum())
    if count > _MANY * len(raw):
        findings.append(
            Finding(
                "clean-rejections",
                f"{count} of {len(raw)} clean images are rejected ({count / len(raw):.0%}); they count as not correct, "
                "and no attack gets them",
            )
        )
    if callable(rejects):
        with torch.enable_grad(), errors_attributed_to("rejects", raw):
            differentiable = rejects(raw.detach().requires_grad_(True)).requires_grad
        if not differentiable:
            findings.append(
                Finding(
                    "rejection-without-score",
                    "rejects gives only decisions, so no gradient leads to an image that is misclassified and accepted",
                    undermines_attacks=True,
                )
            )
    return findings, tuple(rejected.tolist())


def unused_class(logits: Tensor, labels: Tensor) -> list[Finding]:
    """A finding if the last class looks like one that means "rejected".

    That is: all other classes have labels, it has none although there are images enough, and it is rarely predicted.

    Args:
        logits: for clean images, N x K.
        labels: N.
    """
    last = logits.shape[1] - 1
    others_used = len(labels.unique()) == last and bool((labels != last).all())
    enough = (1 - 1 / (last + 1)) ** len(labels) < _BY_CHANCE
    predicted = int((logits.argmax(1) == last).sum())
    if last < 2 or not others_used or not enough or predicted > _MANY * len(labels):
        return []
    message = (
        f"no label is class {last}, and each other class has one: if class {last} means rejected, say "
        f"Defense(rejects={last}), or else an adversarial image that is rejected counts as broken"
    )
    return [Finding("unused-class", message)]
