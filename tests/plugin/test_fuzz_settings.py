"""Whatever options, ini values and markers say: settings, or a usage error that names the argument and the value."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gradmask.plugin.marker import _ARGUMENTS, read_marker
from pytest_gradmask.plugin.options import OPTIONS
from pytest_gradmask.plugin.settings import Settings

#: What is right for some option, to be taken for another, cut, doubled and garbled.
SOUND = (
    "smoke", "ci", "full", "auto", "cpu", "cuda", "cuda:1", "embedded", "cifar10", "npz:data.npz", "imagenet:here",
    "dataset:module:data", "timm:resnet18", "import:module:model", "20", "0", "1.5", "local", "ray", "ray:auto",
    "ray:host:6379", "report.json", "../up.json", ".", "/", "/nowhere/file", "~", "file\0", "\n", "١٢", "1e999",
)  # fmt: skip
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(SOUND),
    st.tuples(st.sampled_from(SOUND), st.text(max_size=3), st.sampled_from(SOUND)).map("".join),
    st.tuples(st.sampled_from(SOUND), st.integers(0, 8)).map(lambda cut: cut[0][: cut[1]]),
)
anything: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), texts, st.binary(max_size=3),
    st.lists(st.floats(), max_size=3), st.tuples(st.floats(), st.floats()),
    st.sampled_from([
        {}, object(), np.float32(0.1), np.arange(3), torch.tensor(0.1), torch.ones(2), Path("x"), math, print, "L2",
        "Linf", (0, 1), (1, 0), 8 / 255, 10**400,
    ]),
)  # fmt: skip
cases = pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.nightly)])
Record = Callable[[str, object], None]


def error_of(kind: type[Exception], work: Callable[[], object]) -> str | None:
    """What the error says, if it is one of ours."""
    try:
        work()
    except kind as error:
        return str(error)
    return None


@cases
def test_an_option_and_its_ini_value(cases: int, record_property: Record) -> None:
    taken = 0

    @settings(max_examples=cases)
    @given(st.sampled_from(OPTIONS), texts)
    def parse(option: Any, text: str) -> None:
        nonlocal taken
        said = error_of(argparse.ArgumentTypeError, lambda: option.parse(text))
        taken += said is None
        assert said is None or text in said or repr(text)[1:-1] in said

    parse()
    record_property("tries", cases)
    record_property("result", f"{taken} values taken; of all others the error names the value")
    assert taken


@cases
def test_a_marker(cases: int, record_property: Record) -> None:
    run = cast(Settings, SimpleNamespace(budget="smoke", seed=0, samples=None, attempt=1))
    taken = 0

    @settings(max_examples=cases)
    @given(st.dictionaries(st.sampled_from([*_ARGUMENTS, "epsilon"]), anything, min_size=1, max_size=2))
    def read(arguments: dict[str, Any]) -> None:
        nonlocal taken
        marker = SimpleNamespace(args=(), kwargs=arguments)
        item = SimpleNamespace(nodeid="test_it.py::test_it", iter_markers=lambda _: [marker])
        said = error_of(pytest.UsageError, lambda: read_marker(cast(pytest.Item, item), run))
        taken += said is None
        assert said is None or any(name in said for name in arguments)

    read()
    record_property("tries", cases)
    record_property("result", f"{taken} markers taken; of all others the error names the argument")
    assert taken
