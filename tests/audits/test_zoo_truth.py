"""The truth about known defenses: measured, stored, shown, and compared with verdicts."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audits.defenses import references
from audits.defenses.entry import Entry
from audits.zoo import ZOO, __main__, find, page
from audits.zoo.flags import autoattack_flags
from audits.zoo.measurement import REPEATED, measure, repeat, store, stored, stored_truth
from audits.zoo.truth import AuditedDefense, Truth, right_verdicts
from pytest_gradmask import Defense, Verdict
from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.threat import ThreatModel
from tests.toys import IMAGES, TINY, Detach, KillGradient, Noisy, Softmax, audited, draw, linear, masked, predictions

THREAT = ThreatModel(0.1)
MODEL = linear()
DATA = Dataset(draw(24, 3, 8, 8), predictions(MODEL, draw(24, 3, 8, 8)), "npz:/somewhere/toys.npz")


def toy_entry(front_end: nn.Module | None = None) -> Entry:
    """A linear classifier behind a front end, whose reference bypasses it."""
    kind = type(front_end) if front_end else nn.Identity
    return Entry(
        name="toy", backbone="none", build=lambda load: nn.Sequential(front_end or nn.Identity(), MODEL).eval(),
        reference=functools.partial(references.attack_views, views=[references.bypass(kind)], steps=10), story="",
        suspicious=True,
    )  # fmt: skip


# measuring


@pytest.mark.parametrize(("front_end", "is_masked"), [(Detach(), True), (None, False)])
def test_truth_distinguishes_masked_from_weak(front_end: nn.Module | None, *, is_masked: bool) -> None:
    record = measure(toy_entry(front_end), DATA, budget=TINY, margin=0.25, threat=THREAT)
    truth = Truth(**record["truth"])
    assert truth.masked is is_masked
    assert record["audit"]["verdict"] == ("MASKED" if is_masked else "NOT_MASKED")
    assert truth.reference[0] <= 0.1
    assert (record["audit"]["gradient_attacks"]["value"] > 0.5) is is_masked
    assert truth.gap[1] <= truth.gap[0] <= truth.gap[2]
    assert record["data"] == "toys.npz"
    assert (record["provenance"]["images"], record["provenance"]["seed"]) == (24, 0)
    assert record["binarization_test"] == {"passed": 0 if is_masked else 8, "tested": 8}
    assert ("zero-gradient" in record["flags"]) is is_masked
    assert json.loads(json.dumps(record)) == record


def far(_: object, images: Tensor, __: Tensor, **_settings: object) -> Tensor:
    return 1 - images


def broken(*_: object, **_settings: object) -> Tensor:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(("reference", "why"), [(far, "outside the ball"), (broken, "no such thing")])
def test_invalid_reference_gives_no_truth(reference: Any, why: str) -> None:
    entry = Entry(
        name="toy", backbone="none", build=lambda load: MODEL, reference=reference, story="", suspicious=False
    )
    with pytest.raises(DataError, match=why):
        measure(entry, DATA, budget=TINY, margin=0.25, threat=THREAT)


def test_failed_gradient_attack_gives_no_truth() -> None:
    class Breaks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.requires_grad:
                raise RuntimeError("no gradients, please")
            return images

    with pytest.raises(DataError, match="apgd-ce was failed"):
        measure(toy_entry(Breaks()), DATA, budget=TINY, margin=0.25, threat=THREAT)


def test_repeated_audit_has_a_short_record() -> None:
    found = repeat(toy_entry(Detach()), DATA, budget=TINY, margin=0.25, seed=3)
    assert (found["seed"], found["images"], found["budget"], found["margin"]) == (3, 24, "tiny", 0.25)
    assert found["verdict"] in Verdict.__members__


# AutoAttack's checks


def flags(defense: Defense | nn.Module) -> list[str]:
    found = defense if isinstance(defense, Defense) else Defense(defense)
    audit = audited(found, threat=ThreatModel(0.15))
    labels = predictions(found.model, IMAGES)
    case = AuditedDefense(
        entry=toy_entry(),
        defense=found,
        images=IMAGES,
        labels=labels,
        audit=audit,
        threat=ThreatModel(0.15),
        pilot_samples=1,
    )
    return autoattack_flags(case, queries=30)


class Optimizes(nn.Module):
    """Takes a gradient in its forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            point = images.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad((point**2).sum(), point)
        return images + 0 * gradient


def test_upstream_checks_warn() -> None:
    assert flags(linear()) == []
    assert "zero-gradient" in flags(masked(KillGradient))
    assert "randomized" in flags(Noisy(linear()).eval())
    assert "probabilities" in flags(Defense(Softmax(linear()).eval(), outputs="probabilities"))
    assert "dynamic" in flags(nn.Sequential(Optimizes(), linear()).eval())
    assert "dynamic" not in flags(linear()), "upstream never resets its counts"


def test_square_is_flagged_where_the_audit_skipped_it() -> None:
    assert "square" in flags(masked(KillGradient))


