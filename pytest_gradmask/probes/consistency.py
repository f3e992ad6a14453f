"""Is the defense that is attacked the one that is scored? The same points, asked in different ways and at other times.

An attack asks with autograd, in batches, off the grid of 8 bits and after many other queries; a user does not. A
defense whose answers depend on that may be robust in one way and be scored in the other.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.evaluate import value_and_grad
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.first_state import FirstState
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.probes.answers import alike, described, differing_points, enough, rounding
from pytest_gradmask.probes.ways_of_asking import differing_ways, under_inference_mode
from pytest_gradmask.threat import PerturbationSet
from pytest_gradmask.verdict.results import Finding

#: Images that are asked, each at three points: itself, a corner of the ball and the end of a short attack.
_IMAGES = 4
_STEPS = 3
#: A defense with more parameters and buffers than this (in bytes) is not copied.
_LARGEST = 4e9
#: How often the same points are asked in a row, to see whether the answers change.
_TIMES = 3
#: Id of the finding.
STATEFUL = "stateful"


@dataclass(frozen=True, slots=True)
class Original:
    """A defense before its audit.

    Attributes:
        copy: of the model; None where it cannot be copied.
        trainable: the parameters of the model itself that require a gradient outside of an audit.
        first_state: puts the model back into the state of its copy; None without one.
    """

    copy: nn.Module | None
    trainable: tuple[nn.Parameter, ...]
    first_state: FirstState | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """What a defense answered before the attacks.

    Attributes:
        points: that were asked.
        answers: logits, N x K. Those of a copy that had answered nothing before, where there is one, are the same.
        seed: of the random numbers of the defense.
    """

    points: Tensor
    answers: Tensor
    seed: int


def keep_original(model: nn.Module) -> Original:
    """To be called before an audit asks the model anything."""
    tensors = [*model.parameters(), *model.buffers()]
    trainable = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    compiled = any(hasattr(module, "_orig_mod") for module in model.modules())  # a copy would be compiled again
    if compiled or sum(tensor.numel() * tensor.element_size() for tensor in tensors) > _LARGEST:
        return Original(None, trainable)
    copied = _copied(model)
    if copied is None:
        return Original(None, trainable)
    try:
        return Original(copied, trainable, FirstState(model, copied))
    except ValueError:  # it copies itself in a way of its own
        return Original(copied, trainable)


def check_consistency(
    defense: Oracle,
    attacked: Oracle,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    original: Original,
    fresh: Callable[[nn.Module], Oracle],
    randomized: bool,
    batch_dependent: bool,
    seed: int,
) -> tuple[list[Finding], Recording | None]:
    """Whether a defense answers the same points alike, however it is asked; before any attack.

    A randomized defense is asked with its random numbers frozen. One that still does not repeat its answers, as it
    keeps a generator of its own, is not compared. Costs about 20 forwards and 3 backwards of 12 points, and copies of
    the model.

    Args:
        defense: as its users ask it.
        attacked: the same, or the mixture of its members where those are known.
        images, labels: N x C x H x W and N, classified correctly; the first 4 are used.
        threat: where attacks may search.
        original: of the defense, kept before the audit.
        fresh: from a copy of the model to what answers like ``defense``.
        randomized: whether the same image gets different logits.
        batch_dependent: whether it is known already that images of a batch change each other.
        seed: of every random choice.

    Returns:
        Findings, and what `check_again` compares with later answers; None where answers do not repeat.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        points = _points(attacked, images[:_IMAGES], labels[:_IMAGES], threat, generator)
        defense.reseed(seed)
        first = _repeated(defense, points)
        # A memory of near queries shows only after them: half of eps away, beyond the last step of most attacks.
        near = (points + _corners(points, threat, generator)) / 2
        fresh_answers = [] if original.copy is None else _fresh_answers(original.copy, fresh, points, near, seed)
        tolerance = rounding(defense)
        steady = alike(first, first[:1] * len(first), tolerance)
        if fresh_answers and not _has_generator(defense.model):
            found = _stateful(first, fresh_answers, tolerance)
            if found:
                return found, None
        if not steady:
            return [], None
        steady_copy = bool(fresh_answers) and not differing_points(first[0], fresh_answers[0][0], tolerance).any()
        recording = Recording(points, first[0], seed)
        seen = differing_ways(
            attacked, points, threat, generator,
            trainable=original.trainable, in_batches=not (randomized or batch_dependent), tolerance=tolerance,
        )  # fmt: skip
        if original.copy is not None and steady_copy:
            again = _copied(original.copy)
            if again is not None:
                seen += under_inference_mode(fresh(again.to(points.device)), points, first[0], seed, tolerance)
    if not seen:
        return [], recording
    message = f"the same points get other answers {'; '.join(seen)}"
    return [Finding("behaves-differently", message, undermines_attacks=True)], recording


