"""Audit one defense: preflight, attacks, our own scoring of what they return, verdict."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import described
from pytest_gradmask.attacks.bypass.operations.sites import described_sites
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import under_attack
from pytest_gradmask.auditing.arguments import as_folder, check_arguments, reported_to
from pytest_gradmask.auditing.attack_check import ATTACK_FAILS, check_attacks
from pytest_gradmask.auditing.budgets import Budget, get_budget
from pytest_gradmask.auditing.events import Message, Progress, ignore
from pytest_gradmask.auditing.fresh import Stateful, stateful
from pytest_gradmask.auditing.plan import OPERATIONS
from pytest_gradmask.auditing.prepare import Prepared, prepared
from pytest_gradmask.auditing.recorded import key_of_recorded
from pytest_gradmask.auditing.schedule import AttackSchedule
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import known_models
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.attempts import Attempt, take_attempt
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.deadline import INTERRUPTED, Deadline
from pytest_gradmask.execution.engine import LOCAL, Engine, opened
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.execution.packages import package_identity
from pytest_gradmask.execution.precision import Precision, check_precision
from pytest_gradmask.execution.process_state import process_state
from pytest_gradmask.execution.versions import versions
from pytest_gradmask.loading.adapters import adapted_alike
from pytest_gradmask.loading.inputs import as_batch
from pytest_gradmask.probes.comparisons import compare_attacks
from pytest_gradmask.probes.consistency import (
    STATEFUL,
    Original,
    Recording,
    check_again,
    check_consistency,
    keep_original,
)
from pytest_gradmask.probes.labels import check_labels
from pytest_gradmask.probes.preflight import check_batch, check_deadline, check_device, check_setting, check_threat
from pytest_gradmask.probes.suite import Probe, probe_defense, run_probe
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit, in_order
from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.results import Finding, Verdict
from pytest_gradmask.verdict.rule import Decision, decide


def audit(
    defense: Defense | nn.Module,
    images: Any,
    labels: Any = None,
    *,
    threat: ThreatModel | None = None,
    budget: str | Budget = "smoke",
    margin: float | None = None,
    confidence: float = 0.99,
    device: str = "cpu",
    seed: int = 0,
    exhaustive: bool = False,
    attempt: int = 1,
    test: str = "",
    probes: Sequence[Probe] = (),
    cache: str | Path | None = None,
    engine: str | Engine = "local",
    precision: Precision = "own",
    deadline: float | None = None,
    progress: Progress = ignore,
) -> Audit:
    """Find out whether a defense masks its gradients.

    Args:
        defense: a module from images to logits, or a `Defense` that also says what an adaptive attacker knows.
        images: float32, N x C x H x W, inside the bounds of the threat model; or anything that
            `loading.inputs.as_batch` converts, such as a ``DataLoader``.
        labels: int64, N. None if ``images`` has them.
        threat: where attacks may search; by default Linf, 8/255, bounds [0, 1].
        budget: ``"smoke"``, ``"ci"``, ``"full"`` or a `Budget`.
        margin: the largest gap, as a share of images, that still counts as no masking; by default the budget's.
        confidence: of every bound and test, in (0.5, 1).
        device: torch device to run on. Models are moved there, and back to where they were afterwards.
        seed: of every random choice. The same seed on the same machine gives the same result.
        exhaustive: run every attack on every image, also where that can no longer change the verdict. Otherwise the
            audit attacks its images in growing batches, in random order, and ends once the verdict is decided.
        attempt: which audit of this defense under this threat model this is, from 1. Audits that are repeated, with
            more images or another seed, share the error: see `attempt_share` in `verdict.interim`.
        test: name of the test that asks, if any. The cache counts the attempts of each test by itself.
        probes: your own, beside those that every audit has: ``probe(model, images, labels, *, threat, generator)``
            returns findings (a sequence of `Finding`) about the first images that are classified correctly.
        cache: folder to keep results in; ``None`` keeps none. If nothing has changed (weights and code of the defense,
            images, settings, versions), the audit is read from there. An interrupted audit continues after its last
            attack. If any of this cannot be hashed, the cache is not used. The cache also counts, for
            the report, every different audit of the same model with the same threat model, margin, confidence and test,
            whatever its verdict, unless it ended without a comparison. The count changes no verdict.
        engine: where attacks run: ``"local"``, or ``"ray"`` or ``"ray:ADDRESS"`` for a Ray cluster (see
            `engine.ray_address`), or an engine that is open already. The result is the same.
        precision: in which the defense computes under attack: its ``"own"``, ``"tf32"`` (TensorFloat-32, on GPUs of
            NVIDIA) or ``"bfloat16"`` (by autocast). Probes, and scores of what attacks return, are always in its own.
        deadline: seconds after which the audit ends with what it knows by then; None for never. If the verdict is not
            decided, it is ``INCONCLUSIVE``, with bounds of the gap so far. Attacks are interrupted between two queries;
            what comes before the first of them is not.
        progress: is called with an event before each step; ``str(event)`` says in words what comes next.

    Raises:
        InputError, DefenseError: the input cannot be audited; the message says what to change.
        EngineError, DependencyError: attacks cannot run where they should.
    """
    started = time.monotonic()
    check_arguments(exhaustive=exhaustive, test=test, probes=probes, engine=engine, progress=progress)
    folder, defense, progress = as_folder(cache), as_defense(defense), reported_to(progress)
    threat = ThreatModel() if threat is None else threat
    budget = get_budget(budget)
    margin = budget.margin if margin is None else margin
    check_setting(confidence, seed, margin, attempt)
    check_precision(precision)
    due = None if deadline is None else Deadline.after(check_deadline(deadline))
    check_threat(threat)
    batch = as_batch(images, labels, bounds=threat.bounds, at_most=budget.samples, seed=seed)
    images, labels = batch.images, batch.labels
    check_batch(images, labels, threat)
    where = check_device(device)
    order = _order(len(images), None if exhaustive else seed)
    # Part of the cache's key. Reports also use it to see whether two runs are about the same images; labels are left
    # out, as they may be the defense's own answers.
    images_hash = fingerprint(images.detach())
    images, labels = images.detach()[order].to(where), labels.detach().long()[order].to(where)
    provenance = {
        **_provenance(threat, budget, where, seed, len(images)), "precision": precision, "images_hash": images_hash,
    }  # fmt: skip
    store, key, taken, result = None if folder is None else Cache(folder), "", Attempt(1), None
    if store is not None:
        try:
            asked = fingerprint(
                defense, order, labels, images_hash, threat, seed, margin, budget, exhaustive, tuple(probes)
            )
            question = fingerprint(defense.model, defense.rejects, threat, margin, confidence, test)
            key = fingerprint(package_identity("pytest_gradmask"), process_state(), asked, provenance)
        except FingerprintError as error:
            progress(Message(f"no use of the cache, as {defense.name} contains {error}"))
            store = None
        else:
            taken = take_attempt(store.folder, question, asked)
            key = key_of_recorded(store, key, defense, images, threat=threat, seed=seed)
    audit_key = fingerprint(key, "audit", confidence, attempt)
    stored = None if store is None else store.audit(audit_key)
    if stored is not None:
        return replace(stored, test=test, earlier=taken.number - 1)
    opening = opened(engine, device) if isinstance(engine, str) else nullcontext(engine)
    try:
        with opening as running:
            progress(Message("preflight"))
            original, fresh, result = keep_original(defense.model), None, None
            while result is None:
                with prepared(
                    defense, images, labels, threat=threat, budget=budget, margin=margin, seed=seed, cache=store,
                    key=fingerprint(key, "fresh copies") if fresh else key, engine=running,
                    first_state=fresh.first_state if fresh else None, precision=precision,
                    deadline=due,
                ) as ready:  # fmt: skip
                    run = AuditRun(
                        ready=ready, budget=budget, margin=margin, confidence=confidence, exhaustive=exhaustive,
                        attempt=attempt, probes=tuple(probes), progress=progress, original=original, fresh=fresh,
                    )  # fmt: skip
                    result, fresh = run.until_decided(), run.fresh
                    if fresh is None:
                        _warn_if_stateful(ready)
                    elif result is None:
                        progress(Message(f"{defense.name} is stateful: all over again, on fresh copies"))
            if fresh is not None:
                fresh.first_state.put_back()
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise DefenseError(
            f"{defense.name} needs more memory than there is, even for one image at a time "
            f"({type(error).__name__}: {error}); free some, or use another device"
        ) from error
    finally:
        if result is None or result.gap is None:  # nothing was tested
            taken.release()
    result = replace(
        in_order(result, order[: result.total].tolist()), test=test, seconds=time.monotonic() - started,
        provenance=provenance, earlier=taken.number - 1, findings=(*batch.findings(), *result.findings),
    )  # fmt: skip
    interrupted = any(attack.note == INTERRUPTED for attack in result.attacks)
    if store is not None and not interrupted and not any(attack.status == "failed" for attack in result.attacks):
        store.store_audit(audit_key, result)
    return result


@dataclass(slots=True, kw_only=True)
class AuditRun:
    """One audit: a prepared defense, the arguments of `audit`, and the findings so far."""

    ready: Prepared
    budget: Budget
    margin: float
    confidence: float
    exhaustive: bool
    probes: Sequence[Probe]
    progress: Progress
    original: Original | None = None  # nothing is compared without it
    fresh: Stateful | None = None  # on fresh copies of it, attacks run and are scored
    attempt: int = 1
    schedule: AttackSchedule = field(init=False)
    findings: list[Finding] = field(init=False)
    attacks_checked: bool = False
    recording: Recording | None = None
    changed: bool = False  # whether the defense answers otherwise than in the recording
    complete: bool = True  # whether all adaptive attacks have run on the newest batch

    def __post_init__(self) -> None:
        ready = self.ready
        predictions, labels, rejection = ready.predictions, ready.scorer.labels, ready.surface.rejection
        if rejection is not None:  # rejected images have no answer to compare with their label
            answered = ~torch.tensor(ready.rejected, device=labels.device) & (predictions != rejection.column)
            predictions, labels = (rejection.counted(each[answered]) for each in (predictions, labels))
        found = check_labels(predictions, labels, ready.surface.classes, self.confidence)
        known = [] if self.fresh is None else [self.fresh.on_fresh_copies()]
        self.findings = [*ready.findings, *known, *found]
        self.schedule = AttackSchedule(
            self.ready.scorer, self.ready.surface, self.budget, quick=not self.exhaustive, progress=self.progress
        )

    def until_decided(self) -> Audit | None:
        """The loop of an audit: attack a batch of images, decide, go on until the verdict is decided.

        Returns:
            None where the defense turned out to be stateful, and ``fresh`` has it: the audit then begins again.
        """
        schedule, probed = self.schedule, False
        if not any(schedule.every_clean):  # it may have answered earlier queries before it was scored
            self.findings += self._ask_in_many_ways()
            if self._begins_again():
                return None
        adaptive = sum(attack.kind == "adaptive" for attack in schedule.planned)
        for analysis, images in self._plan():
            schedule.admit(images)
            if not any(schedule.clean):
                continue
            deadline = self.ready.scorer.deadline
            if not probed and (deadline is None or not deadline.over):
                self.findings += [*self._ask_in_many_ways(), *self._probe()]
                probed = True
                if self._begins_again():
                    return None
            with closing(schedule.attack_batch()) as attacks:
                for number, _ in enumerate(attacks, 1):  # after each adaptive attack: do those so far suffice?
                    self.complete = number == adaptive
                    if not self.exhaustive and self._masked_beyond_placebo(analysis):
                        break
            if schedule.interrupted:
                # Bounds need a placebo with all that it is due.
                schedule.match_placebo()
                schedule.settle_disputed()
                break
            verdict = Verdict.INCONCLUSIVE
            if not self.exhaustive:
                # For `NOT_MASKED`, one restart of the placebo may be enough. It shows whether gradient attacks have
                # converged, and a placebo with less budget than it is due only makes that verdict harder to reach.
                schedule.start_placebo()
                verdict = self._verdict(analysis)
            if verdict is Verdict.MASKED or (verdict is Verdict.INCONCLUSIVE and analysis.last):
                schedule.match_placebo()
                verdict = self._verdict(analysis)
            if self._begins_again():
                return None
            if verdict is not Verdict.INCONCLUSIVE:
                break
        if not schedule.interrupted:
            self._ask_again()
        return None if self._begins_again() else self._report(analysis)

    def _begins_again(self) -> bool:
        """Whether the defense is found to be stateful, and its attacks should have run on fresh copies."""
        found = next((finding for finding in self.findings if finding.id == STATEFUL), None)
        if found is None or self.fresh is not None or self.original is None or self.original.first_state is None:
            return False
        self.fresh = stateful(self.ready, found, self.original.first_state, self.recording)
        self.original = replace(self.original, first_state=None)  # asked once
        return self.fresh is not None

    def _plan(self) -> list[tuple[InterimAnalysis, int]]:
        """The analyses, each with the number of images after which it has as many correct ones as it needs."""
        clean = self.schedule.every_clean
        ranks = [index for index, correct in enumerate(clean) if correct]
        if self.exhaustive or not ranks:
            return [(InterimAnalysis(len(ranks), attempt=self.attempt), len(clean))]
        analyses = plan_analyses(len(ranks), self.margin, self.confidence, self.attempt)
        return [(analysis, len(clean) if analysis.last else ranks[analysis.images - 1] + 1) for analysis in analyses]

    def _masked_beyond_placebo(self, analysis: InterimAnalysis) -> bool:
        """Whether the verdict is ``MASKED``, also once the placebo has had all that it is due."""
        if self._decide(analysis).verdict is not Verdict.MASKED:
            return False  # the placebo's further passes cannot help, so they are not spent
        self.schedule.match_placebo()
        if self._decide(analysis).verdict is not Verdict.MASKED:
            return False
        self.schedule.settle_disputed()
        return self._decide(analysis).verdict is Verdict.MASKED

    def _verdict(self, analysis: InterimAnalysis) -> Verdict:
        """The verdict on the evidence so far. Attacks are checked where their failure would refuse ``NOT_MASKED``."""
        self.schedule.settle_disputed()
        if self._decide(analysis).unconverged > self.margin:
            self.schedule.settle_placebo()
        verdict = self._decide(analysis).verdict
        if verdict is Verdict.NOT_MASKED:
            self._ask_again()
            verdict = self._decide(analysis).verdict
        if self.attacks_checked or verdict is not Verdict.NOT_MASKED:
            return verdict
        failure = Finding(ATTACK_FAILS, "", undermines_attacks=True)
        if self._decide(analysis, failure).verdict is Verdict.NOT_MASKED:
            return verdict
        self.attacks_checked = True
        images, labels = self._correct()
        self.findings += check_attacks(
            self.ready.surface, self.schedule.planned, images, labels, threat=self.ready.scorer.threat,
            seed=self.ready.scorer.seed, progress=self.progress,
        )  # fmt: skip
        return self._decide(analysis).verdict

    def _decide(self, analysis: InterimAnalysis, *more: Finding) -> Decision:
        results = self.schedule.results() if any(self.schedule.clean) else []
        interrupted = self.schedule.interrupted
        return decide(
            self.schedule.clean, results, [*self.findings, *more], margin=self.margin, confidence=self.confidence,
            predictions=self.schedule.predictions, analysis=analysis,
            complete=self.complete, interrupted=interrupted,
            unsettled=self.schedule.unsettled if interrupted else 0,
        )  # fmt: skip

    def _probe(self) -> list[Finding]:
        """Findings of all probes. They use the first images that are classified correctly."""
        images, labels = self._correct()
        rejection = self.ready.surface.rejection
        if rejection is not None:  # its logits under attack are those of one label
            chosen = labels == labels.mode().values
            images, labels = images[chosen], labels[chosen]
        with under_attack(rejection, labels) as safe:
            return self._probe_on(images, safe)

    def _probe_on(self, images: Tensor, labels: Tensor) -> list[Finding]:
        threat, seed, surface = self.ready.scorer.threat, self.ready.scorer.seed, self.ready.surface
        oracle = surface.oracle()
        oracle.reseed(subseed(seed, "defense under probes"))
        generator = torch.Generator().manual_seed(subseed(seed, "probes"))
        try:
            found = probe_defense(oracle, images, labels, threat, generator, randomized=surface.randomized)
        except Exception as error:  # the defense is not ours: whatever its backward raises is a finding, not a crash
            message = f"differentiating it raises {type(error).__name__}: {error}"
            found = [Finding("no-gradient", message, undermines_attacks=True)]
        for probe in self.probes:
            found += run_probe(probe, surface.oracle(), images, labels, threat, generator)
        return found

    def _ask_in_many_ways(self) -> list[Finding]:
        """Findings on whether the defense that is attacked is the one that is scored."""
        if self.original is None:
            return []
        if self.fresh is not None:  # what it is compared with answers as it does
            self.original = replace(self.original, copy=None)
        surface, (images, labels) = self.ready.surface, self._correct()
        if not len(images):
            images, labels = self.ready.scorer.images, self.ready.scorer.labels
        try:
            found, self.recording = check_consistency(
                surface.oracle(), surface.oracle(surface.attacked), images, labels, threat=self.ready.scorer.threat,
                original=self.original,
                fresh=lambda copy: surface.oracle(adapted_alike(copy, surface.defense.model)),
                randomized=surface.randomized,
                batch_dependent=any(finding.id == "batch-dependence" for finding in self.findings),
                seed=subseed(self.ready.scorer.seed, "consistency"),
            )  # fmt: skip
        except Exception:  # a forward that raises is for the attacks to report
            return []
        return found

    def _ask_again(self) -> None:
        """Add what has changed about the answers of the defense since the attacks began, once."""
        if self.recording is None or self.changed:
            return
        found = check_again(self.ready.surface.oracle(), self.recording)
        self.findings, self.changed = [*self.findings, *found], bool(found)

    def _correct(self) -> tuple[Tensor, Tensor]:
        """The images so far that are classified correctly, and their labels."""
        scorer = self.ready.scorer
        correct = torch.tensor(self.schedule.clean, device=scorer.images.device).nonzero()[:, 0]
        return scorer.images[correct], scorer.labels[correct]

    def _report(self, analysis: InterimAnalysis) -> Audit:
        schedule, surface = self.schedule, self.ready.surface
        results = schedule.results() if any(schedule.clean) else []
        decision = self._decide(analysis)
        operations = described_sites(surface.operations)
        compared = compare_attacks(
            results, len(schedule.clean), self.confidence, hidden_by={OPERATIONS: operations} if operations else {}
        )
        return Audit(
            defense=surface.defense.name,
            verdict=decision.verdict,
            reasons=decision.reasons,
            clean=tuple(schedule.clean),
            attacks=tuple(results),
            gap=decision.gap,
            findings=(*self.findings, *compared),
            images_needed=decision.images_needed,
            margin=self.margin,
            confidence=self.confidence,
            operations=operations,
            bypassed=(
                *described(surface.approximations),
                *([f"all after {surface.inner}"] if surface.inner else []),
                *(f"all around {inner.name}" for inner in surface.inner_classifiers),
            ),
            predictions=schedule.predictions,
            given=len(self.ready.scorer.images),
            exhaustive=self.exhaustive,
            rejected=self.ready.rejected[: len(schedule.clean)],
            attempt=self.attempt,
        )


def _warn_if_stateful(ready: Prepared) -> None:
    """Warn where copies of a defense, one for each chunk of images, may behave differently from the defense itself."""
    scorer, defense = ready.scorer, ready.surface.defense
    if scorer.engine is not LOCAL and _changes_as_it_runs(defense, scorer.oracle, scorer.images[:1]):
        warnings.warn(
            f"{defense.name} changes as it runs, beyond the global random generators: every attack and chunk "
            "of images gets a copy of it, so that figures may differ from those of engine='local'",
            stacklevel=3,
        )


def _changes_as_it_runs(defense: Defense, oracle: Oracle, image: Tensor) -> bool:
    """Whether a forward pass changes the state of the defense, as far as it can be hashed."""
    models = tuple(known_models(defense))
    try:
        before = fingerprint(models)
        with torch.no_grad():
            oracle(image)
        return fingerprint(models) != before
    except FingerprintError:
        return False


def _order(images: int, seed: int | None) -> Tensor:
    """The order in which images are attacked: they may come sorted by class."""
    if seed is None:
        return torch.arange(images)
    return torch.randperm(images, generator=torch.Generator().manual_seed(subseed(seed, "order of images")))


def _provenance(threat: ThreatModel, budget: Budget, device: torch.device, seed: int, images: int) -> dict[str, Any]:
    return {
        "versions": versions("pytest-gradmask", "torch", "torchvision", "timm", "pyautoattack", "autoattack"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "seed": seed,
        "images": images,
        "threat": {"norm": threat.norm, "eps": threat.eps, "bounds": list(threat.bounds)},
        "budget": budget.name,
        "budget_settings": {name: value for name, value in asdict(budget).items() if name != "name"},
        "autoattack": budget.autoattack,
    }
