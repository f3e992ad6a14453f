"""docs/randomized.md, from what was measured."""

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
    judged = [record for record in records if "repetitions" in record]
    duels = [record for record in records if "attacks" in record]
    cells = [cell for record in records for cell in record.get("cells", ())]
    parts = [(HERE / "introduction.md").read_text().rstrip()]
    if judged:
        parts += ["## Do the intervals hold the truth?", _coverage(judged)]
    if cells:
        parts += ["## How often are verdicts wrong?", _calibration(cells)]
    if duels:
        parts += ["## Attacks on ensembles, side by side", _duels(duels)]
    if judged or duels:
        parts.append(_provenance([*judged, *duels]))
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
            "one image" if record["one_by_one"] else "many",
        )
        for record in records
    ]
    headings = (
        "defense", "true accuracy", "doubtful", "accuracy's bounds hold", "image's bounds hold", "samples",
        "a forward has",
    )  # fmt: skip
    return (
        f"The pool has {first['pool']} points, clean images and images after PGD with radii of 1, 2, 4 and 8/255. The "
        f"truth of each point is its share of right answers in {first['truth']:,} forwards; *doubtful* are points "
        f"between 5 and 95 %. {first['repetitions']} times, {first['images']} points are drawn from the pool and "
        f"judged afresh. How often the lower and the upper bound, each at {first['confidence']:.0%}, hold the "
        "truth:\n\n" + table(headings, rows)
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
        f"Simulated audits, {audits:,} of each kind: chances of right answers after the gradient attacks are mostly "
        "near nought or one (*settled*, Beta(0.1, 0.05)) or anywhere (*doubtful*, uniform). Each of four adaptive "
        "attacks, and each of four restarts of the placebo, lowers an image's chance as often as the *placebo effect* "
        "says. The *gap*, in points, is masked: there, every adaptive attack leaves no right answer. With four effects "
        "of 5 % an audit rightly finds that attacks have not converged. Without a gap, at most "
        f"{worst / audits:.2%} are `MASKED` (≤ {bound:.2%} at 99 %).\n\n"
        + table(("images", "margin", "chances", "placebo effect", "gap", *(f"`{name}`" for name in _VERDICTS)), rows)
    )


def _duels(records: Sequence[Mapping[str, Any]]) -> str:
    attacks = list(records[0]["attacks"])
    told = [
        "Expected accuracy under each attack alone, with exact chances and bounds at 99 %; beside it what one forward "
        "of each image says, as AutoAttack would judge, and passes forward and backward an image. Members answer with "
        "equal chance. *Bypassed*: the attacks take every front end for the identity on the backward pass (BPDA)."
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
        told.append(
            f"**{record['ensemble']}**, {record['images']} images, {record['norm']}, "
            f"eps = {255 * record['eps']:.3g}/255\n\n"
            + table(("attack", "expected accuracy", "by one forward", "passes", "seconds"), rows)
        )
    return "\n\n".join(told)


def _provenance(records: Sequence[Mapping[str, Any]]) -> str:
    seen = {
        (record["data"], record["seed"], ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
        for record in records
    }
    return "\n".join(f"Measured on {data}, seed {seed}, with {used}." for data, seed, used in sorted(seen))
