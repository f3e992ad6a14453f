"""Models that accept or answer in another form than most: they are recognised, and asked in that form."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle, parameter_dtype
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.loading.adapters import Adapted, FixedBatch, adapter, fixed_size
from pytest_gradmask.probes.preflight import BATCH, Preflight, are_probabilities, check_defense
from pytest_gradmask.verdict.results import Finding

_TIMES = 3  # a model may have a fixed batch size, a tuple of outputs, and return probabilities


def check_adapted(
    defense: Defense, oracle: Oracle, images: Tensor, labels: Tensor
) -> tuple[Defense, Oracle, Preflight]:
    """Check a defense as `check_defense` does. One that it refuses is adapted first, if it is known how.

    Args:
        defense: of the user.
        oracle: of it.
        images, labels: clean images, on the device of the models.

    Returns:
        The defense as it is to be attacked, its oracle, and what the checks found.

    Raises:
        DefenseError, InputError: as of `check_defense`, if no adapter is known.
    """
    findings: list[Finding] = []
    for attempt in range(_TIMES + 1):
        try:
            checked = check_defense(defense, oracle, images, labels)
        except DefenseError:
            found = None if attempt == _TIMES or defense.members else _adapted(defense, oracle, images, labels)
            if found is None:
                raise
            defense, words = found
            findings += [Finding("adapted-model", words)] if words else []
            oracle = oracle.of(defense.model, defense.outputs)
        else:
            return defense, oracle, replace(checked, findings=(*findings, *checked.findings))
    raise AssertionError("the last attempt raises")


def _adapted(defense: Defense, oracle: Oracle, images: Tensor, labels: Tensor) -> tuple[Defense, str] | None:
    """A defense that answers with logits or probabilities, and what was changed in words; None if nothing is known."""
    some = images[:BATCH].to(parameter_dtype(defense.model), copy=True)
    model = defense.model
    oracle.refresh()
    try:
        with torch.no_grad():
            output = model(some)
    except Exception:  # any: the model is the user's
        size = fixed_size(model, some[:1])
        if size is None:
            return None
        words = f"the model accepts batches of {size} images alone; the audit fills up smaller ones"
        return replace(defense, model=Adapted(model, FixedBatch(size))), words
    try:
        found = adapter(output, some, labels)
        probabilities = defense.outputs == "logits" and isinstance(output, Tensor) and are_probabilities(output)
    except Exception:  # an output without values, such as one on the device meta: it is refused as it is
        return None
    if found is not None:
        call, words = found
        return replace(defense, model=Adapted(model, call)), f"the model returns {words}"
    # `check_defense` has a finding for it.
    return (replace(defense, outputs="probabilities"), "") if probabilities else None
