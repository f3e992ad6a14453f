"""The defense that attacks query: it counts passes, returns float32 logits and has a separate random stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.rejection import RejectOption
from pytest_gradmask.attacks.users_code import errors_attributed_to
from pytest_gradmask.defense import Outputs
from pytest_gradmask.errors import DeadlineError, DefenseError
from pytest_gradmask.execution.compiled import eagerly
from pytest_gradmask.execution.first_state import FirstState
from pytest_gradmask.execution.precision import Precision, autocast, guiding_precision
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.execution.time_limit import check_time
from pytest_gradmask.loading.models.composites import Mixture
from pytest_gradmask.randomized.streams import RandomStream

#: What probabilities are raised to before their logarithm is taken.
TINY_PROBABILITY = 1e-12


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point type of a model's parameters, which its images need as well; float32 if it has none."""
    tensors = chain(model.parameters(), _constants(model))
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _constants(model: nn.Module) -> Iterator[Tensor]:
    """The tensors in the code of TorchScript. Freezing turns all parameters into such constants."""
    if isinstance(model, torch.jit.ScriptModule):
        graph: Any = model.inlined_graph  # its nodes are valid only as long as it is referenced
        for node in graph.findAllNodes("prim::Constant"):
            if node.hasAttribute("value") and node.kindOf("value") == "t":
                yield node.t("value")


def as_logits(raw: Tensor, outputs: Outputs) -> Tensor:
    """The outputs of a model as float32 logits. For probabilities, these are their logarithms."""
    logits = raw.float()
    return logits.clamp_min(TINY_PROBABILITY).log() if outputs == "probabilities" else logits


def output_of(name: str, model: nn.Module, images: Tensor) -> Tensor:
    """The output of a model, with `errors_attributed_to` that model.

    Raises:
        DefenseError: the model raises.
    """
    with errors_attributed_to(name, images):
        return model(images)  # type: ignore[no-any-return]


