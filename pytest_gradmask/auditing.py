"""Audit one defense: preflight, attacks, our own scoring of what they return, verdict."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.bpda import described
from pytest_gradmask.attacks.oracle import Oracle, RandomStream
from pytest_gradmask.budgets import Budget, get_budget
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.isolation import moved, no_trace
from pytest_gradmask.plan import PlannedAttack, Target, aim, known_models, plan_attacks
from pytest_gradmask.preflight import check_batch, check_defense, check_setting
from pytest_gradmask.probes.comparisons import compare_attacks
from pytest_gradmask.probes.suite import probe_defense
from pytest_gradmask.results import AttackResult, Audit, Finding, Verdict
from pytest_gradmask.schedule import Progress, attack_in_turn
from pytest_gradmask.scoring import Evaluation, subseed
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.unit_test import unit_test
from pytest_gradmask.verdict import Decision, decide
from pytest_gradmask.versions import versions
from pytest_gradmask.voting import call_ballot

#: Images of the attacks' unit test: the first tell a broken attack, all of them settle one that misses a few.
_TESTED = (8, 24)


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
    exhaustive: bool = False,
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
        exhaustive: run every attack, also those that can no longer change the verdict.
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
    check_setting(confidence)
    check_batch(images, labels, threat)
    place = torch.device(device)
    images, labels = images.detach().to(place), labels.detach().long().to(place)
    models = known_models(defense)
    with moved(models, place), no_trace(models, place):
        result = _audit(defense, images, labels, threat, budget, margin, confidence, seed, exhaustive, progress)
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
    exhaustive: bool,
    progress: Progress,
) -> Audit:
    stream = RandomStream(subseed(seed, "defense"), images.device)
    look = Oracle(defense.model, stream, defense.outputs)
    progress("preflight")
    with stream.active():
        seen = check_defense(defense, look, images, labels)
    findings = list(seen.findings)
    target = aim(defense, stream, seen.classes, seen.randomized, images, threat, budget.eot)
    ballot = None
    if seen.randomized:
        mixture = target.oracle(target.attacked) if defense.members else None
        ballot, unusual = call_ballot(look, mixture, images, budget.votes, margin)
        findings += unusual
    evaluation = Evaluation(look, images, labels, threat, seed, ballot)
    clean, votes = evaluation.clean()
    correct = torch.tensor(clean, device=images.device)
    results: list[AttackResult] = []

    def judge(attacks: Sequence[AttackResult], *more: Finding) -> Decision:
        return decide(clean, attacks, [*findings, *more], margin=margin, confidence=confidence, votes=votes)

    if any(clean):
        findings += _probe(look, images[correct], labels[correct], threat, seed, seen.randomized)
        certain = None if exhaustive else lambda attacks: judge(attacks).verdict is Verdict.MASKED
        standing = [index for index, kept in enumerate(clean) if (votes[index].pilot > 0 if votes else kept)]
        results = attack_in_turn(evaluation, target, budget, standing, certain, progress)
        findings += compare_attacks(results, len(clean), confidence)
        failure = Finding("attack-fails-unit-test", "", True)
        # Worth its time only where a failure would change the verdict.
        if judge(results).verdict is Verdict.NOT_MASKED is not judge(results, failure).verdict:
            findings += _test_attacks(target, budget, images[correct], labels[correct], threat, seed, progress)
    decision = judge(results)
    return Audit(
        defense=defense.name,
        verdict=decision.verdict,
        reasons=decision.reasons,
        clean=tuple(clean),
        attacks=tuple(results),
        gap=decision.gap,
        findings=tuple(findings),
        images_needed=decision.images_needed,
        margin=margin,
        confidence=confidence,
        bypassed=described(target.substitutes) + ((f"all after {target.inner}",) if target.inner else ()),
        votes=votes,
    )


def _probe(
    look: Oracle, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel, seed: int, randomized: bool
) -> list[Finding]:
    generator = torch.Generator().manual_seed(subseed(seed, "probes"))
    try:
        return probe_defense(look, images, labels, threat, generator, randomized)
    except GradmaskError:
        raise
    except Exception as error:  # the defense is not ours: whatever its backward raises is a finding, not a crash
        return [Finding("no-gradient", f"differentiating it raises {type(error).__name__}: {error}", True)]


def _test_attacks(
    target: Target,
    budget: Budget,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    seed: int,
    progress: Progress,
) -> list[Finding]:
    """A finding unless a gradient attack, or else BPDA, finds examples that are planted in this defense."""
    told = []
    for attack in plan_attacks(target, budget):
        if attack.name in ("apgd-ce", "apgd-eot", "bpda") and not attack.skip:
            passed, found = _tested(attack, target.defense, images, labels, threat, seed, progress)
            if passed:
                return []
            told.append(found)
    return [Finding("attack-fails-unit-test", f"of examples planted in this defense, {'; '.join(told)}", True)]


def _tested(
    attack: PlannedAttack,
    defense: Defense,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    seed: int,
    progress: Progress,
) -> tuple[bool, str]:
    """Whether an attack passes its unit test, and what it found in words."""
    for count in _TESTED:
        progress(f"unit test of {attack.name} on {min(count, len(images))} images")
        generator = torch.Generator().manual_seed(subseed(seed, f"unit test of {attack.name}"))
        try:
            result = unit_test(
                attack.run, defense, images[:count], labels[:count], threat=threat, generator=generator,
                through=attack.model.model,
            )  # fmt: skip
        except Exception as error:  # neither the defense nor its last layer is ours
            return False, f"{attack.name} cannot be tested ({type(error).__name__}: {error})"
        if result.ok or result.fails or count >= len(images):
            break
    return result.ok, f"{attack.name} finds {result.passed} of {result.tested}"


def _provenance(threat: ThreatModel, budget: Budget, place: torch.device, seed: int, images: int) -> dict[str, Any]:
    return {
        "versions": versions("pytest-gradmask", "torch", "torchvision", "timm", "pyautoattack", "autoattack"),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or "cpu",
        "seed": seed,
        "images": images,
        "threat": {"norm": threat.norm, "eps": threat.eps, "bounds": list(threat.bounds)},
        "budget": budget.name,
        "autoattack": budget.autoattack,
    }
