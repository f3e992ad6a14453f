"""Writing files in one atomic step."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pytest_gradmask.files import replaced


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
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
