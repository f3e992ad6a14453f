"""Run attacks and score what they return. No attack's own claim of success is used."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import under_attack
from pytest_gradmask.attacks.users_set import as_given
from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.errors import DeadlineError, InputError, LostWorkerError
from pytest_gradmask.execution.batching import in_batches
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.chunks import chunk_size
from pytest_gradmask.execution.deadline import INTERRUPTED, Deadline
from pytest_gradmask.execution.engine import LOCAL, Engine
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.execution.generators import random_state_kept, seed_everything
from pytest_gradmask.execution.precision import Precision, searching_in, tensor_float
from pytest_gradmask.randomized.prediction import Sampler, is_correct
from pytest_gradmask.threat import PerturbationSet, contained, per_image
from pytest_gradmask.verdict.results import AttackResult, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Runs attacks on the images of one audit and scores what they return.

    Attributes:
        oracle: the defense as its users call it, for scoring. Its counters belong to no attack. Each run has its own
            random numbers and so does not depend on what ran before. The oracles of attacks share the same stream. If
            its first state is given, each attack begins with a fresh copy, and fresh copies score what it returns.
        images, labels: all images of the audit.
        threat: where a returned image must lie to count.
        seed: of the audit.
        sampler: how a randomized defense is judged; None for a deterministic one.
        cache: where results of attacks are kept; None for nowhere.
        key: fingerprint of everything that a run depends on besides its attack and images.
        engine: where attacks run.
        precision: in which the defense computes under attack. What an attack returns is scored in the defense's own.
        search_precision: a rougher one for queries that only guide a search; ``own`` for none.
        deadline: of the audit. An attack that it interrupts counts as skipped early; None for no deadline.
        graph: bytes that the graph of one image takes, see `graph_bytes`.
    """

    oracle: Oracle
    images: Tensor
    labels: Tensor
    threat: PerturbationSet
    seed: int
    sampler: Sampler | None = None
    cache: Cache | None = None
    key: str = ""
    engine: Engine = LOCAL
    precision: Precision = "own"
    search_precision: Precision = "own"
    deadline: Deadline | None = None
    graph: int = 0

    def clean(self, indices: Sequence[int] | None = None) -> tuple[list[bool], dict[int, Prediction]]:
        """Whether each image, or each at these indices, is classified correctly without an attack; and predictions.

        An image that is rejected is not correct.
        """
        indices = range(len(self.images)) if indices is None else indices
        chosen = torch.tensor(indices, dtype=torch.long, device=self.images.device)
        self.oracle.reseed(subseed(self.seed, f"clean images from {indices[0]}"))
        correct, predictions = _score(self.oracle, self.sampler, self.images[chosen], self.labels[chosen])
        return correct.tolist(), dict(zip(indices, predictions, strict=False))

    def run(self, attack: PlannedAttack, indices: Collection[int], stream_name: str = "") -> AttackResult:
        """Run one attack on the images at these indices. What it raises becomes a failed result, not a crash.

        Args:
            attack: any of the plan's.
            indices: of the images.
            stream_name: two runs of one attack draw the same random numbers if and only if they have the same name.
        """
        [result] = self.run_each([attack], indices, stream_name)
        return result

    def run_each(
        self, attacks: Sequence[PlannedAttack], indices: Collection[int], stream_name: str = ""
    ) -> Generator[AttackResult, None, None]:
        """Run several attacks on the same images; see `run`. No attack depends on another.

        Each result is yielded as soon as it is there. Closing the generator skips the attacks that are left.
        """
        attacked = tuple(sorted(indices))
        with ExitStack() as running:
            # All are begun before the first is waited for: the engine may run them side by side.
            for finish in [self._begin(attack, attacked, stream_name, running) for attack in attacks]:
                yield finish()

    def _begin(
        self, attack: PlannedAttack, attacked: tuple[int, ...], stream_name: str, running: ExitStack
    ) -> Callable[[], AttackResult]:
        """Begin an attack; the returned function waits for its result."""
        if attack.skip:
            skipped = replace(empty_result(attack), status="skipped", note=attack.skip)
            return lambda: skipped
        if self.cache is None:
            return self._start(attack, attacked, stream_name, running)
        cache = self.cache
        try:
            key = fingerprint(
                self.key, attack.name, attack.kind, attack.run, attacked, stream_name, self._chunk_size(attack),
                self.search_precision,
            )  # fmt: skip
        except FingerprintError:  # an attack of the user's holds something now that it did not hold before
            return self._start(attack, attacked, stream_name, running)
        found = cache.attack(key)
        if found is not None:
            return lambda: found
        finish = self._start(attack, attacked, stream_name, running)

        def keep() -> AttackResult:
            result = finish()
            if result.status == "done":  # what failed may have failed for want of memory
                cache.store_attack(key, result)
            return result

        return keep

    def _start(
        self, attack: PlannedAttack, attacked: tuple[int, ...], stream_name: str, running: ExitStack
    ) -> Callable[[], AttackResult]:
        if self.oracle.rejection is not None:
            # One label at a time, see `RejectOption.under_attack`.
            attacked = tuple(sorted(attacked, key=lambda index: int(self.labels[index])))
        result = replace(empty_result(attack), attacked=attacked)
        attack.model.precision = self.precision
        if self.deadline is not None:
            late = attack.deferred or attack.kind == "placebo"
            attack.model.ends = self.deadline.last if late else self.deadline.attacks
        job = AttackJob(
            attack=attack, oracle=self.oracle, threat=self.threat, seed=self.seed, sampler=self.sampler,
            stream_name=f"{attack.name}{stream_name}", search_precision=self.search_precision,
        )  # fmt: skip
        indices = torch.tensor(attacked, dtype=torch.long, device=self.images.device)
        chunks = self._chunks(indices, self._chunk_size(attack))
        run = self.engine.start(job, ((start, self.images[some], self.labels[some]) for start, some in chunks))
        running.callback(run.close)

        def finish() -> AttackResult:
            parts: list[AttackResult] = []
            try:
                for part in run:
                    parts.append(part)
                    if part.status != "done":
                        break
            except LostWorkerError as error:
                parts.append(replace(empty_result(attack), status="failed", note=str(error)))
            return _in_audit(_joined(result, parts))

        return finish

    def _chunk_size(self, attack: PlannedAttack) -> int:
        return chunk_size(self.images, self.graph, attack.graphs)

    def _chunks(self, indices: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
        """Images to attack together, each time with the number of images before them."""
        counts = [len(indices)]
        if self.oracle.rejection is not None:
            counts = self.labels[indices].unique_consecutive(return_counts=True)[1].tolist()
        start = 0
        for count in counts:
            for first in range(start, start + count, size):
                yield first, indices[first : min(first + size, start + count)]
            start += count


def empty_result(attack: PlannedAttack) -> AttackResult:
    """The result of an attack before it ran on any image."""
    return AttackResult(
        attack.name, attack.kind, access=attack.access, autoattack=attack.autoattack, by_user=attack.by_user
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackJob:
    """One attack and everything that scoring it takes, ready for any chunk of its images, also in another process.

    Attributes:
        attack: to run.
        oracle, threat, seed, sampler, search_precision: those of the `Scorer`.
        stream_name: names its random numbers.
    """

    attack: PlannedAttack
    oracle: Oracle
    threat: PerturbationSet
    seed: int
    sampler: Sampler | None
    stream_name: str
    search_precision: Precision = "own"

    def __call__(self, first: int, images: Tensor, labels: Tensor) -> AttackResult:
        """Attack a chunk. What the attack raises becomes a failed result.

        Args:
            first: how many of the attack's images come before this chunk.
            images: of the chunk.
            labels: of the chunk.

        Returns:
            A result whose indices count all of the attack's images.
        """
        started = time.monotonic()
        result = empty_result(self.attack)

        def part(start: int, end: int) -> AttackResult:
            return self._run(first + start, images[start:end], labels[start:end])

        try:
            parts = in_batches(part, len(images), len(images))
        except DeadlineError:
            return replace(result, status="skipped-early", note=INTERRUPTED, seconds=time.monotonic() - started)
        except Exception as error:  # the defense is not ours: whatever it raises under attack must not end the audit
            note = f"{type(error).__name__}: {error}"
            return replace(result, status="failed", note=note, seconds=time.monotonic() - started)
        return replace(_joined(result, parts), seconds=time.monotonic() - started)

    def _run(self, first: int, images: Tensor, labels: Tensor) -> AttackResult:
        attack, name = self.attack, f"{self.stream_name}{f' at {first}' if first else ''}"
        generator = torch.Generator().manual_seed(subseed(self.seed, name))
        self.oracle.reseed(subseed(self.seed, f"defense under {name}"))
        forwards, backwards, calls = attack.model.forwards, attack.model.backwards, attack.model.calls
        attack.model.largest = 0
        self.oracle.refresh()  # what other attacks asked is forgotten
        with under_attack(self.oracle.rejection, labels) as safe:
            searching = searching_in(self.search_precision)
            with random_state_kept(images.device), tensor_float(attack.model.precision), searching:
                # For attacks that draw from the global generators in spite of ``generator``.
                seed_everything(subseed(self.seed, f"global generators under {name}"))
                threat = as_given(self.threat) if attack.by_user else self.threat
                returned = attack.run(attack.model, images, safe, threat=threat, generator=generator)
            _check_returned(returned, images)
            returned = returned.detach()
            valid = contained(self.threat, returned, images)
            # An invalid image counts as not broken: the clean one is scored in its place.
            judged = torch.where(per_image(valid, images), returned, images)
            correct, predictions = _score(self.oracle, self.sampler, judged, safe)
        return replace(
            empty_result(attack),
            broken=tuple(first + index for index in (valid & ~correct).nonzero()[:, 0].tolist()),
            predictions={first + index: prediction for index, prediction in enumerate(predictions)},
            invalid=int((~valid).sum()),
            rejected=int((valid & _is_rejected(self.oracle, judged)).sum()),
            forwards=attack.model.forwards - forwards,
            backwards=attack.model.backwards - backwards,
            passes=_passes(attack.model, calls, len(images)),
        )


def _passes(model: Oracle, calls: int, images: int) -> int:
    """Passes that an image faced which an attack did not break: one in each call, or more if a batch repeats images."""
    return (model.calls - calls) * max(1, -(-model.largest // max(images, 1)))


def _joined(result: AttackResult, parts: Sequence[AttackResult]) -> AttackResult:
    """Results on chunks as one. Where the attack failed or was interrupted on one of them, it was on all."""
    seconds = sum(done.seconds for done in parts)
    ended = next((done for done in parts if done.status != "done"), None)
    if ended is not None:
        attacked = result.attacked if ended.status == "failed" else ()
        return replace(result, attacked=attacked, status=ended.status, note=ended.note, seconds=seconds)
    return replace(
        result,
        broken=tuple(index for done in parts for index in done.broken),
        predictions={index: found for done in parts for index, found in done.predictions.items()},
        invalid=sum(done.invalid for done in parts),
        rejected=sum(done.rejected for done in parts),
        forwards=sum(done.forwards for done in parts),
        backwards=sum(done.backwards for done in parts),
        passes=max((done.passes for done in parts), default=0),
        seconds=seconds,
    )


def _in_audit(result: AttackResult) -> AttackResult:
    """A result whose indices count the attack's images, as one whose indices count those of the audit."""
    attacked = result.attacked
    predictions = {attacked[index]: prediction for index, prediction in result.predictions.items()}
    return replace(result, broken=tuple(attacked[index] for index in result.broken), predictions=predictions)


def _score(oracle: Oracle, sampler: Sampler | None, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Prediction]]:
    """Whether each image is classified correctly: bool, N; and its prediction, none for a deterministic defense.

    NaN logits are no classification, so an image that provokes them counts as broken.
    """
    if sampler is None:
        return is_correct(oracle, images, labels), []
    predictions = sampler.predict(oracle, images, labels)
    correct = [2 * prediction.correct >= 1 for prediction in predictions]
    return torch.tensor(correct, dtype=torch.bool, device=images.device), predictions


def _is_rejected(oracle: Oracle, images: Tensor) -> Tensor:
    """Whether one forward pass rejects each image; bool, N."""
    if oracle.rejection is None:
        return torch.zeros(len(images), dtype=torch.bool, device=images.device)
    rejected = torch.full((len(images),), oracle.rejection.column, device=images.device)
    return is_correct(oracle, images, rejected)


def _check_returned(returned: object, images: Tensor) -> None:
    wanted = f"images of shape {tuple(images.shape)} and type {images.dtype} on {images.device}"
    if not isinstance(returned, Tensor):
        raise InputError(f"it returned {type(returned).__name__}, not {wanted}")
    if (returned.shape, returned.dtype, returned.device) != (images.shape, images.dtype, images.device):
        raise InputError(
            f"it returned shape {tuple(returned.shape)} and type {returned.dtype} on {returned.device}, not {wanted}"
        )


def subseed(seed: int, name: str) -> int:
    """Independent seeds by name, so that the result of an attack does not depend on which others run."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
