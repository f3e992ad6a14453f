"""What a message suggests after an audit that decides nothing."""

from __future__ import annotations

from dataclasses import replace

from pytest_gradmask.report.failure import explain
from pytest_gradmask.threat import ThreatModel
from tests.toys import IMAGES, KillGradient, audited, linear, masked, predictions


def test_messages_fit_a_terminal_of_80_columns() -> None:
    audit = replace(audited(masked(KillGradient)), provenance={"reproduce": "pytest test_it.py --gradmask"})
    lines = explain(audit, "no gradient masking").splitlines()
    assert max(map(len, lines)) <= 80 - len("E       ")
    findings = [line for line in lines if line.startswith("finding ")]
    assert len(findings) == len(audit.findings)
    assert sum(line.startswith("  ") for line in lines) > 1  # what does not fit is indented in the next line
    assert "reproduce: pytest test_it.py --gradmask" in lines  # to paste


def test_more_images_do_not_help_where_the_labels_are_in_doubt() -> None:
    labels = predictions(linear(), IMAGES)
    wrong = (labels + 1) % (int(labels.max()) + 1)
    wrong[0] = labels[0]
    text = explain(audited(linear(), labels=wrong), "no gradient masking")
    assert "finding permuted-labels: " in text
    assert "First see to permuted-labels, which" in " ".join(text.split())
    assert "--gradmask-samples" not in text
    assert "\nexplain: pytest --gradmask-explain=" in text


def test_otherwise_they_are_suggested() -> None:
    few = IMAGES[:3]
    audit = audited(linear(), few, labels=predictions(linear(), few))
    text = explain(audit, "no gradient masking")
    assert audit.verdict.name == "INCONCLUSIVE"
    assert "More images may decide it" in text
    assert "\nnext: pytest" in text
    assert "First see to" not in text


def test_a_tiny_eps_is_seen_to_first() -> None:
    audit = audited(linear(), threat=ThreatModel(eps=8 / 255, bounds=(0, 255)))
    text = " ".join(explain(audit, "no gradient masking").split())
    assert audit.verdict.name == "INCONCLUSIVE"
    assert "First see to tiny-eps, which" in text
    assert "More images may decide it" not in text


def test_the_suggested_command_works_for_images_of_the_test() -> None:
    few = IMAGES[:3]
    audit = audited(linear(), few, labels=predictions(linear(), few))
    own = replace(audit, provenance={**audit.provenance, "reproduce": "pytest test_it.py --gradmask"})
    text = explain(own, "no gradient masking")
    assert f"give audit() about {audit.images_needed} of them" in " ".join(text.split())
    assert f"--gradmask-samples={audit.images_needed}" in text
    # An option of images is a usage error where the test brings its own.
    assert "\nnext: pytest test_it.py --gradmask --gradmask-attempt=2  # with more images" in text
