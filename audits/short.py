"""The records of audits in one line each, for the table of all claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audits.claims import Record
from audits.markdown import share
from pytest_gradmask.auditing.research import accuracy_bounds

_NAMES = {"gradient": "gradient attacks", "autoattack": "AutoAttack's attacks", "bpda": "BPDA"}
_BLACK_BOX = {"square": "Square", "zero-order": "zero-order"}
#: Of sweeps over many front ends, those that show what the sweep found.
_SHOWN = {
    "6": ("1e-6, 1 epochs", "1e-5, 1 epochs", "1e-4, 5 epochs", "1e-3, 5 epochs"),
    "A": ("base: depth 49, width 12, residual 0.02", "depth 33", "depth 17", "no batch norm"),
}
#: The paper's ensemble on CIFAR-10 (its abstract): accuracies with their bounds at 99 %.
PAPER_ENSEMBLE = {"autoattack": (0.883, 0.933), "adaptive": (0.146, 0.218)}
_CONFIDENCE = 0.99
_NOT_ADAPTIVE = ("clean", "gradient", "autoattack", "all")


def shortened(record: Record) -> str:
    """What a record measured, with bounds."""
    if "short" in record:
        return str(record["short"])
    details = record.get("details", {})
    if "fooled" in details:
        return _transferred(details, record["images"])
    if "accuracies" in details:
        data = "ImageNet: " if record["data"] == "imagenet" else ""
        return data + "; ".join(f"{name} {share(found)}" for name, found in details["accuracies"].items())
    cells = [*details.get("audits", []), *details.get("cells", [])]
    shown = _SHOWN.get(record["claim"], [cell["defense"] for cell in cells])
    names = _NAMES | (_BLACK_BOX if record["claim"] == "2" else {})
    lines = [
        f"{cell['defense']}: "
        + ", ".join(
            f"{name} {share(cell['accuracies'][key])}" for key, name in names.items() if key in cell["accuracies"]
        )
        for cell in cells
        if cell["defense"] in shown
    ]
    return "<br>".join(lines) or str(record["ours"])


def pgd_fails(record: Record) -> bool:
    """Of claim 4: whether PGD leaves more than half of the clean accuracy of the ensemble, with bounds."""
    found = record.get("details", {}).get("accuracies", {}) if record["claim"] == "4" else {}
    pgd = found.get("PGD on the whole ensemble")
    return pgd is not None and bool(pgd[1] > found["clean"][0] / 2)


def figures_differ(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of claim 3, whose rule asks only for the effect: are the paper's figures reproduced, too?

    They are where the bounds of each overlap those of the paper. The adaptive attack is the strongest one here.
    """
    found = []
    for record in records:
        audits = record["details"].get("audits", []) if record["claim"] == "3" else []
        for audit in audits:
            if not audit["defense"].startswith("adversarial") or "autoattack" not in audit["accuracies"]:
                continue
            adaptive = {key: value for key, value in audit["accuracies"].items() if key not in _NOT_ADAPTIVE}
            strongest = min(adaptive, key=lambda key: adaptive[key][0])
            ours = {"autoattack": audit["accuracies"]["autoattack"], "adaptive": adaptive[strongest]}
            same = all(ours[key][1] <= high and low <= ours[key][2] for key, (low, high) in PAPER_ENSEMBLE.items())
            line = (
                f"the paper's figures: AutoAttack's attacks {share(ours['autoattack'])}, "
                f"strongest adaptive attack ({strongest}) {share(ours['adaptive'])}"
            )
            about = {key: value for key, value in record.items() if key not in ("details", "holds")}
            found.append({**about, "ours": line, "verdict": "reproduced" if same else "not reproduced"})
    return found


def _transferred(details: Record, images: int) -> str:
    fooled = details["fooled"]
    kinds = {name: name.partition("-composite")[0] for name in fooled if "-standard-" in name}
    same = [fooled[one][two][0] for one in kinds for two in kinds if one != two and kinds[one] == kinds[two]]
    firsts = [name for name in kinds if name.endswith("-composite")]
    other = [fooled[one][two][0] for one in firsts for two in firsts if one != two]
    if not same or not other:
        return f"{details['attack']} attacks"
    means = (sum(pairs) / len(pairs) for pairs in (same, other))
    first, second = (share((mean, *accuracy_bounds([mean] * images, _CONFIDENCE))) for mean in means)
    return f"{details['attack']} attacks fool another composite of the same backbone in {first}, of another in {second}"
