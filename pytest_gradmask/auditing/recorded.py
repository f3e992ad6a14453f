"""Results in a cache count only while the defense answers as it did when they were stored.

A fingerprint sees weights, attributes and code, but not all that a defense may depend on, such as a file that it reads.
So beside the results there are recorded answers for some images, clean and perturbed: logits without and with autograd,
and gradients. The defense is asked for them again before any result is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import RejectOption
from pytest_gradmask.auditing.prepare import isolated
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import all_modules, known_models
from pytest_gradmask.defense import Defense
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.fingerprint import fingerprint
from pytest_gradmask.execution.generators import random_state_kept, seed_everything
from pytest_gradmask.probes.consistency import keep_original
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import PerturbationSet

#: Images that are asked, each clean and at a corner of its ball.
_IMAGES = 8
#: How often a defense is asked whose answers do not follow a seed.
_TIMES = 32
#: Largest difference, relative to the largest value, that counts as rounding, and on GPUs.
_ROUNDING = {"scores": 1e-5, "logits": 1e-5, "gradients": 1e-3}
_ROUNDING_CUDA = 5e-3
_ROUNDINGS = 16
#: Standard errors between two means that chance does not explain, even for hundreds of logits.
_STANDARD_ERRORS = 7.0
#: From more values than this of a point, as many random sums are recorded.
_VALUES = 32

Answers = dict[str, Any]


def key_of_recorded(
    cache: Cache, key: str, defense: Defense, images: Tensor, *, threat: PerturbationSet, seed: int
) -> str:
    """The key of all results of a defense that answers as it does now.

    Warns if it answers otherwise than before: what is stored under the old key is then not found any more. The defense
    is asked as a copy, where it can be copied, and its state and that of the process are as they were before.

    Args:
        cache: where answers are recorded.
        key: a fingerprint of everything that results depend on, as far as it can be seen.
        defense: with all models that attacks may ask.
        images: N x C x H x W, on the device to run on.
        threat: where the perturbed images lie.
        seed: of every random choice.
    """
    entry = fingerprint(key, "recorded answers")
    recorded = cache.answers(entry)
    with isolated(all_modules(defense), images.device):
        asks = _asks(defense, _points(images[:_IMAGES], threat, seed), subseed(seed, "recorded answers"))
        differing = [] if recorded is None else _differing(recorded, asks)
        if recorded is None or differing:
            recorded = {name: _recorded(ask) for name, ask in asks.items()}
            cache.store_answers(entry, recorded)  # before the warning, which may be raised as an error
            if differing:
                warnings.warn(
                    f"gradmask cache: {defense.name} has changed in a way that its code, weights and attributes do not "
                    f"show: {', '.join(differing)} differ from those that were recorded with its stored results. So it "
                    "depends on something that is read while it runs, such as a file. It is audited again",
                    stacklevel=3,
                )
    return fingerprint(key, recorded)


def _points(images: Tensor, threat: PerturbationSet, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(subseed(seed, "points of recorded answers"))
    signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
    return torch.cat([images, threat.project(images + threat.eps * threat.step(signs), images)])


def _asks(defense: Defense, points: Tensor, seed: int) -> dict[str, Callable[[], Answers]]:
    """For the defense and each other model that attacks may ask: a function that asks a fresh copy of it."""
    rejection = None if defense.rejects is None else RejectOption(defense.rejects)
    asks: dict[str, Callable[[], Answers]] = {}
    for number, model in enumerate(known_models(defense)):
        ways = {"outputs": defense.outputs, "rejection": rejection} if number == 0 else {}
        name = "its answers" if number == 0 else f"those of model {number}"
        asks[name] = partial(_ask_fresh, model, ways, points, seed)
    return asks


def _ask_fresh(model: nn.Module, ways: Any, points: Tensor, seed: int) -> Answers:
    """Ask a copy, so that the model itself does not change. A copy may lack what the model needs to answer."""
    answers: Answers = {"scores": ""}
    for fresh in (keep_original(model).copy, model):
        if fresh is not None and any(isinstance(answers.get(name), str) for name in ("scores", "logits")):
            answers = _ask(partial(Oracle, fresh, RandomStream(seed, points.device), **ways), points, seed)
    return answers


def _ask(make: Callable[[], Oracle], points: Tensor, seed: int) -> Answers:
    """What a model answers to the points.

    Returns:
        ``scores`` (logits without autograd), ``logits`` (with it) and ``gradients``, each 2 N x at most `_VALUES`; or
        the name of the error that it raises. And ``dtype``.
    """
    found: Answers = {}
    try:
        oracle = make()
        found["dtype"] = str(oracle.dtype).removeprefix("torch.")
        with torch.no_grad():
            found["scores"] = _condensed_logits(oracle(points.clone()))
    except Exception as error:  # the audit itself says so
        found["scores"] = type(error).__name__
    asked = points.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = make()(asked)
        found["logits"] = _condensed_logits(logits)
    except Exception as error:  # with autograd it may raise something else
        found["logits"] = type(error).__name__
        return found
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)).to(logits)
    try:
        with random_state_kept(points.device):
            seed_everything(seed)  # a backward pass may be random
            [gradient] = torch.autograd.grad((weights * logits).sum(), asked)
        found["gradients"] = _condensed(gradient)
    except Exception as error:  # its backward pass is not ours
        found["gradients"] = type(error).__name__
    return found


def _condensed_logits(logits: Tensor) -> Tensor:
    """The same, on a scale on which no single logit is larger than all others together, if they are summed."""
    return _condensed(logits if logits.shape[1] <= _VALUES else logits.double().nan_to_num(0, 1e30, -1e30).asinh())


def _condensed(values: Tensor) -> Tensor:
    rows = values.detach().flatten(1).double().cpu()
    if rows.shape[1] <= _VALUES:
        return rows
    signs = torch.randint(0, 2, (rows.shape[1], _VALUES), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    sums: Tensor = rows @ signs.double() / rows.shape[1] ** 0.5
    return sums


def _recorded(ask: Callable[[], Answers]) -> Answers:
    """What to record: the answers, or their distribution if the defense does not follow a seed."""
    one, other = ask(), ask()
    if not all(_same(name, one, other) for name in ("scores", "logits")):
        return _plain(_distribution(ask))
    if "gradients" in one and not _same("gradients", one, other):
        del one["gradients"]
    return _plain(one)


def _distribution(ask: Callable[[], Answers]) -> Answers:
    """Means and standard deviations of what it answers when it is asked many times."""
    several = [ask() for _ in range(_TIMES)]
    found: Answers = {}
    for name in _ROUNDING:
        values = [answers[name] for answers in several if isinstance(answers.get(name), Tensor)]
        if values:
            samples = torch.stack([_direction(value) if name == "gradients" else value for value in values])
            found |= {f"means of {name}": samples.mean(0), f"deviations of {name}": samples.std(0)}
    return found


def _direction(gradients: Tensor) -> Tensor:
    """Their directions: sizes may have no mean. Of a gradient of zero, zeros."""
    sizes: Tensor = gradients.norm(dim=1, keepdim=True)
    return gradients / sizes.clamp_min(1e-300)


def _plain(answers: Answers) -> Answers:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in answers.items()}


def _differing(recorded: Mapping[str, Answers], asks: Mapping[str, Callable[[], Answers]]) -> Sequence[str]:
    return [name for name, ask in asks.items() if name not in recorded or not _as_recorded(recorded[name], ask)]


def _as_recorded(recorded: Answers, ask: Callable[[], Answers]) -> bool:
    recorded = {
        name: torch.tensor(value).double() if isinstance(value, list) else value for name, value in recorded.items()
    }
    if "scores" not in recorded:
        return _same_distribution(recorded, _distribution(ask))
    now = ask()
    return all(_same(name, now, recorded) for name in _ROUNDING if name in recorded)


def _same(name: str, some: Answers, others: Answers) -> bool:
    one, other = some.get(name), others.get(name)
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return one == other  # nothing, or the name of an error
    if one.shape != other.shape:
        return False
    tolerance = max(_ROUNDING[name], _ROUNDINGS * torch.finfo(getattr(torch, some["dtype"])).eps)
    if torch.cuda.is_available():  # where a GPU computes, sums depend on the order
        tolerance = max(tolerance, _ROUNDING_CUDA)
    return bool((_equal(one, other) | ((one - other).abs() <= tolerance * _size(name, other))).all())


def _equal(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _size(name: str, values: Tensor) -> Tensor:
    """Largest finite value of each class or, of gradients, of each point: one of them may be far larger than others."""
    return values.nan_to_num(0, 0, 0).abs().amax(1 if name == "gradients" else 0, keepdim=True).clamp_min(1e-30)


def _same_distribution(one: Answers, other: Answers) -> bool:
    return one.keys() == other.keys() and all(
        _same_samples(name, *((found[f"means of {name}"], found[f"deviations of {name}"]) for found in (one, other)))
        for name in _ROUNDING
        if f"means of {name}" in one
    )


def _same_samples(name: str, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    means, deviations = zip(one, other, strict=True)
    if means[0].shape != means[1].shape:
        return False
    errors = _STANDARD_ERRORS * ((deviations[0] ** 2 + deviations[1] ** 2) / _TIMES).sqrt()
    close = (means[0] - means[1]).abs() <= errors + _ROUNDING["gradients"] * _size(name, means[0])
    spread = [each.nan_to_num(0, 0, 0).square().mean().sqrt() for each in deviations]
    return bool((_equal(*means) | close).all()) and bool(max(spread) <= 2 * min(spread))
