"""The transfer matrix: what it measures, what it refuses, its assertions and its picture."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask import (
    ThreatModel,
    TransferMatrix,
    assert_low_transferability,
    assert_members_diverse,
    plot_transfer_matrix,
    transfer_matrix,
)
from pytest_gradmask.attacks.bpda import described
from pytest_gradmask.attacks.gradient import pgd
from pytest_gradmask.errors import DefenseError, DependencyError, InputError
from pytest_gradmask.report.transfer import transfer_table
from pytest_gradmask.results import Proportion
from tests.toys import Detach, Half, NearIdentityConv, Noisy, Softmax, Spy, draw, global_state, linear, seed_all

LABELS = torch.arange(24) % 2
#: Each half of an image is 0.08 above or below the middle, as its label says.
IMAGES = (0.5 + 0.08 * (2.0 * LABELS - 1)).view(-1, 1, 1, 1).expand(-1, 1, 4, 8).contiguous()
THREAT = ThreatModel(0.1)
SETTINGS: dict[str, Any] = {"threat": THREAT, "steps": 10}


def half(columns: slice, shift: float = 0.0) -> Half:
    """Looks at some columns of an image, with its boundary ``shift`` below the middle: all else is orthogonal."""
    weight = torch.zeros(1, 4, 8)
    weight[:, :, columns] = 1
    return Half(weight, bias=float(weight.sum() * (shift - 0.5))).eval()


def left(shift: float = 0.0) -> Half:
    return half(slice(0, 4), shift)


def right() -> Half:
    return half(slice(4, 8))


def measured(models: Mapping[str, nn.Module] | Iterable[nn.Module], **arguments: Any) -> TransferMatrix:
    """A matrix of the toys' images."""
    return transfer_matrix(models, IMAGES, LABELS, **{**SETTINGS, **arguments})


def counts(rate: Proportion | None) -> tuple[float, int] | None:
    return None if rate is None else (rate.count, rate.total)


def made(fooled: Mapping[tuple[str, str], Iterable[int]], count: int, **arguments: Any) -> TransferMatrix:
    """A matrix of images that all models have right, from the images that are fooled for each source and target."""
    names = tuple(dict.fromkeys(source for source, _ in fooled))
    correct = tuple(
        tuple(tuple(image not in set(fooled[source, target]) for image in range(count)) for target in names)
        for source in names
    )
    clean = ((True,) * count,) * len(names)
    return TransferMatrix(names, clean, correct, "gradient", THREAT, **{"confidence": 0.99, **arguments})


# what it measures


def test_examples_of_a_twin_always_transfer() -> None:
    matrix = measured({"one": left(), "twin": left()})
    for source, target in itertools.product(matrix.names, repeat=2):
        assert counts(matrix.fooled(source, target)) == (24, 24)
        assert counts(matrix.transfer_rate(source, target)) == (24, 24)
        assert counts(matrix.robust_accuracy(source, target)) == (0, 24)
    assert counts(matrix.diversity) == (0, 24)


def test_examples_of_an_orthogonal_model_never_transfer() -> None:
    matrix = measured([left(), right()])
    assert matrix.names == ("model-0", "model-1")
    for source, target in matrix.pairs:
        assert counts(matrix.fooled(source, source)) == (24, 24)
        assert counts(matrix.transfer_rate(source, target)) == (0, 24)
        assert counts(matrix.robust_accuracy(source, target)) == (24, 24)
    assert counts(matrix.diversity) == (24, 24)
    assert_low_transferability(matrix, at_most=0.2)  # 0 of 24 excludes 17.5 % at 99 %
    assert_members_diverse(matrix, at_least=0.8)


def test_rates_are_of_the_images_that_fool_the_source() -> None:
    # The shifted model is 0.03 away from images of class 0 and 0.13, more than eps, from those of class 1.
    matrix = measured({"middle": left(), "shifted": left(0.05)})
    assert counts(matrix.transfer_rate("middle", "shifted")) == (12, 24)
    assert counts(matrix.transfer_rate("shifted", "middle")) == (12, 12)
    assert counts(matrix.fooled("shifted", "shifted")) == (12, 24)
    assert counts(matrix.diversity) == (0, 12)


def test_an_attack_goes_on_once_it_has_fooled_its_source() -> None:
    spy = Spy(left()).eval()
    assert counts(measured({"spy": spy, "other": right()}).fooled("spy", "spy")) == (24, 24)
    assert sum(spy.gradients) == SETTINGS["steps"] + 1


