"""The attack schedule: in what order attacks run, on which images, and what budget the placebo gets."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.events import AttackStarted, Progress
from pytest_gradmask.auditing.plan import PlannedAttack, plan_attacks, plan_placebo
from pytest_gradmask.auditing.scoring import Scorer, empty_result
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.verdict.results import AttackResult, Prediction


@dataclass(slots=True)
class _Batch:
    """Images that are attacked together, by index, and the results so far.

    Attributes:
        stream_name: distinguishes its random numbers from those of other batches.
        survivors: images that no gradient attack has decided.
        runs: of gradient and adaptive attacks.
        placebos: runs of the placebo, each on the survivors of those before.
    """

    stream_name: str
    survivors: set[int]
    runs: list[AttackResult] = field(default_factory=list)
    placebos: list[AttackResult] = field(default_factory=list)


class AttackSchedule:
    """The attacks of one audit, batch by batch.

    In each batch, gradient attacks come first, each on the survivors of those before it. Every adaptive attack and the
    placebo then get the images that survive all gradient attacks.

    Args:
        scorer: runs and scores one attack.
        surface: the defense as its attacker sees it.
        budget: how hard to try.
        quick: whether a short attack comes first, so that the long ones need not run on images that anything breaks.
        progress: is called before each attack.

    Attributes:
        planned: gradient and adaptive attacks, in order.
        every_clean: for each image of the audit, whether it is classified correctly without an attack.
        clean: for each image so far, whether it is classified correctly without an attack.
        predictions: of a randomized defense on each of them.
    """

    def __init__(
        self, scorer: Scorer, surface: AttackSurface, budget: Budget, *, quick: bool, progress: Progress
    ) -> None:
        self.planned = plan_attacks(surface, budget, quick=quick)
        self.every_clean, self._every_prediction = scorer.clean()
        self.clean: list[bool] = []
        self.predictions: dict[int, Prediction] = {}
        self._scorer, self._surface, self._budget, self._progress = scorer, surface, budget, progress
        self._batches: list[_Batch] = []

    def admit(self, images: int) -> None:
        """Go on to the first so many images. Those that are new are a batch of their own."""
        start = len(self.clean)
        self.clean += self.every_clean[start:images]
        new = range(start, images)
        self.predictions |= {index: self._every_prediction[index] for index in new if self._every_prediction}
        survivors = {index for index in new if self.every_clean[index]}
        self._batches.append(_Batch(f" from image {start}" if start else "", survivors))

    def attack_batch(self) -> Generator[None, None, None]:
        """Attack the newest batch. Yields after each adaptive attack; closing the generator skips those that are left.

        All gradient attacks run before the first of them.
        """
        batch = self._batches[-1]
        for attack in self.planned:
            if attack.kind == "gradient":
                batch.runs.append(self._run(attack, batch))
                batch.survivors -= batch.runs[-1].decided
        adaptive = [attack for attack in self.planned if attack.kind == "adaptive"]
        with closing(self._scorer.run_each(adaptive, batch.survivors, batch.stream_name)) as results:
            for attack in adaptive:
                self._announce(attack, batch)
                batch.runs.append(next(results))
                yield

    def start_placebo(self) -> None:
        """Run one restart of the placebo on every batch: it shows whether gradient attacks have converged."""
        for batch in self._batches:
            if not batch.placebos:
                self._extend_placebo(batch, 0)

    def match_placebo(self) -> None:
        """Give the placebo, on every batch, the passes that an unbroken image faced in all adaptive attacks together.

        Attacks leave an image once it is broken, so the mean over all images is less than what an unbroken one faced.
        On a randomized defense, each adaptive attack also returns a candidate point, and the worst of many looks worse
        than it is. The placebo then runs once for each of them.
        """
        for batch in self._batches:
            adaptive = [result for result in batch.runs if result.kind == "adaptive" and result.status == "done"]
            passes = [result.passes for result in adaptive]
            runs = passes if self._surface.randomized and passes else [sum(passes)]
            for due in runs[len(batch.placebos) :]:
                self._extend_placebo(batch, due)
            # The first run may have been made before it was known what is due.
            self._extend_placebo(batch, sum(passes) - sum(result.passes for result in batch.placebos))

    def results(self) -> list[AttackResult]:
        """Every planned attack and the placebo, over all batches. Attacks that have not run were skipped early."""
        runs = [result for batch in self._batches for result in batch.runs]
        placebos = [result for batch in self._batches for result in batch.placebos]
        joined = [
            _joined([run for run in runs if run.name == attack.name], len(self._batches)) or _skipped(attack)
            for attack in self.planned
        ]
        return [*joined, _joined(placebos) or AttackResult("placebo", "placebo")]

    def _extend_placebo(self, batch: _Batch, passes: int) -> None:
        """Run the placebo on the images that it has not broken yet. Its first run always takes place."""
        survivors = batch.survivors.difference(*(result.decided for result in batch.placebos))
        if batch.placebos and (passes <= 0 or not survivors or batch.placebos[-1].status != "done"):
            return
        placebo = plan_placebo(self._surface, self._budget, passes)
        had = sum(result.passes for result in batch.placebos)
        # Under the same name it would repeat the random starts of its earlier runs.
        again = f" after {had} passes" if batch.placebos else ""
        renamed = replace(batch, stream_name=batch.stream_name + again, survivors=survivors)
        batch.placebos.append(self._run(placebo, renamed))

    def _run(self, attack: PlannedAttack, batch: _Batch) -> AttackResult:
        self._announce(attack, batch)
        return self._scorer.run(attack, batch.survivors, batch.stream_name)

    def _announce(self, attack: PlannedAttack, batch: _Batch) -> None:
        names = [*(planned.name for planned in self.planned if not planned.skip), "placebo"]
        later = tuple(names[names.index(attack.name) + 1 :]) if attack.name in names else ()
        self._progress(
            AttackStarted(attack=attack.name, images=len(batch.survivors), seen=len(self.clean), later=later)
        )


def _skipped(attack: PlannedAttack) -> AttackResult:
    if attack.skip:
        return replace(empty_result(attack), status="skipped", note=attack.skip, autoattack=())
    return replace(empty_result(attack), status="skipped-early", note="the verdict was decided")


def _joined(runs: Sequence[AttackResult], batches: int = 0) -> AttackResult | None:
    """Several runs of one attack as one; None if there is none.

    Args:
        runs: of any images. Where two share an image, the later one attacked it again.
        batches: how many it was to attack. In those without a run it was skipped early.
    """
    if not runs:
        return None
    predictions: dict[int, Prediction] = {}
    for run in runs:
        predictions |= {
            index: prediction
            for index, prediction in run.predictions.items()
            if index not in predictions or prediction.pilot < predictions[index].pilot
        }
    example = next((run for run in runs if run.status == "failed"), runs[-1])
    skipped = "in the last batch the verdict was decided without it" if len(runs) < batches else ""
    return replace(
        example,
        attacked=_union(run.attacked for run in runs),
        broken=_union(run.broken for run in runs),
        predictions=predictions,
        note=example.note or skipped,
        invalid=sum(run.invalid for run in runs),
        rejected=sum(run.rejected for run in runs),
        forwards=sum(run.forwards for run in runs),
        backwards=sum(run.backwards for run in runs),
        passes=max(run.passes for run in runs),
        seconds=sum(run.seconds for run in runs),
    )


def _union(indices: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({index for some in indices for index in some}))
