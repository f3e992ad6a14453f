"""A test that audits a defense and asserts nothing would pass, whatever the verdict is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from pytest_gradmask.plugin.stash import SETTINGS, UNCHECKED

#: Names in the code of a test that makes sure of something. Assert statements leave `AssertionError` or pytest's names.
_CHECKS = re.compile(r"assert|@py_|check(?!point)|verif|expect|ensure|raises|fail", re.IGNORECASE)
_DEPTH = 3  # how far helpers that call helpers are followed


class UncheckedAuditWarning(pytest.PytestWarning):
    """A test audits a defense and asserts nothing of the audit."""


def check_that_something_is_asserted(item: pytest.Item) -> None:
    """Warn about audits of a test that nothing was asserted of; with ``--gradmask-strict``, fail the test."""
    unchecked = item.stash.get(UNCHECKED, {})
    if not unchecked or _asserts(getattr(item, "function", None)):
        return
    names = ", ".join(dict.fromkeys(unchecked.values()))
    message = (
        f"audits {names} and asserts nothing, so it passes whatever the verdict is: "
        "call assert_no_gradient_masking(audit), or assert something of the audit"
    )
    if item.config.stash[SETTINGS].strict:
        pytest.fail(f"{item.name} {message}", pytrace=False)
    item.warn(UncheckedAuditWarning(f"{item.name} {message}"))


def _asserts(function: Any) -> bool:
    """Whether a function asserts something, itself or by a helper; assertions on audits are counted as they run."""
    return any(_CHECKS.search(name) and name not in _own_assertions() for name in _names(function, _DEPTH))


def _own_assertions() -> set[str]:
    from pytest_gradmask.report import assertions

    return {name for name in vars(assertions) if name.startswith("assert_")}


def _names(function: Any, depth: int) -> Iterator[str]:
    """Every name in the code of a function, and in that of the functions that it names."""
    function = getattr(function, "__func__", function)  # of a method
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, FunctionType) or function.__module__.partition(".")[0] == "pytest_gradmask":
        return
    names = set(_names_in(function.__code__))
    yield from names
    if depth:
        for name in names & function.__globals__.keys():
            yield from _names(function.__globals__[name], depth - 1)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
