"""Transfer matrix: what an attack crafted on one model does to the others.

Adversarial examples often transfer between models (Papernot, McDaniel and Goodfellow 2016). An ensemble whose members
share them is no stronger than one member, which is why it is worth knowing how much they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed, described
from pytest_gradmask.attacks.bypass.search import SEARCH_FORWARDS, SEARCH_IMAGES, Approximations, find_bypass
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.probes.preflight import check_batch, check_defense, check_device, check_setting
from pytest_gradmask.randomized.prediction import is_correct
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.transfer.matrix import TransferMatrix

Attack = Callable[..., Tensor]
Bypass = Sequence[str] | Mapping[str, Any]

_NAMED = ("gradient", "bpda")
#: A deep model keeps much for its backward pass, so that few large images are attacked at a time.
_PIXELS_AT_ONCE = 500_000
_EOT = 4  # forwards averaged in each gradient step on a randomized model
_VOTES = 20  # forwards by which a randomized model is judged


def transfer_matrix(
    models: Mapping[str, nn.Module] | Iterable[nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    attack: str | Attack = "gradient",
    threat: ThreatModel | None = None,
    steps: int = 50,
    bypass: Bypass | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    device: str = "cpu",
) -> TransferMatrix:
    """Craft an attack on each model and test what it returns on all of them.

    Every returned image is checked against the ball and the bounds, and classified again by each model.

    Args:
        models: at least two, in eval mode, from images to logits of the same classes: by name, or in an order
            that names them ``model-0``, ``model-1`` and so on.
        images: float32, N x C x H x W, inside the bounds of the threat model.
        labels: int64, N.
        attack: ``"gradient"``: APGD on cross-entropy (Croce and Hein 2020), which goes on after its first success,
            as what fools the source with room to spare transfers better. ``"bpda"``: the same with submodules
            bypassed on the backward pass. Or a function ``attack(model, images, labels, *, threat, steps, generator)``.
        threat: where attacks may search; by default Linf, 8/255, bounds [0, 1].
        steps: of the attack, at least 1.
        bypass: what ``"bpda"`` or a function of your own bypasses: names of submodules that all models have, or a
            mapping from a model's name to what `Defense` takes as ``bypass``. For a model of which nothing is said
            ``"bpda"`` searches as audits do; say ``{name: ()}`` where there is nothing to bypass.
        confidence: of every bound, in (0.5, 1).
        seed: of every random choice; each row starts from the same random points.
        device: torch device to run on; models are moved there, and back to where they were afterwards.

    Raises:
        InputError: an argument is unusable, or no image is classified correctly by every model.
        DefenseError: a model is in train mode, returns no logits or others than the first, depends on the rest of the
            batch, or has nothing to bypass.
    """
    named = _named(models)
    threat = threat or ThreatModel()
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps={steps!r}: must be a whole number of at least 1")
    if not callable(attack) and attack not in _NAMED:
        raise InputError(f"attack={attack!r}: must be one of {', '.join(_NAMED)}, or a function")
    told = _told(named, attack, bypass)
    check_setting(confidence, seed)
    check_batch(images, labels, threat)
    place = check_device(device)
    images, labels = images.detach().to(place), labels.detach().long().to(place)
    modules = list(named.values())
    with moved(modules, place), no_trace(modules, place):
        bench = _Bench(named, images, labels, threat, seed, _check_models(named, images, labels, seed))
        clean = {name: bench.correct(name, images, "clean") for name in named}
        if not torch.stack(list(clean.values())).all(0).any():
            rights = ", ".join(f"{name} {int(each.sum())} of {len(images)}" for name, each in clean.items())
            raise InputError(f"images: none is classified correctly by every model ({rights}); are the labels right?")
        approximations = {
            name: bench.approximations(name) if told[name] is None else told[name] or {} for name in named
        }
        rows, invalid = [], []
        for source in named:
            crafted = bench.craft(source, attack, approximations[source], steps)
            valid = threat.contains(crafted, images)
            invalid.append(int((~valid).sum()))
            judged = torch.where(valid.view(-1, 1, 1, 1), crafted, images)
            rows.append(
                tuple(
                    # An image that the attack has ruined fools nobody, not even a randomized model by bad luck.
                    _plain(torch.where(valid, bench.correct(target, judged, source), clean[target]))
                    for target in named
                )
            )
    return TransferMatrix(
        names=tuple(named),
        clean=tuple(_plain(each) for each in clean.values()),
        correct=tuple(rows),
        attack=attack if isinstance(attack, str) else attack_name(attack),
        threat=threat,
        confidence=confidence,
        bypassed=tuple(described(approximations[name]) for name in named),
        invalid=tuple(invalid),
    )


def attack_name(attack: Attack) -> str:
    """What to call an attack in a report."""
    inner: Any = attack
    while isinstance(inner, partial):
        inner = inner.func
    return str(getattr(inner, "__name__", type(inner).__name__))


@dataclass(frozen=True, slots=True)
class _Bench:
    """What stays the same for all cells. ``randomized``: names of the models that are."""

    models: Mapping[str, nn.Module]
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int
    randomized: frozenset[str]

    def stream(self, name: str, purpose: str) -> RandomStream:
        """Random numbers of a model; one purpose each, so that no cell depends on the order of the models."""
        return RandomStream(subseed(self.seed, f"{name}, {purpose}"), self.images.device)

    def correct(self, name: str, images: Tensor, purpose: str) -> Tensor:
        """Whether a model classifies each image correctly, a randomized one in half of its votes; bool, N."""
        look = Oracle(self.models[name], self.stream(name, purpose))
        predictions = _VOTES if name in self.randomized else 1
        won = torch.stack([is_correct(look, images, self.labels) for _ in range(predictions)]).sum(0)
        return 2 * won >= predictions

    def approximations(self, name: str) -> Approximations:
        """What to bypass in a model of which nothing is told, found as audits find it."""
        forwards = SEARCH_FORWARDS if name in self.randomized else 1
        with self.stream(name, "search").active():
            found = find_bypass(self.models[name], self.images[:SEARCH_IMAGES], forwards=forwards)
        if not found:
            raise DefenseError(
                f"nothing to bypass was found in {name}, so BPDA on it would be a gradient attack; name its "
                f"submodules with bypass=, or say bypass={{{name!r}: ()}} if there is nothing"
            )
        return found

    def craft(self, name: str, attack: str | Attack, approximations: Approximations, steps: int) -> Tensor:
        """What the attack on a model returns; N x C x H x W."""
        model = self.models[name]
        source = Oracle(bypassed(model, approximations) if approximations else model, self.stream(name, "attack"))
        eot = _EOT if name in self.randomized else 1
        run = attack if callable(attack) else partial(apgd, eot=eot, stop_early=False)
        generator = torch.Generator().manual_seed(self.seed)
        size = max(1, _PIXELS_AT_ONCE // self.images[0, 0].numel())
        parts = []
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            returned = run(source, images, labels, threat=self.threat, steps=steps, generator=generator)
            if not isinstance(returned, Tensor) or returned.shape != images.shape:
                got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
                raise InputError(f"attack: returned {got} on {name}; must be images of shape {tuple(images.shape)}")
            parts.append(returned.detach())
        return torch.cat(parts)


def _named(models: Mapping[str, nn.Module] | Iterable[nn.Module]) -> dict[str, nn.Module]:
    if isinstance(models, nn.ModuleDict | Mapping):
        named = dict(models.items())
    elif isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):  # iterating would give its layers
        raise InputError(f"models: got one {type(models).__name__}; give a list or a mapping of at least 2 models")
    else:
        named = {f"model-{number}": model for number, model in enumerate(models)}
    if len(named) < 2:
        raise InputError(f"models: a transfer matrix needs at least 2, got {len(named)}")
    for name, model in named.items():
        if not isinstance(name, str) or not isinstance(model, nn.Module):
            raise InputError(f"models: holds {name!r}: {type(model).__name__}; must be a torch.nn.Module by a string")
    return named


def _told(
    models: Mapping[str, nn.Module], attack: str | Attack, bypass: Bypass | None
) -> dict[str, Approximations | None]:
    """What to bypass in each model; None where it is to be searched for."""
    if attack == "gradient" and bypass is not None:
        raise InputError('bypass: the "gradient" attack bypasses nothing; use attack="bpda"')
    if isinstance(bypass, str):
        raise InputError(f"bypass={bypass!r}: must be a list of names, such as [{bypass!r}]")
    if isinstance(bypass, Mapping):
        unknown = [repr(name) for name in bypass if name not in models]
        if unknown:
            raise InputError(f"bypass: {', '.join(unknown)} is no name of a model; there are {', '.join(models)}")
        each = {name: bypass.get(name) for name in models}
    else:
        each = dict.fromkeys(models, bypass)
    told = {name: Defense(model, each[name], name=name).bypassed_modules() for name, model in models.items()}
    return told if attack == "bpda" else {name: approximations or {} for name, approximations in told.items()}


def _check_models(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, seed: int) -> frozenset[str]:
    """Raise unless attacks on these models mean something; names of the randomized ones."""
    classes, randomized = {}, set()
    for name, model in models.items():
        stream = RandomStream(subseed(seed, f"{name}, preflight"), images.device)
        with stream.active():
            seen = check_defense(Defense(model, name=name), Oracle(model, stream), images, labels)
        classes[name] = seen.classes
        randomized |= {name} if seen.randomized else set()
        for finding in seen.findings:
            if finding.undermines_attacks:
                raise DefenseError(f"{name}: {finding.message} ({finding.link})")
    if len(set(classes.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in classes.items())
        raise DefenseError(f"models: have different numbers of classes ({counts}); labels must mean the same to all")
    return frozenset(randomized)


def _plain(outcomes: Tensor) -> tuple[bool, ...]:
    return tuple(bool(each) for each in outcomes.tolist())
