"""Defenses without a gradient: plain functions of arrays, web services and ONNX files."""

from __future__ import annotations

import copy
import http.server
import json
import pickle
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_socket
import torch
from torch import nn

from pytest_gradmask import (
    Audit,
    Defense,
    InputError,
    ThreatModel,
    Verdict,
    assert_gradient_masking,
    assert_no_gradient_masking,
    audit,
    black_box,
    load_model,
)
from pytest_gradmask.auditing.events import Event
from pytest_gradmask.errors import CheckpointError, DefenseError, DependencyError
from pytest_gradmask.loading.models.black_box import is_black_box
from pytest_gradmask.report.evidence.collection import collect_evidence
from pytest_gradmask.report.html import render
from pytest_gradmask.report.json import to_json
from pytest_gradmask.report.records import AuditRecord
from tests.loading.onnx_toys import linear_onnx
from tests.toys import IMAGES, THREAT, TINY, Quantize, audited, linear, predictions

PROVENANCE: dict[str, Any] = {
    "command": ["pytest"],
    "started": "2030-01-02T03:04:05+00:00",
    "python": "3.11.7",
    "platform": "Linux",
    "settings": {},
}
Array = np.ndarray[Any, Any]
LABELS = predictions(linear(), IMAGES)
LAYER: Any = linear()[1]
WEIGHT, BIAS = LAYER.weight.detach().numpy(), LAYER.bias.detach().numpy()
GRADIENT = {"pgd", "apgd-ce", "apgd-t", "fab-t", "bpda", "placebo"}


def logits(images: Array) -> Array:
    """The linear toy in NumPy."""
    return np.asarray(images.reshape(len(images), -1) @ WEIGHT.T + BIAS)


