"""Audits end once the verdict is certain, and say what all images would have said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_gradmask import ThreatModel, Verdict
from pytest_gradmask.report.failure import explain
from pytest_gradmask.report.json import to_json
from pytest_gradmask.verdict.interim import plan_analyses
from tests.toys import KillGradient, Quantize, audited, draw, linear, masked, predictions

MANY = draw(200, 3, 8, 8, seed=5)


@pytest.mark.parametrize(
    ("make", "eps", "verdict"),
    [
        pytest.param(lambda: masked(KillGradient), 0.15, Verdict.MASKED, id="masked"),
        pytest.param(lambda: masked(Quantize), 0.15, Verdict.MASKED, id="quantized"),
        pytest.param(linear, 0.15, Verdict.NOT_MASKED, id="undefended"),
    ],
)
def test_a_clear_case_ends_early_with_the_verdict_of_all_images(
    make: Callable[[], nn.Module], eps: float, verdict: Verdict
) -> None:
    short, long = (audited(make(), MANY, threat=ThreatModel(eps), margin=0.1, exhaustive=e) for e in (False, True))
    assert short.verdict is long.verdict is verdict
    assert (short.given, long.given, long.total) == (200, 200, 200)
    sizes = [analysis.images for analysis in plan_analyses(200, 0.1, 0.99)]
    assert short.total in sizes[:-1]
    assert f"Used {short.total} of 200 images" in explain(short, "otherwise")
    assert "Used" not in explain(long, "otherwise")
    assert (to_json(short)["images"], to_json(short)["images_given"]) == (short.total, 200)


def test_a_gap_that_some_images_show_is_looked_at_further() -> None:
    class HalfMasked(nn.Module):
        """Masks the images whose first pixel is bright."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.front_end = linear(), Quantize()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = (images[:, :1, :1, :1] > 0.85).to(images.dtype)
            return self.backbone(bright * self.front_end(images) + (1 - bright) * images)  # type: ignore[no-any-return]

    result = audited(HalfMasked().eval(), MANY, threat=ThreatModel(0.15), margin=0.05, seed=1)
    assert result.total > plan_analyses(200, 0.05, 0.99)[0].images


def test_images_keep_their_places() -> None:
    # Sorted by class, as data sets come, and half of them misclassified.
    model = masked(KillGradient)
    truth = predictions(model, MANY)
    order = truth.argsort()
    images, labels = MANY[order], truth[order]
    labels = torch.where(torch.arange(200) % 2 == 0, labels, (labels + 1) % 4)
    result = audited(model, images, labels=labels, threat=ThreatModel(0.15), margin=0.1)
    assert result.total < 200
    assert list(result.images) == sorted(result.images)
    assert [bool(index % 2 == 0) for index in result.images] == list(result.clean)
    assert len({int(labels[index]) for index in result.images}) == 4
    bpda = {result.images[index] for index in result.attack("bpda").broken}
    assert bpda <= {index for index in range(200) if index % 2 == 0}


def test_the_seed_decides_which_images_are_looked_at_first() -> None:
    first, same, other = (
        audited(masked(KillGradient), MANY, threat=ThreatModel(0.15), margin=0.1, seed=seed) for seed in (1, 1, 2)
    )
    assert first.images == same.images
    assert first.attacks[0].broken == same.attacks[0].broken
    assert first.images != other.images


def test_a_crash_in_the_first_batch_stays() -> None:
    """An attack that crashes in the first batch is no pass in the second."""

    class Fragile(nn.Module):
        """Raises in its second half of gradients, at a time of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = linear(), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += len(images)
            if images.requires_grad and self.calls > 600:
                raise RuntimeError("out of patience")
            return self.model(images)  # type: ignore[no-any-return]

    assert audited(Fragile().eval(), MANY, threat=ThreatModel(1e-6), margin=0.1).verdict is Verdict.INCONCLUSIVE
