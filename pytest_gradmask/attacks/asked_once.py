"""A deterministic defense that is not asked the same question twice in a row.

Where a gradient is exactly zero, APGD and FAB do not move. They then ask for the logits and the gradient at the same
point in every step, up to a thousand times an image. The answer is known from the first time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pytest_gradmask.attacks.protocol import AttackFunction, on_wrapped
from pytest_gradmask.execution.context import holding
from pytest_gradmask.execution.precision import guiding_precision

_EVERY: ContextVar[bool] = ContextVar("every", default=False)


def every_query() -> AbstractContextManager[None]:
    """Inside, queries are made also if they repeat the one before: to count what an attack takes that always moves."""
    return holding(_EVERY, True)


@dataclass(slots=True)
class _Answer:
    """What a model said about a batch.

    Attributes:
        images: the batch.
        logits: of the batch.
        weights: the gradient of the loss with respect to the logits; None if no gradient was taken.
        gradient: of the loss with respect to the images, likewise.
    """

    images: Tensor
    logits: Tensor
    weights: Tensor | None = None
    gradient: Tensor | None = None

    def keep_weights(self, weights: Tensor) -> None:
        self.weights = weights.detach().clone()

    def keep_gradient(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().clone()


class AskedOnce(nn.Module):
    """The model, which passes a batch on unless it equals the batch before in every bit.

    Args:
        model: deterministic, from images to logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self._last: _Answer | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x K."""
        if _EVERY.get() or guiding_precision():
            return self.model(images)  # type: ignore[no-any-return]
        differentiates, last = torch.is_grad_enabled() and images.requires_grad, self._last
        if last is not None and torch.equal(last.images, images):
            if not differentiates:
                return last.logits.clone()
            if last.gradient is not None:
                return _Again.apply(images, self.model, last)  # type: ignore[no-any-return]
        point = images.view_as(images)
        logits: Tensor = self.model(point)
        self._last = answer = _Answer(images.detach().clone(), logits.detach().clone())
        if differentiates:
            # The weights come first in a backward pass, so that both belong to the same one.
            logits.register_hook(answer.keep_weights)
            point.register_hook(answer.keep_gradient)
        return logits


class _Again(torch.autograd.Function):
    """An answer that was given before, with its gradient. For another loss, the gradient is taken anew."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: nn.Module, answer: _Answer) -> Tensor:
        ctx.model, ctx.answer = model, answer
        return answer.logits.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        answer: _Answer = ctx.answer
        if answer.gradient is not None and answer.weights is not None and torch.equal(answer.weights, weights):
            return answer.gradient.clone(), None, None
        point = answer.images.clone().requires_grad_(True)
        with torch.enable_grad():
            logits = ctx.model(point)
        return torch.autograd.grad(logits, point, weights)[0], None, None


def asked_once(attack: AttackFunction) -> AttackFunction:
    """The attack on a deterministic model, without queries that repeat the one before. It returns the same."""
    return on_wrapped(attack, AskedOnce)
