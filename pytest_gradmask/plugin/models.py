"""The fixtures of models: the one of ``--gradmask-model``, and the trained fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradmask.plugin.evaluation import data_of
from pytest_gradmask.plugin.progress import uncaptured
from pytest_gradmask.plugin.stash import SETTINGS

if TYPE_CHECKING:
    from torch import nn


@pytest.fixture
def gradmask_model(request: pytest.FixtureRequest) -> nn.Module:
    """The model of ``--gradmask-model``, on the CPU and in eval mode. Parametrize it indirectly to use other models.

    If the test also uses ``eval_batch``, the model must have the classes of these images.
    """
    from pytest_gradmask.loading.sources import check_classes

    spec = getattr(request, "param", request.config.stash[SETTINGS].model)
    if spec is None:
        raise pytest.UsageError("the fixture gradmask_model needs --gradmask-model=MODEL, or its ini value")
    model = _model(request, spec)
    if "eval_batch" in request.fixturenames:
        data = data_of(request)
        check_classes(spec, model, data.images, data.classes, data.source)
    return model


def _model(request: pytest.FixtureRequest, spec: str) -> nn.Module:
    from pytest_gradmask.loading.sources import load_model

    download = request.config.stash[SETTINGS].download
    with uncaptured(request.config, wanted=download):
        return load_model(spec, download=download)


def _model_fixture(name: str, default: str, what: str) -> Callable[..., Any]:
    @pytest.fixture(name=name)
    def model(request: pytest.FixtureRequest) -> nn.Module:
        return _model(request, getattr(request, "param", default))

    model.__doc__ = f"{what} of the trained fixtures, by default {default}; parametrize indirectly for another."
    return model


backbone = _model_fixture("backbone", "resnet-standard", "A classifier")
composite = _model_fixture("composite", "resnet-standard-composite", "A front end before a classifier")
ensemble = _model_fixture("ensemble", "standard-ensemble", "A randomized ensemble of composites")