def check_again(defense: Oracle, recording: Recording) -> list[Finding]:
    """Whether the defense still answers as before the attacks, which is as a copy does that no attack has touched."""
    try:
        with torch.no_grad():
            defense.reseed(recording.seed)
            with defense.frozen():
                now = defense(recording.points)
    except Exception as error:  # of the defense: it may refuse after many queries, or its memory may be full
        raised = f"after the attacks, points that it answered before raise {type(error).__name__}: {error}"
        return [Finding(STATEFUL, raised, undermines_attacks=True)]
    differing = differing_points(now, recording.answers, rounding(defense))
    if not enough(differing):
        return []
    words = described(now, recording.answers, differing)
    return [Finding(STATEFUL, f"after the attacks, the same points get other answers: {words}", True)]


def _stateful(first: Sequence[Tensor], fresh: Sequence[Sequence[Tensor]], tolerance: float) -> list[Finding]:
    """Answers that depend on earlier queries: copies that have answered nothing agree, and the rest does not."""
    one, other, after_near = fresh
    if not alike(one, other, tolerance):
        return []  # random, or what cannot be copied
    for now, before, words in (
        *((later, one[0], "when a copy is asked again") for later in one[1:]),
        (first[0], one[0], "from a copy that has answered nothing before"),
        (after_near[0], one[0], "from a copy that has answered points near them"),
    ):
        differing = differing_points(now, before, tolerance)
        if enough(differing):
            found = described(now, before, differing)
            return [Finding(STATEFUL, f"the same points get other answers {words}: {found}", True)]
    return []


def _points(
    oracle: Oracle, images: Tensor, labels: Tensor, threat: PerturbationSet, generator: torch.Generator
) -> Tensor:
    """The images, corners of their balls, and the ends of a short attack, in turn; 3 N x C x H x W."""
    corners = _corners(images, threat, generator)
    moved = images
    try:
        for _ in range(_STEPS):
            seen = at_second_try(partial(value_and_grad, oracle, moved, labels, logit_margin, 1))
            step = threat.eps / 2 * threat.step(seen.gradient.nan_to_num(0, 0, 0))
            moved = threat.project(moved + step, images)
    except InputError:  # of the set
        raise
    except Exception:  # another probe says so
        moved = threat.random_start(images, generator)
    return torch.stack([images, corners, moved.detach()], 1).flatten(0, 1)


def _corners(images: Tensor, threat: PerturbationSet, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
    return threat.project(images + threat.eps * threat.step(signs), images)


def _fresh_answers(
    untouched: nn.Module, fresh: Callable[[nn.Module], Oracle], points: Tensor, near: Tensor, seed: int
) -> list[list[Tensor]]:
    """What three copies answer to the points several times in a row, the last one after points near them.

    Nothing where that fails.
    """
    answers = []
    for before in (None, None, near):
        model = _copied(untouched)
        if model is None:
            return []
        try:
            for parameter in model.parameters():
                parameter.requires_grad_(False)  # as in the audit
            oracle = fresh(model.to(points.device))
            oracle.reseed(seed)
            if before is not None:
                _repeated(oracle, before)
            answers.append(_repeated(oracle, points))
        except Exception:  # a copy that cannot be asked says nothing about the defense
            return []
    return answers


def _repeated(oracle: Oracle, points: Tensor) -> list[Tensor]:
    with oracle.frozen():
        return [oracle(points) for _ in range(_TIMES)]


def _copied(model: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever it holds may refuse
        return None


def _has_generator(model: nn.Module) -> bool:
    """Whether a module keeps random numbers of its own, which change from query to query as a state does."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return any(isinstance(value, kinds) for module in model.modules() for value in vars(module).values())