def probabilities(images: Array) -> Array:
    powers = np.exp(logits(images) - logits(images).max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def run(function: Callable[[Array], Any], **arguments: Any) -> Audit:
    defense = Defense(black_box(function), name="function", **arguments.pop("known", {}))
    return audit(defense, IMAGES, LABELS, **{"threat": THREAT, "budget": TINY, **arguments})


@pytest.mark.parametrize(
    "function",
    [logits, probabilities, lambda images: logits(images).argmax(1), lambda images: logits(images).tolist()],
    ids=["logits", "probabilities", "labels", "lists"],
)
@pytest.mark.parametrize("eps", [1e-6, 0.1, 0.5], ids=["robust", "weak", "broken"])
def test_a_function_is_never_judged(function: Callable[[Array], Any], eps: float) -> None:
    found = run(function, threat=ThreatModel(eps))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.gap is None
    assert not found.has_gradient
    assert "no-gradient" in {finding.id for finding in found.findings}
    assert "beats" not in " ".join(finding.id for finding in found.findings)
    status = {attack.name: attack.status for attack in found.attacks}
    assert {status[name] for name in GRADIENT} == {"skipped"}
    assert status["square"] == status["zero-order"] == status["rays"] == "done"
    (reason,) = found.reasons
    assert reason == (
        f"no gradient to judge: black-box robustness is at most {found.robust_accuracy} under square, zero-order, rays"
    )
    broken = {1e-6: range(1), 0.1: range(1, 25), 0.5: range(20, 25)}[eps]
    assert len(IMAGES) - found.robust_accuracy.count in broken


class ForeignTensor:
    """What TensorFlow and JAX return, as far as NumPy sees it: no array may be written to, and the dtype is theirs."""

    dtype = "their.float32"

    def __init__(self, values: Array) -> None:
        self.values = values.copy()
        self.values.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.values if dtype is None else self.values.astype(dtype)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("iterating over a symbolic tensor is not allowed")


@pytest.mark.parametrize("function", [logits, probabilities], ids=["logits", "probabilities"])
def test_outputs_of_another_library_are_converted(function: Callable[[Array], Array]) -> None:
    ours, theirs = run(function), run(lambda images: ForeignTensor(function(images)))
    assert theirs.verdict is Verdict.INCONCLUSIVE
    assert theirs.robust_accuracy == ours.robust_accuracy
    assert [attack.broken for attack in theirs.attacks] == [attack.broken for attack in ours.attacks]


def test_a_forest() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from sklearn.ensemble import RandomForestClassifier

    pixels = IMAGES.flatten(1).numpy()
    forest = RandomForestClassifier(20, random_state=0).fit(pixels, LABELS.numpy())
    found = run(lambda images: forest.predict_proba(images.reshape(len(images), -1)), threat=ThreatModel(0.3))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.clean_accuracy.value > 0.9
    assert found.robust_accuracy.value < found.clean_accuracy.value


def test_its_bound_is_above_that_of_its_module() -> None:
    ours, module = run(logits, exhaustive=True), audited(linear(), exhaustive=True)
    assert module.verdict is Verdict.NOT_MASKED
    assert module.robust_accuracy.value <= ours.robust_accuracy.value < 0.5
    assert ours.autoattack_accuracy is None


@pytest.mark.parametrize("check", [assert_no_gradient_masking, assert_gradient_masking])
def test_no_assertion_passes(check: Callable[[Audit], None]) -> None:
    with pytest.raises(AssertionError, match="no gradient to judge: black-box robustness is at most") as raised:
        check(run(logits))
    assert "no audit of a plain function can" in " ".join(str(raised.value).split())
    assert to_json(run(logits))["gradient_attacks"] is None


def test_a_mask_behind_a_function_is_not_judged_either() -> None:
    def rounded(images: Array) -> Array:
        return logits(np.round(images * 16) / 16)

    assert run(rounded).verdict is Verdict.INCONCLUSIVE
    module = nn.Sequential(Quantize(), linear()).eval()
    assert audited(module).verdict is Verdict.MASKED  # the same with a gradient


def test_transfer_from_a_known_model() -> None:
    found = run(lambda images: logits(images).argmax(1), known={"sources": [linear()]})
    transferred = found.attack("transfer-source-0")
    assert transferred.status == "done"
    assert len(transferred.broken) > 20
    assert found.verdict is Verdict.INCONCLUSIVE


def test_a_function_as_front_end() -> None:
    class Front(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shape = images.shape
            return black_box(lambda array: np.round(array * 16).reshape(len(array), -1) / 16)(images).view(shape)  # type: ignore[no-any-return]

    assert audited(nn.Sequential(Front(), linear()).eval()).verdict is Verdict.MASKED


def test_the_cache_is_not_used(tmp_path: Path) -> None:
    events: list[Event] = []
    run(logits, cache=tmp_path, progress=events.append)
    assert any("no use of the cache" in str(event) for event in events)
    assert not any(file.is_file() for file in tmp_path.rglob("*"))


def test_the_html_report_shows_no_gradient() -> None:
    found = run(logits)
    evidence = collect_evidence(found, Defense(black_box(logits)), IMAGES, LABELS, threat=THREAT)
    assert evidence["outcomes"]["attacks"]
    assert [name for name in ("noise", "landscapes", "pictures") if "error" in evidence[name]] == [
        "noise",
        "landscapes",
    ]
    text = render([AuditRecord(audit=to_json(found), evidence=evidence)], [], PROVENANCE)
    assert "no gradient to judge" in text
    assert "a plain function has no gradient. The verdict does not depend on it." in text


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(InputError, match="audit it as it is"):
        black_box(linear())
    with pytest.raises(InputError, match="must be a function"):
        black_box(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"pytest_gradmask\.black_box\(function\)"):
        Defense(logits)  # type: ignore[arg-type]
    with pytest.raises(DefenseError, match="no array of numbers"):
        run(lambda images: ["cat"] * len(images))
    with pytest.raises(DefenseError, match="no array of numbers"):
        run(lambda images: [[1.0], [1.0, 2.0]])


# web services


class Service(http.server.BaseHTTPRequestHandler):
    """Answers images, as JSON, with logits."""

    def do_POST(self) -> None:
        images = np.array(json.loads(self.rfile.read(int(self.headers["Content-Length"]))), dtype=np.float32)
        answer = json.dumps(logits(images).tolist()).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    pytest_socket.enable_socket()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.longer
@pytest.mark.enable_socket
def test_a_web_service(service: str) -> None:
    def ask(images: Array) -> Any:
        with urllib.request.urlopen(service, data=json.dumps(images.tolist()).encode()) as answer:
            return json.load(answer)

    found, local = run(ask), run(logits)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.robust_accuracy == local.robust_accuracy
    assert found.robust_accuracy.value < 1


def test_a_service_that_does_not_answer_is_an_error() -> None:
    def ask(_: Array) -> Any:
        raise ConnectionError("nobody there")

    with pytest.raises(DefenseError, match=r"ConnectionError.*nobody there"):
        run(ask)


# ONNX


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "linear.onnx"
    file.write_bytes(linear_onnx(WEIGHT, BIAS))
    return file


def test_an_onnx_file(onnx_file: Path) -> None:
    model = load_model(f"onnx:{onnx_file}")
    assert is_black_box(model)
    assert np.allclose(model(IMAGES), logits(IMAGES.numpy()), atol=1e-4)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(IMAGES), model(IMAGES))
    found = audit(Defense(model, name="file"), IMAGES, LABELS, threat=THREAT, budget=TINY)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert 0 < len(found.attack("square").broken) < 25


def test_what_is_no_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot open it"):
        load_model(f"onnx:{file}")
    with pytest.raises(InputError, match="no such file"):
        load_model(f"onnx:{tmp_path / 'none.onnx'}")
    file.write_bytes(linear_onnx(WEIGHT, BIAS, inputs=("one", "two")))
    with pytest.raises(CheckpointError, match="has the inputs one, two"):
        load_model(f"onnx:{file}")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"pytest-gradmask\[onnx\]"):
        load_model(f"onnx:{file}")
