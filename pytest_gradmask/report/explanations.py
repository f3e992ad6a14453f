"""Explanations of findings, from the documentation: for the terminal, and for reports, which need no other file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def explanation(name: str) -> str:
    """The section on one finding as it is written, in Markdown; empty if there is none."""
    return _sections().get(name, "").strip()


def explained() -> list[str]:
    """The ids of all findings that have a section."""
    return [name for name in _sections() if re.fullmatch("[a-z-]+", name)]


def explanations(ids: Iterable[str]) -> dict[str, str]:
    """The explanation of each of these findings as HTML, in alphabetical order. Findings without one are left out.

    Links between findings lead to ``#finding-ID``. Other pages of the documentation are named, but not linked.
    """
    from markdown_it import MarkdownIt  # only reports in HTML need it

    sections = _sections()
    explained = sorted(set(ids) & set(sections))

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        return f"[{text}](#finding-{target})" if target in explained else text

    render = MarkdownIt("commonmark", {"html": False}).render

    def page(name: str) -> str:
        text = re.sub(r"\[([^]]+)]\([\w-]+\.md(?:#[\w-]+)?\)", r"\1", sections[name])
        return str(render(re.sub(r"\[([^]]+)]\(#([a-z-]+)\)", link, text)))

    return {name: page(name) for name in explained}


def _sections() -> dict[str, str]:
    """Text of each section of the page, by its title."""
    titled = re.split(r"^## (.+)$", _page(), flags=re.MULTILINE)[1:]
    return dict(zip(titled[::2], titled[1::2], strict=True))


def _page() -> str:
    """The text of the page: inside an installed package, or beside it in a checkout. Empty if it is in neither."""
    package = Path(__file__).parents[1]
    for folder in (package, package.parent):
        file = folder / "docs" / "findings.md"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return ""
