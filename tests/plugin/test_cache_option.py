"""The cache as users of the plugin meet it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.test_reporting import TESTS, read

RUN = ("--gradmask", "--gradmask-device=cpu")


def run(pytester: pytest.Pytester, *options: str) -> list[bool]:
    """Whether each of the two audits was found in the cache."""
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json", *options)
    result.assert_outcomes(passed=2)
    found = [audit["cached"] for audit in read(pytester.path / "out.json")]
    assert ("cached" in "\n".join(result.outlines)) is any(found)
    return found


@pytest.fixture(autouse=True)
def tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)


@pytest.mark.longer
def test_a_second_run_uses_the_cache(pytester: pytest.Pytester) -> None:
    assert run(pytester) == [False, False]
    assert list((pytester.path / ".pytest_cache").rglob("gradmask/*/*.result"))
    assert run(pytester) == [True, True]
    assert run(pytester, "--cache-clear") == [False, False]


@pytest.mark.longer
def test_no_cache_neither_reads_nor_writes(pytester: pytest.Pytester) -> None:
    assert run(pytester, "--gradmask-no-cache") == [False, False]
    assert run(pytester) == [False, False]
    assert run(pytester, "--gradmask-no-cache") == [False, False]


@pytest.mark.longer
def test_the_ini_value_turns_the_cache_off(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_no_cache = true")
    assert run(pytester) == [False, False]
    assert run(pytester) == [False, False]


def test_a_folder_can_be_chosen(pytester: pytest.Pytester, tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    assert run(pytester, f"--gradmask-cache={folder}") == [False, False]
    assert list(folder.rglob("*.result"))
    assert not list((pytester.path / ".pytest_cache").rglob("gradmask/*/*.result"))
    assert run(pytester, f"--gradmask-cache={folder}", "-p", "no:cacheprovider") == [True, True]


def test_without_pytests_cache_nothing_is_stored(pytester: pytest.Pytester) -> None:
    assert run(pytester, "-p", "no:cacheprovider") == [False, False]
    assert not (pytester.path / ".pytest_cache").exists()


@pytest.mark.longer
def test_workers_share_the_cache(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    assert run(pytester, "-n2") == [False, False]
    assert run(pytester, "-n2") == [True, True]


@pytest.mark.longer
def test_a_changed_defense_is_audited_again(pytester: pytest.Pytester) -> None:
    assert run(pytester) == [False, False]
    pytester.makepyfile(test_it=TESTS.replace("* 31", "* 29").replace("/ 31", "/ 29"))
    # The undefended model is made of torch's classes alone: nothing of it has changed.
    assert run(pytester) == [True, False]
