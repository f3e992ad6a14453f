"""The attack schedule: in what order attacks run, on which images, and what budget the placebo gets."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from pytest_gradmask.auditing.attack_check import check_step
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.events import AttackEnded, AttackStarted, Progress, Step
from pytest_gradmask.auditing.joining import OUTDONE, joined, outdone_by_others, skipped_early
from pytest_gradmask.auditing.plan import plan_attacks, plan_placebo
from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.auditing.scoring import Scorer
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.execution.deadline import INTERRUPTED
from pytest_gradmask.verdict.results import AttackResult, Kind, Prediction


@dataclass(slots=True)
class _Batch:
    """Images that are attacked together, by index, and the results so far.

    Attributes:
        stream_name: distinguishes its random numbers from those of other batches.
        survivors: images that no gradient attack has decided which runs before the adaptive attacks.
        runs: of gradient and adaptive attacks.
        placebos: runs of the placebo, each on the survivors of those before.
    """

    stream_name: str
    survivors: set[int]
    runs: list[AttackResult] = field(default_factory=list)
    placebos: list[AttackResult] = field(default_factory=list)

    def of_kind(self, kind: Kind) -> list[AttackResult]:
        """The runs of one family."""
        return [run for run in (*self.runs, *self.placebos) if run.kind == kind]

    def decided(self, kind: Kind) -> set[int]:
        """Images that no further attack of this kind needs to try."""
        return set[int]().union(*(run.decided for run in self.of_kind(kind)))

    def broken(self, kind: Kind) -> set[int]:
        """Images that an attack of this kind has broken."""
        return set[int]().union(*(run.broken for run in self.of_kind(kind)))

    def disputed(self) -> set[int]:
        """Images that either adaptive attacks or the placebo have broken, and not both."""
        return self.broken("adaptive") ^ self.broken("placebo")

    def untried(self, attack: PlannedAttack, images: set[int]) -> set[int]:
        """Those of the images that no gradient attack has decided, and that this one has not been tried on."""
        tried = (run.attacked for run in self.runs if run.name == attack.name)
        return images.difference(self.decided("gradient"), *tried)


class AttackSchedule:
    """The attacks of one audit, batch by batch.

    In each batch, gradient attacks that are not deferred come first, each on the survivors of those before it. Adaptive
    attacks and the placebo then get the images that survive. Adaptive attacks that need many queries get only those
    that no other adaptive attack has broken. Of the guided ones, which need few queries, all attack the first images;
    the two that together broke most of them attack the batches that follow.

    The masking gap counts images that adaptive attacks break and neither the placebo nor a gradient attack does,
    against those that the placebo alone breaks. On any other image, further gradient attacks cannot change it. So those
    that are deferred get the images that one side alone has broken: of both sides, or the comparison would be biased.
    The gap is then the same as if they had run on all images.

    Args:
        scorer: runs and scores one attack.
        surface: the defense as its attacker sees it.
        budget: how hard to try.
        quick: whether gradient attacks are deferred, all but a short one. Otherwise every attack gets every image that
            no gradient attack has decided.
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
        self._quick = quick
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

        All gradient attacks that are not deferred run before the first of them.
        """
        batch = self._batches[-1]
        for attack in self.planned:
            if attack.kind == "gradient" and not attack.deferred:
                batch.runs.append(self._run(attack, batch))
                batch.survivors -= batch.runs[-1].decided
        adaptive = [attack for attack in self.planned if attack.kind == "adaptive"]
        outdone = outdone_by_others(self.planned, self._earlier_runs()) if self._quick else set()
        for queries in (False, True):
            attacks = [attack for attack in adaptive if attack.queries is queries]
            run = [attack for attack in attacks if attack.name not in outdone]
            survivors = batch.survivors - batch.decided("adaptive") if self._quick and queries else batch.survivors
            with closing(self._scorer.run_each(run, survivors, batch.stream_name)) as results:
                for attack in attacks:
                    if attack.name in outdone:
                        batch.runs.append(replace(skipped_early(attack), note=OUTDONE))
                    else:
                        self._announce(attack, len(survivors), batch)
                        batch.runs.append(next(results))
                        self._conclude(attack, batch.runs[-1])
                    yield

    def _earlier_runs(self) -> list[AttackResult]:
        """The runs on all batches but the newest."""
        return [run for batch in self._batches[:-1] for run in batch.runs]

    def settle_disputed(self) -> None:
        """Run the deferred gradient attacks on the images that one side alone has broken, on each at most once."""
        for batch in self._batches:
            self._run_deferred(batch, batch.disputed())

    def settle_placebo(self) -> None:
        """Run the deferred gradient attacks on all that the placebo has broken: they may do so, too."""
        for batch in self._batches:
            self._run_deferred(batch, batch.broken("placebo"))

    def _run_deferred(self, batch: _Batch, images: set[int]) -> None:
        for attack in self.planned:
            if not attack.deferred:
                continue
            earlier = [run for run in batch.runs if run.name == attack.name]
            left = batch.untried(attack, images)
            if left and not any(run.status == "failed" for run in earlier):
                # Under the same name it would begin with the same random numbers.
                again = f" again {len(earlier)}" if earlier else ""
                some = replace(batch, stream_name=batch.stream_name + again, survivors=left)
                batch.runs.append(self._run(attack, some))

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
            adaptive = [result for result in batch.of_kind("adaptive") if result.status == "done"]
            passes = [result.passes for result in adaptive]
            runs = passes if self._surface.randomized and passes else [sum(passes)]
            for due in runs[len(batch.placebos) :]:
                self._extend_placebo(batch, due)
            # The first run may have been made before it was known what is due.
            self._extend_placebo(batch, sum(passes) - sum(result.passes for result in batch.placebos))

    @property
    def interrupted(self) -> bool:
        """Whether the deadline has interrupted an attack."""
        return any(run.note == INTERRUPTED for batch in self._batches for run in (*batch.runs, *batch.placebos))

    @property
    def unsettled(self) -> int | None:
        """How many images one side alone has broken and not all deferred attacks have been tried on, for want of time.

        None if the placebo was interrupted, too: nobody knows then what it would have broken.
        """
        if any(run.note == INTERRUPTED for batch in self._batches for run in batch.placebos):
            return None
        deferred = [attack for attack in self.planned if attack.deferred]
        return len(
            {
                index
                for batch in self._batches
                for attack in deferred
                for index in batch.untried(attack, batch.disputed())
            }
        )

    def results(self) -> list[AttackResult]:
        """Every planned attack and the placebo, over all batches. Attacks that have not run were skipped early."""
        runs = [result for batch in self._batches for result in batch.runs]
        placebos = [result for batch in self._batches for result in batch.placebos]
        results = [
            joined([run for run in runs if run.name == attack.name], len(self._batches)) or skipped_early(attack)
            for attack in self.planned
        ]
        return [*results, joined(placebos) or AttackResult("placebo", "placebo")]

    def _extend_placebo(self, batch: _Batch, passes: int) -> None:
        """Run the placebo on the images that it has not broken yet. Its first run always takes place."""
        survivors = batch.survivors - batch.decided("placebo")
        if batch.placebos and (passes <= 0 or not survivors or batch.placebos[-1].status != "done"):
            return
        placebo = plan_placebo(self._surface, self._budget, passes, turn=len(batch.placebos))
        had = sum(result.passes for result in batch.placebos)
        # Under the same name it would repeat the random starts of its earlier runs.
        again = f" after {had} passes" if batch.placebos else ""
        renamed = replace(batch, stream_name=batch.stream_name + again, survivors=survivors)
        batch.placebos.append(self._run(placebo, renamed))

    def _run(self, attack: PlannedAttack, batch: _Batch) -> AttackResult:
        self._announce(attack, len(batch.survivors), batch)
        result = self._scorer.run(attack, batch.survivors, batch.stream_name)
        self._conclude(attack, result)
        return result

    def _announce(self, attack: PlannedAttack, images: int, batch: _Batch) -> None:
        if attack.skip:
            return
        possible = [planned for planned in self.planned if not planned.skip]
        order = [planned for planned in possible if not planned.deferred and not planned.queries]
        order += [planned for planned in possible if planned.queries]
        order += [plan_placebo(self._surface, self._budget, 0), *(each for each in possible if each.deferred)]
        later = order[[planned.name for planned in order].index(attack.name) + 1 :]
        self._progress(
            AttackStarted(
                step=step_of(attack),
                images=images,
                seen=len(self.clean),
                later=(*map(step_of, later), *check_step(possible)),
                broken=len(batch.broken("adaptive")),
                disputed=len(batch.disputed()),
            )
        )

    def _conclude(self, attack: PlannedAttack, result: AttackResult) -> None:
        if not attack.skip:
            self._progress(
                AttackEnded(
                    step=step_of(attack), images=len(result.attacked), broken=len(result.broken),
                    forwards=result.forwards, backwards=result.backwards,
                )
            )  # fmt: skip


def step_of(attack: PlannedAttack) -> Step:
    """An attack as events describe it."""
    return Step(
        attack=attack.name, kind=attack.kind, cost=attack.cost, queries=attack.queries, deferred=attack.deferred
    )
