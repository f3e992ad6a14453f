"""External evaluations for RobustBench, with a package that stands in for it: three files that agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.errors import AuditTimeoutError
from pytest_gradmask.report.json import crash_to_json, document, to_json
from pytest_gradmask.report.robustbench import Evaluation, eps_text, main, model_info
from pytest_gradmask.threat import ThreatModel
from tests.loading.stand_ins import robustbench
from tests.toys import KillGradient, Noisy, audited, linear, masked, predictions

THREAT = ThreatModel(0.03)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
IMAGES = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2)).float() / 255
#: The headings of the issue "New external evaluation(s)" of RobustBench, in their order.
HEADINGS = [
    "Model identifier(s)", "Leaderboard(s)", "Link to adversarial images", "Robust accuracy", "Author(s)",
    "Description of the method used",
]  # fmt: skip


def labels(model: nn.Module) -> Tensor:
    """What the model says, but for two images that it gets wrong."""
    found = predictions(model, IMAGES).clone()
    found[:2] = (found[:2] + 1) % 4
    return found


def run_file(folder: Path, model: nn.Module, *audits: dict[str, Any]) -> Path:
    """A run with an audit of the model, its weights where the stand-in looks for them, and the images."""
    (folder / "pytest-gradmask/robustbench/cifar10/Linf").mkdir(parents=True, exist_ok=True)
    (folder / "pytest-gradmask/robustbench/cifar10/Linf/Standard.pt").touch()
    np.savez(folder / "test.npz", images=PIXELS, labels=labels(model).numpy())
    first = to_json(audited(model, IMAGES, labels=labels(model), threat=THREAT))
    file = folder / "run.json"
    file.write_text(json.dumps(document([{**first, "test": "test_it"}, *audits], {})))
    return file


def command(folder: Path, *more: str, model: str = "robustbench:Standard") -> list[str]:
    return [
        str(folder / "run.json"), f"--model={model}", f"--data=npz:{folder / 'test.npz'}", "--by=A. Tester",
        f"--output={folder / 'out'}", *more,
    ]  # fmt: skip


def test_images_issue_and_model_info_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = masked(KillGradient)
    robustbench(monkeypatch, tmp_path, lambda: model)
    run_file(tmp_path, model)
    known = {
        "link": "https://example.org",
        "name": "A paper",
        "eps": "8/255",
        "clean_acc": "91.00",
        "unreliable": False,
    }
    (tmp_path / "known.json").write_text(json.dumps(known))
    assert main(command(tmp_path, "--model-info", str(tmp_path / "known.json"))) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == ["Standard.pt", "Standard.json", "Standard-issue.md"]
    adversarial = torch.load(files[0], weights_only=True)
    assert (adversarial.shape, adversarial.dtype) == (IMAGES.shape, torch.float32)
    assert (adversarial - IMAGES).abs().max() <= THREAT.eps + THREAT.tolerance
    assert (adversarial.min() >= 0) & (adversarial.max() <= 1)
    right = model(adversarial).argmax(1) == labels(model)
    changed = (adversarial != IMAGES).flatten(1).any(1)
    assert torch.equal(changed[2:], ~right[2:])  # what nothing broke is as it was
    assert not changed[:2].any()
    share = f"{100 * right.float().mean().item():.2f}"
    assert 0 < float(share) < 60
    info = json.loads(files[1].read_text())
    assert info == {**info, **known, "external": share, "dataset": "cifar10", "number_forward_passes": None}
    text = files[2].read_text()
    assert text.startswith("[New evaluation] <Standard>\n")
    assert re.findall(r"^\+ \*\*(.+?):\*\*", text, re.MULTILINE) == HEADINGS
    for said in (
        f"{share}%",
        "cifar10, Linf, eps = 7.65/255",
        "Standard.pt",
        "A. Tester",
        "MASKED",
        "needs all 10,000",
    ):
        assert said in text
    assert "bpda" in text


def test_an_honest_model_and_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    robustbench(monkeypatch, tmp_path, lambda: model)
    run_file(tmp_path, model)
    assert main(command(tmp_path, "--images=https://example.org/images.pt")) == 0
    text = (tmp_path / "out" / "Standard-issue.md").read_text()
    assert "https://example.org/images.pt" in text
    assert "NOT_MASKED" in text
    assert "bpda" not in text
    info = json.loads((tmp_path / "out" / "Standard.json").read_text())
    assert (info["link"], info["eps"], info["clean_acc"]) == ("", "7.65/255", "91.67")


REFUSED = {
    "kind": ({"model": "timm:resnet18"}, "must be one of RobustBench"),
    "norm": ({"model": "robustbench:cifar10/L2/Standard"}, "the audit is about Linf, and the leaderboard about L2"),
    "test": ({"more": "--test=other"}, "has 0 audits of 'other'"),
    "file": ({"more": "--model-info=none.json"}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, str],
    message: str,
) -> None:  # fmt: skip
    model = linear()
    robustbench(monkeypatch, tmp_path, lambda: model)
    run_file(tmp_path, model)
    more = [changes["more"]] if "more" in changes else []
    assert main(command(tmp_path, *more, model=changes.get("model", "robustbench:Standard"))) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_audit_that_did_not_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = crash_to_json("test_it", "a model", AuditTimeoutError("it took too long"))
    (tmp_path / "run.json").write_text(json.dumps(document([stopped], {})))
    assert main(command(tmp_path)) == 2
    assert "its audit did not end" in capsys.readouterr().err


def test_a_randomized_defense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    robustbench(monkeypatch, tmp_path, lambda: Noisy(linear()).eval())
    run_file(tmp_path, linear())
    assert main(command(tmp_path)) == 2
    assert "deterministic ones only" in capsys.readouterr().err


def test_an_evaluation_that_is_lower_already_stays() -> None:
    found = Evaluation(images=IMAGES, clean=90.0, robust=50.0, attacks=())
    for known, wanted in (("40.00", "40.00"), ("60.00", "50.00"), (None, "50.00")):
        base = {} if known is None else {"external": known}
        assert model_info(base, found, model="robustbench:Standard", threat=THREAT)["external"] == wanted


@pytest.mark.parametrize(
    ("threat", "text"),
    [(ThreatModel(), "8/255"), (ThreatModel(0.5, "L2"), "0.5"), (ThreatModel(4 / 255), "4/255")],
)
def test_eps_is_written_as_there(threat: ThreatModel, text: str) -> None:
    assert eps_text(threat) == text
