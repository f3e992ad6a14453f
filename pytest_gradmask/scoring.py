"""Run an attack and score what it returns ourselves: no attack's own claim is believed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.batching import in_batches
from pytest_gradmask.cache import Cache
from pytest_gradmask.fingerprint import fingerprint
from pytest_gradmask.plan import PlannedAttack
from pytest_gradmask.results import AttackResult, Votes
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.voting import Ballot, right

#: Images an attack gets at a time, if memory allows. A CPU gains nothing from more.
_CHUNK = {"cpu": 100, "cuda": 1000}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What stays the same for all attacks of an audit.

    Attributes:
        look: the defense as it is used, for scoring; its counters belong to no attack. Each run has random numbers of
            its own, so that none depends on which ran before; those of the attacks' oracles are the same stream.
        images, labels: all images of the audit.
        threat: where a returned image must lie to count.
        seed: of the audit.
        ballot: how a randomized defense is judged; None for a deterministic one.
        cache: where results of attacks are kept; None for nowhere.
        key: of all that a run depends on besides its attack and images: the fingerprint of the defense and so on.
    """

    look: Oracle
    images: torch.Tensor
    labels: torch.Tensor
    threat: ThreatModel
    seed: int
    ballot: Ballot | None = None
    cache: Cache | None = None
    key: str = ""

    def clean(self, indices: Sequence[int] | None = None) -> tuple[list[bool], dict[int, Votes]]:
        """Whether each image, or each at these indices, is classified correctly without an attack, and the votes."""
        indices = range(len(self.images)) if indices is None else indices
        chosen = torch.tensor(indices, dtype=torch.long, device=self.images.device)
        self.look.reseed(subseed(self.seed, f"clean images from {indices[0]}"))
        kept, votes = self._score(chosen, self.images[chosen])
        return kept.tolist(), votes

    def _score(self, indices: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, dict[int, Votes]]:
        """Whether each image is still classified correctly: bool, N, and votes by index.

        NaN logits are no classification, so an image that provokes them counts as broken.
        """
        labels = self.labels[indices]
        if self.ballot is None:
            return right(self.look, images, labels), {}
        votes = self.ballot.count(self.look, images, labels)
        kept = torch.tensor([2 * found.correct >= 1 for found in votes], dtype=torch.bool, device=images.device)
        return kept, dict(zip(indices.tolist(), votes, strict=True))

    def run(self, attack: PlannedAttack, given: Collection[int], salt: str = "") -> AttackResult:
        """Run one attack on the images at these indices. What it raises becomes a failed result, not a crash.

        Args:
            attack: any of the plan's.
            given: indices of images.
            salt: two runs of one attack draw the same random numbers if and only if they have the same.
        """
        attacked = tuple(sorted(given))
        if attack.skip:
            return AttackResult(
                attack.name, attack.kind, autoattack=attack.autoattack, status="skipped", note=attack.skip
            )
        if self.cache is None:
            return self._run(attack, attacked, salt)
        key = fingerprint(self.key, attack.name, attack.kind, attack.run, attacked, salt)
        found = self.cache.attack(key)
        if found is None:
            found = self._run(attack, attacked, salt)
            if found.status == "done":  # what failed may have failed for want of memory
                self.cache.store_attack(key, found)
        return found

    def _run(self, attack: PlannedAttack, attacked: tuple[int, ...], salt: str) -> AttackResult:
        result = AttackResult(attack.name, attack.kind, attacked, autoattack=attack.autoattack)
        started = time.monotonic()
        indices = torch.tensor(attacked, dtype=torch.long, device=self.images.device)

        def part(start: int, end: int) -> AttackResult:
            return self._run_on(attack, indices[start:end], f"{attack.name}{salt}{f' at {start}' if start else ''}")

        try:
            parts = in_batches(part, len(indices), _CHUNK.get(indices.device.type, 100))
        except Exception as error:  # the defense is not ours: whatever it raises under attack must not end the audit
            note = f"{type(error).__name__}: {error}"
            return replace(result, status="failed", note=note, seconds=time.monotonic() - started)
        return replace(
            result,
            broken=tuple(index for done in parts for index in done.broken),
            votes={index: found for done in parts for index, found in done.votes.items()},
            invalid=sum(done.invalid for done in parts),
            forwards=sum(done.forwards for done in parts),
            backwards=sum(done.backwards for done in parts),
            seconds=time.monotonic() - started,
        )

    def _run_on(self, attack: PlannedAttack, chunk: torch.Tensor, draws: str) -> AttackResult:
        """Attack the images at these indices at once, with random numbers of this name."""
        generator = torch.Generator().manual_seed(subseed(self.seed, draws))
        self.look.reseed(subseed(self.seed, f"defense under {draws}"))
        images, labels = self.images[chunk], self.labels[chunk]
        forwards, backwards = attack.model.forwards, attack.model.backwards
        returned = attack.run(attack.model, images, labels, threat=self.threat, generator=generator).detach()
        valid = self.threat.contains(returned, images)
        # An image that the attack has ruined counts as not broken: judge the clean one in its place.
        judged = torch.where(valid.view(-1, 1, 1, 1), returned, images)
        kept, votes = self._score(chunk, judged)
        return AttackResult(
            attack.name,
            attack.kind,
            broken=tuple(chunk[valid & ~kept].tolist()),
            votes=votes,
            invalid=int((~valid).sum()),
            forwards=attack.model.forwards - forwards,
            backwards=attack.model.backwards - backwards,
        )


def subseed(seed: int, name: str) -> int:
    """Independent seeds by name, so that an attack's result does not depend on which others run."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
