"""Recorded answers: stored results count only while the defense answers as it did, and to ask it leaves no trace."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.recorded import key_of_recorded
from pytest_gradmask.execution.cache import Cache
from tests.toys import IMAGES, KillGradient, Noisy, Quantize, audited, convolutional, global_state, linear, masked


def key(defense: nn.Module | Defense, folder: Path) -> str:
    """The key of results of a defense whose code is said to be what it always was."""
    defense = defense if isinstance(defense, Defense) else Defense(defense, name="it")
    return key_of_recorded(Cache(folder), "a" * 64, defense, IMAGES, threat=ThreatModel(), seed=0)


class Noise(nn.Module):
    """Adds normal noise that follows no seed to the logits."""

    def __init__(self, level: float, mean: float = 0.0) -> None:
        super().__init__()
        self.model, self.level, self.mean = linear(), level, mean

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        draw = random.SystemRandom().gauss
        return logits + torch.tensor([[draw(self.mean, self.level) for _ in row] for row in logits])


class RandomBackward(nn.Module):
    """A gradient that follows no seed."""

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone()
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient * random.SystemRandom().random())
        return images


class Raises(nn.Module):
    """Has no gradient, because its backward raises."""

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone()
        if images.requires_grad:
            images.register_hook(self.fail)
        return images

    def fail(self, _: Tensor) -> Tensor:
        raise RuntimeError("no")


class Then(nn.Module):
    """A model, and then a function of images and logits."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], model: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.function = model or linear(), function
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images, self.model(images))


