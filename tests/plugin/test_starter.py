"""``--gradmask-init`` writes a first test that runs, or says what is wrong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import Quantize, linear, masked, predictions

FILE = "test_gradient_masking.py"

#: A linear model of noise, bare and behind a front end without a gradient, and things that are no models.
MODELS = """
    from torch import nn
    from tests.toys import Quantize, linear, masked

    def load_bare():
        return linear()

    def load_defense():
        return masked(Quantize)

    bare = load_bare()
    confident = nn.Sequential(load_bare(), nn.Softmax(1))
    number = 3

    def load_text():
        return "model"

    def load_file(path):
        return bare
"""

BAD = {
    "no colon": ("models", "*'models' is not MODULE:ATTR*"),
    "no attribute": ("models:", "*'models:' is not MODULE:ATTR*"),
    "a file": ("src/models.py:bare", "*is not MODULE:ATTR*"),
    "a call": ("models:load_bare()", "*is not MODULE:ATTR*"),
    "no module": ("modells:bare", "*there is no module 'modells' to import*"),
    "no submodule": ("models.zoo:bare", "*there is no module 'models.zoo' to import*"),
    "broken module": ("broken:bare", "*importing broken raises ZeroDivisionError*"),
    "script": ("script:bare", "*importing script raises SystemExit*"),
    "missing package": (
        "needy:bare",
        "*importing needy raises ModuleNotFoundError: No module named 'no_such*",
    ),
    "no such name": ("models:load_defence", "*models has no 'load_defence'; did you mean load_defense*"),
    "not a model": ("models:number", "*models:number is of type int; give a torch.nn.Module*"),
    "returns no model": ("models:load_text", "*models:load_text() returns str; give a torch.nn.Module*"),
    "needs arguments": ("models:load_file", "*calling models:load_file() raises TypeError*"),
}


@pytest.fixture(autouse=True)
def models(pytester: pytest.Pytester) -> None:
    """Modules to import from."""
    pytester.makepyfile(
        models=MODELS,
        broken="1 / 0",
        script="raise SystemExit(2)",
        needy="import no_such_package",
    )


def save_images(file: Path, model: nn.Module) -> None:
    """Noise with the labels that a model gives it."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    labels = predictions(model, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    np.savez(file, images=images, labels=labels.numpy())


@pytest.mark.parametrize(("name", "verdict"), [("load_bare", "NOT_MASKED"), ("load_defense", "MASKED")])
def test_the_test_it_writes_gives_a_verdict(pytester: pytest.Pytester, name: str, verdict: str) -> None:
    written = pytester.runpytest(f"--gradmask-init=models:{name}")
    assert written.ret == 0
    written.stdout.fnmatch_lines([f"{FILE} is written, a test of models:{name}*", "*numpy.savez*", "*--gradmask-data*"])
    save_images(pytester.path / "data.npz", linear() if name == "load_bare" else masked(Quantize))
    result = pytester.runpytest(FILE, "--gradmask", "--gradmask-device=cpu", "--gradmask-data=npz:data.npz")
    result.assert_outcomes(**{"passed" if verdict == "NOT_MASKED" else "failed": 1})
    result.stdout.fnmatch_lines([f"{verdict} *{FILE}::test_gradient_masking"])


def test_without_gradmask_the_test_it_writes_is_skipped(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--gradmask-init=models:bare")
    pytester.runpytest().assert_outcomes(skipped=1)


def test_it_is_short_and_knows_the_model(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--gradmask-init=models:confident")
    text = (pytester.path / FILE).read_text()
    assert "from models import confident" in text
    assert "model = confident.eval()" in text
    assert 'name them: they are "0", "1".' in text
    assert 'defense = Defense(model, name="confident", outputs="probabilities")' in text
    assert len(text.splitlines()) <= 25


def test_every_comment_of_code_runs(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--gradmask-init=models:load_defense")
    lines = (pytester.path / FILE).read_text().splitlines()
    code = [line for line in lines if not line.startswith("    # ")]
    commented = [line.replace("# ", "", 1) for line in lines if line.startswith("    # ") and " = " in line]
    assert len(commented) == 3  # two of a data set, one of a submodule
    names = {"data", "images", "labels", "defense", "model", "Defense", "load_dataset"}
    used = {word for line in commented for word in re.findall(r"[A-Za-z_]+(?=\(|\.| =|,)", line)}
    assert used - {"name", "bypass", "samples", "download", "outputs"} <= names
    ast.parse("\n".join([*code[:-2], *commented, *code[-2:]]))
    named = [line.replace("# ", "", 1) if "bypass=" in line else line for line in lines]
    (pytester.path / FILE).write_text("\n".join(named))
    save_images(pytester.path / "data.npz", masked(Quantize))
    result = pytester.runpytest(FILE, "--gradmask", "--gradmask-device=cpu", "--gradmask-data=npz:data.npz")
    result.stdout.fnmatch_lines(["*MASKED: load_defense, gap *"])


@pytest.mark.parametrize(
    ("options", "said"), [((), True), (("--gradmask-data=embedded",), False), (("--gradmask-data=npz:d.npz",), False)]
)
def test_a_run_says_that_nobody_chose_its_images(
    pytester: pytest.Pytester, options: tuple[str, ...], said: bool
) -> None:
    save_images(pytester.path / "d.npz", linear())
    pytester.makepyfile("def test_it(gradmask, eval_batch): pass")
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", *options)
    line = "gradmask: eval_batch has 20 images of CIFAR-10, as no --gradmask-data was given"
    assert (line in result.outlines) is said


def test_no_test_runs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_other="def test_it(): open('ran', 'w')")
    assert pytester.runpytest("--gradmask-init=models:bare").ret == 0
    assert not (pytester.path / "ran").exists()


def test_nothing_is_overwritten(pytester: pytest.Pytester) -> None:
    (pytester.path / FILE).write_text("mine")
    result = pytester.runpytest("--gradmask-init=models:bare")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{FILE} is there already; move it, or remove it"])
    assert (pytester.path / FILE).read_text() == "mine"


@pytest.mark.parametrize(("path", "message"), BAD.values(), ids=BAD)
def test_what_is_no_model_is_a_usage_error(pytester: pytest.Pytester, path: str, message: str) -> None:
    result = pytester.runpytest(f"--gradmask-init={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    assert not (pytester.path / FILE).exists()
