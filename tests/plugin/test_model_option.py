"""``--gradmask-model`` and its fixture; data and models that are asked for on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

RUN = ("--gradmask", "--gradmask-device=cpu", "-p", "no:cacheprovider")
TEST = """
    def test_it(gradmask, gradmask_model, eval_batch):
        assert not gradmask_model.training
        assert gradmask_model(eval_batch.images[:2]).shape[1] == 10
"""
PROJECT = """
    from torch import nn

    def load_defense():
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))

    def load_large():
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1000))

    def load_settings():
        return {}
"""


def test_the_model_of_the_command_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST, my_project=PROJECT)
    result = pytester.runpytest(*RUN, "--gradmask-model=import:my_project:load_defense")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["gradmask: *model=import:my_project:load_defense*"])
    pytester.makeini("[pytest]\ngradmask_model = resnet-standard")
    pytester.runpytest(*RUN).assert_outcomes(passed=1)


def test_local_weights_and_an_imagenet_folder(pytester: pytest.Pytester) -> None:
    network = timm.create_model("test_efficientnet")
    torch.save({f"their.{key}": value for key, value in network.state_dict().items()}, "weights.pth")
    for name in ("n01440764", "n01443537"):
        Path("val", name).mkdir(parents=True)
        Image.fromarray(np.full((40, 50, 3), 99, dtype=np.uint8)).save(f"val/{name}/0.png")
    pytester.makepyfile(
        """
        def test_it(gradmask, gradmask_model, eval_batch):
            assert eval_batch.images.shape == (2, 3, 32, 32)
            assert eval_batch.labels.tolist() == [0, 1]
            assert gradmask_model(eval_batch.images).shape == (2, 1000)
        """
    )
    model = "--gradmask-model=timm:test_efficientnet@weights.pth"
    pytester.runpytest(*RUN, model, "--gradmask-data=imagenet:val?size=32").assert_outcomes(passed=1)


def test_the_model_can_be_parametrized(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("gradmask_model", ["resnet-standard", "vgg-standard"], indirect=True)
        def test_it(gradmask, gradmask_model):
            pass
        """
    )
    pytester.runpytest(*RUN).assert_outcomes(passed=2)


def test_without_a_model_the_error_names_the_option(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    result = pytester.runpytest(*RUN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*gradmask_model needs --gradmask-model=MODEL*"])


USAGE = {
    "unknown kind": ("model", "keras:resnet", "unknown kind 'keras'*timm:NAME"),
    "no file": ("model", "timm:resnet18@absent.pth", "no such file: absent.pth"),
    "no card": ("model", "checkpoint:absent.json", "no such file: absent.json"),
    "no attribute": ("model", "import:my_project", "is no MODULE:ATTR"),
    "no folder": ("data", "imagenet:absent", "no such directory: absent"),
    "bad size": ("data", "imagenet:.?size=big", "size=big is not a whole number"),
    "no target": ("data", "dataset:mine", "is no MODULE:ATTR"),
}


@pytest.mark.parametrize(("option", "value", "said"), USAGE.values(), ids=USAGE)
@pytest.mark.parametrize("ini", [False, True], ids=["option", "ini"])
def test_a_bad_spec_is_a_usage_error(pytester: pytest.Pytester, option: str, value: str, said: str, ini: bool) -> None:
    pytester.makepyfile(TEST)
    if ini:
        pytester.makeini(f"[pytest]\ngradmask_{option} = {value}")
    result = pytester.runpytest(*RUN, *([] if ini else [f"--gradmask-{option}={value}"]))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*gradmask*{option}*{value}*{said}*"])
    result.stdout.no_fnmatch_line("*test_it*")


def test_runs_without_audits_need_no_files(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_model = timm:resnet18@absent.pth\ngradmask_data = imagenet:absent")
    pytester.makepyfile("def test_other(): pass")
    pytester.runpytest().assert_outcomes(passed=1)


ERRORS = {
    "timm:reznet18": "timm has no such model; similar ones: *resnet18",
    "torchvision:reznet18": "torchvision has no such model; similar ones: *resnet18",
    "timm:test_efficientnet": "nothing is downloaded unasked; pass --gradmask-download",
    "import:my_project:load_defence": "my_project has no 'load_defence'; it has load_defense",
    "import:my_project:load_settings": "returned a dict; must return a Module",
    "import:my_project:load_large": "has 1000 classes, but data 'embedded' have 10",
}


@pytest.mark.parametrize(("spec", "said"), ERRORS.items(), ids=ERRORS)
def test_loading_errors_are_errors_of_the_fixture(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, spec: str, said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    pytester.makepyfile(TEST, my_project=PROJECT)
    result = pytester.runpytest(*RUN, f"--gradmask-model={spec}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*Error: model '{spec}'*{said}*"])


def test_permission_to_download_reaches_the_model(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    pytester.makepyfile(TEST)
    result = pytester.runpytest(*RUN, "--gradmask-model=timm:test_efficientnet", "--gradmask-download")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*could not download*no route to host*a local file: timm:test_efficientnet@FILE*"])


@pytest.mark.longer
@pytest.mark.parametrize("permitted", [True, False])
def test_a_terminal_shows_a_download(pytester: pytest.Pytester, permitted: bool) -> None:
    """Without a terminal, what libraries print while they load is captured, like all output of tests."""
    pytester.makepyfile(
        "def test_it(gradmask, gradmask_model): print('what a test prints')",
        my_project=PROJECT + "\n    print('12 % of the file')",
    )
    command = [sys.executable, "-m", "pytest", *RUN, "--gradmask-model=import:my_project:load_defense"]
    ours, theirs = os.openpty()
    run = subprocess.Popen([*command, *["--gradmask-download"] * permitted], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # raised at the end of a terminal's output
        while part := os.read(ours, 10_000):
            shown += part
    os.close(ours)
    assert run.wait() == 0
    assert (b"12 % of the file" in shown) is permitted
    assert b"what a test prints" not in shown
