"""Pages that are made when the site is built: the reference, from the code, and files from outside of ``docs/``.

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

#: Files outside of ``docs/``, and their pages.
OUTSIDE = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "fixtures/README.md": "fixtures.md",
}


class _Recorder:
    """Stands in for pytest's parser: keeps what a plugin registers."""

    def __init__(self) -> None:
        self.options: dict[str, dict[str, Any]] = {}
        self.ini: dict[str, dict[str, Any]] = {}

    def getgroup(self, *_: str) -> _Recorder:
        return self

    def addoption(self, *names: str, **described: Any) -> None:
        self.options[names[-1]] = described

    def addini(self, name: str, help: str, **described: Any) -> None:  # noqa: A002 - pytest's name of it
        self.ini[name] = {"help": help, **described}


def registered() -> _Recorder:
    """The options and ini values of the plugin."""
    recorder = _Recorder()
    plugin.pytest_addoption(recorder)  # type: ignore[arg-type]
    return recorder


def marker_arguments() -> dict[str, str]:
    """The marker's arguments, each with its default as one writes it."""
    call = ast.parse(DESCRIPTION.partition("): ")[0] + ")", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(keyword.arg): ast.unparse(keyword.value).replace(" ", "") for keyword in call.keywords}


def reference() -> str:
    """The reference as Markdown. What is said of each thing is what the code says."""
    recorder = registered()
    return "\n\n".join(
        [
            "# Reference",
            "Made from the code when this site is built.",
            "## Options",
            "On the command line of pytest. Each but those that only start something has a twin in the ini file "
            "(`pytest.ini`, or `[tool.pytest.ini_options]` in `pyproject.toml`), under the name in the last column.",
            _table(("option", "what", "ini value"), _options(recorder)),
            "## Ini values",
            _table(
                ("name", "what", "default"),
                ((f"`{name}`", _cell(each["help"]), _default(each)) for name, each in recorder.ini.items()),
            ),
            "## Budgets",
            "What `--gradmask-budget` and the marker's `budget` choose between.",
            _table(("", *(f"`{name}`" for name in BUDGETS)), _budgets()),
            "## Marker",
            "`@pytest.mark.gradmask(...)` changes the settings of one test, class or module; the closest one wins, "
            "argument by argument. It makes a test an audit, which runs with `--gradmask` only. So does the fixture "
            "`gradmask`.",
            _table(("argument", "default", "what"), _arguments(recorder)),
            "## Fixtures",
            *(
                f"### `{name}` {{#fixture-{name}}}\n\n{_prose(getattr(plugin, name).__doc__ or '')}"
                for name in plugin.__all__
            ),
            "## Classes and functions",
            "All can be imported from `pytest_gradmask`.",
            *(f"::: pytest_gradmask.{name}" for name in pytest_gradmask.__all__),
            "## Hooks",
            "Other plugins and `conftest.py` files may implement these; [the guide](extending.md) shows how.",
            *(f"::: pytest_gradmask.plugin.hookspecs.{name}" for name in hooks()),
        ]
    )


def hooks() -> list[str]:
    """Names of the hooks, in their order."""
    return [name for name in vars(hookspecs) if name.startswith("pytest_")]


def _options(recorder: _Recorder) -> Iterable[Sequence[str]]:
    for name, each in recorder.options.items():
        value = f"={each['metavar']}" if "metavar" in each else ""
        twin = name.removeprefix("--").replace("-", "_")
        yield f"`{name}{value}`", _cell(each["help"]), f"`{twin}`" if twin in recorder.ini else ""


def _default(described: Mapping[str, Any]) -> str:
    if described.get("type") == "bool":
        return f"`{str(described['default']).lower()}`"
    return f"`{described['default']}`" if described.get("default") else ""


def _budgets() -> Iterable[Sequence[str]]:
    said = _described(inspect.getdoc(Budget) or "", "Attributes")
    for each in fields(Budget):
        if each.name != "name":
            what = said.get(each.name) or next(text for names, text in said.items() if each.name in names.split(", "))
            values = (f"{getattr(budget, each.name):,}" for budget in BUDGETS.values())
            yield f"`{each.name}`: {_cell(what)}", *values


def _arguments(recorder: _Recorder) -> Iterable[Sequence[str]]:
    said = {
        **{name.removeprefix("--gradmask-").replace("-", "_"): each["help"] for name, each in recorder.options.items()},
        **_described(inspect.getdoc(ThreatModel) or "", "Attributes"),
        **_described(inspect.getdoc(pytest_gradmask.audit) or "", "Args"),
    }
    for name, default in marker_arguments().items():
        yield f"`{name}`", f"`{default}`", _cell(said[name])


def _described(docstring: str, section: str) -> dict[str, str]:
    """What a Google-style docstring says under a section, by name."""
    body = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)+)", docstring + "\n", re.MULTILINE)
    assert body, f"no section {section}"
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", body[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|").replace("%%", "%")  # argparse's percent


def _prose(text: str) -> str:
    """A docstring as Markdown: its double backticks are code, too."""
    return inspect.cleandoc(text).replace("``", "`")


def linked(text: str, page: str) -> str:
    """A page's Markdown with links that hold on the site, where they hold in the repository."""
    for file, title in OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(file)}(#[\w-]+)?\)", rf"]({title}\1)", text)
    text = text.replace("](../README.md)", "](reference.md)" if page == "benchmarks.md" else "](index.md)")
    # Of files outside of docs/: pages beside them are in docs/, other files are not on the site.
    text = re.sub(r"\]\((?:\.\./)?docs/([^)]+)\)", r"](\1)", text)
    return re.sub(r"\[([^\]]+)\]\(((?:\.\./|examples/)[^)]*)\)", r"\1 (`\2`)", text).replace("(`../", "(`")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of ``docs/``."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference.md", content=reference()))
    for file, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Repair links that lead out of ``docs/``."""
    return linked(markdown, page.file.src_uri)
