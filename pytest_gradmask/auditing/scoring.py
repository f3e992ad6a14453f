"""Run an attack and score what it returns ourselves: no attack's own claim is believed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.plan import PlannedAttack
from pytest_gradmask.errors import InputError, LostWorkerError
from pytest_gradmask.execution.batching import in_batches
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.engine import LOCAL, Engine
from pytest_gradmask.execution.fingerprint import fingerprint
from pytest_gradmask.execution.generators import random_state_kept, seed_everything
from pytest_gradmask.randomized.prediction import Sampler, is_correct
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import AttackResult, Prediction

#: Images an attack gets at a time, if memory allows. A CPU gains nothing from more.
_CHUNK = {"cpu": 100, "cuda": 1000}


@dataclass(frozen=True, slots=True)
class Scorer:
    """What stays the same for all attacks of an audit.

    Attributes:
        look: the defense as it is used, for scoring; its counters belong to no attack. Each run has random numbers of
            its own, so that none depends on which ran before; those of the attacks' oracles are the same stream.
        images, labels: all images of the audit.
        threat: where a returned image must lie to count.
        seed: of the audit.
        sampler: how a randomized defense is judged; None for a deterministic one.
        cache: where results of attacks are kept; None for nowhere.
        key: of all that a run depends on besides its attack and images: the fingerprint of the defense and so on.
        engine: where attacks run.
    """

    look: Oracle
    images: torch.Tensor
    labels: torch.Tensor
    threat: ThreatModel
    seed: int
    sampler: Sampler | None = None
    cache: Cache | None = None
    key: str = ""
    engine: Engine = LOCAL

    def clean(self, indices: Sequence[int] | None = None) -> tuple[list[bool], dict[int, Prediction]]:
        """Whether each image, or each at these indices, is classified correctly without an attack, and the votes."""
        indices = range(len(self.images)) if indices is None else indices
        chosen = torch.tensor(indices, dtype=torch.long, device=self.images.device)
        self.look.reseed(subseed(self.seed, f"clean images from {indices[0]}"))
        kept, predictions = _score(self.look, self.sampler, self.images[chosen], self.labels[chosen])
        return kept.tolist(), dict(zip(indices, predictions, strict=False))

    def run(self, attack: PlannedAttack, given: Collection[int], stream_name: str = "") -> AttackResult:
        """Run one attack on the images at these indices. What it raises becomes a failed result, not a crash.

        Args:
            attack: any of the plan's.
            given: indices of images.
            stream_name: two runs of one attack draw the same random numbers if and only if they have the same.
        """
        [result] = self.run_each([attack], given, stream_name)
        return result

    def run_each(
        self, attacks: Sequence[PlannedAttack], given: Collection[int], stream_name: str = ""
    ) -> Generator[AttackResult, None, None]:
        """Run several attacks on the same images; see `run`. None depends on another.

        Each result is yielded once it is there. Closing what this returns spares the attacks that are left.
        """
        attacked = tuple(sorted(given))
        with ExitStack() as running:
            # All are begun before the first is waited for: the engine may run them side by side.
            for finish in [self._begin(attack, attacked, stream_name, running) for attack in attacks]:
                yield finish()

    def _begin(
        self, attack: PlannedAttack, attacked: tuple[int, ...], stream_name: str, running: ExitStack
    ) -> Callable[[], AttackResult]:
        """Begin an attack; what this returns waits for its result."""
        if attack.skip:
            skipped = AttackResult(
                attack.name, attack.kind, autoattack=attack.autoattack, status="skipped", note=attack.skip
            )
            return lambda: skipped
        if self.cache is None:
            return self._start(attack, attacked, stream_name, running)
        cache, key = self.cache, fingerprint(self.key, attack.name, attack.kind, attack.run, attacked, stream_name)
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
        result = AttackResult(attack.name, attack.kind, attacked, autoattack=attack.autoattack)
        job = AttackJob(attack, self.look, self.threat, self.seed, self.sampler, f"{attack.name}{stream_name}")
        indices = torch.tensor(attacked, dtype=torch.long, device=self.images.device)
        size = _CHUNK.get(indices.device.type, 100)
        chunks = ((start, indices[start : start + size]) for start in range(0, len(indices), size))
        run = self.engine.start(job, ((start, self.images[some], self.labels[some]) for start, some in chunks))
        running.callback(run.close)

        def finish() -> AttackResult:
            parts: list[AttackResult] = []
            try:
                for part in run:
                    parts.append(part)
                    if part.status == "failed":
                        break
            except LostWorkerError as error:
                parts.append(AttackResult(attack.name, attack.kind, status="failed", note=str(error)))
            return _in_audit(_joined(result, parts))

        return finish


@dataclass(frozen=True, slots=True)
class AttackJob:
    """One attack, ready for any chunk of its images, and all that scoring it takes: it may travel elsewhere.

    Attributes:
        attack: to run.
        look, threat, seed, sampler: those of the `Scorer`.
        name: of its random numbers.
    """

    attack: PlannedAttack
    look: Oracle
    threat: ThreatModel
    seed: int
    sampler: Sampler | None
    name: str

    def __call__(self, first: int, images: torch.Tensor, labels: torch.Tensor) -> AttackResult:
        """Attack a chunk. What the attack raises becomes a failed result.

        Args:
            first: how many of the attack's images come before this chunk.
            images: of the chunk.
            labels: of the chunk.

        Returns:
            A result whose indices count all of the attack's images.
        """
        started = time.monotonic()
        result = AttackResult(self.attack.name, self.attack.kind)

        def part(start: int, end: int) -> AttackResult:
            return self._run(first + start, images[start:end], labels[start:end])

        try:
            parts = in_batches(part, len(images), len(images))
        except Exception as error:  # the defense is not ours: whatever it raises under attack must not end the audit
            note = f"{type(error).__name__}: {error}"
            return replace(result, status="failed", note=note, seconds=time.monotonic() - started)
        return replace(_joined(result, parts), seconds=time.monotonic() - started)

    def _run(self, first: int, images: torch.Tensor, labels: torch.Tensor) -> AttackResult:
        attack, draws = self.attack, f"{self.name}{f' at {first}' if first else ''}"
        generator = torch.Generator().manual_seed(subseed(self.seed, draws))
        self.look.reseed(subseed(self.seed, f"defense under {draws}"))
        forwards, backwards = attack.model.forwards, attack.model.backwards
        with random_state_kept(images.device):
            # For attacks that draw from them all the same.
            seed_everything(subseed(self.seed, f"global generators under {draws}"))
            returned = attack.run(attack.model, images, labels, threat=self.threat, generator=generator)
        _check_returned(returned, images)
        returned = returned.detach()
        valid = self.threat.contains(returned, images)
        # An image that the attack has ruined counts as not broken: judge the clean one in its place.
        judged = torch.where(valid.view(-1, 1, 1, 1), returned, images)
        kept, predictions = _score(self.look, self.sampler, judged, labels)
        return AttackResult(
            attack.name,
            attack.kind,
            broken=tuple(first + index for index in (valid & ~kept).nonzero()[:, 0].tolist()),
            predictions={first + index: found for index, found in enumerate(predictions)},
            invalid=int((~valid).sum()),
            forwards=attack.model.forwards - forwards,
            backwards=attack.model.backwards - backwards,
        )


def _joined(result: AttackResult, parts: Sequence[AttackResult]) -> AttackResult:
    """Results on chunks as one; where the attack failed on one of them, it has failed."""
    seconds = sum(done.seconds for done in parts)
    failed = next((done for done in parts if done.status == "failed"), None)
    if failed is not None:
        return replace(result, status="failed", note=failed.note, seconds=seconds)
    return replace(
        result,
        broken=tuple(index for done in parts for index in done.broken),
        predictions={index: found for done in parts for index, found in done.predictions.items()},
        invalid=sum(done.invalid for done in parts),
        forwards=sum(done.forwards for done in parts),
        backwards=sum(done.backwards for done in parts),
        seconds=seconds,
    )


def _in_audit(result: AttackResult) -> AttackResult:
    """A result whose indices count the attack's images, as one with those of the audit."""
    own = result.attacked
    predictions = {own[index]: found for index, found in result.predictions.items()}
    return replace(result, broken=tuple(own[index] for index in result.broken), predictions=predictions)


def _score(
    look: Oracle, sampler: Sampler | None, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, list[Prediction]]:
    """Whether each image is classified correctly: bool, N; and the votes on each, none for a deterministic defense.

    NaN logits are no classification, so an image that provokes them counts as broken.
    """
    if sampler is None:
        return is_correct(look, images, labels), []
    predictions = sampler.predict(look, images, labels)
    return torch.tensor(
        [2 * found.correct >= 1 for found in predictions], dtype=torch.bool, device=images.device
    ), predictions


def _check_returned(returned: object, images: torch.Tensor) -> None:
    wanted = f"images of shape {tuple(images.shape)} and type {images.dtype} on {images.device}"
    if not isinstance(returned, torch.Tensor):
        raise InputError(f"it returned {type(returned).__name__}, not {wanted}")
    if (returned.shape, returned.dtype, returned.device) != (images.shape, images.dtype, images.device):
        raise InputError(
            f"it returned shape {tuple(returned.shape)} and type {returned.dtype} on {returned.device}, not {wanted}"
        )


def subseed(seed: int, name: str) -> int:
    """Independent seeds by name, so that an attack's result does not depend on which others run."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
