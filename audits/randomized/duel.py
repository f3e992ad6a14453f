"""A comparison of attacks on a randomized ensemble, at the same cost and on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from pytest_gradmask import AttackResult, Dataset, Mixture, RandomizedEnsemble, ThreatModel, apgd, bypassed
from pytest_gradmask.auditing.research import (
    Oracle,
    PlannedAttack,
    RandomStream,
    Run,
    Sampler,
    Scorer,
    accuracy,
    arc,
    autoattack,
    joint_margins,
    member_by_member,
    no_trace,
    subseed,
)

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
    """Attack a uniformly randomized ensemble. Probabilities of a correct prediction are exact.

    Args:
        name: of the ensemble.
        members: each a classifier.
        data: images and labels.
        bypass: a submodule of every member that the attacks skip on the backward pass; none if empty.
        threat: by default Linf with 8/255.
        steps: of APGD on the expected loss. All attacks make about as many passes as this one.
        seed: of every random choice.
        progress: called with a line of text before each attack.

    Returns:
        Plain data: for each attack, the expected accuracy with bounds, the accuracy by one forward of each image, and
        passes per image.
    """
    threat = threat or ThreatModel()
    ensemble = RandomizedEnsemble(members).eval()
    attackable = [bypassed(member, {bypass: None}) if bypass else member for member in members]
    mixture = Mixture(attackable)
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

        def oracle(*, members_known: bool) -> Oracle:
            return (
                Oracle.of_mixture(mixture, stream) if members_known else Oracle(RandomizedEnsemble(attackable), stream)
            )

        scorer = Scorer(
            oracle=Oracle(ensemble, stream), images=data.images, labels=data.labels, threat=threat, seed=seed,
            sampler=Sampler(1, 1.0, members=Oracle.of_mixture(Mixture(members), stream)),
        )  # fmt: skip
        clean, predictions = scorer.clean()
        targets = [index for index, found in predictions.items() if found.pilot > 0]
        results = {}
        for attack, (run, members_known) in attacks.items():
            progress(f"{name}: {attack}")
            results[attack] = scorer.run(
                PlannedAttack(
                    name=attack, kind="adaptive", access="gradient", run=run, model=oracle(members_known=members_known)
                ),
                targets,
            )

    def row(*run: AttackResult) -> dict[str, Any]:
        share = accuracy(clean, predictions, run, CONFIDENCE)
        fooled = {
            index
            for each in (predictions, *(found.predictions for found in run))
            for index, prediction in each.items()
            if not prediction.first
        }
        passes = sum(found.forwards + found.backwards for found in run) / max(1, len(targets))
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
