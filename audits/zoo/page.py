"""The page about known defenses, from the records of ``python -m audits.zoo measure``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audits.markdown import table
from audits.zoo import ZOO
from audits.zoo.measurement import Record, stored
from audits.zoo.truth import Truth, right_verdicts
from pytest_gradmask import BinarizationTest, Verdict

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "known-defenses.md"

#: Attacks that have a column, in the order in which they run.
_ATTACKS = {
    "bpda-operations": "operations",
    "transfer-inner-0": "inner classifier",
    "bpda": "BPDA",
    "transfer-backbone": "transfer",
    "inner-logits": "inner logits",
    "square": "Square",
    "zero-order": "zero-order",
    "placebo": "placebo",
}
#: Of what the reference breaks: the share that an attack without a hint has to break.
_ENOUGH = 0.9
_VERDICTS = ("MASKED", "NOT_MASKED", "INCONCLUSIVE")
_FLAGS = ("zero-gradient", "square", "randomized", "probabilities", "dynamic")


def write() -> None:
    """Write the page."""
    PAGE.write_text(markdown(stored()))


def markdown(records: Mapping[str, Record]) -> str:
    """The page for records by the name of their defense. Rows have the order of the zoo."""
    ordered = {name: records[name] for name in ZOO if name in records}
    parts = [
        (HERE / "introduction.md").read_text().strip(),
        "## In short",
        _summary(ordered),
        "## Verdicts",
        _verdicts(ordered),
        *_code(ordered),
        *_alone(ordered),
        "## Findings and flags",
        _evidence(ordered),
        *_repeats(ordered),
        _provenance(ordered),
    ]
    return "\n\n".join(parts) + "\n"


def truth_of(record: Record) -> str:
    """``MASKED``, ``NOT_MASKED`` or ``open``, by the bounds of the gap between gradient attacks and the reference."""
    expected = Truth(**record["truth"]).expected(record["truth"]["margin"])
    return expected.name if expected else "open"


def _summary(records: Mapping[str, Record]) -> str:
    passable = [record for name, record in records.items() if not ZOO[name].refused]
    groups = {
        "mask": [record for record in passable if truth_of(record) == "MASKED"],
        "do not mask": [record for record in passable if truth_of(record) == "NOT_MASKED"],
        "leave it open": [record for record in passable if truth_of(record) == "open"],
        "must not pass": [record for name, record in records.items() if ZOO[name].refused],
    }
    rows: list[tuple[str, Callable[[Record], bool]]] = [
        *((f"verdict `{verdict}`", _has_verdict(verdict)) for verdict in _VERDICTS),
        ("AutoAttack flags anything", lambda record: bool(record["flags"])),
        *((f"AutoAttack flags `{flag}`", _has_flag(flag)) for flag in _FLAGS),
        ("APGD fails the binarization test (bound below 95 %)", _fails_binarization_test),
    ]
    headings = ["", *(f"{len(group)} that {name}" for name, group in groups.items())]
    missing = [name for name in ZOO if name not in records]
    note = f"Not measured yet: {', '.join(missing)}.\n\n" if missing else ""
    return note + table(
        headings, ([what, *(_count(group, holds) for group in groups.values())] for what, holds in rows)
    )


def _has_verdict(verdict: str) -> Callable[[Record], bool]:
    return lambda record: record["audit"]["verdict"] == verdict


def _has_flag(flag: str) -> Callable[[Record], bool]:
    return lambda record: flag in record["flags"]


def _fails_binarization_test(record: Record) -> bool:
    passed, tested = record["binarization_test"]["passed"], record["binarization_test"]["tested"]
    return BinarizationTest(outcomes=("passed",) * passed + ("failed",) * (tested - passed), confidence=0.99).fails


def _count(group: Sequence[Record], holds: Callable[[Record], bool]) -> str:
    return str(sum(map(holds, group)))


def _verdicts(records: Mapping[str, Record]) -> str:
    headings = ["defense", "truth", "verdict", "gap", "clean", "gradient attacks", *_ATTACKS.values(), "reference"]
    rows = []
    for name, record in records.items():
        audit = record["audit"]
        accuracies = [_accuracy(audit["robust_accuracy"].get(attack)) for attack in _ATTACKS]
        rows.append(
            [
                name,
                f"{_sign(name, record)} {_gap(*record['truth']['gap'])}",
                f"`{audit['verdict']}`",
                _gap(audit["gap"]["estimate"], audit["gap"]["low"], audit["gap"]["high"]) if audit["gap"] else "",
                _percent(audit["clean_accuracy"]["value"]),
                _percent(audit["gradient_attacks"]["value"]),
                *accuracies,
                _percent(record["truth"]["reference"][0]),
            ]
        )
    note = (
        "Accuracies are in %, gaps in percentage points, with exact bounds that are each valid at 99 %. *Truth* is the "
        "gap that the reference attack shows, and *gap* the one that the audit's adaptive attacks show. An attack has "
        "no figure if it cannot run on the defense or was skipped."
    )
    return f"{note}\n\n{table(headings, rows)}"


def _code(records: Mapping[str, Record]) -> list[str]:
    """Operation-level BPDA beside the attacks that had to do without it, where it found something."""
    rows, reached = [], []
    for name, record in records.items():
        audit = record["audit"]
        found = audit["robust_accuracy"].get("bpda-operations")
        if found is None or found.get("value") is None:
            continue
        left, reference = audit["gradient_attacks"]["value"], record["truth"]["reference"][0]
        share = (left - found["value"]) / (left - reference) if truth_of(record) == "MASKED" else None
        reached += [] if share is None else [share]
        compared = ("bpda-operations", "bpda", "square", "zero-order")
        costs = [_cost(audit["robust_accuracy"].get(attack)) for attack in compared]
        lines = ", ".join(
            f"`{each['name']}` at {Path(each['file']).name}:{each['line']}" for each in audit["operations"]
        )
        rows.append([name, _percent(reference), *costs, _share(share), lines])
    if not rows:
        return []
    text = (
        "Operation-level BPDA ([how it works](operations.md)) runs where an operation in the code hides the gradient. "
        "The audit got no hint. Each cell has the robust accuracy after the attack in %, and its seconds on the "
        "survivors of the gradient attacks. *Reached* is the share of what the reference breaks beyond the gradient "
        "attacks that operation-level BPDA breaks alone."
    )
    if reached:
        text += f" On the {len(reached)} of these that mask, it is at least {100 * min(reached):.0f} %."
    headings = ["defense", "reference", "operations", "BPDA", "Square", "zero-order", "reached", "hidden by"]
    return ["## Masks in code", text, table(headings, rows)]


def _alone(records: Mapping[str, Record]) -> list[str]:
    """What operation-level BPDA breaks with no attack before it, and how much of what the reference breaks that is."""
    found = {name: record["code"] for name, record in records.items() if record.get("code")}
    if not found:
        return []
    rows, reached = [], []
    for name, code in found.items():
        share = code["both"] / code["reference"] if code["reference"] else None
        reached += [share] if share is not None and truth_of(records[name]) == "MASKED" else []
        rows.append(
            [
                name, truth_of(records[name]), str(code["correct"]), str(code["reference"]), str(code["operations"]),
                _share(share), f"{code['seconds']['operations']:.0f} s", ", ".join(code["lines"]),
            ]
        )  # fmt: skip
    settings = ", ".join(
        dict.fromkeys(
            f"budget `{code['budget']}`, seed {code['seed']}, images of {code['data']}, with "
            + ", ".join(f"{package} {number}" for package, number in code["versions"].items())
            for code in found.values()
        )
    )
    enough = sum(share >= _ENOUGH for share in reached)
    text = (
        "With no other attack before it or beside it, operation-level BPDA breaks at least "
        f"{100 * _ENOUGH:.0f} % of what the reference breaks on {enough} of the {len(reached)} that mask. *Reached* is "
        "this share. `python -m audits.zoo code` measures it."
    )
    headings = ["defense", "truth", "correct", "reference breaks", "operations break", "reached", "time", "hidden by"]
    heading = "## Operation-level BPDA alone"
    return [heading, text, table(headings, rows), f"<sub>Measured at {settings}.</sub>"]


def _cost(attack: Record | None) -> str:
    if attack is None or attack.get("value") is None:
        return "-"
    return f"{_percent(attack['value'])} ({attack['seconds']:.0f} s)"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _evidence(records: Mapping[str, Record]) -> str:
    rows = []
    for name, record in records.items():
        audit, tested = record["audit"], record["binarization_test"]
        findings = dict.fromkeys(f"[{finding['id']}](findings.md#{finding['id']})" for finding in audit["findings"])
        rows.append(
            [
                name,
                ", ".join(findings),
                ", ".join(audit["bypassed"]),
                f"{tested['passed']} of {tested['tested']}",
                ", ".join(record["flags"]),
                f"{audit['seconds']:.0f}",
            ]
        )
    headings = [
        "defense",
        "findings",
        "bypassed, found by the audit",
        "binarization test of APGD",
        "AutoAttack's flags",
        "s",
    ]
    return table(headings, rows)


def _repeats(records: Mapping[str, Record]) -> list[str]:
    """Verdicts with other seeds and therefore other images, also of audits that do not end early."""
    repeated = {name: record for name, record in records.items() if record.get("repeats")}
    if not repeated:
        return []
    every = [each for record in repeated.values() for each in record["repeats"]]
    budgets = list(dict.fromkeys(each["budget"] for each in every))
    rows, flips, compared, others, opposite = [], 0, 0, 0, 0
    for name, record in repeated.items():
        early, exhaustive = (
            {
                (each["budget"], each["seed"]): each["verdict"]
                for each in record["repeats"]
                if each["exhaustive"] is whole
            }
            for whole in (False, True)
        )
        both = early.keys() & exhaustive.keys()
        alike = sum(early[key] == exhaustive[key] for key in both)
        flips += {"MASKED", "NOT_MASKED"} <= {*early.values(), *exhaustive.values()}
        compared, others = compared + len(both), others + len(both) - alike
        opposite += sum({early[key], exhaustive[key]} == {"MASKED", "NOT_MASKED"} for key in both)
        counts = [_counted([verdict for (of, _), verdict in early.items() if of == budget]) for budget in budgets]
        rows.append([name, _sign(name, record), *counts, f"{alike} of {len(both)}" if both else "-"])
    settings = dict.fromkeys(
        f"the budget `{each['budget']}`, a margin of {100 * each['margin']:g} percentage points and at most "
        f"{max(other['images'] for other in every if other['budget'] == each['budget'])} images"
        for each in every
    )
    text = (
        f"Audits that end as soon as the verdict is certain. Each has another seed, which draws other images. They ran "
        f"at {', or at '.join(settings)}. A cell has the number of audits with the verdict `MASKED`, `NOT_MASKED` and "
        f"`INCONCLUSIVE`. {flips} of {len(repeated)} defenses are `MASKED` in one audit and `NOT_MASKED` in another."
    )
    if compared:
        text += (
            f" {compared} audits were repeated *exhaustively*, with every attack on every image. {others} of them have "
            f"another verdict, and {opposite} have the opposite one. An audit that may end early divides its error "
            "among several interim analyses, so that a defense close to the margin may stay `INCONCLUSIVE`."
        )
    against = {name: count for name, record in repeated.items() if (count := _against(name, record))}
    where = ", ".join(f"{count} on {name}" for name, count in against.items())
    text += (
        f" {sum(against.values())} of all {len(every)} verdicts{f' ({where})' if where else ''} are opposite to the "
        "truth, or pass what must not pass. The truth was measured with more steps on more images."
    )
    old = sum("versions" not in each for each in every)
    if old:
        text += (
            f" {old} of these audits were made before attacks had the order of today, and before gaps were shares of "
            "the images that are classified correctly."
        )
    headings = ["defense", "truth", *(f"`{budget}`" for budget in budgets), "exhaustive, the same"]
    return ["## Other seeds", text, table(headings, rows)]


def _counted(verdicts: Sequence[str]) -> str:
    """How many verdicts there are of each kind, such as ``5 / 0 / 0``."""
    return " / ".join(str(verdicts.count(verdict)) for verdict in _VERDICTS) if verdicts else "-"


def _against(name: str, record: Record) -> int:
    """How many of its repeated audits have a verdict opposite to the truth, or passed though they must not."""
    expected = Truth(**record["truth"]).expected(record["truth"]["margin"])
    right = right_verdicts(expected, refused=bool(ZOO[name].refused))
    return sum(Verdict[each["verdict"]] not in right for each in record["repeats"])


def _provenance(records: Mapping[str, Record]) -> str:
    texts = dict.fromkeys(_measured_on(record) for record in records.values())
    return "\n\n".join(f"<sub>Measured on {text}.</sub>" for text in texts)


def _measured_on(record: Record) -> str:
    about: Mapping[str, Any] = record["provenance"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    threat = f"{about['threat']['norm']}, eps {255 * about['threat']['eps']:g}/255"
    return (
        f"{about['images']} images of {record['data']}, {threat}, budget {about['budget']}, margin "
        f"{100 * record['audit']['margin']:g} percentage points, seed {about['seed']}, {about['device']}, {versions}"
    )


def _sign(name: str, record: Record) -> str:
    words = {"MASKED": "masked", "NOT_MASKED": "not masked", "open": "open"}[truth_of(record)]
    refused = ZOO[name].refused
    return f"{words}, must not pass ([{refused}](findings.md#{refused}))" if refused else words


def _gap(value: float, low: float, high: float) -> str:
    return f"{100 * value + 0.0:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _accuracy(attack: Mapping[str, Any] | None) -> str:
    return "-" if attack is None else _percent(attack["value"])
