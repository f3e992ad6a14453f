"""The transfer matrix: its rates, its errors, and its random numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import (
    ThreatModel,
    TransferMatrix,
    assert_low_transferability,
    assert_members_diverse,
    transfer_matrix,
)
from pytest_gradmask.attacks.bypass.bpda import described
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.errors import DefenseError, InputError
from tests.toys import Detach, NearIdentityConv, Noisy, Softmax, Spy, draw, global_state, linear, seed_all
from tests.transfer.transfer_toys import IMAGES, LABELS, SETTINGS, THREAT, counts, left, measured, pairwise, right


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


def test_transfer_rates_count_images_fooling_the_source() -> None:
    # The shifted model is 0.03 away from images of class 0 and 0.13, more than eps, from those of class 1.
    matrix = measured({"middle": left(), "shifted": left(0.05)})
    assert counts(matrix.transfer_rate("middle", "shifted")) == (12, 24)
    assert counts(matrix.transfer_rate("shifted", "middle")) == (12, 12)
    assert counts(matrix.fooled("shifted", "shifted")) == (12, 24)
    assert counts(matrix.diversity) == (0, 12)


def test_attack_continues_after_fooling_its_source() -> None:
    spy = Spy(left()).eval()
    assert counts(measured({"spy": spy, "other": right()}).fooled("spy", "spy")) == (24, 24)
    assert sum(spy.gradients) == SETTINGS["steps"] + 1


def test_accuracies_count_all_images_and_rates_common_ones() -> None:
    models = {"middle": left(), "far": left(0.1)}  # the second predicts class 1 for every image
    matrix = measured(models)
    assert counts(matrix.clean_accuracy("middle")) == (24, 24)
    assert counts(matrix.clean_accuracy("far")) == (12, 24)
    assert matrix.common == frozenset(range(1, 24, 2))
    assert counts(matrix.fooled("middle", "middle")) == (12, 12)
    assert counts(matrix.robust_accuracy("middle", "far")) == (12, 24)
    assert matrix.transfer_rate("far", "middle") is None  # more than eps away, so that no image fools it
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
    # A user's attack bypasses the named submodules and does not search.
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
def test_invalid_images_fool_no_model(value: float) -> None:
    def cheat(_: nn.Module, images: Tensor, *__: Any, **___: Any) -> Tensor:
        returned = images.clone()
        returned[:6] = torch.where(LABELS[:6].view(-1, 1, 1, 1) == 1, 1 - value, value)
        return returned

    matrix = measured([left(), right()], attack=cheat)
    assert matrix.attack == "cheat"
    assert matrix.invalid == (6, 6)
    assert all(counts(matrix.fooled(*pair)) == (0, 24) for pair in matrix.pairs)


def test_randomized_models_are_scored_by_samples() -> None:
    noisy = Noisy(left(), 0.5).eval()  # some forwards are wrong without an attack, and some are correct under it
    matrix = measured({"noisy": noisy, "plain": left()})
    assert counts(matrix.clean_accuracy("noisy")) == (24, 24)
    rate = matrix.transfer_rate("noisy", "plain")
    assert rate is not None
    assert rate.count == rate.total >= 20


def trained() -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    """Three models, one of them randomized, whose rates are neither 0 nor 1."""
    models: dict[str, nn.Module] = {
        "front": nn.Sequential(NearIdentityConv(0.1), linear()).eval(),
        "bare": linear(),
        "noisy": Noisy(linear(), 2.0).eval(),
    }
    images = draw(40, 3, 8, 8)
    with torch.no_grad():
        return models, images, linear()(images).argmax(1)


@pytest.mark.parametrize("attack", ["gradient", pgd])
def test_matrix_depends_on_the_seed_alone(attack: Any) -> None:
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
    before_images = images.clone()
    weights = [parameter for model in models.values() for parameter in model.parameters()]
    with torch.no_grad():
        transfer_matrix(models, images, labels, threat=THREAT, steps=2)
        assert not torch.is_grad_enabled()
    assert global_state() == before
    assert torch.equal(images, before_images)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    assert dropout.training
    assert not models["front"].training


def test_it_is_plain_data() -> None:
    matrix = measured([left(), right()])
    again = TransferMatrix(**{f.name: getattr(matrix, f.name) for f in dataclasses.fields(matrix)})
    assert again == matrix
    assert {type(each) for row in matrix.correct for cell in row for each in cell} == {bool}
    assert (matrix.attack, matrix.threat, matrix.confidence) == ("gradient", THREAT, 0.99)


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
        (
            {"attack": "bpda", "bypass": {"other": ["0"]}},
            r"bypass: 'other' is not the name of a model; there are model-0",
        ),
        ({"images": IMAGES + 1}, r"images: values from 1.42 to 1.58 are outside the bounds"),
        (
            {"labels": 1 - LABELS},
            r"images: none is classified correctly by every model \(model-0 0 of 24, model-1 0 of",
        ),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    inputs = {"models": [left(), right()], "images": IMAGES, "labels": LABELS, **SETTINGS, **arguments}
    with pytest.raises(InputError, match=message):
        transfer_matrix(**inputs)


class AcrossImages(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, images: Tensor) -> Tensor:
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
