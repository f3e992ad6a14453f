"""docs/randomized.md, from the stored results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audits.markdown import table
from pytest_gradmask.auditing.research import clopper_pearson, replaced

HERE = Path(__file__).parent
_VERDICTS = ("MASKED", "NOT_MASKED", "INCONCLUSIVE")
PAGE = HERE.parent.parent / "docs" / "randomized.md"


def write(results: Path, page: Path = PAGE) -> None:
    """Write the page in one atomic step."""
    with replaced(page) as part:
        part.write_text(text(results))


def text(results: Path) -> str:
    """The page."""
    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    covered = [record for record in records if "repetitions" in record]
    duels = [record for record in records if "attacks" in record]
    cells = [cell for record in records for cell in record.get("cells", ())]
    parts = [(HERE / "introduction.md").read_text().rstrip()]
    if covered:
        parts += ["## Do the intervals contain the truth?", _coverage(covered)]
    if cells:
        parts += ["## How often are verdicts wrong?", _calibration(cells)]
    if duels:
        parts += ["## Attacks on ensembles, compared", _duels(duels)]
    if covered or duels:
        parts.append(_provenance([*covered, *duels]))
    return "\n\n".join(parts) + "\n"


def _coverage(records: Sequence[Mapping[str, Any]]) -> str:
    first = records[0]
    rows = [
        (
            record["defense"],
            f"{record['expected_accuracy']:.1%}",
            f"{record['doubtful']:.0%}",
            " / ".join(f"{share:.1%}" for share in record["accuracy"]),
            " / ".join(f"{share:.1%}" for share in record["image"]),
            f"{record['samples']:.1f}",
            "one image" if record["one_by_one"] else "many images",
        )
        for record in records
    ]
    headings = (
        "defense", "true accuracy", "doubtful", "bounds of accuracy correct", "bounds of an image correct", "samples",
        "batch of a forward",
    )  # fmt: skip
    return (
        f"The pool has {first['pool']} images: clean ones, and others after PGD with radii of 1, 2, 4 and 8/255. The "
        f"truth about each image is its share of correct predictions in {first['truth']:,} forwards. *Doubtful* images "
        f"have a share between 5 and 95 %. In each of {first['repetitions']} repetitions, {first['images']} images are "
        "drawn from the pool and predicted again. The table shows how often the lower and the upper bound, each valid "
        f"at {first['confidence']:.0%}, are correct:\n\n" + table(headings, rows)
    )


def _calibration(cells: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            str(cell["images"]), f"{100 * cell['margin']:.0f}", cell["chances"], f"{cell['effect']:.0%}",
            f"{100 * cell['gap']:.0f}", *(f"{cell[name] / cell['audits']:.2%}" for name in _VERDICTS),
        )
        for cell in cells
    ]  # fmt: skip
    worst = max(cell["MASKED"] for cell in cells if cell["gap"] == 0)
    audits = cells[0]["audits"]
    bound = clopper_pearson(worst, audits, 0.99)[1]
    return (
        f"Simulated audits, {audits:,} of each kind. After the gradient attacks, the probability of a correct "
        "prediction is mostly near 0 or 1 (*clear*, Beta(0.1, 0.05)) or anywhere (*doubtful*, uniform). Each of four "
        "adaptive attacks, and each of four restarts of the placebo, lowers it for a share of the images, the *placebo "
        "effect*. "
        "The *gap* (margin and gap are in percentage points) is masked: there, adaptive attacks leave no correct "
        "prediction. With a placebo effect of 5 %, an audit correctly finds that the attacks have not converged. "
        "Without a gap, at most "
        f"{worst / audits:.2%} are `MASKED` (≤ {bound:.2%} at 99 %).\n\n"
        + table(
            ("images", "margin", "probabilities", "placebo effect", "gap", *(f"`{name}`" for name in _VERDICTS)), rows
        )
    )


def _duels(records: Sequence[Mapping[str, Any]]) -> str:
    attacks = list(records[0]["attacks"])
    parts = [
        "The table shows the expected accuracy under each attack alone, with exact probabilities and bounds at 99 %. "
        "Beside it are the accuracy by one forward of each image, as AutoAttack judges, and the passes forward and "
        "backward per image. All members have the same weight. *Bypassed* means that the attacks use the identity "
        "instead of every front end on the backward pass (BPDA)."
    ]
    for record in records:
        rows = []
        for attack in attacks:
            found = record["attacks"][attack]
            value, low, high = found["accuracy"]
            rows.append(
                (
                    attack, f"{value:.1%} [{low:.1%}, {high:.1%}]", f"{found['one_forward']:.1%}",
                    f"{found['passes']:,.0f}", f"{found['seconds']:,.0f}",
                )
            )  # fmt: skip
        parts.append(
            f"**{record['ensemble']}**, {record['images']} images, {record['norm']}, "
            f"eps = {255 * record['eps']:.3g}/255\n\n"
            + table(("attack", "expected accuracy", "by one forward", "passes", "seconds"), rows)
        )
    return "\n\n".join(parts)


def _provenance(records: Sequence[Mapping[str, Any]]) -> str:
    seen = {
        (record["data"], record["seed"], ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
        for record in records
    }
    return "\n".join(f"Measured on {data}, seed {seed}, with {used}." for data, seed, used in sorted(seen))
