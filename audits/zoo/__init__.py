"""The zoo of known defenses: what is in it, what is true of each, and what an audit says."""

from __future__ import annotations

from collections.abc import Sequence

from audits.defenses import activations, controls, jpeg, outputs, randomized, rough, shattered, smoothing
from audits.defenses.entry import Entry
from pytest_gradmask import InputError

#: By name: first those that are said to mask or look as if they did, then those expected to be honest.
ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in sorted(
        (
            *shattered.ENTRIES,
            *jpeg.ENTRIES,
            *smoothing.ENTRIES,
            *activations.ENTRIES,
            *randomized.ENTRIES,
            *outputs.ENTRIES,
            *rough.ENTRIES,
            *controls.ENTRIES,
        ),
        key=lambda entry: not entry.suspicious,
    )
}


def find(names: Sequence[str]) -> list[Entry]:
    """The entries of these names, all if there are none.

    Raises:
        InputError: there is no such entry.
    """
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise InputError(f"defense {unknown[0]!r}: unknown; use one of {', '.join(ZOO)}")
    return [ZOO[name] for name in names] or list(ZOO.values())
