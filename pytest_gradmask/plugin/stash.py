"""Keys under which the plugin stores its state on pytest's own objects, so that it needs no globals."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gradmask.execution.engine import Engine
from pytest_gradmask.plugin.settings import Settings
from pytest_gradmask.report.records import AuditRecord

#: On the config: the run's settings.
SETTINGS = pytest.StashKey[Settings]()
#: On the config, from the first audit on: the engine that runs attacks.
ENGINE = pytest.StashKey[Engine]()
#: On an item: its audits that are not on a report yet, each with its evidence.
AUDITS = pytest.StashKey[list[AuditRecord]]()
#: On an item: its transfer matrices that are not on a report yet, as plain data.
TRANSFERS = pytest.StashKey[list[dict[str, Any]]]()
#: On an item: the verdict that the test expects of each of its audits, by number from 1, that is on no report yet.
EXPECTED = pytest.StashKey[dict[int, str]]()
#: On an item: its audits of which nothing has been asserted: number and name of the defense.
UNCHECKED = pytest.StashKey[dict[int, str]]()
#: What a report carries from an item to the controller: the name of the report's attribute, and the key on the item.
REPORT_ATTRIBUTES: dict[str, pytest.StashKey[Any]] = {"gradmask_audits": AUDITS, "gradmask_transfers": TRANSFERS}
