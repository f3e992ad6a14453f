"""Collect what the HTML report shows beyond an audit, as plain data that can be sent between processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.auditing.bench import Bench, bench
from pytest_gradmask.auditing.multilabel import with_joint_labels
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.report.evidence.adversarial import save
from pytest_gradmask.report.evidence.gradients import Views, landscapes, noise
from pytest_gradmask.report.evidence.pictures import pictures
from pytest_gradmask.report.evidence.reruns import Rerun, run_again
from pytest_gradmask.threat import PerturbationSet
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import AttackResult, Verdict

#: Images that gradients are measured on, at most; drawn at random from those of the audit.
SAMPLE = 16
#: Images shown one by one, at most.
SHOWN = 4

Part = dict[str, Any]


def collect_evidence(
    audit: Audit,
    defense: Defense | nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    device: str = "cpu",
    seed: int = 0,
    class_names: Sequence[str] = (),
    adversarial: Path | None = None,
    progress: Callable[[object], None] = lambda message: None,
) -> dict[str, Any]:
    """Attack some images again with the budget ``smoke``, so that a report can illustrate an audit.

    Leaves the defense and all random numbers unchanged. Never raises because of what the defense does: a part that
    cannot be made is ``{"error": why}``.

    Args:
        audit: of this defense.
        defense, images, labels, threat, device, seed: the arguments of the audit.
        class_names: of all classes, for the pictures; empty if they are not known.
        adversarial: file for the adversarial images that were made; see `adversarial.save`. None for none.
        progress: called with a text before each step.

    Returns:
        Plain data, ready for JSON: ``outcomes`` (which attack broke which image), ``noise`` and ``landscapes`` (how
        useful the gradient is), ``pictures``, ``hashes`` and ``seconds``; and ``adversarial``, about its file.
    """
    started = time.monotonic()
    defense, labels, _ = with_joint_labels(as_defense(defense), labels)
    evidence: dict[str, Any] = {
        "outcomes": _outcomes(audit),
        "hashes": _part(lambda: _hashes(defense, images, labels)),
    }
    evidence |= _measured(audit, defense, images, labels, threat, device, seed, class_names, adversarial, progress)
    return {**evidence, "seconds": round(time.monotonic() - started, 3)}


def _measured(
    audit: Audit,
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    threat: PerturbationSet,
    device: str,
    seed: int,
    class_names: Sequence[str],
    adversarial: Path | None,
    progress: Callable[[object], None],
) -> dict[str, Part]:
    names = ("noise", "landscapes", "pictures", *(() if adversarial is None else ("adversarial",)))
    if not any(audit.clean):
        return {name: {"error": "no image is classified correctly without an attack"} for name in names}
    sample = _sample(audit.total, seed)
    ranked = _most_informative(audit)
    indices = sample + [index for index in ranked[:SHOWN] if index not in sample]
    numbers = [audit.images[index] for index in indices]
    shown = [indices.index(index) for index in ranked if index in indices]
    try:
        with bench(
            defense, images[numbers], labels[numbers], threat=threat, budget="smoke", device=device, seed=seed
        ) as prepared:
            return _parts(audit, prepared, numbers, len(sample), shown, class_names, adversarial, progress)
    except Exception as error:  # whatever the defense raises now, the verdict does not change
        return {name: _error(error) for name in names}


def _parts(
    audit: Audit,
    prepared: Bench,
    numbers: Sequence[int],
    sample: int,
    shown: Sequence[int],
    class_names: Sequence[str],
    adversarial: Path | None,
    progress: Callable[[object], None],
) -> dict[str, Part]:
    """The parts that need forwards of the defense.

    Args:
        audit: of this defense.
        prepared: the defense with some of the audit's images.
        numbers: for each of these images, its number in the report.
        sample: so many of these images, from the first on, are a random sample of the audit's images.
        shown: indices of the images to show one by one, the most informative first.
        class_names, adversarial, progress: as in `collect_evidence`.
    """
    correct = [index for index, is_correct in enumerate(prepared.clean) if is_correct]
    if not correct:
        raise RuntimeError("in the rerun, no image is classified correctly without an attack")
    strongest = _strongest(audit, list(prepared.attacks))
    attacks = _compared(audit, list(prepared.attacks))
    reruns: dict[str, Rerun] = {}
    for name in dict.fromkeys([*attacks, *([strongest] if strongest else [])]):
        progress(f"evidence: {name}")
        reruns[name] = run_again(prepared, name, correct)
    progress("evidence: gradients")
    evidence = {"noise": _part(lambda: noise(_views(prepared), [index for index in correct if index < sample]))}
    chosen = [index for index in shown if index in correct] or correct
    evidence["landscapes"] = _part(lambda: landscapes(_views(prepared), chosen, numbers))
    evidence["pictures"] = _part(
        lambda: pictures(
            prepared,
            reruns[strongest or attacks[0]],
            [*chosen, *correct],
            numbers,
            SHOWN,
            beside=reruns[attacks[0]],
            class_names=class_names,
        )
    )
    if adversarial is not None:
        evidence["adversarial"] = _part(lambda: save(prepared, reruns[strongest or attacks[0]], numbers, adversarial))
    return evidence


def _views(prepared: Bench) -> Views:
    if prepared.surface.black_box:
        raise RuntimeError("a plain function has no gradient")
    return Views.of(prepared)


def _part(make: Callable[[], Part]) -> Part:
    try:
        return make()
    except Exception as error:  # whatever the defense raises now, the verdict does not change
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


def _hashes(defense: Defense, images: Tensor, labels: Tensor) -> Part:
    try:
        whole = fingerprint(defense)
    except FingerprintError as error:
        whole = f"none, as it contains {error}"
    return {"defense": whole, "images and labels": fingerprint(images.detach(), labels.detach())}


def _sample(total: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(subseed(seed, "images of evidence"))
    return sorted(torch.randperm(total, generator=generator)[:SAMPLE].tolist())


def _most_informative(audit: Audit) -> list[int]:
    """Images that are classified correctly, ranked: broken by adaptive attacks only, broken, others."""
    adaptive = {index for result in audit.of_kind("adaptive") for index in result.broken}
    others = audit.survivors(audit.of_kind("gradient", "placebo"))
    correct = [index for index, is_correct in enumerate(audit.clean) if is_correct]
    return sorted(correct, key=lambda index: (index not in adaptive & others, index in audit.survivors(audit.attacks)))


def _breaks_most(results: Sequence[AttackResult]) -> str:
    """The name of the attack that broke most images; the first of several."""
    return max(results, key=lambda result: len(result.broken)).name if results else ""


def _strongest(audit: Audit, names: Sequence[str]) -> str:
    """The attack whose adversarial examples are shown. For a ``MASKED`` it is an adaptive one."""
    ran = [result for result in audit.attacks if result.status == "done" and result.name in names]
    adaptive = [result for result in ran if result.kind == "adaptive"]
    return _breaks_most(adaptive if audit.verdict is Verdict.MASKED and adaptive else ran)


def _compared(audit: Audit, names: Sequence[str]) -> list[str]:
    """A gradient attack and the adaptive attack that broke most images, as far as they can run."""
    adaptive = [result for result in audit.of_kind("adaptive") if result.name in names and result.status != "failed"]
    gradient = [name for name in ("apgd-ce",) if name in names]  # a plain function has none
    return [*gradient, *([_breaks_most(adaptive)] if adaptive else [])]