def test_accuracies_are_of_all_images_and_rates_of_those_that_all_have_right() -> None:
    models = {"middle": left(), "far": left(0.1)}  # the second calls everything class 1
    matrix = measured(models)
    assert counts(matrix.clean_accuracy("middle")) == (24, 24)
    assert counts(matrix.clean_accuracy("far")) == (12, 24)
    assert matrix.common == frozenset(range(1, 24, 2))
    assert counts(matrix.fooled("middle", "middle")) == (12, 12)
    assert counts(matrix.robust_accuracy("middle", "far")) == (12, 24)
    assert matrix.transfer_rate("far", "middle") is None  # more than eps away: no image fools it
    assert matrix.diversity is None


def test_bpda_crafts_what_masked_gradients_hide() -> None:
    models = {name: nn.Sequential(Detach(), left()).eval() for name in ("one", "two")}
    blind = measured(models)
    assert counts(blind.fooled("one", "two")) == (0, 24)
    assert blind.transfer_rate("one", "two") is None
    for bypass in (None, ["0"], {"one": ["0"]}, {"one": {"0": None}, "two": ["0"]}):
        matrix = measured(models, attack="bpda", bypass=bypass)
        assert [counts(matrix.transfer_rate(*pair)) for pair in matrix.pairs] == [(24, 24), (24, 24)]
        assert matrix.bypassed == (("0",), ("0",))
    # A function of one's own bypasses what it is told, and searches for nothing.
    assert counts(measured(models, attack=pgd, bypass=["0"]).fooled("one", "two")) == (24, 24)
    assert counts(measured(models, attack=pgd).fooled("one", "two")) == (0, 24)


def test_bpda_of_a_model_with_nothing_to_bypass() -> None:
    models = {"masked": nn.Sequential(Detach(), left()).eval(), "plain": left()}
    with pytest.raises(DefenseError, match=r"nothing to bypass was found in plain.*bypass=\{'plain': \(\)\}"):
        measured(models, attack="bpda")
    matrix = measured(models, attack="bpda", bypass={"plain": ()})
    assert matrix.bypassed == (("0",), ()) == tuple(described(dict.fromkeys(names)) for names in (["0"], []))
    assert counts(matrix.transfer_rate("plain", "masked")) == (24, 24)


@pytest.mark.parametrize("value", [5.0, float("nan"), 0.7])
def test_images_outside_fool_nobody(value: float) -> None:
    def cheat(_: nn.Module, images: torch.Tensor, *__: Any, **___: Any) -> torch.Tensor:
        returned = images.clone()
        returned[:6] = torch.where(LABELS[:6].view(-1, 1, 1, 1) == 1, 1 - value, value)
        return returned

    matrix = measured([left(), right()], attack=cheat)
    assert matrix.attack == "cheat"
    assert matrix.invalid == (6, 6)
    assert all(counts(matrix.fooled(*pair)) == (0, 24) for pair in matrix.pairs)


def test_randomized_models_are_judged_by_votes() -> None:
    noisy = Noisy(left(), 0.5).eval()  # some forwards are wrong without an attack, and some right under it
    matrix = measured({"noisy": noisy, "plain": left()})
    assert counts(matrix.clean_accuracy("noisy")) == (24, 24)
    rate = matrix.transfer_rate("noisy", "plain")
    assert rate is not None
    assert rate.count == rate.total >= 20


# what it leaves behind


def trained() -> tuple[dict[str, nn.Module], torch.Tensor, torch.Tensor]:
    """Three models whose matrix is no round figure, one of them random."""
    models: dict[str, nn.Module] = {
        "front": nn.Sequential(NearIdentityConv(0.1), linear()).eval(),
        "bare": linear(),
        "noisy": Noisy(linear(), 2.0).eval(),
    }
    images = draw(40, 3, 8, 8)
    with torch.no_grad():
        return models, images, linear()(images).argmax(1)


@pytest.mark.parametrize("attack", ["gradient", pgd])
def test_the_seed_decides_and_neither_global_generators_nor_the_order(attack: Any) -> None:
    models, images, labels = trained()
    settings: dict[str, Any] = {"threat": ThreatModel(0.01), "steps": 3, "attack": attack}
    seed_all(1)
    first = transfer_matrix(models, images, labels, seed=1, **settings)
    assert 0 < first.fooled("front", "bare").value < 1
    seed_all(2)
    assert transfer_matrix(models, images, labels, seed=1, **settings) == first
    assert transfer_matrix(models, images, labels, seed=2, **settings) != first
    backwards = transfer_matrix(dict(reversed(models.items())), images, labels, seed=1, **settings)
    assert backwards.names == first.names[::-1]
    for pair in itertools.product(models, repeat=2):
        assert backwards.robust_accuracy(*pair) == first.robust_accuracy(*pair)
        assert backwards.transfer_rate(*pair) == first.transfer_rate(*pair)