class Oracle(nn.Module):
    """The model that an attack queries.

    Args:
        model: maps images to ``outputs``.
        stream: the defense's random numbers.
        outputs: what the model returns; probabilities are turned into logits by a logarithm.
        members: if the model is the mixture of a randomized ensemble, its members. One pass of the mixture then counts
            as one pass for each member.
        weights: the probability of each member.
        rejection: of a defense that may reject an image.
        first_state: of a defense that changes with its queries. If given, a fresh copy answers each query.

    Attributes:
        dtype: the floating-point type of the model.
        outputs: what the model returns.
        members: for each member, a function from images to its logits; empty unless the model is a mixture.
        weights: one for each member.
        rejection: adds the class "rejected" to the logits, or joins it with the label under attack.
        first_state: is put back before each query; None leaves the defense as its queries make it.
        forwards, backwards: number of images passed through the defense so far, in each direction.
        calls: number of passes so far in either direction, of batches of any size.
        largest: number of images in the largest batch so far.
        precision: in which the model computes.
        one_by_one: whether each image of a batch is asked by itself.
        ends: when it stops to answer, in seconds since the epoch; None for never.

    Raises:
        DefenseError: in a forward pass, if the model raises or changes its number of classes.
        DeadlineError: in a forward pass after ``ends``.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: RandomStream,
        outputs: Outputs = "logits",
        *,
        members: Sequence[nn.Module] = (),
        weights: Sequence[float] = (),
        rejection: RejectOption | None = None,
        first_state: FirstState | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.rejection = rejection
        self.first_state = first_state
        self.members = [partial(self._query, member, 1) for member in members]
        self.weights = tuple(weights)
        self._passes = max(1, len(members))
        self._stream = stream
        self.outputs = outputs
        self._classes = 0
        self.dtype = parameter_dtype(model)
        self.forwards = 0
        self.backwards = 0
        self.calls = 0
        self.largest = 0
        self.precision: Precision = "own"
        self.one_by_one = False
        self.ends: float | None = None
        # Attacks of other libraries read this flag, and some set the model back to it afterwards.
        self.training = False  # eval() would change the flags of the model, which belong to the user

    @classmethod
    def of_mixture(
        cls,
        mixture: Mixture,
        stream: RandomStream,
        outputs: Outputs = "logits",
        rejection: RejectOption | None = None,
        first_state: FirstState | None = None,
    ) -> Oracle:
        """The oracle of a mixture, which knows the members."""
        return cls(
            mixture, stream, outputs, members=list(mixture.members), weights=mixture.weights, rejection=rejection,
            first_state=first_state,
        )  # fmt: skip

    def of(self, model: nn.Module, outputs: Outputs) -> Oracle:
        """The oracle of another model, or of this one with other outputs: same random numbers, counters at zero."""
        return Oracle(model, self._stream, outputs, rejection=self.rejection, first_state=self.first_state)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32, N x K. If the graph of the model does not reach the images, their gradient is zero."""
        if self.one_by_one and len(images) > 1:
            return torch.cat([self._query(self.model, self._passes, image) for image in images.split(1)])
        return self._query(self.model, self._passes, images)

    def _query(self, model: nn.Module, passes: int, images: Tensor) -> Tensor:
        if self.ends is not None and time.time() > self.ends:
            raise DeadlineError("the time of this attack is over")
        self.forwards += passes * len(images)
        self.calls += passes
        self.largest = max(self.largest, len(images))
        # The model may write into its input.
        raw = self._forward(model, lambda: images.to(self.dtype, copy=True))
        if raw.shape != (len(images), self._classes or raw.shape[-1]):
            raise DefenseError(
                f"{type(model).__name__} maps {len(images)} images to shape {tuple(raw.shape)}, but others to "
                f"{self._classes} classes; it must have as many logits for every image and in every call"
            )
        self._classes = raw.shape[1]
        logits = as_logits(raw, self.outputs)
        if self.rejection is not None:
            logits = self.rejection(raw, logits)
        if logits is raw:
            logits = logits.clone()  # an attack may write into the logits
        if torch.is_grad_enabled() and images.requires_grad:
            # A defense that detaches its input has a gradient of zero; autograd would raise an error instead.
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
            logits.register_hook(partial(self._count_backward, passes))
        return logits

    def _forward(self, model: nn.Module, copied: Callable[[], Tensor]) -> Tensor:
        def ask() -> Tensor:
            check_time()
            self.refresh()
            images, rough = copied(), guiding_precision()
            # What was compiled would be compiled once more for another precision.
            compiled = eagerly() if rough else nullcontext()
            with self._stream.active(), autocast(rough or self.precision, images.device), compiled:
                return output_of(type(model).__name__, model, images)

        return at_second_try(ask)

    def refresh(self) -> None:
        """Make the defense as good as a fresh copy, where its first state is given."""
        if self.first_state is not None:
            self.first_state.put_back()

    def frozen(self) -> AbstractContextManager[None]:
        """In this context, all forward passes of batches of the same shape use the same random numbers.

        This makes a randomized defense deterministic, unless it has a random generator of its own.
        """
        return self._stream.frozen()

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, the global generators are the defense's own: for running a copy of the model, or a part of it."""
        return self._stream.active()

    @contextmanager
    def without_rejection(self) -> Iterator[None]:
        """In this context, logits are those of the model's own outputs, whatever its reject option is."""
        rejection, self.rejection = self.rejection, None
        try:
            yield
        finally:
            self.rejection = rejection

    def reseed(self, seed: int) -> None:
        """Restart the random numbers of the defense from a seed; audits do this between attacks."""
        self._stream.reseed(seed)

    def connected(self, image: Tensor) -> bool:
        """Whether the graph of autograd leads from the logits back to the image, 1 x C x H x W; one pass each way."""
        self.forwards += self._passes * len(image)
        point = image.to(self.dtype, copy=True).requires_grad_(True)
        with torch.enable_grad():
            raw = self._forward(self.model, lambda: point + 0)  # the model may write into its input
        if not raw.requires_grad:
            return False
        self.backwards += self._passes * len(image)
        return torch.autograd.grad(raw.sum(), point, allow_unused=True)[0] is not None

    def _count_backward(self, passes: int, gradient: Tensor) -> None:
        self.backwards += passes * len(gradient)
        self.calls += passes
