"""Writing files in one atomic step."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pytest_gradmask.execution.files import replaced


def test_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    with replaced(file) as part:
        part.write_text("before")
        assert not file.exists()
    with contextlib.suppress(KeyboardInterrupt), replaced(file) as part:
        part.write_text("af")
        raise KeyboardInterrupt
    assert file.read_text() == "before"
    with replaced(file) as part:
        part.write_text("after")
    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


def test_two_may_write_one_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    with replaced(file) as first, replaced(file) as second:
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]
