"""Options, ini values and the header."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

AUDIT_TEST = """
    import pytest

    @pytest.mark.gradmask
    def test_audit():
        pass

    def test_other():
        pass
"""

BAD_VALUES = {
    "budget": ("huge", "smoke, ci, full"),
    "device": ("tpu", "auto, cpu, cuda or cuda:N"),
    "data": ("mnist", "embedded"),
    "samples": ("0", "at least 1"),
    "seed": ("-1", "at least 0"),
    "attempt": ("0", "at least 1"),
    "json": ("no/such/dir/out.json", "existing directory"),
    "badge": ("no/such/dir/badge.json", "existing directory"),
    "baseline": ("no/such/dir/baseline.json", "existing directory"),
    "html": ("no/such/dir/out.html", "existing directory"),
    "cache": ("/dev/null", "not a directory"),
    "adversarial": ("/proc/no/such", "cannot be written to"),
    "history": ("/proc/no/such", "cannot be written to"),
    "timeout": ("0", "seconds above 0"),
    "precision": ("float8", "auto, own, tf32, bfloat16"),
    "deadline": ("10 minutes", "a time such as 90, 90s, 10m or 2h"),
    "engine": ("dask", "local, ray, ray:HOST:PORT or ray:auto"),
}


@pytest.mark.parametrize(("option", "value", "expected"), [(k, *v) for k, v in BAD_VALUES.items()], ids=BAD_VALUES)
def test_a_bad_option_is_a_usage_error(pytester: pytest.Pytester, option: str, value: str, expected: str) -> None:
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest(f"--gradmask-{option}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-{option}*{value}*{expected}*"])


@pytest.mark.parametrize(("option", "value", "expected"), [(k, *v) for k, v in BAD_VALUES.items()], ids=BAD_VALUES)
def test_a_bad_ini_value_is_a_usage_error(pytester: pytest.Pytester, option: str, value: str, expected: str) -> None:
    pytester.makeini(f"[pytest]\ngradmask_{option} = {value}")
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*gradmask_{option}*{value}*{expected}*"])


def test_an_unknown_option_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--gradmask-bugdet=smoke")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_without_the_option_audits_are_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*SKIPPED*--gradmask*"])


def test_a_test_with_the_fixture_is_an_audit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_audit(gradmask): raise RuntimeError")
    pytester.runpytest().assert_outcomes(skipped=1)


def test_with_the_option_audits_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT_TEST)
    pytester.runpytest("--gradmask", "--gradmask-device=cpu").assert_outcomes(passed=2)


def test_the_ini_value_turns_audits_on(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask = true\ngradmask_device = cpu")
    pytester.makepyfile(AUDIT_TEST)
    pytester.runpytest().assert_outcomes(passed=2)


def test_the_header_prints_the_effective_settings(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_budget = ci\ngradmask_seed = 3\ngradmask_device = cpu")
    result = pytester.runpytest("--gradmask", "--gradmask-seed=7", "--gradmask-samples=5")
    result.stdout.fnmatch_lines(["gradmask: budget=ci, device=cpu, data=embedded, samples=5, seed=7"])


def test_the_header_fits_a_terminal_of_80_columns(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu")
    result.stdout.fnmatch_lines(["gradmask: budget=smoke, device=cpu, data=embedded, seed=0"])


def test_an_option_goes_before_its_ini_value(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_budget = full\ngradmask_device = cpu")
    pytester.runpytest("--gradmask").stdout.fnmatch_lines(["gradmask: budget=full, *"])
    pytester.runpytest("--gradmask", "--gradmask-budget=ci").stdout.fnmatch_lines(["gradmask: budget=ci, *"])


def test_ini_values_of_data_and_places(pytester: pytest.Pytester) -> None:
    np.savez(pytester.path / "mine.npz", images=np.full((3, 8, 8, 3), 99, np.uint8), labels=np.arange(3))
    lines = ["gradmask = true", "gradmask_device = cpu", "gradmask_data = npz:mine.npz", "gradmask_json = out.json"]
    pytester.makeini("\n".join(["[pytest]", *lines, "gradmask_cache = stored", "gradmask_samples = 2"]))
    pytester.makepyfile(
        """
        from pytest_gradmask import audit
        from tests.toys import linear

        def test_audit(gradmask, eval_batch):
            assert eval_batch.images.shape == (2, 3, 8, 8)
            gradmask.audit(linear(), *eval_batch)
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)
    assert (pytester.path / "out.json").is_file()
    assert list((pytester.path / "stored").rglob("*.result"))


@pytest.mark.parametrize(
    ("option", "ini", "asked"),
    [((), "", False), (("--gradmask-download",), "", True), ((), "gradmask_download = true", True)],
)
def test_missing_data_is_downloaded_on_request_only(
    pytester: pytest.Pytester, option: tuple[str, ...], ini: str, asked: bool
) -> None:
    pytester.makeini(f"[pytest]\n{ini}")
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def no_network(monkeypatch):
            def load(spec, download):
                raise RuntimeError(f"asked to download: {{download}}")
            monkeypatch.setattr("pytest_gradmask.loading.datasets.open_dataset", load)

        @pytest.mark.gradmask
        def test_data(no_network, request):
            with pytest.raises(RuntimeError, match="asked to download: {asked}"):
                request.getfixturevalue("eval_batch")
        """
    )
    run = ("--gradmask", "--gradmask-device=cpu", "--gradmask-data=cifar10")
    pytester.runpytest(*run, *option).assert_outcomes(passed=1)


def test_no_header_without_audits(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest()
    result.stdout.no_fnmatch_line("gradmask:*")


def test_help_lists_every_option_and_ini_twin(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest("--help").stdout.str()
    for name in (*BAD_VALUES, "baseline-update", "download", "no-cache"):
        assert f"--gradmask-{name}" in text
        assert re.search(rf"^  gradmask_{name.replace('-', '_')} ", text, re.MULTILINE)


def test_missing_cuda_is_a_usage_error(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest("--gradmask", "--gradmask-device=cuda:1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradmask-device=cuda:1*sees 0 CUDA devices*auto*"])


@pytest.mark.parametrize("spec", ["npz:nowhere.npz", "imagefolder:nowhere", "npz:"])
def test_missing_data_is_a_usage_error(pytester: pytest.Pytester, spec: str) -> None:
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", f"--gradmask-data={spec}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-data*{spec}*"])


def test_the_plugin_starts_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys, pytest\n"
        "class Report:\n"
        "    def pytest_sessionfinish(self):\n"
        "        print('heavy:', [m for m in ('torch', 'numpy', 'scipy', 'timm') if m in sys.modules])\n"
        "pytest.main(['-p', 'pytest_gradmask.plugin', '--collect-only', '-q'], plugins=[Report()])\n"
    )
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins import what they like
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120, env=alone
    )
    assert "heavy: []" in result.stdout
