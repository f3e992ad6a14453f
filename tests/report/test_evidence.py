"""The evidence of a report: correct, plain data, without side effects, and never an error of the audit."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.defense import Defense
from pytest_gradmask.report.evidence.collection import collect_evidence
from pytest_gradmask.report.evidence.gradients import DEFENSE_GRADIENT
from pytest_gradmask.report.evidence.pictures import _png
from pytest_gradmask.report.gradient_charts import mean_cosines
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit
from tests.report.evidence_toys import collect, honest_case, masked_case
from tests.toys import (
    IMAGES,
    THREAT,
    KillGradient,
    Noisy,
    audited,
    draw,
    global_state,
    linear,
    masked,
    predictions,
    seed_all,
)

pytestmark = pytest.mark.usefixtures("no_operations_found")

PARTS = ("noise", "landscapes", "pictures")


def test_it_is_plain_data_ready_for_json() -> None:
    evidence = masked_case().evidence
    assert not [name for name in PARTS if "error" in evidence[name]]
    assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence


def test_outcomes_are_those_of_the_audit() -> None:
    audit, outcomes = masked_case().audit, masked_case().evidence["outcomes"]
    assert outcomes["clean"] == list(audit.clean)
    assert outcomes["images"] == list(audit.images)
    done = [result for result in audit.attacks if result.status == "done"]
    assert {each["name"]: each["broken"] for each in outcomes["attacks"]} == {r.name: list(r.broken) for r in done}


def test_noise_of_a_zero_gradient() -> None:
    direct, around = masked_case().evidence["noise"]["ways"]
    images = masked_case().evidence["noise"]["images"]
    assert (direct["name"], direct["zero"], around["zero"]) == (DEFENSE_GRADIENT, images, 0)
    assert all(value is None for values in direct["cosines"] for value in values)
    for way in (around, honest_case().evidence["noise"]["ways"][0]):
        assert min(mean or 0.0 for mean in mean_cosines(way)) > 0.9


def test_landscapes_are_margins_inside_the_ball() -> None:
    case = masked_case()
    landscape = case.evidence["landscapes"]["images"][0]
    image = landscape["image"]
    with torch.no_grad():
        clean = logit_margin(case.defense.model(IMAGES[image : image + 1]), case.labels[image : image + 1]).item()
    direct, around, random = landscape["lines"]
    for line in (direct, around, random):
        assert line["margins"][len(line["margins"]) // 2] == pytest.approx(clean, abs=1e-3)
    assert (direct["zero"], around["zero"], random["zero"]) == (True, False, False)
    assert set(direct["margins"]) == {direct["margins"][0]}
    assert max(around["margins"]) > 0 > max(direct["margins"])
    across = landscape["maps"][1]["margins"]
    middle = len(across) // 2
    # Of two directions of signs, the ball is a diamond: whole along its axes, nothing in its corners.
    assert None not in across[middle]
    assert None not in [row[middle] for row in across]
    assert across[0][0] is across[-1][-1] is None


def pixels(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_what_fails_is_shown_beside_what_succeeds() -> None:
    shown = masked_case().evidence["pictures"]
    assert (shown["beside"], shown["attack"].partition("-")[0]) == ("apgd-ce", "bpda")
    assert any(each["broken"] and not each["other"]["broken"] for each in shown["images"])
    for each in shown["images"]:
        assert each["other"]["broken"] == (each["other"]["class"] != each["label"])


def test_pictures_show_the_images_and_what_broke_them() -> None:
    case = masked_case()
    shown = case.evidence["pictures"]
    assert shown["attack"] == "bpda"
    assert len(shown["images"]) == 4
    for each in shown["images"]:
        clean = torch.tensor(list(pixels(each["clean_png"]).tobytes())).view(8, 8, 3).permute(2, 0, 1)
        assert (clean - 255 * IMAGES[each["image"]]).abs().max() <= 0.51
        assert each["clean"]["class"] == each["label"] == case.labels[each["image"]]
        assert each["broken"]
        assert each["adversarial"]["class"] != each["label"]
        assert 0 < each["distance"] <= THREAT.eps + THREAT.tolerance
    # The largest difference fills the range of greys, and is not cut off.
    assert 0.4 < shown["magnification"] * max(each["distance"] for each in shown["images"]) <= 0.5001


@pytest.mark.parametrize(("shape", "size", "mode"), [((3, 300, 200), (67, 100), "RGB"), ((2, 8, 8), (8, 8), "L")])
def test_large_images_and_odd_channels(shape: tuple[int, ...], size: tuple[int, int], mode: str) -> None:
    made = pixels(_png(torch.rand(shape)))
    assert (made.size, made.mode) == (size, mode)


def test_hashes_of_defenses_and_images() -> None:
    first, second = masked_case().evidence["hashes"], honest_case().evidence["hashes"]
    assert first["defense"] != second["defense"]
    assert len(first["images and labels"]) == 64


def test_it_changes_nothing_and_is_reproducible() -> None:
    case = masked_case()
    seed_all(5)
    before = global_state()
    again = collect(case.audit, case.defense, case.labels)
    assert global_state() == before
    assert not any(module.training for module in case.defense.model.modules())
    assert all(parameter.requires_grad for parameter in case.defense.model.parameters())
    assert {**again, "seconds": 0} == {**case.evidence, "seconds": 0}


def evidence_of(audit: Audit, model: nn.Module, labels: torch.Tensor, threat: ThreatModel = THREAT) -> dict[str, Any]:
    return collect_evidence(audit, model, IMAGES, labels, threat=threat)


def test_what_a_defense_raises_is_not_raised() -> None:
    case = honest_case()

    class Gone(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise OSError(f"the server is gone: {len(images)} images unanswered")

    evidence = evidence_of(case.audit, Gone().eval(), case.labels)
    assert all("the server is gone" in evidence[name]["error"] for name in PARTS)
    assert evidence["outcomes"] == case.evidence["outcomes"]


def test_one_part_can_fail_alone() -> None:
    class OnlyFewAtOnce(nn.Module):
        """Refuses batches of the size that landscapes use."""

        def __init__(self) -> None:
            super().__init__()
            self.model = masked(KillGradient)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 24:
                raise ValueError("too many")
            return self.model(images)  # type: ignore[no-any-return]

    evidence = evidence_of(masked_case().audit, OnlyFewAtOnce().eval(), masked_case().labels)
    assert [name for name in PARTS if "error" in evidence[name]] == ["landscapes"]


def test_without_correct_images() -> None:
    labels = (predictions(linear(), IMAGES) + 1) % 4
    evidence = evidence_of(audited(linear(), labels=labels), linear(), labels)
    assert all("no image is classified correctly" in evidence[name]["error"] for name in PARTS)


def test_a_randomized_defense_in_another_norm() -> None:
    threat = ThreatModel(1.0, "L2")
    model = Noisy(linear(), 0.1).eval()
    labels = predictions(linear(), IMAGES)
    few = draw(4, 3, 8, 8)
    audit = audited(Defense(model), few, labels=predictions(linear(), few), threat=threat)
    assert audit.predictions
    evidence = evidence_of(audit, model, labels, threat)
    assert not [name for name in PARTS if "error" in evidence[name]]
