"""A model is put back into its first state, whatever its modules hold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.execution.first_state import FirstState
from tests.toys import Counting


class Held:
    """Not a module, but part of the state of one."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner, self.count = owner, 0


class Everything(nn.Module):
    """Each call changes everything that a module may hold."""

    mean: Tensor
    replaced: Tensor
    late: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("late", None)
        self.queries: list[Tensor] = []
        self.shared = {"queries": self.queries}
        self.held = Held(self.layer)
        self.alias = self.layer.weight
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        self.held.count += 1
        self.queries.append(images.detach())
        self.mean += 1
        self.replaced = self.replaced + 1
        self.late = torch.ones(2)
        self.new = 1
        self.layer.train()
        with torch.no_grad():
            self.layer.weight += 1
        return self.layer(images) + self.mean  # type: ignore[no-any-return]


def first_state(model: nn.Module) -> FirstState:
    return FirstState(model, copy.deepcopy(model))


def test_everything_is_put_back() -> None:
    model = Everything().eval()
    weight, replaced, images = model.layer.weight.detach().clone(), model.replaced, torch.ones(1, 2)
    state = first_state(model)
    answers = []
    for _ in range(3):
        state.put_back()
        answers.append(model(images).detach())
        model(images)
    state.put_back()
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert torch.equal(model.layer.weight, weight)
    assert model.alias is model.layer.weight
    assert model.replaced is replaced
    assert not model.mean.any()
    assert not replaced.any()
    assert model.late is None
    assert model.count == model.held.count == 0
    assert model.queries == []
    assert model.shared["queries"] is model.queries
    assert model.held.owner is model.layer
    assert not hasattr(model, "new")
    assert not model.layer.training


def test_without_it_a_model_goes_on() -> None:
    model, images = Everything().eval(), torch.ones(1, 2)
    assert not torch.equal(model(images), model(images))


def test_two_queries_may_be_differentiated_together() -> None:
    layer, images = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    model = Counting(layer, growth=0.5)
    state = first_state(model)
    answers = []
    for _ in range(2):
        state.put_back()
        answers.append(model(images))
    (gradient,) = torch.autograd.grad(answers[0].sum() + answers[1].sum(), images)
    assert torch.equal(answers[0], answers[1])
    assert torch.allclose(gradient, 3 * layer.weight.sum(0))


def test_undo_gives_the_own_attributes_back() -> None:
    model = Everything().eval()
    held, queries = model.held, model.queries
    state = first_state(model)
    state.put_back()
    assert model.held is not held
    state.undo()
    assert model.held is held
    assert model.queries is queries


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning", "ignore:.torch.jit.trace:DeprecationWarning")
def test_tensors_of_a_traced_module_are_put_back() -> None:
    class Counts(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return images + self.calls

    model: Any = torch.jit.trace(Counts(), torch.zeros(1), check_trace=False)
    state, before = first_state(model), model.calls.clone()
    model(torch.zeros(1))
    assert model.calls != before
    state.put_back()
    assert model.calls == before


def test_a_copy_with_other_modules_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        FirstState(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
