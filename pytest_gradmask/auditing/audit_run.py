"""The loop of one audit: attack a batch of images, decide, go on until the verdict is decided."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import described
from pytest_gradmask.attacks.bypass.operations.sites import described_sites
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import under_attack
from pytest_gradmask.attacks.users_set import as_given
from pytest_gradmask.auditing.attack_check import ATTACK_FAILS, check_attacks
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.elsewhere import masked_elsewhere
from pytest_gradmask.auditing.events import Progress
from pytest_gradmask.auditing.fresh import Stateful, stateful
from pytest_gradmask.auditing.plan_adaptive import OPERATIONS
from pytest_gradmask.auditing.prepare import Prepared
from pytest_gradmask.auditing.schedule import AttackSchedule
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import NO_GRADIENT
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.batching import on_fewer, out_of_memory
from pytest_gradmask.execution.second_try import faults_noticed
from pytest_gradmask.loading.adapters import adapted_alike
from pytest_gradmask.probes.comparisons import compare_attacks
from pytest_gradmask.probes.consistency import STATEFUL, Original, Recording, check_again, check_consistency
from pytest_gradmask.probes.faults import raises_at_times
from pytest_gradmask.probes.labels import check_labels
from pytest_gradmask.probes.suite import Probe, probe_defense, run_probe
from pytest_gradmask.threat import ball_of
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.results import Finding, Verdict
from pytest_gradmask.verdict.rule import Decision, decide


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
    search_first: tuple[int, ...] = ()  # images at which the searches have looked first
    attempt: int = 1
    schedule: AttackSchedule = field(init=False)
    findings: list[Finding] = field(init=False)
    faults: list[str] = field(init=False)  # what searches and probes raised once, and not when they tried again
    attacks_checked: bool = False
    recording: Recording | None = None
    one_by_one: bool = False  # whether memory has no room for the points that are asked in several ways
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
        self.findings, self.faults = [*ready.findings, *known, *found], [*ready.faults]
        self.schedule = AttackSchedule(
            self.ready.scorer, self.ready.surface, self.budget, quick=not self.exhaustive, progress=self.progress
        )

    def until_decided(self) -> Audit | None:
        """The loop of an audit: attack a batch of images, decide, go on until the verdict is decided.

        Returns:
            None where the audit has to begin again: the defense turned out to be stateful, and ``fresh`` has it, or
            searches have to look at other images, which ``search_first`` then has.
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
                with faults_noticed(self.faults):
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
        if self._begins_again() or self._searches_again(analysis):
            return None
        return self._report(analysis)

    def _begins_again(self) -> bool:
        """Whether the defense is found to be stateful, and its attacks should have run on fresh copies."""
        found = next((finding for finding in self.findings if finding.id == STATEFUL), None)
        if found is None or self.fresh is not None or self.original is None or self.original.first_state is None:
            return False
        self.fresh = stateful(self.ready, found, self.original.first_state, self.recording)
        self.original = replace(self.original, first_state=None)  # asked once
        return self.fresh is not None

    def _searches_again(self, analysis: InterimAnalysis) -> bool:
        """Whether a mask is seen at images that the searches have not looked at. They look there once."""
        if self.search_first or self.schedule.interrupted or not any(self.schedule.clean):
            return False
        # A defense that changes with its queries would begin another audit in its new state, and seem to have no other.
        changes = any(finding.id == STATEFUL for finding in self.findings)
        if changes or self._decide(analysis).verdict is Verdict.MASKED:
            return False
        with faults_noticed(self.faults):
            self.search_first = masked_elsewhere(self.ready, self.schedule, self.findings)
        return bool(self.search_first)

    def _plan(self) -> list[tuple[InterimAnalysis, int]]:
        """The analyses, each with the number of images after which it has as many correct ones as it needs."""
        clean = self.schedule.every_clean
        ranks = [index for index, correct in enumerate(clean) if correct]
        if self.exhaustive or not ranks or self.ready.surface.black_box:  # nothing can be decided early
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
        with faults_noticed(self.faults):
            self.findings += check_attacks(
                self.ready.surface, self.schedule.planned, images, labels, threat=self.ready.scorer.threat,
                seed=self.ready.scorer.seed, progress=self.progress,
                saturated=any(finding.id == "saturated-logits" for finding in self.findings),
            )  # fmt: skip
        return self._decide(analysis).verdict

    def _decide(self, analysis: InterimAnalysis, *more: Finding) -> Decision:
        results = self.schedule.results() if any(self.schedule.clean) else []
        interrupted = self.schedule.interrupted
        return decide(
            self.schedule.clean, results, [*self._all_findings(), *more],
            margin=self.margin, confidence=self.confidence,
            predictions=self.schedule.predictions, analysis=analysis,
            complete=self.complete, interrupted=interrupted,
            unsettled=self.schedule.unsettled if interrupted else 0,
        )  # fmt: skip

    def _all_findings(self) -> list[Finding]:
        return [*self.findings, *raises_at_times(self.faults)]

    def _probe(self) -> list[Finding]:
        """Findings of all probes. They use the first images that are classified correctly."""
        images, labels = self._correct()
        rejection = self.ready.surface.rejection
        if rejection is not None:  # its logits under attack are those of one label
            chosen = labels == labels.mode().values
            images, labels = images[chosen], labels[chosen]
        with under_attack(rejection, labels) as safe:
            return on_fewer(lambda count: self._probe_on(images[:count], safe[:count]), len(images))

    def _probe_on(self, images: Tensor, labels: Tensor) -> list[Finding]:
        threat, seed, surface = self.ready.scorer.threat, self.ready.scorer.seed, self.ready.surface
        oracle = surface.oracle()
        oracle.reseed(subseed(seed, "defense under probes"))
        generator = torch.Generator().manual_seed(subseed(seed, "probes"))
        found: list[Finding] = []
        try:
            if not surface.black_box:
                found = probe_defense(oracle, images, labels, ball_of(threat), generator, randomized=surface.randomized)
        except Exception as error:  # the defense is not ours: whatever its backward raises is a finding, not a crash
            if out_of_memory(error):
                raise
            message = f"differentiating it raises {type(error).__name__}: {error}"
            found = [Finding(NO_GRADIENT, message, undermines_attacks=True)]
        for probe in self.probes:
            found += run_probe(probe, surface.oracle(), images, labels, as_given(threat), generator)
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
        original = self.original

        def ask(count: int) -> tuple[list[Finding], Recording | None]:
            return check_consistency(
                self._asked(), self._asked(surface.attacked), images[:count], labels[:count],
                threat=self.ready.scorer.threat, original=original,
                fresh=lambda copy: self._asked(adapted_alike(copy, surface.defense.model)),
                randomized=surface.randomized,
                batch_dependent=any(finding.id == "batch-dependence" for finding in self.findings),
                seed=subseed(self.ready.scorer.seed, "consistency"),
            )  # fmt: skip

        try:
            found, self.recording = on_fewer(ask, len(images))
        except InputError:  # the set of perturbations is the user's
            raise
        except Exception as error:  # of the defense, or memory has run out
            if self.one_by_one or not out_of_memory(error):
                message = f"it cannot be asked in several ways, as it raises {type(error).__name__}: {error}"
                return [Finding("behaves-differently", message, undermines_attacks=True)]
        else:
            return found
        self.one_by_one = True  # only after the handler: the exception keeps tensors alive
        return self._ask_in_many_ways()

    def _asked(self, model: nn.Module | None = None) -> Oracle:
        oracle = self.ready.surface.oracle(model)
        oracle.one_by_one = self.one_by_one
        return oracle

    def _ask_again(self) -> None:
        """Add what has changed about the answers of the defense since the attacks began, once."""
        if self.recording is None or self.changed:
            return
        found = check_again(self._asked(), self.recording)
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
            findings=(*self._all_findings(), *compared),
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
