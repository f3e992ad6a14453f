"""The zoo of known defenses: its entries, the truth about each, and the verdict of an audit."""

from __future__ import annotations

from collections.abc import Sequence

from audits.defenses import (
    activations,
    backward,
    controls,
    detectors,
    detours,
    inaccurate,
    jpeg,
    optimizers,
    outputs,
    pixels,
    randomized,
    rough,
    shattered,
    smoothing,
    unsteady,
)
from audits.defenses.entry import Entry
from pytest_gradmask import InputError

#: All entries by name. The suspicious ones come first, then those that are expected not to mask.
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
            *optimizers.ENTRIES,
            *detectors.ENTRIES,
            *backward.ENTRIES,
            *pixels.ENTRIES,
            *detours.ENTRIES,
            *unsteady.ENTRIES,
            *inaccurate.ENTRIES,
            *controls.ENTRIES,
        ),
        key=lambda entry: not entry.suspicious,
    )
}


def find(names: Sequence[str]) -> list[Entry]:
    """The entries with these names, or all entries if there are no names.

    Raises:
        InputError: there is no such entry.
    """
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise InputError(f"defense {unknown[0]!r}: unknown; use one of {', '.join(ZOO)}")
    return [ZOO[name] for name in names] or list(ZOO.values())