def test_no_trace_is_left() -> None:
    models, images, labels = trained()
    dropout = nn.Dropout()
    models["front"].append(dropout)  # type: ignore[operator]
    before = global_state()
    kept = images.clone()
    weights = [parameter for model in models.values() for parameter in model.parameters()]
    with torch.no_grad():
        transfer_matrix(models, images, labels, threat=THREAT, steps=2)
        assert not torch.is_grad_enabled()
    assert global_state() == before
    assert torch.equal(images, kept)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    assert dropout.training
    assert not models["front"].training


def test_it_is_plain_data() -> None:
    matrix = measured([left(), right()])
    again = TransferMatrix(**{f.name: getattr(matrix, f.name) for f in dataclasses.fields(matrix)})
    assert again == matrix
    assert {type(each) for row in matrix.correct for cell in row for each in cell} == {bool}
    assert (matrix.attack, matrix.threat, matrix.confidence) == ("gradient", THREAT, 0.99)


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": [left()]}, r"models: a transfer matrix needs at least 2, got 1"),
        ({"models": nn.Sequential(left(), right())}, r"models: got one Sequential; give a list"),
        ({"models": [left(), "resnet"]}, r"models: holds 'model-1': str"),
        ({"models": {1: left(), 2: right()}}, r"models: holds 1: Half; must be a torch.nn.Module by a string"),
        ({"attack": "fgsm"}, r"attack='fgsm': must be one of gradient, bpda, or a function"),
        ({"attack": lambda model, images, *_, **__: images[:1]}, r"attack: returned \(1, 1, 4, 8\) on model-0"),
        ({"attack": lambda *_, **__: None}, r"attack: returned NoneType on model-0"),
        ({"steps": 0}, r"steps=0: must be a whole number of at least 1"),
        ({"steps": True}, r"steps=True: must be"),
        ({"confidence": 1.0}, r"confidence=1.0: must be between 0.5 and 1"),
        ({"bypass": ["0"]}, r'bypass: the "gradient" attack bypasses nothing'),
        ({"attack": "bpda", "bypass": "0"}, r"bypass='0': must be a list of names"),
        ({"attack": "bpda", "bypass": ["nowhere"]}, r"bypass: 'nowhere' is not a submodule of model-0"),
        ({"attack": "bpda", "bypass": {"other": ["0"]}}, r"bypass: 'other' is no name of a model; there are model-0"),
        ({"images": IMAGES + 1}, r"images: values from 1.42 to 1.58 are outside the bounds"),
        (
            {"labels": 1 - LABELS},
            r"images: none is classified correctly by every model \(model-0 0 of 24, model-1 0 of",
        ),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"models": [left(), right()], "images": IMAGES, "labels": LABELS, **SETTINGS, **arguments}
    with pytest.raises(InputError, match=message):
        transfer_matrix(**given)


class AcrossImages(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return left()(images - images.mean(0) + 0.5)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: right().train(), r"Half is in train mode"),
        (lambda: linear(3, shape=(1, 4, 8)), r"different numbers of classes \(model-0 2, model-1 3\)"),
        (lambda: Softmax(right()).eval(), r"model-1 returns probabilities"),
        (lambda: AcrossImages().eval(), r"model-1: an image's logits differ .*findings.md#batch-dependence"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(DefenseError, match=message):
        measured([left(), make()])


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        measured([left(), right()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "a")}, r"names: a is there more than once"),
        ({"names": ("a",)}, r"at least 2 models, got 1"),
        ({"names": ("a", "b", "c")}, r"correct: must be 3 x 3 outcomes"),
        ({"clean": ((True,), (True,))}, r"correct: must be 2 x 2 outcomes of as many images"),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    matrix = pairwise(0, 0, 4)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(matrix, **change)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(KeyError, match="no model 'c'; there are a, b"):
        pairwise(0, 0, 4).robust_accuracy("a", "c")


# assertions


def pairwise(own: int, across: int, count: int = 100, names: str = "ab", **arguments: Any) -> TransferMatrix:
    """Each model falls to its own attack on the first images, and to that on another on the first of those."""
    cells = itertools.product(names, repeat=2)
    return made({(a, b): range(own if a == b else across) for a, b in cells}, count, **arguments)


