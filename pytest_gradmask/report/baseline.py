"""A run compared with an earlier one: is any audit worse, beyond what chance explains?

An audit is matched by its test and its place among the audits of that test. It is worse if

- its verdict is another and not ``NOT_MASKED``: what was known to be unmasked, or was known at all, no longer is;
- its clean accuracy or its robust accuracy under all attacks together is lower beyond chance: both runs have the same
  images, so an exact paired test counts those that were lost against those that were gained. Errors of 5 % are shared
  by all comparisons of a run (Holm). Where an audit is ``MASKED``, attacks may have been skipped early, and there is no
  robust accuracy to compare.

Nothing is chance in an audit of the same defense with the same settings on the same machine: it gives the same figures.
Two audits with other settings or other images cannot be compared, which is a failure, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pytest_gradmask.errors import InputError
from pytest_gradmask.report.json import VERSION, upgraded
from pytest_gradmask.report.text import tests_last
from pytest_gradmask.verdict.results import Verdict
from pytest_gradmask.verdict.stats import holm, mcnemar_p, mean_p

#: Chance of even one false alarm where defenses have changed and none is worse.
LEVEL = 0.05

Judgement = Literal["worse", "not comparable", "missing", "not run", "within chance", "new", "better", "same"]
_FAILURES: tuple[Judgement, ...] = ("worse", "not comparable", "missing")

_Audits = Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was compared.

    Attributes:
        judgement: what came out.
        test: whose audit, with its number in its test unless that is the first.
        what: verdict, accuracy, setting, or the whole audit.
        before, now: of the baseline and of this run, in words.
        p_value: of an accuracy of which something has changed.
        change: of an accuracy, in percentage points.
    """

    judgement: Judgement
    test: str
    what: str
    before: str
    now: str
    p_value: float | None = None
    change: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside a baseline.

    Attributes:
        rows: everything that was compared.
    """

    rows: tuple[Row, ...]

    @property
    def failed(self) -> bool:
        """Whether something is worse, missing or cannot be compared."""
        return bool(self.failures)

    @property
    def failures(self) -> list[Row]:
        """What is worse, missing or cannot be compared."""
        return [row for row in self.rows if row.judgement in _FAILURES]

    def lines(self, width: int | None = None) -> list[str]:
        """A table of all but what is the same, failures first, then how many there are of each.

        Where a line would have more than ``width`` characters, each test gets a line of its own.
        """
        order: Sequence[Judgement] = (*_FAILURES, "not run", "within chance", "new", "better")
        listed = sorted(
            (row for row in self.rows if row.judgement in order), key=lambda row: order.index(row.judgement)
        )
        cells = [(row.judgement, row.what, row.before, row.now, row.change or "-", row.test) for row in listed]
        columns = ("compared", "what", "baseline", "now", "change", "test")
        table = [line for row in tests_last([columns, *cells], width) for line in row] if cells else []
        counts = Counter(row.judgement for row in self.rows)
        numbers = ", ".join(f"{counts[each]} {each}" for each in (*order, "same") if counts[each])
        return [*table, numbers or "nothing to compare"]


def read_baseline(file: Path) -> list[dict[str, Any]]:
    """The audits of an earlier run.

    Raises:
        InputError: it is not there, not a file of ``--gradmask-json``, of another version, or of a partial run.
    """
    again = "write it anew with --gradmask-baseline-update"
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file} is not there; {again}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); {again}") from error
    if not isinstance(run, dict) or "version" not in run:
        raise InputError(f"{file} is not a file of --gradmask-json; {again}")
    if run["version"] not in (1, VERSION):
        raise InputError(f"{file} has version {run['version']!r}, not {VERSION} or 1; {again}")
    try:
        run = upgraded(run)
        audits: list[dict[str, Any]] = run["audits"]
        compare(audits, audits, lambda test: False)  # whatever a comparison needs is there
        complete = run["complete"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{file} is not a file of --gradmask-json ({type(error).__name__}: {error}); {again}"
        ) from error
    if not complete:
        raise InputError(f"{file} is of a run that was not complete; {again}")
    return audits


def compare(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], missed: Callable[[str], bool]
) -> Comparison:
    """A run beside a baseline.

    Args:
        before: audits of the baseline, in their JSON form.
        now: those of this run.
        missed: whether a test that has no audit should have had one. If not, that is no failure.
    """
    old, new = _numbered(before), _numbered(now)
    rows: list[Row] = []
    for key, audit in old.items():
        if key in new:
            rows += _compared(_name(key), audit, new[key])
        else:
            rows.append(Row("missing" if missed(key[0]) else "not run", _name(key), "audit", audit["verdict"], "-"))
    rows += [Row("new", _name(key), "audit", "-", audit["verdict"]) for key, audit in new.items() if key not in old]
    return Comparison(tuple(_judged(rows)))


def _numbered(audits: Iterable[Mapping[str, Any]]) -> _Audits:
    """Each audit under its test and its number among those of that test, from 1."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    counts: Counter[str] = Counter()
    for audit in audits:
        counts[audit["test"]] += 1
        found[audit["test"], counts[audit["test"]]] = audit
    return found


