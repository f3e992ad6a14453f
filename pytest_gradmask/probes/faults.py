"""Findings about a defense that raises what it does not always raise."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradmask.verdict.results import Finding

#: Id of the finding.
RAISES_AT_TIMES = "raises-at-times"


def raises_at_times(faults: Sequence[str]) -> list[Finding]:
    """A finding about errors that went away when the same was asked again; none if there were none.

    Args:
        faults: the errors, as `execution.second_try.faults_noticed` collects them.
    """
    if not faults:
        return []
    times = "once" if len(faults) == 1 else f"{len(faults)} times"
    message = f"{times} it raised an error that it did not raise when asked the same again: {faults[0]}"
    return [Finding(RAISES_AT_TIMES, message, undermines_attacks=True)]
