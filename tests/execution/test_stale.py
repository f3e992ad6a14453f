"""No change of a defense finds results of what it was before. `tests.execution.changes` has the kinds of changes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_gradmask import Defense
from pytest_gradmask.auditing import audit_run, run
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.execution.process_state import process_state
from tests.execution.changes import HIDDEN, SEEN, Change, World
from tests.toys import IMAGES, audited, linear

TURNS = [pytest.param(1, id="1"), pytest.param(20, id="20", marks=pytest.mark.nightly)]
CHANGES = {**SEEN, **HIDDEN}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits prepare the defense and use the cache as always, but their verdict costs nothing."""
    known = audited(linear())

    monkeypatch.setattr(audit_run.AuditRun, "until_decided", lambda _: known)


def worlds(folder: Path, turns: int) -> Iterator[World]:
    """A new world for each turn."""
    for turn in range(turns):
        place = folder / str(turn)
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            world = World(place, patch, random.Random(turn).uniform(0.05, 0.95))
            yield world
            world.forget()


def changed(change: Change, world: World) -> Iterator[nn.Module]:
    """The defense before and after, and what the change did to the process undone at the end."""
    made = change(world)
    try:
        yield from made
    finally:
        made.close()  # type: ignore[attr-defined]


def cached(front: nn.Module, folder: Path) -> bool:
    labels = torch.zeros(len(IMAGES), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gradmask cache: .* has changed in a way")
        return audited(nn.Sequential(front, linear()).eval(), labels=labels, cache=folder).cached


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_finds_no_result_of_before(change: Change, turns: int, tmp_path: Path) -> None:
    for world in worlds(tmp_path, turns):
        results = world.folder / "results"
        for front in changed(change, world):
            assert not cached(front, results)


@pytest.mark.parametrize("change", SEEN.values(), ids=SEEN)
def test_code_attributes_and_process_show_it(change: Change, tmp_path: Path) -> None:
    for world in worlds(tmp_path, 1):
        found = [fingerprint(front, process_state()) for front in changed(change, world)]
        assert len(found) == len(set(found)) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_answers_alone_show_it(change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(*values: object) -> str:
        return fingerprint(*(value for value in values if not isinstance(value, (Defense, nn.Module))))

    monkeypatch.setattr(run, "fingerprint", blind)
    monkeypatch.setattr(run, "process_state", lambda: ())
    for world in worlds(tmp_path, 1):
        results = world.folder / "results"
        for front in changed(change, world):
            assert not cached(front, results)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_without_a_change_the_result_is_found(change: Change, tmp_path: Path) -> None:
    for world in worlds(tmp_path, 1):
        for front in changed(change, world):
            assert [cached(front, world.folder / "results") for _ in range(2)] == [False, True]


def test_there_are_enough_kinds() -> None:
    assert len(CHANGES) >= 60


def test_a_change_that_is_not_seen_is_named(tmp_path: Path) -> None:
    for world in worlds(tmp_path, 1):
        labels = torch.zeros(len(IMAGES), dtype=torch.long)
        for number, front in enumerate(changed(HIDDEN["file_in_forward"], world)):
            named = pytest.warns(UserWarning, match="in a way that its code, weights and attributes do not show")
            with named if number else nullcontext():
                audited(nn.Sequential(front, linear()).eval(), labels=labels, cache=tmp_path / "results")


def test_what_cannot_be_hashed_is_named(tmp_path: Path) -> None:
    for world in worlds(tmp_path, 1):
        front = world.front("x * (1 - 0 * LOCK.locked())", "import threading\nLOCK = threading.Lock()").Front()
        with pytest.raises(FingerprintError, match=r"_thread\.lock"):
            fingerprint(front)
