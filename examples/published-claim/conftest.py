"""Options for a model with real weights."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--model`` and ``--claim``."""
    parser.addoption("--model", help="a model with published weights: a name of timm, hf-hub:... or local-dir:...")
    parser.addoption("--claim", type=float, help="its published robust accuracy, such as 0.45")