def constant(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """One more class, whose logit is always the same."""
    return lambda _, logits: torch.cat([logits, torch.full((len(logits), 1), value)], 1)


def shifted(by: float, value: float = -1e9) -> Callable[[Tensor, Tensor], Tensor]:
    """One logit moved, beside a class that is masked out."""
    return lambda images, logits: constant(value)(images, logits + torch.tensor([by, *[0.0] * (logits.shape[1] - 1)]))


def steep(factor: float) -> nn.Module:
    """The gradient of dark images is huge, that of others is multiplied by a factor; logits are the same."""

    def forward(images: Tensor, logits: Tensor) -> Tensor:
        dark = (images.flatten(1).mean(1) <= IMAGES.flatten(1).mean(1).min() + 1e-4).float()[:, None]
        slope = dark * 1e5 + (1 - dark) * factor
        return logits.detach() + slope * (logits - logits.detach())

    return Then(forward)


def scores_only(images: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG001
    return logits if torch.is_grad_enabled() else logits.flip(1)


def raises_without_autograd(images: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG001
    if not torch.is_grad_enabled():
        raise RuntimeError("no")
    return logits


SAME: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "convolutional": convolutional,
    "rounds": lambda: masked(Quantize),
    "without a gradient": lambda: masked(KillGradient),
    "noise by the seed": lambda: Noisy(linear(), 0.3).eval(),
    "noise by no seed": lambda: Noise(0.3).eval(),
    "gradient by no seed": lambda: nn.Sequential(RandomBackward(), linear()).eval(),
    "backward raises": lambda: nn.Sequential(Raises(), linear()).eval(),
    "half precision": lambda: linear().to(torch.bfloat16),
    "a class is masked out": lambda: Then(constant(-1e9)),
    "noise by no seed beside an infinite logit": lambda: Then(constant(-float("inf")), Noise(0.3)),
    "noise by no seed, raises without autograd": lambda: Then(raises_without_autograd, Noise(0.3)),
    "noise and gradient by no seed": lambda: nn.Sequential(RandomBackward(), Noise(0.3)).eval(),
    "many classes, one masked out": lambda: Then(constant(-float("inf")), linear(100)),
    "steep at one image": lambda: steep(1.0),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_what_answers_alike_keeps_its_results(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len({key(make(), tmp_path) for _ in range(5)}) == 1


def scaled(model: nn.Sequential, by: float) -> nn.Sequential:
    with torch.no_grad():
        model[-1].weight[0, 0] *= 1 + by  # type: ignore[operator, index]
    return model


OTHER: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "one weight by a tenth": (linear, lambda: scaled(linear(), 0.1)),
    "one of many weights by a tenth": (convolutional, lambda: scaled(convolutional(), 0.1)),
    "gradient": (linear, lambda: masked(KillGradient)),
    "more noise by the seed": (lambda: Noisy(linear(), 0.3).eval(), lambda: Noisy(linear(), 0.31).eval()),
    "more noise by no seed": (lambda: Noise(0.3).eval(), lambda: Noise(0.8).eval()),
    "other mean of noise": (lambda: Noise(0.1).eval(), lambda: Noise(0.1, 0.5).eval()),
    "noise or none": (lambda: Noise(0.3).eval(), linear),
    "none or noise": (linear, lambda: Noise(0.3).eval()),
    "more classes": (linear, lambda: linear(5)),
    "raises": (linear, lambda: nn.Sequential(Raises(), linear()).eval()),
    "raises no more": (lambda: nn.Sequential(Raises(), linear()).eval(), linear),
    "only without autograd": (linear, lambda: Then(scores_only)),
    "raises without autograd": (linear, lambda: Then(raises_without_autograd)),
    "beside a class that is masked out": (lambda: Then(shifted(0.0)), lambda: Then(shifted(5.0))),
    "beside many classes": (lambda: Then(shifted(0), linear(100)), lambda: Then(shifted(5), linear(100))),
    "beside noise and a masked class": (lambda: Then(shifted(0), Noise(0.1)), lambda: Then(shifted(5), Noise(0.1))),
    "gradient beside a steep one": (lambda: steep(1.0), lambda: steep(0.0)),
    "gradient beside noise by no seed": (lambda: Noise(0.01), lambda: nn.Sequential(KillGradient(), Noise(0.01))),
}


@pytest.mark.parametrize(("before", "after"), OTHER.values(), ids=OTHER)
def test_what_answers_otherwise_loses_them(
    before: Callable[[], nn.Module], after: Callable[[], nn.Module], tmp_path: Path
) -> None:
    first = key(before(), tmp_path)
    with pytest.warns(UserWarning, match="it has changed in a way that its code, weights and attributes do not show"):
        assert key(after(), tmp_path) != first


def test_a_warning_that_is_an_error_is_raised_once(tmp_path: Path) -> None:
    key(linear(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="has changed"):
            key(linear(seed=1), tmp_path)
        key(linear(seed=1), tmp_path)


def test_a_source_that_answers_otherwise_is_noticed(tmp_path: Path) -> None:
    first = key(Defense(linear(), sources=[linear(seed=1)]), tmp_path)
    with pytest.warns(UserWarning, match="those of model 1 differ"):
        assert key(Defense(linear(), sources=[linear(seed=2)]), tmp_path) != first


def test_what_answers_as_before_again_finds_its_results_again(tmp_path: Path) -> None:
    first = key(linear(), tmp_path)
    with pytest.warns(UserWarning, match="has changed"):
        key(linear(seed=1), tmp_path)
    with pytest.warns(UserWarning, match="has changed"):
        assert key(linear(), tmp_path) == first


class Counter(nn.Module):
    """Counts what it is asked, in an attribute and in a buffer, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module = linear()
        self.asked = [0]
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.asked[0] += 1
        self.count += 1
        torch.rand(1), random.random()
        return self.model(images) * self.count  # type: ignore[no-any-return]


def test_to_ask_leaves_no_trace(tmp_path: Path) -> None:
    model = Counter().eval()
    weight = next(model.parameters())
    weight.grad = torch.ones(4, 192)
    before, state = global_state(), [parameter.requires_grad for parameter in model.parameters()]
    assert key(model, tmp_path) == key(model, tmp_path)
    assert global_state() == before
    assert [parameter.requires_grad for parameter in model.parameters()] == state
    assert (model.asked, model.count.item()) == ([0], 0)
    assert weight.grad is not None
    assert weight.grad.eq(1).all()


class NotCopied(Counter):
    """Cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)  # type: ignore[no-any-return]


def test_what_cannot_be_copied_is_asked_itself(tmp_path: Path) -> None:
    first = key(NotCopied().eval(), tmp_path)
    other = NotCopied().eval()
    assert key(other, tmp_path) == first
    other.model = linear(seed=1)
    with pytest.warns(UserWarning, match="has changed"):
        assert key(other, tmp_path) != first


def test_results_of_single_attacks_are_not_used_either(tmp_path: Path) -> None:
    front = nn.Identity()
    model = nn.Sequential(front, linear()).eval()
    switch = tmp_path / "switch"

    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images) * (1 - 2 * switch.exists())  # type: ignore[no-any-return]

    def stop(event: object) -> None:
        if str(event).startswith("square"):
            raise KeyboardInterrupt

    labels = linear()(IMAGES).argmax(1)
    with pytest.raises(KeyboardInterrupt):
        audited(Switched().eval(), labels=labels, exhaustive=True, cache=tmp_path / "results", progress=stop)
    switch.touch()
    with pytest.warns(UserWarning, match="has changed"):
        found = audited(Switched().eval(), labels=labels, exhaustive=True, cache=tmp_path / "results")
    assert sum(found.clean) < len(labels) / 2
    assert all(len(attack.attacked) <= sum(found.clean) for attack in found.attacks)


def test_a_second_run_asks_a_fiftieth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forward = Oracle.forward

    def counted(self: Oracle, images: Tensor) -> Tensor:
        asked.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Oracle, "forward", counted)
    totals = []
    for _ in range(2):
        asked.clear()
        audited(masked(Quantize, convolutional()), cache=tmp_path, budget="smoke")
        totals.append(sum(asked))
    assert totals[1] == 32
    assert totals[0] > 50 * totals[1]
