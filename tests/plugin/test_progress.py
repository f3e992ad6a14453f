"""The line that shows what an audit is doing, and how long it still takes."""

from __future__ import annotations

import pytest

from pytest_gradmask.auditing.events import AttackStarted
from pytest_gradmask.plugin.progress import Clock, describe, in_words

RUN = ("--gradmask", "--gradmask-device=cpu")

#: A terminal that a person watches, and an audit that only sends events.
WATCHED = """
import pytest
from pytest_gradmask.auditing.events import AttackStarted, Message

@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        reporter.isatty = type(reporter.isatty)({watched})

def audit(defense, images, labels, *, progress, **_):
    progress(Message("preflight"))
    progress(AttackStarted(attack="pgd", images=3, seen=4, later=("bpda",)))
    progress(AttackStarted(attack="bpda", images=2, seen=4, later=()))
    raise RuntimeError("that is all")

@pytest.fixture(autouse=True)
def no_attacks(monkeypatch):
    monkeypatch.setattr("pytest_gradmask.auditing.run.audit", audit)
"""

TEST = """
import torch

def test_it(gradmask):
    gradmask.audit(torch.nn.Identity(), [0] * 4, None)
"""


def started(attack: str, images: int, seen: int, *later: str) -> AttackStarted:
    return AttackStarted(attack=attack, images=images, seen=seen, later=later)


def shown(pytester: pytest.Pytester, *options: str, watched: bool = True) -> str:
    pytester.makeconftest(WATCHED.replace("{watched}", str(watched)))
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest(*RUN, *options)
    result.stdout.fnmatch_lines(["*RuntimeError: that is all*"])
    return result.stdout.str().replace("\r", "\n")


def test_each_event_replaces_the_one_before(pytester: pytest.Pytester) -> None:
    lines = [line.strip() for line in shown(pytester).splitlines()]
    start = lines.index("test_it.py::test_it: preflight")
    assert lines[start + 1 : start + 4] == [
        "test_it.py::test_it: pgd on 3 of 4 images, then 1 more",
        "test_it.py::test_it: bpda on 2 of 4 images",
        "",
    ]


@pytest.mark.parametrize(
    ("options", "watched", "ci"),
    [
        pytest.param((), False, "", id="no terminal"),
        pytest.param((), True, "true", id="CI"),
        pytest.param(("-q",), True, "", id="quiet"),
        pytest.param(("-n1",), True, "", id="xdist"),
    ],
)
def test_nothing_is_shown_if_nobody_watches(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], watched: bool, ci: str
) -> None:
    if "-n1" in options:
        pytest.importorskip("xdist")
    monkeypatch.setenv("CI", ci)
    assert "images" not in shown(pytester, "--tb=line", *options, watched=watched)


def test_an_event_has_text_and_numbers() -> None:
    event = started("bpda", 14, 40, "square", "placebo")
    assert str(event) == "bpda on 14 of 40 images"
    assert (event.attack, event.images, event.seen, event.later) == ("bpda", 14, 40, ("square", "placebo"))


def test_no_estimate_without_earlier_runs() -> None:
    clock = Clock({})
    assert clock.begin(started("pgd", 10, 10, "bpda"), 0.0) is None
    assert clock.begin(started("bpda", 10, 10), 1.0) is None


def test_the_next_batch_is_as_fast_as_the_last() -> None:
    clock = Clock({})
    clock.begin(started("pgd", 10, 10, "bpda"), 0.0)
    clock.begin(started("bpda", 5, 10), 1.0)  # pgd took 0.1 s an image
    assert clock.begin(started("pgd", 20, 30, "bpda"), 3.0) == pytest.approx(20 * (0.1 + 0.4))
    assert clock.begin(started("bpda", 10, 30), 5.0) == pytest.approx(10 * 0.4)


def test_rates_of_other_audits_are_scaled() -> None:
    clock = Clock({"pgd": 1.0, "bpda": 4.0})
    assert clock.begin(started("pgd", 10, 10, "bpda"), 0.0) == pytest.approx(50)
    assert clock.begin(started("bpda", 10, 10), 1.0) == pytest.approx(10 * 4.0 * 0.1)  # ten times as fast


def test_an_attack_without_images_changes_no_rate() -> None:
    clock = Clock({})
    clock.begin(started("pgd", 10, 10), 0.0)
    clock.end(5.0)
    clock.begin(started("pgd", 0, 10), 6.0)
    clock.end(7.0)
    clock.end(90.0)
    assert clock.current == {"pgd": 0.5}


@pytest.mark.parametrize(
    ("event", "seconds", "expected"),
    [
        (started("bpda", 14, 40, "square", "placebo"), 125.0,
         "bpda on 14 of 40 images, then 2 more, about 2 min to the next interim analysis"),
        (started("placebo", 3, 200), 4.0, "placebo on 3 of 200 images, a few seconds left"),
        (started("placebo", 3, 200), None, "placebo on 3 of 200 images"),
    ],
)  # fmt: skip
def test_an_event_in_words(event: AttackStarted, seconds: float | None, expected: str) -> None:
    assert describe(event, seconds, 200) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "a few seconds"), (44, "about 40 s"), (100, "about 2 min"), (3600, "about 60 min"), (9000, "about 2.5 h")],
)
def test_times_are_rounded(seconds: float, expected: str) -> None:
    assert in_words(seconds) == expected
