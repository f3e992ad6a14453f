"""The cache directory, and writing a file in one atomic step: a killed process leaves the old file intact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On exit it replaces ``file``, unless an exception was raised."""
    # Other threads, processes or machines may be writing the same file.
    part = file.with_name(f"{file.name}.{os.urandom(8).hex()}.part")
    try:
        yield part
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def cache_directory() -> Path:
    """The directory for downloads: ``~/.cache/pytest-gradmask``, or the same below ``XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "pytest-gradmask").expanduser()
