"""Audit one defense: preflight, attacks, our own scoring of what they return, verdict."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.bypass.bpda import described
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.attack_check import check_attacks
from pytest_gradmask.auditing.budgets import Budget, get_budget
from pytest_gradmask.auditing.plan import AttackSurface, find_attack_surface, known_models
from pytest_gradmask.auditing.schedule import AttackSchedule, Progress, follow
from pytest_gradmask.auditing.scoring import Scorer, subseed
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.engine import LOCAL, Engine, opened
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint, source_fingerprint
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.execution.versions import versions
from pytest_gradmask.probes.comparisons import compare_attacks
from pytest_gradmask.probes.preflight import check_batch, check_defense, check_device, check_setting
from pytest_gradmask.probes.suite import Probe, probe_defense, run_probe
from pytest_gradmask.randomized.prediction import plan_sampler
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.results import AttackResult, Audit, Finding, Verdict, in_order
from pytest_gradmask.verdict.rule import Decision, decide


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
    probes: Sequence[Probe] = (),
    cache: Path | None = None,
    engine: str | Engine = "local",
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
        exhaustive: run every attack on every image, also where that can no longer change the verdict. Otherwise the
            audit looks at its images in growing batches, in random order, and ends once the verdict is certain.
        probes: of your own, beside those that every audit has: ``probe(model, images, labels, *, threat, generator)``
            returns findings (a sequence of `Finding`) about the first images that are classified correctly.
        cache: folder to keep results in; ``None`` keeps none. An audit of which nothing has changed (weights and code
            of the defense, images, settings, versions) is taken from there, and one that was interrupted goes on after
            its last attack. A defense whose code or state cannot be told is audited anew.
        engine: where attacks run: ``"local"``, or ``"ray"`` or ``"ray:ADDRESS"`` for a Ray cluster (see
            `engine.ray_address`), or one that is open already. The result is the same.
        progress: called with a line of text before each step.

    Raises:
        InputError, DefenseError: the input cannot be audited; the message says what to change.
        EngineError, DependencyError: attacks cannot run where they should.
    """
    started = time.monotonic()
    defense = as_defense(defense)
    threat = threat or ThreatModel()
    budget = get_budget(budget)
    margin = budget.margin if margin is None else margin
    check_setting(confidence, seed, margin)
    check_batch(images, labels, threat)
    place = check_device(device)
    analyses = [InterimAnalysis(len(images))] if exhaustive else plan_analyses(len(images), margin, confidence)
    order = _order(len(images), seed if len(analyses) > 1 else None)
    # Part of the cache's key; and by which reports of two runs tell whether they are about the same images, without
    # labels, which may be the defense's own answers.
    hashed = fingerprint(images.detach())
    images, labels = images.detach()[order].to(place), labels.detach().long()[order].to(place)
    provenance = {**_provenance(threat, budget, place, seed, len(images)), "images_hash": hashed}
    kept, key = None if cache is None else Cache(cache), ""
    if kept is not None:
        try:
            key = fingerprint(
                source_fingerprint(__name__), defense, order, labels, provenance, margin, budget, exhaustive,
                tuple(probes),
            )  # fmt: skip
        except FingerprintError as error:
            progress(f"no use of the cache, as {defense.name} contains {error}")
            kept = None
    whole = fingerprint(key, "audit", confidence)
    found = None if kept is None else kept.audit(whole)
    if found is not None:
        return found
    models = known_models(defense)
    opening = opened(engine, device) if isinstance(engine, str) else nullcontext(engine)
    with opening as running, moved(models, place), no_trace(models, place):
        inquiry = _Inquiry(
            defense, images, labels, threat, budget, margin, confidence, seed, exhaustive, progress, kept, key,
            tuple(probes), running,
        )  # fmt: skip
        try:
            result = inquiry.conclude(analyses)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise DefenseError(
                f"{defense.name} needs more memory than there is, for one image at a time, too "
                f"({type(error).__name__}: {error}); free some, or use another device"
            ) from error
    result = replace(
        in_order(result, order[: result.total].tolist()), seconds=time.monotonic() - started, provenance=provenance
    )
    if kept is not None and not any(attack.status == "failed" for attack in result.attacks):
        kept.store_audit(whole, result)
    return result


def _changes_as_it_runs(defense: Defense, analysis: Oracle, image: torch.Tensor) -> bool:
    """Whether a forward pass leaves the defense other than it was, as far as can be told."""
    models = tuple(known_models(defense))
    try:
        before = fingerprint(models)
        with torch.no_grad():
            analysis(image)
        return fingerprint(models) != before
    except FingerprintError:
        return False


def _order(images: int, seed: int | None) -> torch.Tensor:
    """The order in which to look at images: they may come sorted by class."""
    if seed is None:
        return torch.arange(images)
    return torch.randperm(images, generator=torch.Generator().manual_seed(subseed(seed, "order of images")))


