"""``python -m audits.certified COMMAND``: train the classifiers, attack and audit them, write docs/certified.md.

``train`` trains and stores both classifiers. ``measure`` attacks more than 100,000 images and audits the classifiers,
bare and behind masks, and stores what it found. ``page`` writes the page from that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from audits.certified.digits import EPS, NETWORKS, store
from audits.certified.measurement import MASKS, NORMS, attacked, audited
from pytest_gradmask.auditing.research import replaced, versions

RESULT = Path(__file__).parent / "result.json"
PAGE = Path(__file__).parents[2] / "docs" / "certified.md"
#: Images of each attack, seeds of the attacks and of the audits.
_IMAGES, _SEEDS, _AUDIT_SEEDS = 200, 3, 3
_INTRODUCTION = """# A floor that is proven

Attacks measure an upper bound of robust accuracy. A certificate proves a lower one: no point of the ball changes the
class. Two small classifiers of digits are trained for their certificates (`audits/certified`), by interval bounds (IBP,
[arXiv:1810.12715](https://arxiv.org/abs/1810.12715)), and certified by these or by linear bounds (CROWN,
[arXiv:1811.00866](https://arxiv.org/abs/1811.00866)), at eps {eps} in Linf. The balls of L2 and L1 lie inside.

**No attack may break a certified image.** One that does is wrong, or its score is. {attacked:,} attacked images (every
attack of an audit; {norms}; bare and behind masks; {seeds} seeds), {certified:,} of them certified:
**{crossed} broken**.

**No mask can lift the floor.** Each mask leaves the outputs, or at least the classes, as they are. So the accuracy
under all attacks of an audit without any hint lies between the floor and what attacks leave of the bare classifier,
give or take chance. `steep` multiplies the logits: it hides the gradient of the cross-entropy alone, and AutoAttack's
other losses see through it, so `NOT_MASKED` is right. Figures are means over the seeds of exhaustive audits, in % of
all images.

| classifier | mask | verdicts | floor | all attacks | gradient attacks | above the bare classifier, points |
| --- | --- | --- | --- | --- | --- | --- |"""


def measure() -> None:
    """Attack and audit, and store the result in one step."""
    record: dict[str, Any] = {"eps": EPS, "versions": versions("pytest-gradmask", "torch", "pyautoattack")}
    record["attacked"] = [attacked(name, images=_IMAGES, seeds=range(_SEEDS), masks=tuple(MASKS)) for name in NETWORKS]
    record["audits"] = [
        audited(name, mask, images=_IMAGES, seed=seed)
        for name in NETWORKS
        for mask in ("", *MASKS)
        for seed in range(_AUDIT_SEEDS)
    ]
    with replaced(RESULT) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def page(record: dict[str, Any]) -> str:
    """The page, from a stored result."""
    counts = {key: sum(each[key] for each in record["attacked"]) for key in ("attacked", "certified", "crossed")}
    used = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    seeds, images = len(record["attacked"][0]["seeds"]), record["audits"][0]["images"]
    lines = [_INTRODUCTION.format(eps=record["eps"], norms=", ".join(NORMS), seeds=seeds, **counts)]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in record["audits"]:
        groups.setdefault((each["network"], each["mask"]), []).append(each)
    for (name, mask), audits in groups.items():
        bare = _mean(groups[name, ""], "all")
        verdicts = ", ".join(sorted({each["verdict"] for each in audits}))
        lines.append(
            f"| {name} | {mask or '(none)'} | `{verdicts}` | {100 * _mean(audits, 'floor'):.1f} | "
            f"{100 * _mean(audits, 'all'):.1f} | {100 * _mean(audits, 'gradient'):.1f} | "
            f"{100 * (_mean(audits, 'all') - bare):+.1f} |"
        )
    lines += [
        "",
        "`python -m audits.certified measure` measures it anew, and `page` writes this page. "
        f"{images} images, budget `smoke`, seeds 0 to {_AUDIT_SEEDS - 1}, margin of 10 points, {used}.",
    ]
    return "\n".join(lines) + "\n"


def _mean(audits: list[dict[str, Any]], key: str) -> float:
    return sum(float(each[key]) for each in audits) / len(audits)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m audits.certified", description=__doc__)
    parser.add_argument("command", choices=["train", "measure", "page"])
    command = parser.parse_args(arguments).command
    if command == "train":
        for name in NETWORKS:
            store(name)
    elif command == "measure":
        measure()
    else:
        PAGE.write_text(page(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
