"""The steps of a training: optimizer, learning rate and reports."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pytest_gradmask.training import loop
from pytest_gradmask.training.loop import Progress, initialised, train
from pytest_gradmask.training.recipes import Recipe
from pytest_gradmask.training.state import load_state
from tests.training.training_toys import DATA, TINY, KilledError, kill_after

# optimizers and schedules


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[torch.optim.Optimizer, float]]]:
    """The optimizer of every step and its learning rate."""
    seen: list[tuple[torch.optim.Optimizer, float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append((optimizer, optimizer.param_groups[0]["lr"]))
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_recipe_chooses_the_optimizer(name: str, kind: type[torch.optim.Optimizer], schedule: str) -> None:
    recipe = dataclasses.replace(TINY, optimizer=name, schedule=schedule, learning_rate=0.01, weight_decay=0.03)
    with watched() as steps:
        model = train(recipe, DATA)
    assert len(steps) == 12
    ((optimizer, _), *others) = steps
    assert all(other is optimizer for other, _ in others)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.03
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in model.parameters()}


def after_one_step(recipe: Recipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    with monkeypatch.context() as patch:
        kill_after(1, patch)
        with pytest.raises(KilledError):
            train(recipe, DATA, state_file=file)
    state = load_state(file, recipe, len(DATA))
    assert state is not None
    model: dict[str, Tensor] = state["model"]
    return model


def test_first_adamw_step_has_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(TINY, optimizer="adamw", schedule="constant", learning_rate=0.01, weight_decay=0)
    found, start = after_one_step(recipe, tmp_path / "tiny.state", monkeypatch), initialised(recipe)
    for key, before in start.named_parameters():
        assert (found[key] - before).abs().max() <= 0.01 * 1.001
    head = [key for key in found if key.endswith("head.fc.weight")]
    moved = (found[head[0]] - start.get_parameter(head[0])).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=0, rtol=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "share"), [("adamw", 1.0), ("sgd", 1.9)], ids=["adamw", "sgd with Nesterov's momentum"]
)
def test_weight_decay_shrinks_the_weights(
    optimizer: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(TINY, optimizer=optimizer, schedule="constant", learning_rate=0.01)
    none, some = (
        after_one_step(dataclasses.replace(recipe, weight_decay=decay), tmp_path / f"{decay}.state", monkeypatch)
        for decay in (0.0, 0.5)
    )
    for key, before in initialised(recipe).named_parameters():
        torch.testing.assert_close(some[key] - none[key], -share * 0.01 * 0.5 * before.detach(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_constant_learning_rate_never_changes(optimizer: str) -> None:
    with watched() as steps:
        train(dataclasses.replace(TINY, optimizer=optimizer, schedule="constant", learning_rate=0.01), DATA)
    assert [rate for _, rate in steps] == [0.01] * 12


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_rises_for_a_quarter_and_falls(optimizer: str) -> None:
    with watched() as steps:
        train(dataclasses.replace(TINY, optimizer=optimizer, learning_rate=0.01, epochs=8), DATA)
    rates = [rate for _, rate in steps]
    assert len(rates) == 24
    peak = rates.index(max(rates))
    assert peak == 5  # a quarter of the way
    assert rates[peak] == pytest.approx(0.01)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-6


def test_resumed_run_continues_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(TINY, optimizer="adamw", learning_rate=0.01)
    with watched() as undisturbed:
        train(recipe, DATA)
    with watched() as steps:
        after_one_step(recipe, tmp_path / "tiny.state", monkeypatch)
        train(recipe, DATA, state_file=tmp_path / "tiny.state")
    assert [rate for _, rate in steps] == [rate for _, rate in undisturbed]


# reports


def test_every_step_is_reported() -> None:
    seen: list[Progress] = []
    train(TINY, DATA, report=seen.append)
    assert [(each.step, each.total) for each in seen] == [(step, 12) for step in range(1, 13)]


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_reports_have_loss_and_accuracy_of_the_step(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.functional.cross_entropy
    losses: list[tuple[float, float]] = []
    seen: list[tuple[float, float]] = []

    def spy(logits: Tensor, labels: Tensor, **rest: Any) -> Tensor:
        loss = original(logits, labels, **rest)
        if rest:  # the loss that is learned from; that of the inner attack has no label smoothing
            losses.append((loss.item(), (logits.argmax(1) == labels).float().mean().item()))
        return loss

    monkeypatch.setattr(loop, "cross_entropy", spy)
    recipe = dataclasses.replace(TINY, eps=eps, label_smoothing=0.1)
    train(recipe, DATA, report=lambda progress: seen.append((progress.loss, progress.accuracy)))
    assert seen == losses
    assert len(set(seen)) == 12


def test_reported_loss_is_that_of_perturbed_images() -> None:
    clean, perturbed = list[Progress](), list[Progress]()
    train(TINY, DATA, report=clean.append)
    train(dataclasses.replace(TINY, eps=0.1), DATA, report=perturbed.append)
    assert perturbed[0].loss > clean[0].loss + 0.05


def test_resumed_run_reports_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed: list[Progress] = []
    train(TINY, DATA, report=undisturbed.append)
    seen: list[Progress] = []
    with monkeypatch.context() as patch:
        kill_after(7, patch)
        with pytest.raises(KilledError):
            train(TINY, DATA, state_file=tmp_path / "tiny.state", report=seen.append)
    assert seen == undisturbed[:7]
    train(TINY, DATA, state_file=tmp_path / "tiny.state", report=seen.append)
    assert seen == undisturbed
    train(TINY, DATA, state_file=tmp_path / "tiny.state", report=seen.append)  # finished: no step is left
    assert seen == undisturbed


@pytest.mark.parametrize(("every", "steps"), [(5, [5, 10, 12]), (4, [4, 8, 12]), (50, [12])])
def test_history_is_in_the_state(every: int, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY_STEPS", every)
    seen: list[Progress] = []
    train(TINY, DATA, state_file=tmp_path / "tiny.state", report=seen.append)
    state = load_state(tmp_path / "tiny.state", TINY, len(DATA))
    assert state is not None
    assert state["history"] == [(step, seen[step - 1].loss, seen[step - 1].accuracy) for step in steps]


@pytest.mark.parametrize("calls", [4, 5, 6])
def test_history_of_a_resumed_run_is_complete(calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY_STEPS", 5)
    train(TINY, DATA, state_file=tmp_path / "undisturbed.state")
    with monkeypatch.context() as patch:
        kill_after(calls, patch)
        with pytest.raises(KilledError):
            train(TINY, DATA, state_file=tmp_path / "killed.state")
    train(TINY, DATA, state_file=tmp_path / "killed.state")
    first, second = (load_state(tmp_path / f"{name}.state", TINY, len(DATA)) for name in ("undisturbed", "killed"))
    assert first is not None
    assert second is not None
    assert second["history"] == first["history"]
