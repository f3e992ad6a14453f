"""Where files are kept, and writing them in one atomic step: whoever is killed meanwhile leaves the file of before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Write to the path given; on exit that takes the place of ``file``, unless something was raised."""
    # Others may be writing the same file: other threads, other processes, those of other machines.
    part = file.with_name(f"{file.name}.{os.urandom(8).hex()}.part")
    try:
        yield part
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def cache_directory() -> Path:
    """Where what is downloaded is kept: ``~/.cache/pytest-gradmask``, or below ``XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "pytest-gradmask").expanduser()
