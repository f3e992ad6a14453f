"""Assertions, messages, tables and pictures of transfer matrices, and their fixture."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
from torch import nn

from pytest_gradmask import (
    assert_low_transferability,
    assert_members_diverse,
    plot_transfer_matrix,
)
from pytest_gradmask.errors import DependencyError, InputError
from pytest_gradmask.report.transfer import transfer_table
from pytest_gradmask.verdict.results import Proportion
from tests.toys import Detach
from tests.transfer.transfer_toys import counts, left, made, measured, pairwise, right


@pytest.mark.parametrize(("across", "passes"), [(20, True), (21, False)])
def test_low_transferability_needs_every_bound(across: int, passes: bool) -> None:
    # At 99 %, 20 of 100 exclude 31 % and 21 do not. One pair that does not is enough to fail.
    at_most = Proportion.of(20, 100, 0.99).high
    matrix = pairwise(100, 20, names="abcd")
    correct = [list(row) for row in matrix.correct]
    correct[2][1] = tuple(image >= across for image in range(100))
    matrix = dataclasses.replace(matrix, correct=tuple(map(tuple, correct)))
    if passes:
        assert_low_transferability(matrix, at_most=at_most)
        return
    with pytest.raises(AssertionError, match=r"not shown for 1 of 12 pairs\n") as failure:
        assert_low_transferability(matrix, at_most=at_most)
    message = str(failure.value)
    assert "crafted on c, tested on b: 21 of 100 images fool it: 21.0% [12.4%, 32.0%]; at that rate about" in message
    assert "images that fool c would decide it" in message
    assert "This does not pass, and it does not prove a failure." in message
    assert "significantly" not in message


def test_pairs_surely_above_are_named_first() -> None:
    with pytest.raises(AssertionError) as failure:
        assert_low_transferability(measured({"one": left(), "twin": left(), "other": right()}), at_most=0.3)
    lines = str(failure.value).splitlines()
    assert lines[0] == (
        "expected adversarial images of one model to fool another model in at most 30.0% of cases, but that is not "
        "shown for 2 of 6 pairs; 2 are significantly above"
    )
    assert (
        lines[2]
        == "  crafted on one, tested on twin: 24 of 24 images fool it: 100.0% [82.5%, 100.0%], significantly above"
    )
    assert "one                     100.0%  100.0%  0.0%" in lines
    assert lines[-1].startswith("An attack on one of these models also works on the other")


def test_an_attack_that_does_not_work_shows_nothing() -> None:
    matrix = measured([nn.Sequential(Detach(), left()).eval(), nn.Sequential(Detach(), right()).eval()])
    with pytest.raises(
        AssertionError, match="model-0: the attack does not fool model-0 itself, so it shows nothing"
    ) as failure:
        assert_low_transferability(matrix, at_most=0.99)
    assert 'transfer_matrix(attack="bpda")' in str(failure.value)
    with pytest.raises(AssertionError, match="there is none on which the attack fools every model") as failure:
        assert_members_diverse(matrix, at_least=0.01)
    assert 'transfer_matrix(attack="bpda")' in str(failure.value)


def test_many_pairs_are_cut_short() -> None:
    with pytest.raises(AssertionError, match=r"\n  and 7 more pairs\n"):
        assert_low_transferability(pairwise(10, 10, names="abcd"), at_most=0.5)


def test_twins_beside_a_third_are_diverse() -> None:
    matrix = measured({"one": left(), "twin": left(), "other": right()})
    assert_members_diverse(matrix, at_least=0.8)
    with pytest.raises(AssertionError):
        assert_low_transferability(matrix, at_most=0.8)


def test_rare_transfers_both_ways_can_cover_most_images() -> None:
    first, second = range(40), range(40, 80)
    every = range(100)
    matrix = made({("a", "a"): every, ("a", "b"): first, ("b", "a"): second, ("b", "b"): every}, 100)
    assert_low_transferability(matrix, at_most=0.6)
    assert counts(matrix.diversity) == (20, 100)
    with pytest.raises(AssertionError, match="significantly smaller") as failure:
        assert_members_diverse(matrix, at_least=0.4)
    assert str(failure.value).startswith(
        "expected no crafted image to fool all models for at least 40.0% of the images, but that holds for 20 of 100: "
        "20.0% [11.6%, 30.9%]\n"
    )


def test_diversity_that_is_not_shown_is_no_pass() -> None:
    matrix = pairwise(10, 0)
    assert counts(matrix.diversity) == (10, 10)
    assert_members_diverse(matrix, at_least=0.63)
    with pytest.raises(AssertionError, match=r"not prove a failure.* about 44 images on which every attack works"):
        assert_members_diverse(matrix, at_least=0.9)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 30.0, float("nan")])
def test_shares_are_checked(share: float) -> None:
    matrix = pairwise(10, 0)
    with pytest.raises(InputError, match=r"at_most=.*must be a share of images above 0 and below 1"):
        assert_low_transferability(matrix, at_most=share)
    with pytest.raises(InputError, match=r"at_least=.*must be a share of images above 0 and below 1"):
        assert_members_diverse(matrix, at_least=share)


def test_messages_name_bypassed_and_invalid() -> None:
    matrix = pairwise(10, 10, bypassed=(("front_end",), ()), invalid=(0, 3))
    with pytest.raises(AssertionError) as failure:
        assert_low_transferability(matrix, at_most=0.5)
    assert "\nbypassed in a: front_end\n" in str(failure.value)
    assert "\ncrafted on b: 3 images outside of the ball or the bounds, or not finite, do not count\n" in str(
        failure.value
    )


def test_the_table_has_a_row_for_each_source() -> None:
    assert transfer_table(measured({"middle": left(), "shifted": left(0.05)})) == [
        "crafted on \\ tested on  middle  shifted",
        "middle                  100.0%  50.0%",
        "shifted                 100.0%  50.0%",
    ]


@pytest.mark.parametrize("name", ["matrix.svg", "new/matrix.PNG"])
def test_it_is_drawn_alike_each_time(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib

    matrix = pairwise(80, 33, names="abc")
    file = tmp_path / name
    plot_transfer_matrix(matrix, file)
    first = file.read_bytes()
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other"}):
        plot_transfer_matrix(matrix, str(file))
    assert file.read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    if name.endswith("svg"):
        text = first.decode()
        assert text.count(">80 %<") == 3
        assert text.count(">33 %<") == 6
        assert all(label in text for label in (">crafted on<", ">tested on<", "gradient attack:"))


def test_other_forms_of_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in .svg or .png"):
        plot_transfer_matrix(pairwise(1, 0), tmp_path / "matrix.bmp")


def test_without_matplotlib_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DependencyError, match=r"pip install 'pytest-gradmask\[report\]'"):
        plot_transfer_matrix(pairwise(1, 0), tmp_path / "matrix.svg")


def test_the_fixture_has_the_settings_of_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, torch
        from tests.transfer.test_matrix import IMAGES, LABELS, left, right

        @pytest.mark.gradmask(eps=0.05, norm="L2", confidence=0.9, seed=7, budget="ci")
        def test_it(transfer_matrix):
            found = {}
            def attack(model, images, labels, *, threat, steps, generator):
                found.update(steps=steps, seed=generator.initial_seed())
                return images
            matrix = transfer_matrix([left(), right()], IMAGES, LABELS, attack=attack)
            assert (matrix.threat.eps, matrix.threat.norm, matrix.confidence) == (0.05, "L2", 0.9)
            assert found == {"steps": 50, "seed": 7}
            assert transfer_matrix([left(), right()], IMAGES, LABELS, steps=1, confidence=0.8).confidence == 0.8
        """
    )
    pytester.runpytest("--gradmask", "--gradmask-device=cpu").assert_outcomes(passed=1)


def test_a_test_with_the_fixture_is_an_audit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(transfer_matrix): raise AssertionError")
    pytester.runpytest().assert_outcomes(skipped=1)
