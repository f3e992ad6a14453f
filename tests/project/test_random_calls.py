"""Whatever public functions are given, they return, or raise an error of ours that can be printed."""

from __future__ import annotations

import random
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import pytest_gradmask as gradmask
from pytest_gradmask.printable import printable
from tests.project.api import CALLS
from tests.project.odd_values import ODD

NOT_CALLED = {
    *("AttackResult", "Audit", "BinarizationTest", "Dataset", "Finding", "Gap", "Prediction", "Proportion", "Verdict"),
    "PerturbationSet",
    *(name for name in gradmask.__all__ if name.endswith("Error")),
}
#: Messages that need not name the argument: its value does not fit another one, makes the model raise, names a file, or
#: is a model in train mode, which is called by its class.
OF_ANOTHER = {
    *((name, "defense") for name in CALLS),
    *(("Defense", "model"), ("Defense", "attacks"), ("pgd", "labels"), ("apgd", "labels")),
    *(("load_model", "spec"), ("load_dataset", "spec")),
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises if the block takes longer."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_of(name: str, changed: Mapping[str, Callable[[], Any]]) -> str:
    """What comes of a call with some arguments in place of those that work."""
    function, arguments = CALLS[name]
    try:
        with warnings.catch_warnings(), within(20):
            warnings.simplefilter("ignore")
            function(**{**arguments(), **{argument: make() for argument, make in changed.items()}})
    except gradmask.GradmaskError as error:
        message = str(error)
        if printable(message) != message:
            raise ValueError(f"not printable: {message!a}") from error
        argument = next(iter(changed), "")
        if len(changed) == 1 and argument not in message and (name, argument) not in OF_ANOTHER:
            raise ValueError(f"does not name the argument: {message}") from error
        return "error of ours"
    except AssertionError:
        if not name.startswith("assert_"):
            raise
        return "failed assertion"
    return "returned"


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_work(name: str) -> None:
    assert end_of(name, {}) in ("returned", "failed assertion") or name == "plot_transfer_matrix"


def test_every_public_name_is_called() -> None:
    assert CALLS.keys() | NOT_CALLED == set(gradmask.__all__)


@pytest.mark.longer
@pytest.mark.parametrize("name", CALLS)
def test_each_argument_with_each_odd_value(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    escaped = []
    for argument in CALLS[name][1]():
        for number, make in enumerate(ODD):
            try:
                end_of(name, {argument: make})
            except Exception as error:  # each is listed, so that one run shows them all
                escaped.append(f"{argument}=#{number}: {type(error).__name__}: {str(error)[:100]}")
    assert not escaped, "\n".join(escaped)


@pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_several_odd_arguments(
    cases: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw, ends = random.Random(cases), Counter[str]()
    for _ in range(cases):
        name = draw.choice(list(CALLS))
        known = list(CALLS[name][1]())
        changed = {argument: draw.choice(ODD) for argument in draw.sample(known, min(len(known), draw.randint(1, 4)))}
        ends[end_of(name, changed)] += 1
    record_property("tries", cases)
    record_property("result", ", ".join(f"{count} {end}" for end, count in ends.most_common()))
    assert torch.is_grad_enabled()
