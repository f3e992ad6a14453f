"""The figures of an audit, from a small one made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_gradmask.verdict.audit import Audit, in_order
from pytest_gradmask.verdict.results import AttackResult, Prediction, Proportion, Status, Verdict
from pytest_gradmask.verdict.stats import clopper_pearson

CLEAN = (True,) * 9 + (False,)


def attack(
    name: str, kind: str, attacked: tuple[int, ...], broken: tuple[int, ...], *, autoattack: bool = False
) -> AttackResult:
    versions = ("standard",) if autoattack else ()
    return AttackResult(name, kind, attacked=attacked, broken=broken, autoattack=versions)  # type: ignore[arg-type]


@pytest.fixture
def audit() -> Audit:
    """Ten images, of which the last is misclassified and 7 and 8 survive everything."""
    return Audit(
        defense="toy",
        verdict=Verdict.INCONCLUSIVE,
        reasons=("too few images",),
        clean=CLEAN,
        attacks=(
            attack("apgd-ce", "gradient", tuple(range(9)), (0,), autoattack=True),
            attack("fab-t", "gradient", tuple(range(1, 9)), (1, 2), autoattack=True),
            attack("bpda", "adaptive", tuple(range(3, 9)), (3, 4, 5)),
            attack("square", "adaptive", tuple(range(3, 9)), (5, 6), autoattack=True),
            AttackResult("zero-order", "adaptive", status="skipped", note="no time"),
            attack("placebo", "placebo", tuple(range(3, 9)), (3,)),
        ),
        gap=None,
        findings=(),
        images_needed=None,
        margin=0.25,
        confidence=0.99,
        exhaustive=True,
    )


def test_its_text_is_short(audit: Audit) -> None:
    assert repr(audit) == "<INCONCLUSIVE: toy, 10 images>"


def test_an_attack_that_did_not_run_has_no_accuracy(audit: Audit) -> None:
    with pytest.raises(ValueError, match=r"'zero-order' has no accuracy: it was skipped \(no time\)"):
        audit.accuracy_under("zero-order")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("apgd-ce", 8, id="the first gradient attack counts alone"),
        pytest.param("fab-t", 6, id="the second after the first"),
        pytest.param("bpda", 3, id="an adaptive one after every gradient attack"),
        pytest.param("square", 4, id="but not after another adaptive one"),
        pytest.param("placebo", 5, id="the placebo after every gradient attack"),
    ],
)
def test_accuracy_under(audit: Audit, name: str, count: int) -> None:
    assert audit.accuracy_under(name) == Proportion.of(count, 10, 0.99)


@pytest.mark.parametrize(
    ("figure", "count"),
    [("clean_accuracy", 9), ("gradient_accuracy", 6), ("autoattack_accuracy", 4), ("robust_accuracy", 2)],
)
def test_accuracies_count_misclassified_clean_images_as_broken(audit: Audit, figure: str, count: int) -> None:
    accuracy = getattr(audit, figure)
    assert (accuracy.count, accuracy.total, accuracy.value) == (count, 10, count / 10)
    assert (accuracy.low, accuracy.high) == clopper_pearson(count, 10, 0.99)


def test_without_its_attacks_there_is_no_autoattack_accuracy(audit: Audit) -> None:
    assert replace(audit, attacks=(audit.attack("bpda"),)).autoattack_accuracy is None


@pytest.mark.parametrize("status", ["failed", "skipped", "skipped-early"])
def test_autoattack_accuracy_needs_all_its_attacks(audit: Audit, status: Status) -> None:
    """Unless each of its attacks ran, there is no AutoAttack accuracy."""
    attacks = [replace(result, status=status) if result.name == "square" else result for result in audit.attacks]
    assert replace(audit, attacks=tuple(attacks)).autoattack_accuracy is None


@pytest.mark.parametrize(
    ("name", "count"), [("apgd-ce", 1), ("fab-t", 2), ("bpda", 1), ("square", 1), ("zero-order", 0), ("placebo", 0)]
)
def test_broken_alone(audit: Audit, name: str, count: int) -> None:
    assert audit.broken_alone(name) == count


def test_autoattacks_own_figure_needs_an_exhaustive_audit(audit: Audit) -> None:
    assert replace(audit, exhaustive=False).autoattack_accuracy is None


def test_images_in_another_order_are_put_back(audit: Audit) -> None:
    predictions = {index: Prediction(index / 10, index / 10, 10, True) for index in range(10)}
    seen = replace(audit, predictions=predictions)
    # The first image looked at was number 17 of those given.
    images = [17, 3, 40, 2, 8, 9, 11, 12, 13, 1]
    found = in_order(seen, images)
    assert found.images == tuple(sorted(images))
    assert [found.images[index] for index in found.attack("fab-t").broken] == [3, 40]
    assert {found.images[index] for index in found.attack("apgd-ce").attacked} == set(images[:9])
    assert dict(zip(found.images, found.clean, strict=True)) == dict(zip(images, audit.clean, strict=True))
    assert {found.images[index]: vote for index, vote in found.predictions.items()} == {
        image: predictions[index] for index, image in enumerate(images)
    }
    assert (found.clean_accuracy, found.gap) == (seen.clean_accuracy, seen.gap)


def test_survivors(audit: Audit) -> None:
    assert audit.survivors([]) == set(range(9))
    assert audit.survivors([audit.attack("bpda"), audit.attack("square")]) == {0, 1, 2, 7, 8}
    assert audit.survivors(audit.attacks) == {7, 8}


def test_attacks_by_kind_and_name(audit: Audit) -> None:
    assert [result.name for result in audit.of_kind("gradient", "placebo")] == ["apgd-ce", "fab-t", "placebo"]
    with pytest.raises(KeyError, match=r"no attack 'pgd'; there are apgd-ce, fab-t, bpda"):
        audit.attack("pgd")


def test_the_total_is_that_of_all_images(audit: Audit) -> None:
    assert audit.total == 10


def test_a_proportion_prints_its_interval() -> None:
    assert str(Proportion.of(0, 20, 0.99)) == "0.0% [0.0%, 20.6%]"