def _name(key: tuple[str, int]) -> str:
    test, number = key
    return test if number == 1 else f"{test} (audit {number})"


def _compared(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Row]:
    verdicts = before["verdict"], now["verdict"]
    if before["provenance"] and now["provenance"]:  # an audit that raised has no settings and no figures
        old, new = _settings(before), _settings(now)
        differing = [key for key in old if key in new and old[key] != new[key]]
        for key in differing:
            yield Row("not comparable", name, key, _short(old[key]), _short(new[key]))
        if differing:
            return
        yield _accuracy(name, "clean accuracy", "clean", before, now)
        if not any(audit["verdict"] == Verdict.MASKED.name and not audit["exhaustive"] for audit in (before, now)):
            yield _accuracy(name, "robust accuracy", "robust", before, now)
    good = verdicts[1] == Verdict.NOT_MASKED.name
    yield Row("same" if verdicts[0] == verdicts[1] else "better" if good else "worse", name, "verdict", *verdicts)


def _settings(audit: Mapping[str, Any]) -> dict[str, Any]:
    """What two audits have to have in common to be compared."""
    provenance = audit["provenance"]
    return {
        **{key: provenance["threat"][key] for key in ("norm", "eps", "bounds")},
        **{key: provenance[key] for key in ("budget", "seed", "images_hash")},
        **provenance.get("budget_settings", {}),
        **{key: audit[key] for key in ("margin", "confidence", "exhaustive")},
        "attempt": audit.get("attempt", 1),
        # Audits with "auto" are scored, and mostly attacked, in the defense's own.
        "precision": {"auto": "own"}.get(precision := provenance.get("precision", "own"), precision),
    }


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:12]


def _accuracy(name: str, what: str, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Row:
    """An accuracy on the images of both audits: one of them may have been decided earlier."""
    old, new = (dict(zip(each["index"], each[key], strict=True)) for each in (before["per_image"], now["per_image"]))
    common = sorted(old.keys() & new.keys())
    losses = [old[index] - new[index] for index in common]
    shares = [f"{sum(each[index] for index in common) / max(len(common), 1):.1%}" for each in (old, new)]
    if not any(losses):
        return Row("same", name, what, shares[0], shares[1])
    judgement: Judgement = "better" if sum(losses) < 0 else "within chance"
    change = f"{-100 * sum(losses) / len(common):+.1f} pp"
    return Row(judgement, name, what, shares[0], f"{shares[1]} of {len(common)}", _p_value(losses), change)


def _p_value(losses: Sequence[float]) -> float:
    """One-sided, of what each image has lost on average."""
    if all(loss in (-1, 0, 1) for loss in losses):
        return float(mcnemar_p(losses.count(1), losses.count(-1)))
    return mean_p(losses, 0.0, -1.0)


def _judged(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, with what is lower beyond chance as worse.

    Where no image has changed there is no test that could ever reject, so those do not count (Tarone 1990): unchanged
    audits make a run no less sharp.
    """
    tested = {index: row.p_value for index, row in enumerate(rows) if row.p_value is not None}
    adjusted = dict(zip(tested, holm([*tested.values()]), strict=True))
    for index, row in enumerate(rows):
        if adjusted.get(index, 1.0) < LEVEL:
            yield replace(row, judgement="worse", now=f"{row.now} (p = {adjusted[index]:.2g})")
        else:
            yield row
