"""In what order attacks run, on which images, what the placebo gets, and when an audit ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.events import Step
from pytest_gradmask.auditing.plan import AttackSurface, PlannedAttack, plan_attacks, plan_placebo
from pytest_gradmask.auditing.scoring import Scorer
from pytest_gradmask.verdict.interim import InterimAnalysis
from pytest_gradmask.verdict.results import AttackResult, Prediction, Verdict

Progress = Callable[[str], None]
Certain = Callable[[Sequence[AttackResult]], bool]
Judge = Callable[[InterimAnalysis, Sequence[AttackResult], bool], Verdict]


@dataclass(slots=True)
class _Batch:
    """Images that are attacked together, by index, and what has become of them.

    Attributes:
        stream_name: tells its random numbers from those of other batches.
        standing: what no attack has settled yet, of those that gradient attacks have done with.
        runs: of gradient and adaptive attacks.
        placebos: runs of the placebo, each on what the ones before left standing.
    """

    stream_name: str
    standing: set[int]
    runs: list[AttackResult] = field(default_factory=list)
    placebos: list[AttackResult] = field(default_factory=list)


class AttackSchedule:
    """The attacks of one audit, batch by batch.

    In each batch, gradient attacks come first, each on the images that the ones before it left standing. Every adaptive
    attack and the placebo then get the images that survive all gradient attacks.

    Args:
        scorer: runs and scores one attack.
        surface: the defense as its attacker sees it.
        budget: how hard to try.
        quick: whether a short attack comes first, to spare the long ones the images that fall to anything.
        progress: called with a line of text before each attack, a `Step`.

    Attributes:
        clean: for each image so far, whether it is classified correctly without an attack.
        predictions: of a randomized defense on each of them.
    """

    def __init__(self, scorer: Scorer, surface: AttackSurface, budget: Budget, quick: bool, progress: Progress) -> None:
        self.clean: list[bool] = []
        self.predictions: dict[int, Prediction] = {}
        self._evaluation, self._target, self._budget = scorer, surface, budget
        self._quick, self._progress = quick, progress
        self._planned = plan_attacks(surface, budget, quick)
        self._batches: list[_Batch] = []

    def admit(self, images: int) -> None:
        """Go on to the first so many images: what comes is a batch of its own."""
        start = len(self.clean)
        clean, predictions = self._evaluation.clean(range(start, images))
        self.clean += clean
        self.predictions |= predictions
        fresh = {start + index for index, kept in enumerate(clean) if kept}
        if predictions:  # an image that is mostly misclassified may have some chance left to lose
            fresh = {index for index, found in predictions.items() if found.pilot > 0}
        self._batches.append(_Batch(f" from image {start}" if start else "", fresh))

    def attack(self, certain: Certain | None) -> None:
        """Run all attacks on the newest batch that can still change the verdict.

        Args:
            certain: whether results, the placebo's included, settle that the defense masks; the adaptive attacks left
                are then spared. ``None`` runs them all.
        """
        # A fresh plan: each attack counts its own passes.
        planned, batch = plan_attacks(self._target, self._budget, self._quick), self._batches[-1]
        for attack in planned:
            if attack.kind == "gradient":
                batch.runs.append(self._run(attack, batch))
                batch.standing -= batch.runs[-1].decided
        adaptive = [attack for attack in planned if attack.kind == "adaptive"]
        with closing(self._evaluation.run_each(adaptive, batch.standing, batch.stream_name)) as results:
            for attack in adaptive:
                self._announce(attack, batch)
                batch.runs.append(next(results))
                # Worth the placebo's time only if the placebo so far would settle it.
                if certain is not None and certain(self.results()):
                    self.match_placebo()
                    if certain(self.results()):
                        return

    def start_placebo(self) -> None:
        """Let the placebo show, on every batch, whether gradient attacks have converged: one restart."""
        for batch in self._batches:
            if not batch.placebos:
                self._extend(batch, 0.0)

    def match_placebo(self) -> None:
        """Give the placebo, on every batch, what all adaptive attacks have spent there together."""
        for batch in self._batches:
            due = sum(_passes(result) for result in batch.runs if result.kind == "adaptive")
            had = sum(_passes(result) for result in batch.placebos)
            if not batch.placebos or (had < due and batch.placebos[-1].status == "done"):
                self._extend(batch, due - had)

    def results(self) -> list[AttackResult]:
        """Every planned attack and the placebo, over all batches; attacks that have not run are spared."""
        runs = [result for batch in self._batches for result in batch.runs]
        placebos = [result for batch in self._batches for result in batch.placebos]
        joined = [
            _joined([run for run in runs if run.name == attack.name], len(self._batches)) or _skipped_early(attack)
            for attack in self._planned
        ]
        return [*joined, _joined(placebos) or AttackResult("placebo", "placebo")]

    def _extend(self, batch: _Batch, passes: float) -> None:
        placebo = plan_placebo(self._target, self._budget, passes)
        had = sum(_passes(result) for result in batch.placebos)
        standing = batch.standing.difference(*(result.decided for result in batch.placebos))
        # With the same salt it would repeat the random starts that it has had.
        again = f" after {had:.0f} passes" if batch.placebos else ""
        batch.placebos.append(
            self._run(placebo, replace(batch, stream_name=batch.stream_name + again, standing=standing))
        )

    def _run(self, attack: PlannedAttack, batch: _Batch) -> AttackResult:
        self._announce(attack, batch)
        return self._evaluation.run(attack, batch.standing, batch.stream_name)

    def _announce(self, attack: PlannedAttack, batch: _Batch) -> None:
        names = [*(planned.name for planned in self._planned if not planned.skip), "placebo"]
        later = names[names.index(attack.name) + 1 :] if attack.name in names else []
        self._progress(Step(attack.name, len(batch.standing), len(self.clean), later))


def follow(
    schedule: AttackSchedule, analyses: Sequence[InterimAnalysis], judge: Judge, exhaustive: bool
) -> InterimAnalysis:
    """Attack batch by batch until the verdict is certain, with as much of the placebo as that takes.

    Args:
        schedule: not begun.
        analyses: the last at all images.
        judge: from a look, the results so far and whether the audit may end with them, to a verdict.
        exhaustive: run every attack, and the whole placebo, whatever the verdict.

    Returns:
        The look that the audit ended with.
    """
    for analysis in analyses:
        schedule.admit(analysis.images)
        if any(schedule.clean):
            schedule.attack(None if exhaustive else partial(_masks, judge, analysis))
            # What adaptive attacks break counts in full against `NOT_MASKED` where the placebo has had less than they;
            # so one restart, which shows whether gradient attacks have converged, may be enough for that verdict.
            if not exhaustive:
                schedule.start_placebo()
            verdict = Verdict.INCONCLUSIVE if exhaustive else judge(analysis, schedule.results(), True)
            if verdict is Verdict.MASKED or (verdict is Verdict.INCONCLUSIVE and analysis is analyses[-1]):
                schedule.match_placebo()
                verdict = judge(analysis, schedule.results(), True)
            if verdict is not Verdict.INCONCLUSIVE:
                return analysis
    return analyses[-1]


def _masks(judge: Judge, analysis: InterimAnalysis, results: Sequence[AttackResult]) -> bool:
    return judge(analysis, results, False) is Verdict.MASKED


def _passes(result: AttackResult) -> float:
    """Forward and backward passes an image."""
    return (result.forwards + result.backwards) / max(len(result.attacked), 1)


def _skipped_early(attack: PlannedAttack) -> AttackResult:
    if attack.skip:
        return AttackResult(attack.name, attack.kind, status="skipped", note=attack.skip)
    return AttackResult(
        attack.name, attack.kind, status="skipped-early", note="the verdict was certain", autoattack=attack.autoattack
    )


def _joined(runs: Sequence[AttackResult], batches: int = 0) -> AttackResult | None:
    """Several runs of one attack as one; None if there is none.

    Args:
        runs: of any images; where two have the same, the later one had them again.
        batches: how many it was to attack; in those that it has no run in, it was spared.
    """
    if not runs:
        return None
    predictions: dict[int, Prediction] = {}
    for run in runs:
        predictions |= {
            index: found
            for index, found in run.predictions.items()
            if index not in predictions or found.pilot < predictions[index].pilot
        }
    told = next((run for run in runs if run.status == "failed"), runs[-1])
    skipped_early = "in the last batch the verdict was certain without it" if len(runs) < batches else ""
    return replace(
        told,
        attacked=_union(run.attacked for run in runs),
        broken=_union(run.broken for run in runs),
        predictions=predictions,
        note=told.note or skipped_early,
        invalid=sum(run.invalid for run in runs),
        forwards=sum(run.forwards for run in runs),
        backwards=sum(run.backwards for run in runs),
        seconds=sum(run.seconds for run in runs),
    )


def _union(indices: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({index for some in indices for index in some}))
