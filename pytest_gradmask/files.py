"""Writing files in one atomic step: whoever is killed meanwhile leaves the file of before, whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Write to the path given; on exit that takes the place of ``file``, unless something was raised."""
    # Another process may be writing the same file.
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
