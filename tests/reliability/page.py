"""docs/reliability.md, from the stored results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from audits.markdown import table
from benchmarks.records import stored
from pytest_gradmask.auditing.research import replaced
from tests.reliability.measurement import RESULTS, ROOT, Record

PAGE = ROOT / "docs" / "reliability.md"


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the page in one atomic step."""
    with replaced(page) as part:
        part.write_text(text(results))


def text(results: Path = RESULTS) -> str:
    """The page."""
    sections: dict[str, Callable[[Record], str]] = {
        "nightly": _nightly, "devices": _devices, "versions": _versions, "coverage": _coverage, "mutants": _mutants,
    }  # fmt: skip
    parts = [(Path(__file__).parent / "introduction.md").read_text().rstrip()]
    for name, section in sections.items():
        parts += map(section, stored(name, results))
    return "\n\n".join(parts) + "\n"


def _nightly(record: Record) -> str:
    rows = [
        (
            each["test"].partition("[")[0].removeprefix("test_").replace("_", " "),
            str(each.get("tries", "-")),
            each.get("result", "-") if each["outcome"] == "passed" else f"**{each['outcome']}**",
            f"{each['seconds'] / 60:.0f} min",
            f"`{each['file']}`",
        )
        for each in record["tests"]
    ]
    measured = dict.fromkeys(_measured(each) for each in record["tests"])
    return "\n\n".join(("## Nightly tests", table(("test", "repetitions", "result", "time", "file"), rows), *measured))


def _devices(record: Record) -> str:
    audits = record["audits"]
    rows = [(f"`{each['test'].removeprefix('audits/')}`", each["cpu"], each["pretend"]) for each in audits]
    others = [row for row in rows if row[1] != row[2]]
    skipped = sum(row[1:] == ("skipped", "skipped") for row in rows)
    introduction = (
        "The default audits, on the CPU and on a pretend device, whose tensors may not mix with the CPU's, as on a GPU "
        f"(`tests/devices/pretend.py`): `python -m tests.reliability devices`. **{len(rows) - len(others)} of "
        f"{len(rows)} tests** have the same outcome and the same verdicts. {skipped} are skipped, or fail as expected, "
        "on both."
    )
    differ = table(("test", "CPU", "pretend device"), others) if others else ""
    measured = dict.fromkeys(map(_measured, audits))
    return "\n\n".join(filter(None, ("## Another device", introduction, differ, *measured)))


def _versions(record: Record) -> str:
    found: dict[str, Record] = record["environments"]
    packages = list(next(iter(found.values()))["versions"])
    rows = [
        (name, *(each["versions"].get(package, "-") for package in packages), each["result"])
        for name, each in found.items()
    ]
    introduction = (
        "The default tests with the oldest supported releases of all dependencies, with pytest 8, and with the newest "
        "releases: `tox run`."
    )
    return "\n\n".join(("## Versions", introduction, table(("environment", *packages, "tests"), rows)))


def _coverage(record: Record) -> str:
    lines = f"{record['covered_statements']} of {record['statements']} statements"
    branches = f"{record['covered_branches']} of {record['branches']} branches"
    least = sorted(record["modules"].items(), key=lambda item: item[1]["percent"])[:5]
    modules = ", ".join(f"`{name.removeprefix('pytest_gradmask/')}` {found['percent']} %" for name, found in least)
    introduction = (
        f"The default tests reach {lines} and {branches} of the package: **{record['percent']} %**. The least covered: "
        f"{modules}. Code that runs in other processes is not counted."
    )
    return "\n\n".join(("## Coverage", introduction, _measured(record)))


def _mutants(record: Record) -> str:
    counts = {
        name.removeprefix("pytest_gradmask/"): (
            sum(fates.get(fate, 0) for fate in ("killed", "timed out")),
            sum(fates.values()) - fates.get("not run", 0),
        )
        for name, fates in record["modules"].items()
    }
    detected, tested = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    rows = [
        (f"`{name}`", str(total), str(found), f"{found / total:.0%}")
        for name, (found, total) in counts.items()
        if total
    ]
    rows.append(("all", str(tested), str(detected), f"**{detected / max(tested, 1):.1%}**"))
    introduction = (
        "Small changes to the code that verdicts depend on, one at a time, and whether a test detects them: `mutmut "
        "run`. `tests/reliability/results/mutants.json` lists the mutants that no test detects."
    )
    untested = sum(fates.get("not run", 0) for fates in record["modules"].values())
    introduction += f" This run was stopped early: {untested} mutants were not tested." if untested else ""
    figures = table(("module", "mutants", "detected", "share"), rows)
    survivors = (Path(__file__).parent / "survivors.md").read_text().rstrip()
    return "\n\n".join(("## Mutants", introduction, figures, survivors, _measured(record)))


def _measured(record: Record) -> str:
    return f"<sub>With {', '.join(f'{name} {number}' for name, number in record['versions'].items())}.</sub>"
