"""Results in a cache count only while the defense answers as it did when they were stored.

A fingerprint sees weights, attributes and code, but not all that a defense may depend on, such as a file that it reads.
So beside the results there are recorded answers: logits of some images, clean and perturbed, and their gradients. The
defense is asked for them again before any result is used.
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
#: Largest difference, relative to the largest value, that counts as rounding: of logits and of gradients, and on GPUs.
_ROUNDING = {"logits": 1e-5, "gradients": 1e-3}
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
            answers = {name: _recorded(ask) for name, ask in asks.items()}
            if differing:
                warnings.warn(
                    f"gradmask cache: {defense.name} has changed in a way that its code, weights and attributes do not "
                    f"show: {', '.join(differing)} differ from those that were recorded with its stored results. So it "
                    "depends on something that is read while it runs, such as a file. It is audited again",
                    stacklevel=3,
                )
            cache.store_answers(entry, answers)
            recorded = answers
    return fingerprint(key, recorded)


def _points(images: Tensor, threat: PerturbationSet, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(subseed(seed, "points of recorded answers"))
    signs = torch.randint(0, 2, images.shape, generator=generator, dtype=torch.int8).to(images) * 2 - 1
    return torch.cat([images, threat.project(images + threat.eps * threat.step(signs), images)])


def _asks(defense: Defense, points: Tensor, seed: int) -> dict[str, Callable[[bool], Answers]]:
    """For the defense and each other model that attacks may ask: a function that asks a fresh copy of it."""
    rejection = None if defense.rejects is None else RejectOption(defense.rejects)
    asks: dict[str, Callable[[bool], Answers]] = {}
    for number, model in enumerate(known_models(defense)):
        ways = {"outputs": defense.outputs, "rejection": rejection} if number == 0 else {}
        name = "its answers" if number == 0 else f"those of model {number}"
        asks[name] = partial(_ask_fresh, model, ways, points, seed)
    return asks


def _ask_fresh(model: nn.Module, ways: Any, points: Tensor, seed: int, differentiate: bool) -> Answers:
    """Ask a copy, so that the model itself does not change. A copy may lack what the model needs to answer."""
    answers: Answers = {"raised": ""}
    for fresh in (keep_original(model).copy, model):
        if fresh is not None and "raised" in answers:
            answers = _ask(
                partial(Oracle, fresh, RandomStream(seed, points.device), **ways), points, seed, differentiate
            )
    return answers


def _ask(make: Callable[[], Oracle], points: Tensor, seed: int, differentiate: bool) -> Answers:
    """Logits and gradients of the points, 2 N x at most `_VALUES`; what the model raises is an answer, too."""
    found: Answers = {}
    try:
        oracle = make()
        with torch.set_grad_enabled(differentiate):
            asked = points.clone().requires_grad_(differentiate)
            logits = oracle(asked)
            found = {"logits": _condensed(logits), "dtype": str(oracle.dtype).removeprefix("torch.")}
        if differentiate:
            generator = torch.Generator().manual_seed(seed)
            weights = torch.randn(logits.shape, generator=generator).to(logits)
            with random_state_kept(points.device):
                seed_everything(seed)  # a backward pass may be random
                [gradient] = torch.autograd.grad((weights * logits).sum(), asked)
            found["gradients"] = _condensed(gradient)
    except Exception as error:  # the audit itself says so
        found["raised"] = type(error).__name__
    return found


def _condensed(values: Tensor) -> Tensor:
    rows = values.detach().flatten(1).double().cpu()
    if rows.shape[1] <= _VALUES:
        return rows
    signs = torch.randint(0, 2, (rows.shape[1], _VALUES), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    sums: Tensor = rows @ signs.double() / rows.shape[1] ** 0.5
    return sums


def _recorded(ask: Callable[[bool], Answers]) -> Answers:
    """What to record: the answers, or their distribution if the defense does not follow a seed."""
    one, other = ask(True), ask(True)
    if "logits" in one and not _same("logits", one, other):
        return _plain(_distribution(ask))
    if "gradients" in one and not _same("gradients", one, other):
        del one["gradients"]
    return _plain(one)


def _distribution(ask: Callable[[bool], Answers]) -> Answers:
    several = [ask(False) for _ in range(_TIMES)]
    logits = torch.stack([answers["logits"] for answers in several if "logits" in answers])
    return {"means": logits.mean(0), "deviations": logits.std(0)}


def _plain(answers: Answers) -> Answers:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in answers.items()}


def _differing(recorded: Mapping[str, Answers], asks: Mapping[str, Callable[[bool], Answers]]) -> Sequence[str]:
    return [name for name, ask in asks.items() if name not in recorded or not _as_recorded(recorded[name], ask)]


def _as_recorded(recorded: Answers, ask: Callable[[bool], Answers]) -> bool:
    recorded = {
        name: torch.tensor(value).double() if isinstance(value, list) else value for name, value in recorded.items()
    }
    if "means" in recorded:
        return _same_distribution(recorded, _distribution(ask))
    now = ask("gradients" in recorded)
    if now.get("raised") != recorded.get("raised") and "gradients" in {*recorded, *now}:
        return False
    kept = [name for name in ("logits", "gradients") if name in recorded]
    return all(_same(name, now, recorded) for name in kept)


def _same(name: str, some: Answers, others: Answers) -> bool:
    if name not in some or name not in others or some[name].shape != others[name].shape:
        return False
    one, other = some[name], others[name]
    tolerance = max(_ROUNDING[name], _ROUNDINGS * torch.finfo(getattr(torch, some["dtype"])).eps)
    if torch.cuda.is_available():  # where a GPU computes, sums depend on the order
        tolerance = max(tolerance, _ROUNDING_CUDA)
    size = other.nan_to_num(0, 0, 0).abs().max().clamp_min(1e-30)
    same = (one == other) | (one.isnan() & other.isnan()) | ((one - other).abs() <= tolerance * size)
    return bool(same.all())


def _same_distribution(one: Answers, other: Answers) -> bool:
    if one["means"].shape != other["means"].shape:
        return False
    variance = (one["deviations"] ** 2 + other["deviations"] ** 2) / _TIMES
    size = one["means"].abs().max()
    close = (one["means"] - other["means"]).abs() <= _STANDARD_ERRORS * variance.sqrt() + _ROUNDING["gradients"] * size
    spread = [each["deviations"].square().mean().sqrt() for each in (one, other)]
    return bool(close.all()) and bool(max(spread) <= 2 * min(spread))
