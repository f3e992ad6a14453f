"""``--gradmask-explain``: print the page of a finding."""

from __future__ import annotations

import pytest


def explain_finding(name: str) -> str:
    """What the documentation says about a finding: when it is raised, why, and what to do.

    Raises:
        pytest.UsageError: there is no such finding.
    """
    import difflib  # imported here, as every run of pytest imports this module

    from pytest_gradmask.report.explanations import explained, explanation

    known = explained()
    if name not in known:
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"findings are {', '.join(known)}"
        raise pytest.UsageError(f"--gradmask-explain={name}: there is no such finding; {hint}")
    return f"{name}\n\n{explanation(name)}"
