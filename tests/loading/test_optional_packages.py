"""Errors that name a missing optional package and how to install it."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
import torch

from pytest_gradmask.attacks.decision import hop_skip_jump
from pytest_gradmask.errors import DependencyError, GradmaskError
from pytest_gradmask.threat import ThreatModel
from tests.toys import draw, linear, seeded

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_without_foolbox_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    command = re.escape("pip install 'pytest-gradmask[decision]'")
    with pytest.raises(DependencyError, match=command) as failure:
        hop_skip_jump(linear(), draw(1, 3, 8, 8), torch.tensor([0]), threat=ThreatModel(), steps=1, generator=seeded())
    assert isinstance(failure.value, GradmaskError)
    assert isinstance(failure.value, ImportError)
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("foolbox") for requirement in extras["decision"])
