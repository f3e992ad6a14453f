"""Audit one defense: preflight, attacks, our own scoring of what they return, verdict."""

from __future__ import annotations

import platform
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.losses import margin as logit_margin
from pytest_gradmask.attacks.oracle import Oracle, RandomStream
from pytest_gradmask.budgets import Budget, get_budget
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.isolation import no_trace
from pytest_gradmask.plan import PlannedAttack, Target, aim, known_models, plan_attacks, plan_placebo
from pytest_gradmask.preflight import check_batch, check_defense
from pytest_gradmask.probes import gradient_health, unbounded_attack
from pytest_gradmask.results import AttackResult, Audit, Finding
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict import decide

Progress = Callable[[str], None]

_CHUNK = {"cpu": 100, "cuda": 250}  # images an attack gets at a time


def audit(
    defense: Defense | nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel | None = None,
    budget: str | Budget = "smoke",
    margin: float | None = None,
    confidence: float = 0.99,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> Audit:
    """Find out whether a defense masks its gradients.

    Args:
        defense: a module from images to logits, or a `Defense` that also tells what an adaptive attacker knows.
        images: float32, N x C x H x W, inside the bounds of the threat model.
        labels: int64, N.
        threat: where attacks may search; by default Linf, 8/255, bounds [0, 1].
        budget: ``"smoke"``, ``"ci"``, ``"full"`` or a `Budget`.
        margin: the largest gap, as a share of images, that still counts as no masking; by default the budget's.
        confidence: of every bound and test, in (0.5, 1).
        device: torch device to run on; models are moved there, and back to where they were afterwards.
        seed: of every random choice. The same seed on the same machine gives the same result.
        progress: called with a line of text before each step.

    Raises:
        InputError, DefenseError: the input cannot be audited; the message says what to change.
    """
    started = time.monotonic()
    defense = as_defense(defense)
    threat = threat or ThreatModel()
    budget = get_budget(budget) if isinstance(budget, str) else budget
    margin = budget.margin if margin is None else margin
    if not 0 < margin < 1:
        raise InputError(f"margin={margin!r}: must be a share of images between 0 and 1, such as 0.05")
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence={confidence!r}: must be between 0.5 and 1, such as 0.99")
    check_batch(images, labels, threat)
    place = torch.device(device)
    images, labels = images.detach().to(place), labels.detach().long().to(place)
    # `no_trace` also moves nothing: it restores values, so the models are moved outside of it.
    homes = _move(defense, place)
    try:
        with no_trace(known_models(defense), place):
            result = _audit(defense, images, labels, threat, budget, margin, confidence, seed, progress)
    finally:
        _move_back(homes)
    return replace(
        result, seconds=time.monotonic() - started, provenance=_provenance(threat, budget, place, seed, len(images))
    )


def _audit(
    defense: Defense,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    budget: Budget,
    margin: float,
    confidence: float,
    seed: int,
    progress: Progress,
) -> Audit:
    stream = RandomStream(_subseed(seed, "defense"), images.device)
    look = Oracle(defense.model, stream, defense.outputs)
    progress("preflight")
    with stream.active():
        _, seen = check_defense(defense, look, images, labels)
    votes = budget.votes if seen.randomized else 1
    clean = _correct(look, images, labels, votes)
    findings = list(seen.findings)
    target = aim(defense, stream, seen.classes, seen.randomized, images, budget.eot)
    results: list[AttackResult] = []
    standing = clean.clone()
    if bool(clean.any()):
        chosen = clean.nonzero().squeeze(1)
        findings += _probe(look, images[chosen], labels[chosen], threat, seed, target)
        planned = plan_attacks(target, budget)
        for attack in planned:
            given = standing.nonzero().squeeze(1)
            progress(f"{attack.name} on {len(given)} of {len(images)} images")
            result = _run(attack, look, images, labels, given, threat, seed, votes)
            results.append(result)
            if attack.kind == "gradient":
                standing[list(result.broken)] = False
        spent = [(r.forwards + r.backwards) / len(r.attacked) for r in results if r.kind == "adaptive" and r.attacked]
        placebo = plan_placebo(target, budget, max(spent, default=0.0))
        given = standing.nonzero().squeeze(1)
        progress(f"placebo on {len(given)} of {len(images)} images")
        results.append(_run(placebo, look, images, labels, given, threat, seed, votes))
    decision = decide(clean.tolist(), results, findings, margin=margin, confidence=confidence)
    return Audit(
        defense=defense.name,
        verdict=decision.verdict,
        reasons=decision.reasons,
        clean=tuple(clean.tolist()),
        attacks=tuple(results),
        gap=decision.gap,
        findings=tuple(findings),
        images_needed=decision.images_needed,
        margin=margin,
        confidence=confidence,
        bypassed=tuple(target.substitutes),
    )


def _probe(
    look: Oracle, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel, seed: int, target: Target
) -> list[Finding]:
    generator = torch.Generator().manual_seed(_subseed(seed, "probes"))
    eot = 4 if target.randomized else 1
    try:
        return [
            *gradient_health(look, images, labels),
            *unbounded_attack(look, images, labels, threat, generator, eot),
        ]
    except GradmaskError:
        raise
    except Exception as error:  # the defense is not ours: whatever its backward raises is a finding, not a crash
        return [Finding("no-gradient", f"differentiating it raises {type(error).__name__}: {error}", True)]


def _run(
    attack: PlannedAttack,
    look: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    given: torch.Tensor,
    threat: ThreatModel,
    seed: int,
    votes: int,
) -> AttackResult:
    """Run one attack on the images at the indices ``given`` and score what it returns ourselves."""
    attacked = tuple(given.tolist())
    empty = AttackResult(attack.name, attack.kind, attacked, autoattack=attack.autoattack)
    if attack.skip:
        return replace(empty, attacked=(), status="skipped", note=attack.skip)
    started = time.monotonic()
    broken: list[int] = []
    invalid = 0
    generator = torch.Generator().manual_seed(_subseed(seed, attack.name))
    try:
        for chunk in given.split(_CHUNK.get(images.device.type, 100)) if len(given) else ():
            batch, truth = images[chunk], labels[chunk]
            adversarial = attack.run(attack.model, batch, truth, threat=threat, generator=generator).detach()
            valid = threat.contains(adversarial, batch)
            invalid += int((~valid).sum())
            # An image the attack has ruined counts as not broken: judge the clean one in its place.
            adversarial = torch.where(valid.view(-1, 1, 1, 1), adversarial, batch)
            correct = _correct(look, adversarial, truth, votes)
            broken += chunk[valid & ~correct].tolist()
    except Exception as error:  # the defense is not ours: whatever it raises under attack must not end the audit
        return replace(
            empty, status="failed", note=f"{type(error).__name__}: {error}", seconds=time.monotonic() - started
        )
    return replace(
        empty,
        broken=tuple(broken),
        invalid=invalid,
        forwards=attack.model.forwards,
        backwards=attack.model.backwards,
        seconds=time.monotonic() - started,
    )


def _correct(look: Oracle, images: torch.Tensor, labels: torch.Tensor, votes: int) -> torch.Tensor:
    """Whether each image is classified correctly in at least half of ``votes`` forwards; bool, N.

    NaN logits are no classification, so an image that provokes them counts as broken.
    """
    right = torch.zeros(len(images), device=images.device)
    with torch.no_grad():
        for batch, truth, part in zip(
            images.split(250), labels.split(250), right.split(250), strict=True
        ):  # ``part`` is a view: adding to it adds to ``right``
            for _ in range(votes):
                part += logit_margin(look(batch), truth) < 0
    return right * 2 >= votes


def _subseed(seed: int, name: str) -> int:
    """Independent seeds by name, so that an attack's result does not depend on which others run."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63


def _move(defense: Defense, place: torch.device) -> list[tuple[nn.Module, torch.device]]:
    homes = []
    for model in known_models(defense):
        home = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), place)
        homes.append((model, home))
        model.to(place)
    return homes


def _move_back(homes: list[tuple[nn.Module, torch.device]]) -> None:
    for model, home in homes:
        model.to(home)


def _provenance(threat: ThreatModel, budget: Budget, place: torch.device, seed: int, images: int) -> dict[str, Any]:
    versions = {
        name: _version(name)
        for name in ("pytest-gradmask", "torch", "torchvision", "timm", "pyautoattack", "autoattack")
    }
    return {
        "versions": {"python": platform.python_version(), **{k: v for k, v in versions.items() if v}},
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or "cpu",
        "seed": seed,
        "images": images,
        "threat": {"norm": threat.norm, "eps": threat.eps, "bounds": list(threat.bounds)},
        "budget": budget.name,
        "autoattack": budget.autoattack,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
