"""Fresh copies of a stateful defense: can its first state be put back, so that each attack begins with it?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pytest_gradmask.auditing.prepare import Prepared
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.execution.first_state import FirstState
from pytest_gradmask.probes.consistency import Recording, check_again
from pytest_gradmask.probes.preflight import check_defense
from pytest_gradmask.verdict.results import Finding


@dataclass(frozen=True, slots=True)
class Stateful:
    """A defense whose answers depend on earlier queries, and whose first state can be put back.

    Attributes:
        first_state: puts it back.
        finding: about the defense as its queries left it.
    """

    first_state: FirstState
    finding: Finding

    def on_fresh_copies(self) -> Finding:
        """The finding of an audit in which fresh copies answered."""
        message = f"{self.finding.message}; each attack ran on a fresh copy, and fresh copies scored what it returned"
        return replace(self.finding, message=message)


def stateful(
    ready: Prepared, finding: Finding, first_state: FirstState, recording: Recording | None
) -> Stateful | None:
    """None unless the defense, put back, answers as it did when the audit asked it for the first time.

    A state outside of its modules, as in a global variable, cannot be put back.

    Args:
        ready: the defense, which has answered queries.
        finding: that it is stateful.
        first_state: to put back.
        recording: of answers before the attacks.
    """
    scorer = ready.scorer
    try:
        first_state.put_back()
        scorer.oracle.reseed(subseed(scorer.seed, "defense"))
        with scorer.oracle.drawing():
            again = check_defense(ready.surface.defense, scorer.oracle, scorer.images, scorer.labels)
        first_state.put_back()
        as_before = torch.equal(again.predictions, ready.predictions)
        if as_before and (recording is None or not check_again(scorer.oracle, recording)):
            return Stateful(first_state, finding)
    except Exception:  # whatever it holds may refuse to be copied, and it may refuse to answer
        first_state.undo()
        return None
    first_state.undo()
    return None
