"""Which audit of a defense this is: a folder remembers the audits that have ended, so that reports can count them.

Audits that ask the same question, such as whether this defense masks under this threat model, are attempts at it. An
audit that is repeated as it was is no new attempt. The name of a file is the number of an attempt and its content says
which audit it was. So a damaged file still counts, and several processes may use one folder: only one of them can
create the file of a number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Attempt:
    """The number of an attempt, from 1, and the file that was made for it, if one was."""

    number: int
    file: Path | None = None

    def release(self) -> None:
        """Forget an attempt that has ended without a test of anything. One that was there before is kept."""
        with suppress(OSError):
            if self.file is not None:
                self.file.unlink(missing_ok=True)


def take_attempt(folder: Path, question: str, audit: str) -> Attempt:
    """The number that an audit has among those of one question: its own if it has one, otherwise the next.

    If the folder cannot be used, this warns, and the number is 1: no audit is lost.

    Args:
        folder: of a cache; created if it is not there.
        question: what the audits are about; a fingerprint.
        audit: a fingerprint of everything that tells one audit of the question from another.
    """
    place = folder / "attempts" / question[:2] / question
    try:
        place.mkdir(parents=True, exist_ok=True)
        while True:
            taken = dict(_attempts(place))
            own = [number for number, content in taken.items() if content == audit.encode()]
            if own:
                return Attempt(max(own))
            number = max(taken, default=0) + 1
            file = place / f"{number}.attempt"
            with suppress(FileExistsError), file.open("xb") as new:  # another process may be faster
                new.write(audit.encode())
                return Attempt(number, file)
    except OSError as error:
        warnings.warn(f"gradmask cache: cannot count the audits of a defense in {folder} ({error})", stacklevel=2)
        return Attempt(1)


def _attempts(place: Path) -> Iterator[tuple[int, bytes]]:
    for file in place.glob("*.attempt"):
        if file.stem.isdecimal():
            try:
                yield int(file.stem), file.read_bytes()
            except FileNotFoundError:  # released in the meantime
                continue