@pytest.mark.parametrize(("across", "passes"), [(20, True), (21, False)])
def test_low_transferability_is_what_every_bound_shows(across: int, passes: bool) -> None:
    # At 99 %, 20 of 100 exclude 31 % and 21 do not. One pair that does not is enough to fail.
    at_most = Proportion.of(20, 100, 0.99).high
    matrix = pairwise(100, 20, names="abcd")
    correct = [list(row) for row in matrix.correct]
    correct[2][1] = tuple(image >= across for image in range(100))
    matrix = dataclasses.replace(matrix, correct=tuple(map(tuple, correct)))
    if passes:
        assert_low_transferability(matrix, at_most=at_most)
        return
    with pytest.raises(AssertionError, match=r"but of 1 of 12 pairs that is not shown\n") as failure:
        assert_low_transferability(matrix, at_most=at_most)
    message = str(failure.value)
    assert "crafted on c, tested on b: fools it 21 times of 100: 21.0% [12.4%, 32.0%]; at that rate about" in message
    assert "images that fool c would settle it" in message
    assert "This is no pass, and no proof of failure." in message
    assert "surely" not in message


def test_pairs_that_are_surely_above_are_named_first_and_told_apart() -> None:
    with pytest.raises(AssertionError) as failure:
        assert_low_transferability(measured({"one": left(), "twin": left(), "other": right()}), at_most=0.3)
    lines = str(failure.value).splitlines()
    assert lines[0] == (
        "expected what fools one model to fool another in at most 30.0% of cases, but of 2 of 6 pairs that is not "
        "shown; 2 are surely above"
    )
    assert lines[2] == "  crafted on one, tested on twin: fools it 24 times of 24: 100.0% [82.5%, 100.0%], surely above"
    assert "one                     100.0%  100.0%  0.0%" in lines
    assert lines[-1].startswith("Who can attack one of these models can attack the other")


def test_an_attack_that_does_not_work_shows_nothing() -> None:
    matrix = measured([nn.Sequential(Detach(), left()).eval(), nn.Sequential(Detach(), right()).eval()])
    with pytest.raises(AssertionError, match="model-0: does not fool model-0 itself, so nothing is known") as failure:
        assert_low_transferability(matrix, at_most=0.99)
    assert 'transfer_matrix(attack="bpda")' in str(failure.value)
    with pytest.raises(AssertionError, match="there is none on which the attack fools every model") as failure:
        assert_members_diverse(matrix, at_least=0.01)
    assert 'transfer_matrix(attack="bpda")' in str(failure.value)


def test_many_pairs_are_cut_short() -> None:
    with pytest.raises(AssertionError, match=r"\n  and 7 pairs more\n"):
        assert_low_transferability(pairwise(10, 10, names="abcd"), at_most=0.5)


def test_twins_beside_a_third_are_diverse_though_their_examples_transfer() -> None:
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
    with pytest.raises(AssertionError, match="Surely fewer") as failure:
        assert_members_diverse(matrix, at_least=0.4)
    assert str(failure.value).startswith(
        "expected no crafted image to fool all models for at least 40.0% of the images, but that holds for 20 of 100: "
        "20.0% [11.6%, 30.9%]\n"
    )


def test_diversity_that_is_not_shown_is_no_pass() -> None:
    matrix = pairwise(10, 0)
    assert counts(matrix.diversity) == (10, 10)
    assert_members_diverse(matrix, at_least=0.63)
    with pytest.raises(AssertionError, match=r"no proof of failure.* About 44 on which every attack works"):
        assert_members_diverse(matrix, at_least=0.9)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 30.0, float("nan")])
def test_shares_are_checked(share: float) -> None:
    matrix = pairwise(10, 0)
    with pytest.raises(InputError, match=r"at_most=.*must be a share of images above 0 and below 1"):
        assert_low_transferability(matrix, at_most=share)
    with pytest.raises(InputError, match=r"at_least=.*must be a share of images above 0 and below 1"):
        assert_members_diverse(matrix, at_least=share)


def test_messages_tell_what_was_bypassed_and_what_was_invalid() -> None:
    matrix = pairwise(10, 10, bypassed=(("front_end",), ()), invalid=(0, 3))
    with pytest.raises(AssertionError) as failure:
        assert_low_transferability(matrix, at_most=0.5)
    assert "\nbypassed in a: front_end\n" in str(failure.value)
    assert "\ncrafted on b: 3 images outside of the ball or the bounds, or not finite, fool nobody\n" in str(
        failure.value
    )


# table and picture


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


# in pytest


def test_the_fixture_has_the_settings_of_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, torch
        from tests.test_transfer_matrix import IMAGES, LABELS, left, right

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
