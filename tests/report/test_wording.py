"""Sentences and figures of an audit that can be quoted."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gradmask.report.json import crash_to_json
from pytest_gradmask.report.wording import (
    bypassed_text,
    eps_text,
    headline,
    hidden_by,
    percent,
    threat_text,
    verdict_sentence,
)


def share(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def judged(verdict: str, **more: Any) -> dict[str, Any]:
    return {
        "defense": "resnet",
        "verdict": verdict,
        "reasons": ["a first reason", "a second one."],
        "images": 200,
        "margin": 0.05,
        "confidence": 0.99,
        "gradient_attacks": share(0.95, 0.901, 0.98),
        "all_attacks": share(0.05, 0.021, 0.1),
        "gap": {"estimate": 0.9, "low": 0.83, "high": 0.951},
        "provenance": {"threat": {"norm": "Linf", "eps": 8 / 255, "bounds": [0.0, 1.0]}, "budget": "ci"},
        **more,
    }


SENTENCES = {
    "MASKED": "At eps 8/255 (Linf) on 200 images with the budget ci, "
    "resnet's robust accuracy is 95 % [90.1, 98] under gradient attacks, "
    "but 5 % [2.1, 10] once adaptive attacks join them: MASKED (masking gap of 90 percentage points [83, 95.1] beyond "
    "a placebo of the same budget, confidence 99 %).",
    "NOT_MASKED": "At eps 8/255 (Linf) on 200 images with the budget ci, "
    "resnet's robust accuracy is 95 % [90.1, 98] under gradient "
    "attacks and 5 % [2.1, 10] once adaptive attacks join them: NOT_MASKED (masking gap of 90 percentage points "
    "[83, 95.1], so it is not above the margin of 5 percentage points, confidence 99 %).",
    "INCONCLUSIVE": "At eps 8/255 (Linf) on 200 images with the budget ci, "
    "resnet's robust accuracy is 95 % [90.1, 98] under gradient "
    "attacks and 5 % [2.1, 10] once adaptive attacks join them, which is INCONCLUSIVE: a first reason; a second one.",
}


@pytest.mark.parametrize(("verdict", "sentence"), SENTENCES.items())
def test_each_verdict_has_a_sentence(verdict: str, sentence: str) -> None:
    assert verdict_sentence(judged(verdict)).replace("\N{NO-BREAK SPACE}", " ") == sentence


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        ("MASKED", "MASKED: resnet, gap 90"),
        ("NOT_MASKED", "NOT_MASKED: resnet, robust accuracy 5 %"),
        ("INCONCLUSIVE", "INCONCLUSIVE: resnet, a first reason"),
    ],
)
def test_a_headline_is_short(verdict: str, text: str) -> None:
    assert headline(judged(verdict)).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        (["zero-gradient", "hidden-gradient", "bypass-beats-white-box"], "`torch.round` at mine.py:3"),
        (["zero-gradient", "bypass-beats-white-box"], 'the submodule "0", all after the submodule "head.1"'),
        (["zero-gradient"], ""),
    ],
)
def test_what_hides_the_gradient_is_named_if_it_was_shown(findings: list[str], text: str) -> None:
    audit = judged(
        "MASKED", findings=[{"id": name} for name in findings], bypassed=["0", "all after head.1"],
        operations=[{"name": "torch.round", "file": "mine.py", "line": 3}],
    )  # fmt: skip
    assert hidden_by(audit) == text
    assert bypassed_text({"bypassed": []}) == ""


def test_a_sentence_says_which_attempt_it_is() -> None:
    text = {attempt: verdict_sentence({**judged("MASKED"), "attempt": attempt}) for attempt in (1, 2)}
    assert "attempt" not in text[1]
    assert text[2] == text[1].replace("99\N{NO-BREAK SPACE}%)", "99\N{NO-BREAK SPACE}%, attempt 2)") != text[1]


def test_without_figures_there_are_reasons() -> None:
    assert (
        verdict_sentence(judged("INCONCLUSIVE", gap=None)) == "resnet: INCONCLUSIVE, as a first reason; a second one."
    )
    crash = crash_to_json("test", "resnets", ValueError("no"))
    assert verdict_sentence(crash) == "resnets: INCONCLUSIVE, as the audit raised ValueError: no."


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (0.5 / 255, "0.5/255"),
        (0.3, "0.3"),
        (0.1, "0.1"),
        (0.2, "0.2"),
        (0.0, "0"),
        (0.031372551, "8/255"),
    ],
)
def test_a_radius_is_written_as_in_papers(eps: float, text: str) -> None:
    assert eps_text(eps) == text


def test_in_other_bounds_a_radius_is_a_number() -> None:
    assert threat_text({"norm": "L2", "eps": 1.0, "bounds": [-1, 1]}) == "eps 1 (L2)"


def test_percentages_have_at_most_one_decimal() -> None:
    assert [percent(value).replace("\N{NO-BREAK SPACE}", " ") for value in (0.05, 0.0549, 1)] == [
        "5 %",
        "5.5 %",
        "100 %",
    ]
