"""The zoo of known defenses: each verdict is compared with a truth measured by the attack of the literature.

An audit gets no information on where masking may occur. ``python -m audits.zoo measure`` stores the truth.
"""

from __future__ import annotations

from typing import Any

import pytest

from audits.defenses.entry import Entry
from audits.zoo import ZOO
from audits.zoo.measurement import stored_truth
from audits.zoo.truth import right_verdicts
from pytest_gradmask import Defense, Verdict, load_model
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask
from pytest_gradmask.report.failure import explain

pytestmark = pytest.mark.gradmask


def _parameter(entry: Entry) -> Any:
    return pytest.param(entry, id=entry.name, marks=pytest.mark.slow if entry.slow or entry.randomized else ())


@pytest.mark.parametrize("entry", [_parameter(entry) for entry in ZOO.values()])
def test_the_verdict_on_a_known_defense_is_true(gradmask: Gradmask, entry: Entry, eval_batch: EvalBatch) -> None:
    truth = stored_truth(entry.name)
    if truth is None:
        pytest.skip(f"its truth has not been measured: python -m audits.zoo measure {entry.name} --data SPEC")
    expected = truth.expected(gradmask.settings.margin)
    if expected is None and not entry.refused:
        pytest.skip(
            f"its measured gap of {100 * truth.gap[0]:.1f} percentage points leaves the truth open at this margin"
        )
    built = entry.build(load_model)
    defense = built if isinstance(built, Defense) else Defense(built, name=entry.name)
    audit = gradmask.audit(defense, eval_batch.images, entry.labels(eval_batch.labels))
    right = right_verdicts(expected, refused=bool(entry.refused))
    wanted = " or ".join(verdict.name for verdict in Verdict if verdict in right)
    assert audit.verdict in right, explain(audit, f"{wanted}, by its measured truth")
    if audit.verdict is Verdict.INCONCLUSIVE and entry.refused not in {"", *(finding.id for finding in audit.findings)}:
        pytest.xfail(f"inconclusive, but not because of {entry.refused}: {'; '.join(audit.reasons)}")
    if audit.verdict is Verdict.INCONCLUSIVE and not entry.refused:  # not wrong, but not useful either
        pytest.xfail(f"inconclusive, and right is {wanted}: {'; '.join(audit.reasons)}")
