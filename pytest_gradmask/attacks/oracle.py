"""The defense as attacks see it: counted, in float32, with its own random stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import nn

from pytest_gradmask.defense import Outputs
from pytest_gradmask.errors import DefenseError, GradmaskError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.loading.models.composites import Mixture
from pytest_gradmask.randomized.streams import RandomStream

_TINY_PROBABILITY = 1e-12


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """What a model computes in, and wants its images in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def as_logits(raw: torch.Tensor, outputs: Outputs) -> torch.Tensor:
    """What a model returns as float32 logits; those of probabilities are their logarithms."""
    logits = raw.float()
    return logits.clamp_min(_TINY_PROBABILITY).log() if outputs == "probabilities" else logits


def answer(name: str, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a model returns; what it raises, but for want of memory, is an error that names it.

    Raises:
        DefenseError: it raises.
    """
    with blamed(name, images):
        return model(images)  # type: ignore[no-any-return]


@contextmanager
def blamed(name: str, images: torch.Tensor) -> Iterator[None]:
    """What is raised inside, but for want of memory and by ourselves, is an error that names the model.

    Raises:
        DefenseError: it raises.
    """
    try:
        yield
    except GradmaskError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise DefenseError(
            f"{name} raised {type(error).__name__} on images of shape {tuple(images.shape)}: {error}"
        ) from error


class Oracle(nn.Module):
    """What an attack queries.

    Args:
        model: maps images to ``outputs``.
        stream: the defense's random numbers.
        outputs: what the model returns; probabilities are turned into logits by a logarithm.
        members: where the model is the mixture of a randomized ensemble, the members; one pass of the mixture is one
            of the defense for each of them.
        weights: with what chance each member answers.

    Attributes:
        dtype: what the model computes in.
        outputs: what the model returns.
        members: for each member, a function from images to its logits; empty unless the model is a mixture.
        weights: one for each member.
        forwards, backwards: images passed through the defense so far in each direction.

    Raises:
        DefenseError: from any forward pass in which the model raises, or changes its number of classes.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: RandomStream,
        outputs: Outputs = "logits",
        *,
        members: Sequence[nn.Module] = (),
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.members = [partial(self._ask, member, 1) for member in members]
        self.weights = tuple(weights)
        self._passes = max(1, len(members))
        self._stream = stream
        self.outputs = outputs
        self._classes = 0
        self.dtype = parameter_dtype(model)
        self.forwards = 0
        self.backwards = 0
        # Attacks of other libraries look at it, and some would switch the model back to it.
        self.training = False  # eval() would change the model's own flags, which are the user's

    @classmethod
    def of_mixture(cls, mixture: Mixture, stream: RandomStream, outputs: Outputs = "logits") -> Oracle:
        """A mixture whose members are known."""
        return cls(mixture, stream, outputs, members=list(mixture.members), weights=mixture.weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, float32, N x K. Where the model's graph does not reach the images, their gradient is zero."""
        return self._ask(self.model, self._passes, images)

    def _ask(self, model: nn.Module, passes: int, images: torch.Tensor) -> torch.Tensor:
        self.forwards += passes * len(images)
        raw = self._answer(model, images.to(self.dtype, copy=True))  # the model may write into its input
        if raw.shape != (len(images), self._classes or raw.shape[-1]):
            raise DefenseError(
                f"{type(model).__name__} maps {len(images)} images to shape {tuple(raw.shape)}, but others to "
                f"{self._classes} classes; it must have as many logits for every image and in every call"
            )
        self._classes = raw.shape[1]
        logits = as_logits(raw, self.outputs)
        if logits is raw:
            logits = logits.clone()  # an attack may write into what it gets
        if torch.is_grad_enabled() and images.requires_grad:
            # A defense that detaches its input is a defense with zero gradients, not a crash.
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
            logits.register_hook(partial(self._count_backward, passes))
        return logits

    def _answer(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with self._stream.active():
            return answer(type(model).__name__, model, images)

    def frozen(self) -> AbstractContextManager[None]:
        """Inside, every forward pass of batches of one shape draws the same random numbers.

        That makes a randomized defense one fixed draw of itself, unless it keeps a generator of its own.
        """
        return self._stream.frozen()

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, the global generators are the defense's own: for running a copy of the model, or a part of it."""
        return self._stream.active()

    def reseed(self, seed: int) -> None:
        """Let the defense go on with the random numbers of this seed; for audits, between attacks."""
        self._stream.reseed(seed)

    def connected(self, image: torch.Tensor) -> bool:
        """Whether autograd's graph leads from the logits back to the images; 1 x C x H x W, one pass each way."""
        self.forwards += self._passes * len(image)
        point = image.to(self.dtype, copy=True).requires_grad_(True)
        with torch.enable_grad():
            raw = self._answer(self.model, point + 0)  # the model may write into its input
        if not raw.requires_grad:
            return False
        self.backwards += self._passes * len(image)
        return torch.autograd.grad(raw.sum(), point, allow_unused=True)[0] is not None

    def _count_backward(self, passes: int, gradient: torch.Tensor) -> None:
        self.backwards += passes * len(gradient)
