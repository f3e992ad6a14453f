"""Question A: which parts of the front end cause masking. Front ends are untrained and calibrated on the images."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from audits.claims import not_reproduced
from audits.conftest import Reproduction
from audits.measures import Comparison
from pytest_gradmask import Composite, load_model
from pytest_gradmask.auditing.research import DnCNN, calibrated_front_end
from pytest_gradmask.plugin.fixtures import EvalBatch

pytestmark = [pytest.mark.gradmask, pytest.mark.slow]

_BASE = "base: depth 49, width 12, residual 0.02"
_IDENTITY = "identity: last convolution zero"
#: Each variant changes one argument of `DnCNN`, or ``residual_std``.
BASE: dict[str, Any] = {"depth": 49, "width": 12, "residual_std": 0.02}
VARIANTS: dict[str, dict[str, Any]] = {
    _BASE: {},
    "depth 9": {"depth": 9},
    "depth 17": {"depth": 17},
    "depth 33": {"depth": 33},
    "width 6": {"width": 6},
    "width 24": {"width": 24},
    "residual 0.005": {"residual_std": 0.005},
    "residual 0.01": {"residual_std": 0.01},
    "residual 0.04": {"residual_std": 0.04},
    "no batch norm": {"norm": False},
    "residual bounded to 8/255": {"bound": 8 / 255},
    "no skip connection": {"skip": False},
    "the paper's size: depth 17, width 64": {"depth": 17, "width": 64},
}


@not_reproduced("test_depth_with_batch_norm", "batch norm is not needed")
def test_depth_with_batch_norm_makes_the_mask(many_images: EvalBatch, reproduction: Reproduction) -> None:
    """The deep front end masks; an identity network, a shallow one and one without batch norm do not."""
    backbone = load_model("resnet-standard")
    front_ends: dict[str, nn.Module] = {
        name: calibrated_front_end(many_images.images, seed=0, **{**BASE, **changes})
        for name, changes in VARIANTS.items()
    }
    front_ends[_IDENTITY] = DnCNN(depth=9, width=4, zero_init=True).eval()
    found = {name: Comparison.of(Composite(each, backbone).eval(), many_images) for name, each in front_ends.items()}
    masked = [name for name, comparison in found.items() if comparison.masked]
    reproduction.check(
        "A",
        holds=_BASE in masked and not {"depth 9", "no batch norm", _IDENTITY} & set(masked),
        ours=f"masked: {', '.join(masked) or 'none'}; "
        f"not masked: {', '.join(name for name in found if name not in masked) or 'none'}",
        images=len(many_images.labels),
        details={"cells": [comparison.figures(name) for name, comparison in found.items()]},
    )
