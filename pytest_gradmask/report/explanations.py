"""Explanations of findings, from the documentation: a report contains the text, as it must need no other file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from markdown_it import MarkdownIt


def explanations(ids: Iterable[str]) -> dict[str, str]:
    """The explanation of each of these findings as HTML, in alphabetical order. Findings without one are left out.

    Links between findings lead to ``#finding-ID``.
    """
    titled = re.split(r"^## (.+)$", _page(), flags=re.MULTILINE)[1:]
    sections = dict(zip(titled[::2], titled[1::2], strict=True))
    explained = sorted(set(ids) & set(sections))

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        return f"[{text}](#finding-{target})" if target in explained else text

    render = MarkdownIt("commonmark", {"html": False}).render
    return {name: str(render(re.sub(r"\[([^]]+)]\(#([a-z-]+)\)", link, sections[name]))) for name in explained}


def _page() -> str:
    """The text of the page: inside an installed package, or beside it in a checkout. Empty if it is in neither."""
    package = Path(__file__).parents[1]
    for folder in (package, package.parent):
        file = folder / "docs" / "findings.md"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return ""