@dataclass(slots=True)
class _Inquiry:
    """One audit in progress; the arguments of `audit`, and what has been found."""

    defense: Defense
    images: torch.Tensor
    labels: torch.Tensor
    threat: ThreatModel
    budget: Budget
    margin: float
    confidence: float
    seed: int
    exhaustive: bool
    progress: Progress
    cache: Cache | None
    key: str
    probes: Sequence[Probe]
    engine: Engine
    findings: list[Finding] = field(default_factory=list)
    probed: bool = False
    vetted: bool = False

    def conclude(self, analyses: Sequence[InterimAnalysis]) -> Audit:
        stream = RandomStream(subseed(self.seed, "defense"), self.images.device)
        oracle = Oracle(self.defense.model, stream, self.defense.outputs)
        self.progress("preflight")
        with stream.active():
            seen = check_defense(self.defense, oracle, self.images, self.labels)
        self.findings += seen.findings
        if self.engine is not LOCAL and _changes_as_it_runs(self.defense, oracle, self.images[:1]):
            warnings.warn(
                f"{self.defense.name} changes as it runs, beyond the global random generators: every attack and chunk "
                "of images gets a copy of it, so that figures may differ from those of engine='local'",
                stacklevel=2,
            )
        surface = find_attack_surface(
            self.defense, stream, seen.classes, seen.randomized, self.images, self.threat, self.budget.eot
        )
        sampler = None
        if seen.randomized:
            mixture = surface.oracle(surface.attacked) if self.defense.members else None
            sampler, unusual = plan_sampler(
                oracle, mixture, self.images, pilot=self.budget.pilot_samples, margin=self.margin
            )
            self.findings += unusual
        scorer = Scorer(
            oracle, self.images, self.labels, self.threat, self.seed, sampler, self.cache, self.key, self.engine
        )
        schedule = AttackSchedule(scorer, surface, self.budget, not self.exhaustive, self.progress)
        analysis = follow(schedule, analyses, partial(self._judge, schedule, surface), self.exhaustive)
        results = schedule.results() if any(schedule.clean) else []
        decision = self._decide(schedule, analysis, results)
        return Audit(
            defense=self.defense.name,
            verdict=decision.verdict,
            reasons=decision.reasons,
            clean=tuple(schedule.clean),
            attacks=tuple(results),
            gap=decision.gap,
            findings=(*self.findings, *compare_attacks(results, len(schedule.clean), self.confidence)),
            images_needed=decision.images_needed,
            margin=self.margin,
            confidence=self.confidence,
            bypassed=described(surface.approximations) + ((f"all after {surface.inner}",) if surface.inner else ()),
            predictions=schedule.predictions,
            given=len(self.images),
            exhaustive=self.exhaustive,
        )

    def _decide(
        self, schedule: AttackSchedule, analysis: InterimAnalysis, results: Sequence[AttackResult], *more: Finding
    ) -> Decision:
        return decide(
            schedule.clean, results, [*self.findings, *more],
            margin=self.margin, confidence=self.confidence, predictions=schedule.predictions, analysis=analysis,
        )  # fmt: skip

    def _judge(
        self,
        schedule: AttackSchedule,
        surface: AttackSurface,
        analysis: InterimAnalysis,
        results: Sequence[AttackResult],
        ending: bool,
    ) -> Verdict:
        """The verdict; before it ends an audit, attacks get a unit test if a failure would change it."""
        correct = torch.tensor(schedule.clean, device=self.images.device).nonzero()[:, 0]
        images, labels = self.images[correct], self.labels[correct]
        if not self.probed:
            self.probed = True
            self.findings += self._probe(surface, images, labels)
        verdict = self._decide(schedule, analysis, results).verdict
        failure = Finding("attack-fails-binarization-test", "", True)
        vet = ending and not self.vetted and verdict is Verdict.NOT_MASKED
        if vet and self._decide(schedule, analysis, results, failure).verdict is not Verdict.NOT_MASKED:
            self.vetted = True
            self.findings += check_attacks(surface, self.budget, images, labels, self.threat, self.seed, self.progress)
            verdict = self._decide(schedule, analysis, results).verdict
        return verdict

    def _probe(self, surface: AttackSurface, images: torch.Tensor, labels: torch.Tensor) -> list[Finding]:
        oracle = surface.oracle()
        oracle.reseed(subseed(self.seed, "defense under probes"))
        generator = torch.Generator().manual_seed(subseed(self.seed, "probes"))
        try:
            found = probe_defense(oracle, images, labels, self.threat, generator, randomized=surface.randomized)
        except Exception as error:  # the defense is not ours: whatever its backward raises is a finding, not a crash
            found = [Finding("no-gradient", f"differentiating it raises {type(error).__name__}: {error}", True)]
        for probe in self.probes:
            found += run_probe(probe, surface.oracle(), images, labels, self.threat, generator)
        return found


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
