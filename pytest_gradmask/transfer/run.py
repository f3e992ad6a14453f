"""Compute transfer matrices: how often an attack crafted on one model fools the others.

Adversarial examples often transfer between models (Papernot, McDaniel and Goodfellow 2016, arXiv:1605.07277). An
ensemble whose members share adversarial examples is not stronger than one member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed, described, modules_in
from pytest_gradmask.attacks.bypass.search import SEARCH_FORWARDS, SEARCH_IMAGES, Approximations, find_bypass
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.checks import check_whole, is_a, listed, shown
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError, GradmaskError, InputError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.probes.preflight import check_ball, check_batch, check_defense, check_device, check_setting
from pytest_gradmask.randomized.prediction import is_correct
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel, per_image
from pytest_gradmask.transfer.matrix import TransferMatrix

Attack = Callable[..., Tensor]
Bypass = Sequence[str] | Mapping[str, Any]

_ATTACKS = ("gradient", "bpda")
#: Pixels per channel in a batch: few large images at a time, as the backward pass of a deep model needs much memory.
_PIXELS_AT_ONCE = 500_000
_EOT = 4  # forwards averaged in each gradient step on a randomized model
_SAMPLES = 20  # forwards by which a randomized model is scored


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
    """Craft an attack on each model and test the returned images on all models.

    Every returned image is checked against the ball and the bounds, and each model classifies it again.

    Args:
        models: at least two models in eval mode that return logits of the same classes: a mapping by name, or a
            sequence, whose models are named ``model-0``, ``model-1`` and so on.
        images: float32, N x C x H x W, inside the bounds of the threat model.
        labels: int64, N.
        attack: ``"gradient"`` is APGD on cross-entropy (Croce and Hein 2020, arXiv:2003.01690). It continues after its
            first success, because images that fool the source with high confidence transfer better. ``"bpda"`` is the
            same with submodules bypassed on the backward pass. It may also be a function
            ``attack(model, images, labels, *, threat, steps, generator)``.
        threat: threat model of the attack; by default Linf, 8/255, bounds [0, 1].
        steps: steps of the attack, at least 1.
        bypass: what ``"bpda"`` or a user's attack bypasses: names of submodules that all models have, or a mapping from
            the name of a model to the ``bypass`` of a `Defense`. For models without an entry, ``"bpda"`` searches as
            audits do. Pass ``{name: ()}`` if a model has nothing to bypass.
        confidence: confidence level of every bound, in (0.5, 1).
        seed: seed of every random choice. Each row starts from the same random points.
        device: torch device to run on. Models are moved there, and moved back afterwards.

    Raises:
        InputError: an argument is unusable, or no image is classified correctly by every model.
        DefenseError: a model is in train mode, returns no logits, has another number of classes than the others,
            depends on the rest of the batch, or has nothing to bypass.
    """
    named = _named(models)
    threat = ThreatModel() if threat is None else threat
    check_whole("steps", steps, 1)
    if not (is_a(attack, str) and attack in _ATTACKS) and (is_a(attack, type) or not callable(attack)):
        raise InputError(f"attack={shown(attack)}: must be one of {', '.join(_ATTACKS)}, or a function")
    user_bypass = _user_bypass(named, attack, bypass)
    check_setting(confidence, seed)
    check_ball(threat)
    check_batch(images, labels, threat)
    torch_device = check_device(device)
    images, labels = images.detach().to(torch_device), labels.detach().long().to(torch_device)
    modules = [*named.values(), *(module for given in user_bypass.values() for module in modules_in(given or {}))]
    with moved(modules, torch_device), no_trace(modules, torch_device):
        bench = _Bench(
            models=named, images=images, labels=labels, threat=threat, seed=seed,
            randomized=_check_models(named, images, labels, seed),
        )  # fmt: skip
        clean = {name: bench.correct(name, images, "clean") for name in named}
        if not torch.stack(list(clean.values())).all(0).any():
            counts = ", ".join(f"{name} {int(each.sum())} of {len(images)}" for name, each in clean.items())
            raise InputError(f"images: none is classified correctly by every model ({counts}); check the labels")
        approximations = {
            name: bench.approximations(name) if user_bypass[name] is None else user_bypass[name] or {} for name in named
        }
        rows, invalid = [], []
        for source in named:
            crafted = bench.craft(source, attack, approximations[source], steps)
            valid = threat.contains(crafted, images)
            invalid.append(int((~valid).sum()))
            scored = torch.where(per_image(valid, images), crafted, images)
            rows.append(
                tuple(
                    # An invalid image never counts as fooling a model, not even a randomized model by chance.
                    _plain(torch.where(valid, bench.correct(target, scored, source), clean[target]))
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
    """The name of an attack in reports."""
    inner: Any = attack
    while isinstance(inner, partial):
        inner = inner.func
    return str(getattr(inner, "__name__", type(inner).__name__))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """Inputs that all cells of the matrix share. ``randomized`` has the names of the randomized models."""

    models: Mapping[str, nn.Module]
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int
    randomized: frozenset[str]

    def stream(self, name: str, purpose: str) -> RandomStream:
        """A random stream per model and purpose, so that no cell depends on the order of the models."""
        return RandomStream(subseed(self.seed, f"{name}, {purpose}"), self.images.device)

    def correct(self, name: str, images: Tensor, purpose: str) -> Tensor:
        """Whether a model is correct on each image, a randomized one in at least half of its samples; bool, N."""
        oracle = Oracle(self.models[name], self.stream(name, purpose))
        samples = _SAMPLES if name in self.randomized else 1
        correct = torch.stack([is_correct(oracle, images, self.labels) for _ in range(samples)]).sum(0)
        return 2 * correct >= samples

    def approximations(self, name: str) -> Approximations:
        """Search for submodules to bypass as audits do, for a model without the user's ``bypass``."""
        forwards = SEARCH_FORWARDS if name in self.randomized else 1
        with self.stream(name, "search").active():
            found = find_bypass(self.models[name], self.images[:SEARCH_IMAGES], forwards=forwards)
        if not found:
            raise DefenseError(
                f"nothing to bypass was found in {name}, so BPDA on it would be a gradient attack; name its "
                f"submodules with bypass=, or pass bypass={{{shown(name)}: ()}} if there is nothing"
            )
        return found

    def craft(self, name: str, attack: str | Attack, approximations: Approximations, steps: int) -> Tensor:
        """The images that the attack on a model returns; N x C x H x W."""
        model = self.models[name]
        source = Oracle(bypassed(model, approximations) if approximations else model, self.stream(name, "attack"))
        eot = _EOT if name in self.randomized else 1
        run = attack if callable(attack) else partial(apgd, eot=eot, stop_early=False)
        generator = torch.Generator().manual_seed(self.seed)
        size = max(1, _PIXELS_AT_ONCE // self.images[0, 0].numel())
        parts = []
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            try:
                returned = run(source, images, labels, threat=self.threat, steps=steps, generator=generator)
            except GradmaskError:
                raise
            except Exception as error:
                if isinstance(attack, str) or out_of_memory(error):
                    raise
                raise InputError(f"attack: raised {type(error).__name__} on {name}: {error}") from error
            if not isinstance(returned, Tensor) or returned.shape != images.shape:
                got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
                raise InputError(f"attack: returned {got} on {name}; must be images of shape {tuple(images.shape)}")
            parts.append(returned.detach())
        return torch.cat(parts)


def _named(models: Mapping[str, nn.Module] | Iterable[nn.Module]) -> dict[str, nn.Module]:
    wanted = "at least 2 models in a list, or in a mapping from their names"
    if is_a(models, nn.ModuleDict, Mapping):
        named = dict(listed("models", models.items(), wanted, _is_pair))  # type: ignore[union-attr]
    elif is_a(models, nn.Module) and not is_a(models, nn.ModuleList):  # iteration would give its layers
        raise InputError(f"models: got one {type(models).__name__}; give a list or a mapping of at least 2 models")
    else:
        found = listed("models", models, wanted, lambda _: True)
        named = {f"model-{number}": model for number, model in enumerate(found)}
    if len(named) < 2:
        raise InputError(f"models: a transfer matrix needs at least 2, got {len(named)}")
    for name, model in named.items():
        if not is_a(name, str) or not is_a(model, nn.Module):
            raise InputError(
                f"models: holds {shown(name)}: {type(model).__name__}; must be a torch.nn.Module by a string"
            )
    return named


def _is_pair(entry: object) -> bool:
    return is_a(entry, tuple) and len(entry) == 2  # type: ignore[arg-type]


def _user_bypass(
    models: Mapping[str, nn.Module], attack: str | Attack, bypass: Bypass | None
) -> dict[str, Approximations | None]:
    """What to bypass in each model, from the user; None if the audit has to search."""
    if is_a(attack, str) and attack == "gradient" and bypass is not None:
        raise InputError('bypass: the "gradient" attack bypasses nothing; use attack="bpda"')
    if is_a(bypass, str):
        raise InputError(f"bypass={shown(bypass)}: must be a list of names, such as [{shown(bypass)}]")
    if is_a(bypass, Mapping):
        assert isinstance(bypass, Mapping)
        entries = listed("bypass", bypass.items(), "names of models, each with what to bypass in it", _is_pair)
        unknown = [shown(name) for name, _ in entries if not is_a(name, str) or name not in models]
        if unknown:
            raise InputError(f"bypass: {', '.join(unknown)} is not the name of a model; there are {', '.join(models)}")
        each = {name: dict(entries).get(name) for name in models}
    else:
        each = dict.fromkeys(models, bypass)
    modules = {name: Defense(model, each[name], name=name).bypassed_modules() for name, model in models.items()}
    return (
        modules
        if is_a(attack, str) and attack == "bpda"
        else {name: approximations or {} for name, approximations in modules.items()}
    )


def _check_models(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, seed: int) -> frozenset[str]:
    """Check that attacks on these models are meaningful. Return the names of the randomized models."""
    classes, randomized = {}, set()
    for name, model in models.items():
        stream = RandomStream(subseed(seed, f"{name}, preflight"), images.device)
        with stream.active():
            checked = check_defense(Defense(model, name=name), Oracle(model, stream), images, labels)
        classes[name] = checked.classes
        randomized |= {name} if checked.randomized else set()
        for finding in checked.findings:
            if finding.undermines_attacks:
                raise DefenseError(f"{name}: {finding.message} ({finding.link})")
    if len(set(classes.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in classes.items())
        raise DefenseError(f"models: have different numbers of classes ({counts}); all must have the same classes")
    return frozenset(randomized)


def _plain(outcomes: Tensor) -> tuple[bool, ...]:
    return tuple(bool(each) for each in outcomes.tolist())
