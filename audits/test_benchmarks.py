"""The cost of attacks: each attack of an audit, and the same attacks from other libraries on the same images.

Run ``pytest audits --gradmask --benchmark-only``. Without the last option, nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from audits.peers import PEERS, installed
from pytest_gradmask import AttackResult, Defense, InputError, load_model
from pytest_gradmask.plugin.fixtures import EvalBatch

pytestmark = [pytest.mark.gradmask, pytest.mark.benchmark]  # deselected in conftest.py by default

_ATTACKS = ("pgd", "apgd-ce", "apgd-t", "fab-t", "bpda", "transfer-backbone", "square", "zero-order")
_DEFENSES = ("resnet-standard", "resnet-adversarial", "resnet-standard-composite", "standard-ensemble")
_STEPS = 20


@pytest.mark.parametrize("name", _DEFENSES)
@pytest.mark.parametrize("attack", _ATTACKS)
def test_an_attack_of_an_audit(
    benchmark_attack: Callable[..., AttackResult], eval_batch: EvalBatch, name: str, attack: str
) -> None:
    try:
        result = benchmark_attack(Defense(load_model(name), name=name), *eval_batch, attack)
    except InputError as error:
        pytest.skip(str(error))
    assert result.status == "done"


@pytest.mark.parametrize(("attack", "library"), PEERS, ids="-by-".join)
@pytest.mark.parametrize("name", ["resnet-standard", "resnet-adversarial", "resnet-standard-composite"])
def test_the_same_attack_by_several_libraries(
    benchmark_attack: Callable[..., AttackResult], eval_batch: EvalBatch, name: str, attack: str, library: str
) -> None:
    package, run = PEERS[attack, library]
    if not installed(package):
        pytest.skip(f"{package} is not installed")
    result = benchmark_attack(
        Defense(load_model(name), name=name), *eval_batch, partial(run, steps=_STEPS), name=f"{attack}-{_STEPS}"
    )
    assert result.status == "done"
