"""A plugin of pytest, ``-p tests.devices.registered``: audits of the run compute on the pretend device.

``--gradmask-device`` takes only devices that are in PyTorch itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_gradmask.plugin.stash import SETTINGS
from tests.devices import pretend

pretend.set_up()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the device, after the plugin has read its settings."""
    config.stash[SETTINGS] = replace(config.stash[SETTINGS], device=pretend.NAME)
