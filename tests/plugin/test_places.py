"""Where settings come from and where files go: every kind of ini file, from every folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PLAIN = "gradmask_budget = ci\ngradmask_seed = 7\ngradmask_device = cpu\naddopts = --gradmask\n"
QUOTED = 'gradmask_budget = "ci"\ngradmask_seed = "7"\ngradmask_device = "cpu"\naddopts = ["--gradmask"]\n'
FILES = {
    "pytest.ini": ("pytest.ini", f"[pytest]\n{PLAIN}"),
    "tox.ini": ("tox.ini", f"[pytest]\n{PLAIN}"),
    "setup.cfg": ("setup.cfg", f"[tool:pytest]\n{PLAIN}"),
    "pyproject.toml": ("pyproject.toml", f"[tool.pytest.ini_options]\n{QUOTED}"),
}
TEST = "def test_nothing(gradmask): pass"


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_ini_file(pytester: pytest.Pytester, kind: str) -> None:
    name, text = FILES[kind]
    (pytester.path / name).write_text(text)
    pytester.makepyfile(TEST)
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(["gradmask: budget=ci, device=cpu, data=embedded, seed=7", "*1 passed*"])


@pytest.fixture
def subfolder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a test, below that of the ini file, which is the current one."""
    folder = pytester.mkdir("sub")
    (folder / "test_it.py").write_text(TEST)
    monkeypatch.chdir(folder)
    return folder


def test_files_of_the_ini_file_are_beside_it(pytester: pytest.Pytester, subfolder: Path) -> None:
    pytester.makeini("[pytest]\ngradmask_json = out.json\ngradmask_history = runs\ngradmask_device = cpu")
    result = pytester.runpytest("--gradmask", "--gradmask-badge=badge.json")
    result.assert_outcomes(passed=1)
    assert (pytester.path / "out.json").is_file()
    assert [file.name for file in subfolder.glob("*.json")] == ["badge.json"]


def test_an_absolute_path_in_an_ini_file(pytester: pytest.Pytester, subfolder: Path, tmp_path: Path) -> None:
    pytester.makeini(f"[pytest]\ngradmask_json = {tmp_path / 'elsewhere.json'}\ngradmask_device = cpu")
    pytester.runpytest("--gradmask").assert_outcomes(passed=1)
    assert (tmp_path / "elsewhere.json").is_file()
    assert not [*subfolder.glob("*.json")]


def test_a_missing_folder_in_an_ini_file(pytester: pytest.Pytester, subfolder: Path) -> None:
    pytester.makeini("[pytest]\ngradmask_json = gone/out.json")
    result = pytester.runpytest("--gradmask")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    there = os.path.relpath(pytester.path / "gone" / "out.json", subfolder)
    result.stderr.fnmatch_lines([f"*ini value gradmask_json: '{there}' is not a file in an existing directory*"])


@pytest.mark.parametrize("by", ["option", "ini file"])
def test_a_file_below_the_home(
    pytester: pytest.Pytester, subfolder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pytester.makeini("[pytest]\ngradmask_json = ~/out.json" if by == "ini file" else "[pytest]")
    pytester.runpytest("--gradmask", *(["--gradmask-json=~/out.json"] if by == "option" else []))
    assert (tmp_path / "out.json").is_file()
    assert not [*subfolder.rglob("*.json")]


def test_a_home_of_nobody(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--gradmask-json=~nobody-of-this-name/out.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradmask-json: '~nobody-*' starts with the home of an unknown user"])


@pytest.mark.longer
def test_a_folder_that_cannot_be_written_to(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        def pytest_configure(config):
            def mkdir(name):
                raise PermissionError(f"no {name}")

            config.cache.mkdir = mkdir
        """
    )
    pytester.makepyfile(
        """
        from tests.toys import IMAGES, linear

        def test_it(gradmask):
            model = linear()
            gradmask.audit(model, IMAGES[:3], model(IMAGES[:3]).argmax(1))
        """
    )
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", "-W", "default")
    result.assert_outcomes(passed=1, warnings=2)  # the other: it asserts nothing
    result.stdout.fnmatch_lines(["*gradmask cache: results are not stored, and audits are not counted (no gradmask)"])


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only", "--collect-only"])
def test_a_run_without_tests_writes_nothing(pytester: pytest.Pytester, option: str) -> None:
    pytester.makepyfile(TEST)
    outputs = ("--gradmask-json=run.json", "--gradmask-baseline=out.json", "--gradmask-baseline-update")
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", *outputs, option)
    assert result.ret == 0
    assert "audits" not in result.stdout.str()
    assert not [*pytester.path.glob("*.json")]
