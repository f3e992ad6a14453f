"""Pages that are made when the site is built: the reference, from the code, and files from outside ``docs/``.

MkDocs calls `on_files` and `on_page_markdown` (see ``mkdocs.yml``).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest_gradmask
from pytest_gradmask import plugin
from pytest_gradmask.auditing.budgets import BUDGETS, Budget
from pytest_gradmask.plugin import hookspecs
from pytest_gradmask.plugin.marker import DESCRIPTION
from pytest_gradmask.threat import ThreatModel

ROOT = Path(__file__).parent.parent

#: Files outside ``docs/``, and their pages.
OUTSIDE = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "fixtures/README.md": "fixtures.md",
}


class _Recorder:
    """Takes the place of pytest's parser, and stores what a plugin registers."""

    def __init__(self) -> None:
        self.options: dict[str, dict[str, Any]] = {}
        self.ini: dict[str, dict[str, Any]] = {}

    def getgroup(self, *_: str) -> _Recorder:
        return self

    def addoption(self, *names: str, **arguments: Any) -> None:
        self.options[names[-1]] = arguments

    def addini(self, name: str, help: str, **arguments: Any) -> None:  # noqa: A002 - pytest's name for it
        self.ini[name] = {"help": help, **arguments}


def registered() -> _Recorder:
    """The options and ini values of the plugin."""
    recorder = _Recorder()
    plugin.pytest_addoption(recorder)  # type: ignore[arg-type]
    return recorder


def marker_arguments() -> dict[str, str]:
    """The arguments of the marker, each with the source text of its default."""
    call = ast.parse(DESCRIPTION.partition("): ")[0] + ")", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(keyword.arg): ast.unparse(keyword.value).replace(" ", "") for keyword in call.keywords}


def reference() -> str:
    """The reference as Markdown. All descriptions come from the code: help texts and docstrings."""
    recorder = registered()
    return "\n\n".join(
        [
            "# Reference",
            "Made from the code when this site is built.",
            "## Options",
            "On the command line of pytest. The last column has the name of the same setting in the ini file "
            "(`pytest.ini`, or `[tool.pytest.ini_options]` in `pyproject.toml`), where there is one.",
            _table(("option", "what", "ini value"), _options(recorder)),
            "## Ini values",
            _table(
                ("name", "what", "default"),
                ((f"`{name}`", _cell(each["help"]), _default(each)) for name, each in recorder.ini.items()),
            ),
            "## Budgets",
            "The values of `--gradmask-budget` and of the marker's `budget`.",
            _table(("", *(f"`{name}`" for name in BUDGETS)), _budgets()),
            "## Marker",
            "`@pytest.mark.gradmask(...)` changes the settings of one test, class or module. For each argument, the "
            "closest marker takes precedence. A test with the marker, or with the fixture `gradmask`, is an audit: it "
            "runs only with `--gradmask`.",
            _table(("argument", "default", "what"), _arguments(recorder)),
            "## Fixtures",
            *(
                f"### `{name}` {{#fixture-{name}}}\n\n{_prose(getattr(plugin, name).__doc__ or '')}"
                for name in plugin.__all__
            ),
            "## Classes and functions",
            "All of them can be imported from `pytest_gradmask`.",
            *(f"::: pytest_gradmask.{name}" for name in pytest_gradmask.__all__),
            "## Hooks",
            "Other plugins and `conftest.py` files may implement these hooks; [the guide](extending.md) shows how.",
            *(f"::: pytest_gradmask.plugin.hookspecs.{name}" for name in hooks()),
        ]
    )


def hooks() -> list[str]:
    """Names of the hooks, in the order of their definition."""
    return [name for name in vars(hookspecs) if name.startswith("pytest_")]


def _options(recorder: _Recorder) -> Iterable[Sequence[str]]:
    for name, each in recorder.options.items():
        value = f"={each['metavar']}" if "metavar" in each else ""
        ini = name.removeprefix("--").replace("-", "_")
        yield f"`{name}{value}`", _cell(each["help"]), f"`{ini}`" if ini in recorder.ini else ""


def _default(arguments: Mapping[str, Any]) -> str:
    if arguments.get("type") == "bool":
        return f"`{str(arguments['default']).lower()}`"
    return f"`{arguments['default']}`" if arguments.get("default") else ""


def _budgets() -> Iterable[Sequence[str]]:
    described = _described(inspect.getdoc(Budget) or "", "Attributes")
    for each in fields(Budget):
        if each.name != "name":
            what = next(text for names, text in described.items() if each.name in names.split(", "))
            values = (f"{getattr(budget, each.name):,}" for budget in BUDGETS.values())
            yield f"`{each.name}`: {_cell(what)}", *values


def _arguments(recorder: _Recorder) -> Iterable[Sequence[str]]:
    described = {
        **{name.removeprefix("--gradmask-").replace("-", "_"): each["help"] for name, each in recorder.options.items()},
        **_described(inspect.getdoc(ThreatModel) or "", "Attributes"),
        **_described(inspect.getdoc(pytest_gradmask.audit) or "", "Args"),
    }
    for name, default in marker_arguments().items():
        yield f"`{name}`", f"`{default}`", _cell(described[name])


def _described(docstring: str, section: str) -> dict[str, str]:
    """The entries of a section of a Google-style docstring, by name."""
    body = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)+)", docstring + "\n", re.MULTILINE)
    assert body, f"no section {section}"
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", body[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|").replace("%%", "%")  # argparse's percent


def _prose(text: str) -> str:
    """A docstring as Markdown: double backticks become single ones."""
    return inspect.cleandoc(text).replace("``", "`")


def linked(text: str) -> str:
    """The Markdown of a page, with links of the repository replaced by links of the site."""
    for file, title in OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(file)}(#[\w-]+)?\)", rf"]({title}\1)", text)
    text = text.replace("](../README.md)", "](index.md)")
    # In files outside docs/, links to docs/ lead to pages of the site. Other files are not on the site.
    text = re.sub(r"\]\((?:\.\./)?docs/([^)]+)\)", r"](\1)", text)
    return re.sub(r"\[([^\]]+)\]\(((?:\.\./|examples/)[^)]*)\)", r"\1 (`\2`)", text).replace("(`../", "(`")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not files of ``docs/``."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference.md", content=reference()))
    for file, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links that lead out of ``docs/``."""
    return linked(markdown)
