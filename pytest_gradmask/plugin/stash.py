"""Keys under which the plugin keeps what it knows on pytest's own objects, instead of in globals."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gradmask.plugin.settings import Settings

#: On the config: the run's settings.
SETTINGS = pytest.StashKey[Settings]()
#: On an item: its audits, as plain data.
AUDITS = pytest.StashKey[list[dict[str, Any]]]()
