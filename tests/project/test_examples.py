"""The examples: their tests pass, here and in a fresh environment, and their workflows are one and the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
import torch
import yaml

from examples.run import EXPECTED, main
from tests.toys import draw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(file.parent.name for file in EXAMPLES.glob("*/pyproject.toml"))

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn, for its digits"
)


def test_every_example_has_an_expected_outcome() -> None:
    assert sorted(EXPECTED) == FOLDERS
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{folder}/`" in readme for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_example_is_complete(folder: str) -> None:
    project = tomllib.loads((EXAMPLES / folder / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["test"] == ["pytest-gradmask"]
    assert list((EXAMPLES / folder).glob("test_*.py"))
    workflow = EXAMPLES / folder / ".github" / "workflows" / "gradmask.yml"
    assert workflow.read_text() == (EXAMPLES / "workflow.yml").read_text()


@needs_sklearn
@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tests_of_an_example_pass(folder: str) -> None:
    # In a new process, because the examples have their own modules and options.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--gradmask", "--gradmask-device=cpu", "-p", "no:cacheprovider"],
        cwd=EXAMPLES / folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed, skipped = EXPECTED[folder]
    assert f"{passed} passed" + (f", {skipped} skipped" if skipped else "") in done.stdout


@needs_sklearn
def test_a_model_with_real_weights_is_normalised(tmp_path: Path) -> None:
    pytest.importorskip("timm", minversion="1.0.27", reason="the example asks for timm 1.0.27")
    spec = importlib.util.spec_from_file_location("claimed_models", EXAMPLES / "published-claim" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    weights = timm.create_model("test_resnet").eval()
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"architecture": "test_resnet", "pretrained_cfg": pixels}
    timm.models.save_for_hf(weights, tmp_path, model_config=config, safe_serialization=True)
    images = draw(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in pixels.values())
    with torch.no_grad():
        found, wanted = models.published(f"local-dir:{tmp_path}")(images), weights((images - mean) / std)
    torch.testing.assert_close(found, wanted)


@needs_sklearn
@pytest.mark.slow
def test_they_run_in_a_fresh_environment() -> None:
    pytest.importorskip("hatchling", reason="needs hatchling, to build the wheel without a network")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "run.py", "--reuse", "front-end"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all examples are as expected" in done.stdout


def test_an_unknown_example_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["backend"])
    assert refused.value.code == 2
    assert "no example 'backend'; there are front-end" in capsys.readouterr().err


@pytest.mark.parametrize("file", [ROOT / ".github" / "workflows" / "ci.yml", EXAMPLES / "workflow.yml"], ids=str)
def test_workflows_are_valid(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow[True]  # "on" is a boolean in YAML 1.1
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("uses" in step) is not ("run" in step)
            assert "@v" in step.get("uses", "@v")


def test_the_copyable_workflow_uses_options_that_exist(pytester: pytest.Pytester) -> None:
    (run,) = [
        step["run"]
        for step in yaml.safe_load((EXAMPLES / "workflow.yml").read_text())["jobs"]["audit"]["steps"]
        if "pytest" in step.get("run", "")
    ]
    pytester.mkdir(".gradmask-cache")
    pytester.makepyfile("def test_it(): pass")
    words = run.split()
    result = pytester.runpytest(*words[words.index("pytest") + 1 :], "--gradmask-device=cpu")
    result.assert_outcomes(passed=1)
    assert (pytester.path / "gradmask.json").is_file()
    assert (pytester.path / "junit.xml").is_file()
    page = (ROOT / "docs" / "ci.md").read_text()
    assert (EXAMPLES / "workflow.yml").read_text() in page
