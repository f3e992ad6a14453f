"""The entries of the leaderboard: what each holds, where it comes from, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from audits.defenses.entry import Entry
from pytest_gradmask import InputError, Verdict, load_model
from pytest_gradmask.auditing.research import replaced

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "entries"
FIXTURES = ROOT / "fixtures"
#: Accuracies of an entry, by their names in the JSON of a run.
SHARES = {"clean": "clean_accuracy", "gradient_attacks": "gradient_attacks", "all_attacks": "all_attacks"}
_FIELDS = {
    "name", "source", "by", "checkpoints", "command", "verdict", "threat", "budget", "images", "exhaustive", "margin",
    "confidence", "figures", "gap", "findings", "versions",
}  # fmt: skip
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def stored(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """All entries of a folder, by name.

    Raises:
        InputError: one is not valid; the message says why.
    """
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    for name, entry in found.items():
        wrong = problems(entry) or ([] if entry["name"] == name else [f"its name is {entry['name']!r}"])
        if wrong:
            raise InputError(f"{name}.json: {'; '.join(wrong)}")
    return found


def store(entry: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write an entry to the file of its name.

    Raises:
        InputError: it is not valid; the message says why.
    """
    wrong = problems(entry)
    if wrong:
        raise InputError(f"entry {entry.get('name')!r}: {'; '.join(wrong)}")
    file = folder / f"{entry['name']}.json"
    with replaced(file) as part:
        part.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return file


def problems(entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with an entry, in words; nothing if it is valid.

    Figures must agree with each other: attacks only lower an accuracy, and a verdict needs the gap that it claims.
    """
    if set(entry) != _FIELDS:
        return [f"has the fields {sorted(entry)}; must have {sorted(_FIELDS)}"]
    wrong = []
    if not _NAME.fullmatch(entry["name"]):
        wrong.append("its name must be of lower-case letters, digits and single dashes")
    wrong += [f"{field} is empty" for field in ("source", "by", "command") if not entry[field]]
    for file, digest in entry["checkpoints"].items():
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            wrong.append(f"the hash of {file} is no SHA-256")
    verdict, gap = entry["verdict"], entry["gap"]
    if verdict not in Verdict.__members__:
        return [*wrong, f"its verdict is {verdict!r}"]
    values = [entry["figures"][name]["value"] for name in SHARES if entry["figures"].get(name)]
    if not values or values != sorted(values, reverse=True) or not all(0 <= value <= 1 for value in values):
        wrong.append("its accuracies must fall from clean images to gradient attacks to all attacks")
    if verdict == "MASKED" and not (gap and gap["low"] > 0 and gap["estimate"] > entry["margin"]):
        wrong.append("MASKED needs a gap above the margin, with a lower bound above 0")
    if verdict == "NOT_MASKED" and not (gap and gap["high"] < entry["margin"]):
        wrong.append("NOT_MASKED needs a gap whose upper bound is below the margin")
    return wrong


def entry_of(
    audit: Mapping[str, Any],
    *,
    name: str,
    source: str,
    by: str,
    command: str,
    checkpoints: Iterable[Path],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The entry of one audit in the JSON form of a run.

    Args:
        audit: with its provenance.
        name: of the entry.
        source: a paper, a repository, or what the defense is.
        by: who ran the audit.
        command: that repeats it.
        checkpoints: files with the weights; their hashes are stored. None for a defense without weights of its own.
        versions: of the packages.
    """
    provenance, gap = audit["provenance"], audit["gap"]
    return {
        "name": name,
        "source": source,
        "by": by,
        "checkpoints": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(checkpoints)},
        "command": command,
        "verdict": audit["verdict"],
        "threat": provenance["threat"],
        "budget": provenance["budget"],
        "images": audit["images"],
        "exhaustive": audit.get("exhaustive", True),
        "margin": audit["margin"],
        "confidence": audit["confidence"],
        "figures": {short: audit[field] and _bounded(audit[field]) for short, field in SHARES.items()},
        "gap": gap and {key: gap[key] for key in ("estimate", "low", "high")},
        "findings": sorted({finding["id"] for finding in audit["findings"]}),
        "versions": dict(versions),
    }


def _bounded(share: Mapping[str, Any]) -> dict[str, float]:
    return {key: share[key] for key in ("value", "low", "high")}


def from_zoo(entry: Entry, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a known defense, from the stored record of ``python -m audits.zoo measure``.

    The record's audit is exhaustive, and its provenance lies beside it.
    """
    provenance = record["provenance"]
    return entry_of(
        {"exhaustive": True, **record["audit"], "provenance": provenance},
        name=entry.name,
        source=entry.story.splitlines()[0],
        by="this project",
        command=(
            f"python -m audits.zoo measure {entry.name} --data npz:{record['data']} --budget {provenance['budget']} "
            f"--samples {provenance['images']} --seed {provenance['seed']}"
        ),
        checkpoints=checkpoints(entry),
        versions=provenance["versions"],
    )


def checkpoints(entry: Entry) -> list[Path]:
    """The files of weights of the fixtures that a known defense is built from."""
    names: list[str] = []

    def load(name: str) -> torch.nn.Module:
        names.append(name)
        return load_model(name)

    entry.build(load)
    return sorted({file for name in names for file in _weights(name)})


def _weights(name: str) -> Sequence[Path]:
    """Files of weights of a fixture, with those of its parts."""
    card = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    parts = [*card.get("members", []), *(card[key] for key in ("front_end", "backbone") if key in card)]
    if not parts:
        return [FIXTURES / f"{name}.safetensors"]
    return [file for part in parts for file in _weights(part)]
