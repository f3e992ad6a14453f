"""``--gradmask-explain``: print the page of a finding."""

from __future__ import annotations

import re
import shutil

import pytest

_WIDEST = 100  # characters of a line that is read with ease


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
    return f"{name}\n\n{_for_terminal(explanation(name))}"


def _for_terminal(page: str) -> str:
    """Paragraphs of Markdown, wrapped to the terminal, with the addresses of links that lead out of this project."""
    import textwrap

    without_places = re.sub(r"\[([^]]+)]\((?!https?://)[^)]*\)", r"\1", page)
    plain = re.sub(r"\[([^]]+)]\(([^)]*)\)", r"\1 (\2)", without_places)
    width = min(_WIDEST, shutil.get_terminal_size().columns - 1)
    paragraphs = re.split(r"\n{2,}", plain)
    return "\n\n".join(
        text if text.startswith(("|", "- ")) else textwrap.fill(text, width, break_on_hyphens=False)
        for text in paragraphs
    )
