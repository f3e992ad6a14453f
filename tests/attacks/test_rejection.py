"""Under attack, an image is misclassified exactly where it is misclassified and accepted."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.rejection import RejectOption, under_attack
from pytest_gradmask.defense import Rejects
from pytest_gradmask.randomized.prediction import label_wins
from tests.toys import draw, linear, oracle

LOGITS = 4 * draw(400, 5) - 2


def score(logits: Tensor) -> Tensor:
    return 0.6 - logits.softmax(1).amax(1)


def decision(logits: Tensor) -> Tensor:
    return score(logits) > 0


def truth(rejects: Rejects, label: int) -> Tensor:
    """Whether each row is broken, from the words: its predicted class is another one, and it is accepted."""
    if isinstance(rejects, int):
        predicted = LOGITS.argmax(1)
        return (predicted != label) & (predicted != rejects)
    return (LOGITS.argmax(1) != label) & ~decision(LOGITS)


@pytest.mark.parametrize("rejects", [0, 2, 4, score, decision])
def test_misclassified_exactly_where_broken(rejects: Rejects) -> None:
    option = RejectOption(rejects)
    option(LOGITS, LOGITS)
    for label in {0, 1, 2, 3, 4} - {rejects if isinstance(rejects, int) else -1}:
        labels = torch.full((len(LOGITS),), label)
        with option.under_attack(labels) as counted:
            logits = option(LOGITS, LOGITS)
            assert logits.shape[1] == 5 - isinstance(rejects, int)
            assert (~label_wins(logits, counted)).tolist() == truth(rejects, label).tolist()


@pytest.mark.parametrize("rejects", [0, 2, 4, score, decision])
def test_clean_images_are_correct_if_accepted(rejects: Rejects) -> None:
    option = RejectOption(rejects)
    logits = option(LOGITS, LOGITS)
    label = 1
    accepted = ~label_wins(logits, torch.full((len(LOGITS),), option.column))
    expected = (LOGITS.argmax(1) == label) & accepted
    assert label_wins(logits, torch.full((len(LOGITS),), label)).tolist() == expected.tolist()
    if not isinstance(rejects, int):
        assert accepted.tolist() == (~decision(LOGITS)).tolist()


def test_tiny_scores_decide() -> None:
    option = RejectOption(lambda logits: torch.tensor([1e-9, -1e-9]))
    raw = torch.tensor([[100.0, 0, 0], [100.0, 0, 0]])
    with option.under_attack(torch.tensor([1, 1])) as labels:
        assert label_wins(option(raw, raw), labels).tolist() == [True, False]


def test_gradient_acts_on_the_detector_where_it_rejects() -> None:
    option = RejectOption(2)
    raw = torch.tensor([[3.0, 1.0, 5.0], [3.0, 1.0, 0.0]], requires_grad=True)
    with option.under_attack(torch.tensor([0, 0])):
        logits = option(raw, raw)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), raw)
    assert gradient.tolist() == [[0, 1, -1], [-1, 1, 0]]


def test_decisions_leave_the_gradient_of_the_classifier() -> None:
    option = RejectOption(lambda logits: logits[:, 0] > 0)
    raw = torch.tensor([[3.0, 1.0, 0.0]], requires_grad=True)
    with option.under_attack(torch.tensor([0])):
        logits = option(raw, raw)
    assert logits[0, 0] > logits[0, 1:].max()
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), raw)
    assert gradient.tolist() == [[-1, 1, 0]]


def test_other_models_have_no_reject_option() -> None:
    option = RejectOption(4)
    option(LOGITS, LOGITS)
    with option.under_attack(torch.tensor([1])):
        assert option(LOGITS[:, :4], LOGITS[:, :4]).equal(LOGITS[:, :4])


def test_nothing_changes_without_a_reject_option() -> None:
    labels = torch.tensor([0, 1])
    with under_attack(None, labels) as same:
        assert same is labels


def test_oracles_share_it_also_after_pickling() -> None:
    option, model = RejectOption(3), linear()
    first, second = pickle.loads(pickle.dumps((oracle(model, rejection=option), oracle(model, rejection=option))))
    images = draw(2, 3, 8, 8)
    assert first(images).shape == second(images).shape == (2, 4)
    with under_attack(first.rejection, torch.tensor([0, 0])):
        assert first(images).shape == second(images).shape == (2, 3)
    assert first(images).shape == (2, 4)


def test_the_label_is_forgotten_after_an_error() -> None:
    model = nn.Sequential(linear())
    one = oracle(model, rejection=RejectOption(3))
    one(draw(1, 3, 8, 8))
    with pytest.raises(KeyError), under_attack(one.rejection, torch.tensor([0])):
        raise KeyError
    assert one(draw(1, 3, 8, 8)).shape == (1, 4)
