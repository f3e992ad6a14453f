"""The command that makes front ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_gradmask.checkpoints import load_card, load_model
from pytest_gradmask.training import front_ends
from tests.toys import draw

# the command that makes front ends


def make(workshop: Path, *more: str) -> list[str]:
    small = ["--depth", "5", "--width", "4", "--images", "32", "--data", f"npz:{workshop / 'data.npz'}"]
    return ["front", *small, "--output", str(workshop / "out"), *more]


def test_front_end_command_saves_a_calibrated_front_end(workshop: Path) -> None:
    assert front_ends.main(make(workshop, "--residual-std", "0.01", "--seed", "3")) == 0
    card, text = load_card("front", workshop / "out"), (workshop / "out" / "front.json").read_text()
    assert str(workshop) not in text
    assert card["architecture"] == "dncnn"
    assert card["arguments"] == {"depth": 5, "width": 4, "channels": 3}
    assert card["data"] == [{"kind": "npz", "name": "data.npz", "images": 32}]
    assert (card["seed"], card["residual_std"]) == (3, 0.01)
    assert card["versions"].keys() == {"python", "torch", "torchvision", "timm"}
    assert "no training" in card["method"]
    assert card["measured"]["residual_std"] == pytest.approx(0.01, rel=1e-3)
    assert 0 < card["measured"]["mean_absolute_change"] < 0.01
    model, images = load_model("front", workshop / "out"), draw(4, 3, 16, 16)
    with torch.no_grad():
        assert 0 < (model(images) - images).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--depth", "2"], "a DnCNN needs a depth of at least 3"),
        (["--residual-std", "0"], "residual_std=0.0: must be above 0"),
        (["--images", "49"], "samples 49"),
        (["--data", "npz:absent.npz"], "no such file"),
        (["--output", __file__], "is a file; name a directory"),
    ],
)
def test_front_end_command_refuses_bad_input(
    workshop: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert front_ends.main(make(workshop, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (workshop / "out").exists()


def test_front_end_command_refuses_a_bad_name_and_seed(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front_ends.main(["../front", *make(workshop)[1:]]) == 2
    assert "lower-case letters, digits and dashes only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        front_ends.main(make(workshop, "--seed", "-1"))
    assert "must be an integer from 0 to 2**32 - 1" in capsys.readouterr().err
    assert not (workshop / "out").exists()