# storing


def a_record(gap: tuple[float, float, float] = (0.5, 0.4, 0.6), verdict: str = "MASKED", **more: Any) -> dict[str, Any]:
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 5, "total": 10}
    return {
        "truth": {"masked": gap[0] > 0.05, "gap": list(gap), "margin": 0.05, "reference": [0.1, 0, 0.2],
                  "seconds": 1.0},
        "audit": {
            "verdict": verdict, "margin": 0.05, "seconds": 3.2, "clean_accuracy": share, "gradient_attacks": share,
            "gap": {"estimate": gap[0], "low": gap[1], "high": gap[2]}, "bypassed": ["0"],
            "robust_accuracy": {"bpda": share, "square": {"value": None}},
            "findings": [{"id": "zero-gradient", "message": "", "undermines_attacks": True}],
        },
        "binarization_test": {"passed": 0, "tested": 8}, "flags": ["square"], "data": "d.npz",
        "provenance": {
            "versions": {"torch": "1"}, "device": "cpu", "seed": 0, "images": 10, "budget": "ci",
            "threat": {"norm": "Linf", "eps": 8 / 255},
        },
        **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gap", "expected"),
    [((0.5, 0.4, 0.6), Verdict.MASKED), ((0.0, -0.1, 0.02), Verdict.NOT_MASKED), ((0.2, 0.04, 0.3), None)],
)
def test_the_measured_gap_decides_the_verdict_to_expect(
    gap: tuple[float, float, float], expected: Verdict | None
) -> None:
    assert Truth(**a_record(gap)["truth"]).expected(0.05) is expected


@pytest.mark.parametrize(
    ("expected", "refused", "wrong"),
    [
        (Verdict.MASKED, False, {Verdict.NOT_MASKED}),
        (Verdict.NOT_MASKED, False, {Verdict.MASKED}),
        (None, False, set()),
        (Verdict.MASKED, True, {Verdict.NOT_MASKED}),
        (Verdict.NOT_MASKED, True, {Verdict.MASKED, Verdict.NOT_MASKED}),
        (None, True, {Verdict.NOT_MASKED}),
    ],
)
def test_a_defense_that_must_not_pass_never_does(
    expected: Verdict | None, *, refused: bool, wrong: set[Verdict]
) -> None:
    assert set(Verdict) - right_verdicts(expected, refused=refused) == wrong


def test_records_are_stored_one_by_one_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert stored(folder) == {}
    assert stored_truth("a", folder) is None
    store("b", a_record(), folder)
    store("a", a_record((0.0, 0.0, 0.1)), folder)
    store("b", a_record((0.3, 0.2, 0.4)), folder)
    assert stored(folder) == {"a": a_record((0.0, 0.0, 0.1)), "b": a_record((0.3, 0.2, 0.4))}
    assert stored_truth("b", folder) == Truth(**a_record((0.3, 0.2, 0.4))["truth"])
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("content", ["[]", "{", '{"truth": {"masked": true}}', "{}"])
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match="record"):
        stored_truth("a", tmp_path)


def test_stored_records_are_consistent() -> None:
    records = stored()
    assert set(records) <= set(ZOO)
    for name, record in records.items():
        truth = Truth(**record["truth"])
        assert truth.masked == (truth.gap[0] > truth.margin), name
        assert truth.gap[1] <= truth.gap[0] <= truth.gap[2], name
        assert record["provenance"]["images"] == record["audit"]["images"], name
        for each in record.get("repeats", []):
            samples, margin = REPEATED[each["budget"]]
            assert each["margin"] == margin, name
            assert each["images"] <= samples, name


# the page


def test_the_page_counts_verdicts_by_truth_and_repeats() -> None:
    first = {"seed": 1, "exhaustive": False, "verdict": "MASKED", "images": 9, "budget": "smoke", "margin": 0.1}
    flipped = [first | {"versions": {}}, first | {"seed": 2, "verdict": "NOT_MASKED"}]
    text = page.markdown(
        {
            "ripple": a_record(repeats=flipped),
            "detached": a_record(repeats=[first, first | {"exhaustive": True}]),
            "jpeg": a_record(repeats=[first, first | {"exhaustive": True, "verdict": "INCONCLUSIVE"}]),
            "median": a_record(repeats=[first, first | {"exhaustive": True, "verdict": "NOT_MASKED"}]),
            "total-variation": a_record(repeats=[first | {"budget": "ci"}]),
            "small-logits": a_record((0.0, -0.1, 0.02), "INCONCLUSIVE"),
            "average": a_record((0.1, 0.0, 0.2), "MASKED"),
            "query-memory": a_record((0.0, -0.1, 0.02), "INCONCLUSIVE", repeats=[first | {"verdict": "NOT_MASKED"}]),
        }
    )
    assert "| 5 that mask | 1 that do not mask | 1 that leave it open | 1 that must not pass |" in text
    assert "| verdict `MASKED` | 5 | 0 | 1 | 0 |" in text
    assert "| verdict `INCONCLUSIVE` | 0 | 1 | 0 | 1 |" in text
    assert "| query-memory | not masked, must not pass ([stateful](findings.md#stateful)) 0.0 [-10.0, 2.0] |" in text
    assert "| small-logits | not masked 0.0 [-10.0, 2.0] | `INCONCLUSIVE` |" in text
    assert text.index("| detached |") < text.index("| ripple |"), "in the order of the zoo"
    assert "the budget `smoke`, a margin of 10 percentage points and at most 9 images" in text
    assert "2 of 6 defenses are `MASKED` in one audit" in text
    assert "3 audits were repeated *exhaustively*, with every attack on every image. 2 of them have another" in text
    assert "another verdict, and 1 have the opposite one." in text
    assert "3 of all 10 verdicts (1 on median, 1 on ripple, 1 on query-memory) are opposite to the truth, or" in text
    assert "9 of these audits were made before attacks had the order of today" in text
    assert "| ripple | masked | 1 / 1 / 0 | - | - |" in text
    assert "| detached | masked | 1 / 0 / 0 | - | 1 of 1 |" in text
    assert "10 images of d.npz, Linf, eps 8/255, budget ci" in text


