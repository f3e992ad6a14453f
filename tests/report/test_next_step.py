"""What a message suggests after an audit that decides nothing."""

from __future__ import annotations

from pytest_gradmask.report.failure import explain
from tests.toys import IMAGES, audited, linear, predictions


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
