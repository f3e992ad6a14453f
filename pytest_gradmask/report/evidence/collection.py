"""Collect what the HTML report shows of one audit, as plain data that travels between processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pytest_gradmask.auditing.bench import Bench, bench
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.report.evidence.curves import Rerun, curves, run_again
from pytest_gradmask.report.evidence.gradients import Views, landscapes, noise
from pytest_gradmask.report.evidence.pictures import pictures
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import AttackResult, Verdict

#: Images that curves and gradients are measured on, at most; drawn at random from those of the audit.
SAMPLE = 16
#: Images shown one by one, at most.
SHOWN = 4

Part = dict[str, Any]


def collect_evidence(
    audit: Audit,
    defense: Defense | nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[object], None] = lambda message: None,
) -> dict[str, Any]:
    """Attack and look at some images again, with the budget ``smoke``, so that a report can show what an audit tells.

    Leaves no trace, and never raises because of what the defense does: a part that cannot be made is
    ``{"error": why}``.

    Args:
        audit: of this defense.
        defense, images, labels, threat, device, seed: what the audit was given.
        progress: called with a line of text before each step.

    Returns:
        Plain data, ready for JSON: ``outcomes`` (which attack broke which image), ``curves`` (accuracy against eps and
        budget), ``noise`` and ``landscapes`` (what the gradient is worth), ``pictures``, ``hashes`` and ``seconds``.
    """
    started = time.monotonic()
    defense = as_defense(defense)
    evidence: dict[str, Any] = {
        "outcomes": _outcomes(audit),
        "hashes": _part(lambda: _hashes(defense, images, labels)),
    }
    evidence |= _from_the_defense(audit, defense, images, labels, threat, device, seed, progress)
    return {**evidence, "seconds": round(time.monotonic() - started, 3)}


def _from_the_defense(
    audit: Audit,
    defense: Defense,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    device: str,
    seed: int,
    progress: Callable[[object], None],
) -> dict[str, Part]:
    names = ("curves", "noise", "landscapes", "pictures")
    if not any(audit.clean):
        return {name: {"error": "no image is classified correctly without an attack"} for name in names}
    sample = _sample(audit.total, seed)
    picks = _telling(audit)
    places = sample + [place for place in picks[:SHOWN] if place not in sample]
    given = [audit.images[place] for place in places]
    shown = [places.index(place) for place in picks if place in places]
    try:
        with bench(
            defense, images[given], labels[given], threat=threat, budget="smoke", device=device, seed=seed
        ) as prepared:
            return _look(audit, prepared, given, len(sample), shown, progress)
    except Exception as error:  # the defense is not ours, and the verdict on it stands
        return {name: _error(error) for name in names}


def _look(
    audit: Audit,
    prepared: Bench,
    given: Sequence[int],
    sample: int,
    shown: Sequence[int],
    progress: Callable[[object], None],
) -> dict[str, Part]:
    """All that asks the defense.

    Args:
        audit: of it.
        prepared: the defense with some of the audit's images.
        given: for each of these, its number in the report.
        sample: the first so many are a fair sample.
        shown: those to show one by one, the most telling first.
        progress: called with a line of text before each step.
    """
    right = [index for index, kept in enumerate(prepared.clean) if kept]
    if not right:
        raise RuntimeError("none of the images looked at again is classified correctly without an attack")
    strongest = _strongest(audit, list(prepared.attacks))
    attacks = _compared(audit, list(prepared.attacks))
    reruns: dict[str, Rerun] = {}
    for name in dict.fromkeys([*attacks, *([strongest] if strongest else [])]):
        progress(f"evidence: {name}")
        reruns[name] = run_again(prepared, name, right)
    progress("evidence: curves")
    evidence = {"curves": _part(lambda: curves(prepared, [reruns[name] for name in attacks], sample))}
    progress("evidence: gradients")
    evidence["noise"] = _part(lambda: noise(Views.of(prepared), [index for index in right if index < sample]))
    chosen = [index for index in shown if index in right] or right
    evidence["landscapes"] = _part(lambda: landscapes(Views.of(prepared), chosen, given))
    evidence["pictures"] = _part(
        lambda: pictures(prepared, reruns[strongest or attacks[0]], [*chosen, *right], given, SHOWN)
    )
    return evidence


def _part(make: Callable[[], Part]) -> Part:
    try:
        return make()
    except Exception as error:  # whatever the defense raises now, its verdict stands
        return _error(error)


def _error(error: Exception) -> Part:
    return {"error": f"{type(error).__name__}: {error}"}


def _outcomes(audit: Audit) -> Part:
    return {
        "images": list(audit.images),
        "clean": list(audit.clean),
        "attacks": [
            {"name": result.name, "attacked": list(result.attacked), "broken": list(result.broken)}
            for result in audit.attacks
            if result.status == "done"
        ],
    }


def _hashes(defense: Defense, images: torch.Tensor, labels: torch.Tensor) -> Part:
    try:
        whole = fingerprint(defense)
    except FingerprintError as error:
        whole = f"none, as it contains {error}"
    return {"defense": whole, "images and labels": fingerprint(images.detach(), labels.detach())}


def _sample(total: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(subseed(seed, "images of evidence"))
    return sorted(torch.randperm(total, generator=generator)[:SAMPLE].tolist())


def _telling(audit: Audit) -> list[int]:
    """Images that are classified correctly, the most telling first: broken, and by adaptive attacks only."""
    adaptive = {index for result in audit.of_kind("adaptive") for index in result.broken}
    skipped_early = audit.survivors(audit.of_kind("gradient", "placebo"))
    right = [index for index, kept in enumerate(audit.clean) if kept]
    return sorted(
        right, key=lambda index: (index not in adaptive & skipped_early, index in audit.survivors(audit.attacks))
    )


def _breaks_most(results: Sequence[AttackResult]) -> str:
    """The name of the attack that broke most; of equals, the first."""
    return max(results, key=lambda result: len(result.broken)).name if results else ""


def _strongest(audit: Audit, names: Sequence[str]) -> str:
    """The attack whose adversarial examples to show; of a defense that masks, an adaptive one."""
    ran = [result for result in audit.attacks if result.status == "done" and result.name in names]
    adaptive = [result for result in ran if result.kind == "adaptive"]
    return _breaks_most(adaptive if audit.verdict is Verdict.MASKED and adaptive else ran)


def _compared(audit: Audit, names: Sequence[str]) -> list[str]:
    """A gradient attack and, where one can run, the adaptive attack that broke most."""
    adaptive = [result for result in audit.of_kind("adaptive") if result.name in names and result.status != "failed"]
    return ["apgd-ce", *([_breaks_most(adaptive)] if adaptive else [])]