def test_page_in_docs_shows_stored_records() -> None:
    assert page.PAGE.read_text() == page.markdown(stored())


# the command


def test_command_stores_and_prints_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def measured(entry: Entry, data: Dataset, **settings: Any) -> dict[str, Any]:
        asked.append(f"{entry.name} {len(data)} {settings['margin']}")
        return a_record()

    monkeypatch.setattr(__main__, "measure", measured)
    settings = ["--samples", "3", "--budget", "smoke", "--output", str(tmp_path)]
    assert __main__.main(["measure", "ripple", *settings]) == 0
    assert stored(tmp_path) == {"ripple": a_record()}
    assert "ripple: masked, MASKED; clean 50.0%" in capsys.readouterr().out
    assert __main__.main(["measure", "ripple", "median", "--missing", *settings]) == 0
    assert asked == ["ripple 3 0.25", "median 3 0.25"]


def test_repeats_are_added_to_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, bool]] = []
    margins: set[tuple[str, float]] = set()

    def repeated(entry: Entry, _: Dataset, **more: Any) -> dict[str, Any]:
        asked.append((more["seed"], more["exhaustive"]))
        margins.add((more["budget"].name, more["margin"]))
        budget = more["budget"].name
        return {
            "seed": more["seed"],
            "exhaustive": more["exhaustive"],
            "verdict": entry.name,
            "budget": budget,
            "versions": {},
        }

    monkeypatch.setattr(__main__, "repeat", repeated)
    settings = ["--samples", "3", "--output", str(tmp_path)]
    assert __main__.main(["repeat", "ripple", *settings]) == 2
    assert "not measured yet" in capsys.readouterr().err
    store("ripple", a_record(), tmp_path)
    assert __main__.main(["repeat", "ripple", "--seeds", "2", "1", *settings]) == 0
    assert __main__.main(["repeat", "ripple", "--seeds", "2", *settings]) == 0
    assert __main__.main(["repeat", "ripple", "--seeds", "1", "2", "--missing", "--exhaustive", *settings]) == 0
    assert __main__.main(["repeat", "ripple", "--seeds", "2", "1", "--missing", *settings]) == 0
    assert asked == [(2, False), (1, False), (2, False), (1, True), (2, True)]
    expected = [(1, False), (1, True), (2, False), (2, True)]
    assert stored(tmp_path)["ripple"]["repeats"] == [
        {"seed": seed, "exhaustive": exhaustive, "verdict": "ripple", "budget": "ci", "versions": {}}
        for seed, exhaustive in expected
    ]
    assert __main__.main(["repeat", "ripple", "--seeds", "1", "--missing", "--budget", "smoke", *settings]) == 0
    assert asked[5:] == [(1, False)], "another budget is another audit"
    assert margins == {("ci", 0.05), ("smoke", 0.10)}, "those of the other repeats"
    old = {"seed": 1, "exhaustive": False, "verdict": "ripple", "budget": "full"}  # without versions
    store("ripple", {**a_record(), "repeats": [old]}, tmp_path)
    assert __main__.main(["repeat", "ripple", "--seeds", "1", "--missing", "--budget", "full", *settings]) == 0
    assert asked[6:] == [(1, False)], "of an earlier rule"
    assert {**stored(tmp_path)["ripple"], "repeats": 0} == {**a_record(), "repeats": 0}


def test_command_lists_stories(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["list", "thermometer"]) == 0
    assert "Buckman" in capsys.readouterr().out
    assert __main__.main(["list"]) == 0
    text = capsys.readouterr().out
    assert [name for name in ZOO if f"{name} (" not in text] == []


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="'nonsense': unknown; use one of gradient-killer"):
        find(["nonsense"])
    assert __main__.main(["list", "nonsense"]) == 2
    assert "unknown" in capsys.readouterr().err
