"""Attacks on a randomized ensemble side by side, at the same cost, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from pytest_gradmask import ThreatModel
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.auditing.plan import PlannedAttack, Run
from pytest_gradmask.auditing.scoring import Scorer, subseed
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.loading.models.composites import Mixture, RandomizedEnsemble
from pytest_gradmask.randomized.prediction import Sampler
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.results import AttackResult, accuracy

STEPS = 50
CONFIDENCE = 0.99
_ARC_NEAREST = 3


def duel(
    name: str,
    members: Sequence[nn.Module],
    data: Dataset,
    *,
    bypass: str = "",
    threat: ThreatModel | None = None,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Attack a uniformly randomized ensemble; chances of a right answer are exact.

    Args:
        name: of the ensemble.
        members: each a classifier.
        data: images and labels.
        bypass: a submodule of every member that the attacks skip on the backward pass; none if empty.
        steps: of APGD on the expected loss. All attacks make about as many passes as this one.

    Returns:
        Plain data: by the name of each attack, the expected accuracy with bounds, what one forward of each image says,
        and passes an image.
    """
    threat = threat or ThreatModel()
    ensemble = RandomizedEnsemble(members).eval()
    around = [bypassed(member, {bypass: None}) if bypass else member for member in members]
    mixture = Mixture(around)
    attacks: dict[str, tuple[Run, bool]] = {
        "AutoAttack's APGD, EOT": (partial(autoattack.apgd_ce, steps=steps, eot=len(members)), False),
        "APGD, EOT": (partial(apgd, steps=steps, eot=len(members), stop_early=False), False),
        "APGD, expected loss": (partial(apgd, steps=steps), True),
        "APGD, joint margins": (partial(apgd, steps=steps, loss=joint_margins), True),
        "member by member": (partial(member_by_member, steps=steps), True),
        "ARC": (partial(arc, steps=steps * 2 // (1 + _ARC_NEAREST), nearest=_ARC_NEAREST), True),
    }
    with no_trace([ensemble], data.images.device):
        stream = RandomStream(subseed(seed, name), data.images.device)

        def oracle(known: bool) -> Oracle:
            return Oracle.of_mixture(mixture, stream) if known else Oracle(RandomizedEnsemble(around), stream)

        scorer = Scorer(
            oracle=Oracle(ensemble, stream), images=data.images, labels=data.labels, threat=threat, seed=seed,
            sampler=Sampler(1, 1.0, members=Oracle.of_mixture(Mixture(members), stream)),
        )  # fmt: skip
        clean, predictions = scorer.clean()
        given = [index for index, found in predictions.items() if found.pilot > 0]
        results = {}
        for attack, (run, known) in attacks.items():
            progress(f"{name}: {attack}")
            results[attack] = scorer.run(
                PlannedAttack(name=attack, kind="adaptive", access="gradient", run=run, model=oracle(known)), given
            )

    def row(*run: AttackResult) -> dict[str, Any]:
        share = accuracy(clean, predictions, run, CONFIDENCE)
        fooled = {
            index
            for each in (predictions, *(found.predictions for found in run))
            for index, v in each.items()
            if not v.first
        }
        passes = sum(found.forwards + found.backwards for found in run) / max(1, len(given))
        return {
            "accuracy": [share.value, share.low, share.high],
            "one_forward": 1 - len(fooled) / len(clean),
            "passes": round(passes, 1),
            "seconds": round(sum(found.seconds for found in run), 1),
        }

    failed = [found.note for found in results.values() if found.status != "done"]
    if failed:
        raise RuntimeError(f"{name}: an attack failed: {failed[0]}")
    rows: Mapping[str, Any] = {"clean": row()} | {attack: row(found) for attack, found in results.items()}
    return {
        "ensemble": name, "bypass": bypass, "images": len(clean), "eps": threat.eps, "norm": threat.norm, "seed": seed,
        "attacks": rows,
    }  # fmt: skip
