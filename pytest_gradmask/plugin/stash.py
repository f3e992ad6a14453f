"""Keys under which the plugin keeps what it knows on pytest's own objects, instead of in globals."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gradmask.execution.engine import Engine
from pytest_gradmask.plugin.settings import Settings

#: On the config: the run's settings.
SETTINGS = pytest.StashKey[Settings]()
#: On the config, from the first audit on: what runs attacks.
ENGINE = pytest.StashKey[Engine]()
#: On an item: its audits that are on no report yet, as plain data.
AUDITS = pytest.StashKey[list[dict[str, Any]]]()
#: On an item: for each of its audits, what the HTML report shows beyond it; empty where none is written.
EVIDENCE = pytest.StashKey[list[dict[str, Any]]]()
#: On an item: its transfer matrices, as plain data.
TRANSFERS = pytest.StashKey[list[dict[str, Any]]]()
#: What a report carries from an item to the controller, by the report's attribute.
TRAVELLING = {"gradmask_audits": AUDITS, "gradmask_evidence": EVIDENCE, "gradmask_transfers": TRANSFERS}
