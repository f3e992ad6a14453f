"""Audit one defense: its arguments, its cache, and its engine, around the loop in `audit_run`."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.arguments import check_set
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.arguments import as_folder, check_arguments, reported_to
from pytest_gradmask.auditing.audit_run import AuditRun
from pytest_gradmask.auditing.budgets import Budget, get_budget
from pytest_gradmask.auditing.events import Message, Progress, ignore
from pytest_gradmask.auditing.multilabel import with_joint_labels
from pytest_gradmask.auditing.prepare import Prepared, prepared
from pytest_gradmask.auditing.recorded import key_of_recorded
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import all_modules, known_models
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import DefenseError, EngineError
from pytest_gradmask.execution.attempts import Attempt, take_attempt
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.deadline import INTERRUPTED, Deadline
from pytest_gradmask.execution.engine import LOCAL, Engine, opened
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.execution.isolation import check_weights, lost
from pytest_gradmask.execution.packages import package_identity
from pytest_gradmask.execution.precision import Precision, check_precision
from pytest_gradmask.execution.process_state import process_state
from pytest_gradmask.execution.versions import versions
from pytest_gradmask.loading.inputs import as_batch
from pytest_gradmask.loading.models.black_box import is_black_box
from pytest_gradmask.probes.consistency import keep_original
from pytest_gradmask.probes.preflight import check_batch, check_deadline, check_device, check_setting
from pytest_gradmask.probes.suite import Probe
from pytest_gradmask.threat import PerturbationSet, ThreatModel, kind_of
from pytest_gradmask.verdict.audit import Audit, in_order


def audit(
    defense: Defense | nn.Module,
    images: Any,
    labels: Any = None,
    *,
    threat: PerturbationSet | None = None,
    budget: str | Budget = "smoke",
    margin: float | None = None,
    confidence: float = 0.99,
    device: str = "cpu",
    seed: int = 0,
    exhaustive: bool = False,
    attempt: int = 1,
    test: str = "",
    probes: Sequence[Probe] = (),
    cache: str | Path | None = None,
    engine: str | Engine = "local",
    precision: Precision = "auto",
    deadline: float | None = None,
    progress: Progress = ignore,
) -> Audit:
    """Find out whether a defense masks its gradients.

    Args:
        defense: a module from images to logits, or a `Defense` that also says what an adaptive attacker knows.
        images: float32, N x C x H x W, inside the bounds of the threat model; or anything that
            `loading.inputs.as_batch` converts, such as a ``DataLoader``.
        labels: int64, N; or N x K with ``outputs="multilabel"``. None if ``images`` has them.
        threat: where attacks may search; by default Linf, 8/255, bounds [0, 1]. With a `PerturbationSet`
            that is no norm ball, attacks that need one are skipped: AutoAttack's and RayS. Probes then examine the
            defense in the ball of `threat.ball_of`.
        budget: ``"smoke"``, ``"ci"``, ``"full"`` or a `Budget`.
        margin: the largest gap, as a share of images, that still counts as no masking; by default the budget's.
        confidence: of every bound and test, in (0.5, 1).
        device: torch device to run on. Models are moved there, and back to where they were afterwards.
        seed: of every random choice. The same seed on the same machine gives the same result.
        exhaustive: run every attack on every image, also where that can no longer change the verdict. Otherwise the
            audit attacks its images in growing batches, in random order, and ends once the verdict is decided.
        attempt: which audit of this defense under this threat model this is, from 1. Audits that are repeated, with
            more images or another seed, share the error: see `attempt_share` in `verdict.interim`.
        test: name of the test that asks, if any. The cache counts the attempts of each test by itself.
        probes: your own, beside those that every audit has: ``probe(model, images, labels, *, threat, generator)``
            returns findings (a sequence of `Finding`) about the first images that are classified correctly.
        cache: folder to keep results in; ``None`` keeps none. If nothing has changed (weights and code of the defense,
            images, settings, versions), the audit is read from there. An interrupted audit continues after its last
            attack. If any of this cannot be hashed, the cache is not used. The cache also counts, for
            the report, every different audit of the same model with the same threat model, margin, confidence and test,
            whatever its verdict, unless it ended without a comparison. The count changes no verdict.
        engine: where attacks run: ``"local"``, or ``"ray"`` or ``"ray:ADDRESS"`` for a Ray cluster (see
            `engine.ray_address`), or an engine that is open already. The result is the same.
        precision: in which the defense computes under attack: its ``"own"``, ``"tf32"`` (TensorFloat-32, on GPUs of
            NVIDIA) or ``"bfloat16"`` (by autocast). ``"auto"`` is its own, but bfloat16 for queries of Square and
            zero-order PGD that only guide their search, on processors that are fast at it and where the answers are
            nearly the same. Probes, and scores of what attacks return, are always in its own.
        deadline: seconds after which the audit ends with what it knows by then; None for never. If the verdict is not
            decided, it is ``INCONCLUSIVE``, with bounds of the gap so far. Attacks are interrupted between two queries;
            what comes before the first of them is not.
        progress: is called with an event before each step; ``str(event)`` says in words what comes next.

    Raises:
        InputError, DefenseError: the input cannot be audited; the message says what to change.
        EngineError, DependencyError: attacks cannot run where they should.
    """
    started = time.monotonic()
    check_arguments(exhaustive=exhaustive, test=test, probes=probes, engine=engine, progress=progress)
    folder, defense, progress = as_folder(cache), as_defense(defense), reported_to(progress)
    threat = ThreatModel() if threat is None else threat
    budget = get_budget(budget)
    margin = budget.margin if margin is None else margin
    check_setting(confidence, seed, margin, attempt)
    check_precision(precision)
    due = None if deadline is None else Deadline.after(check_deadline(deadline))
    check_set(threat)
    batch = as_batch(images, labels, bounds=threat.bounds, at_most=budget.samples, seed=seed)
    defense, labels, joint = with_joint_labels(defense, batch.labels)
    images = batch.images
    check_batch(images, labels, threat)
    where = check_device(device)
    check_weights(all_modules(defense))
    order = _order(len(images), None if exhaustive else seed)
    # Part of the cache's key. Reports also use it to see whether two runs are about the same images; labels are left
    # out, as they may be the defense's own answers.
    images_hash = fingerprint(images.detach())
    images, labels = images.detach()[order].to(where), labels.detach().long()[order].to(where)
    provenance = {
        **_provenance(threat, budget, where, seed, len(images)),
        "precision": precision,
        "images_hash": images_hash,
    }
    store, key, taken, result = None if folder is None else Cache(folder), "", Attempt(1), None
    if store is not None and any(map(is_black_box, known_models(defense))):
        progress(Message(f"no use of the cache, as the answers of {defense.name} may come from elsewhere"))
        store = None
    if store is not None:
        try:
            asked = fingerprint(
                defense, order, labels, images_hash, threat, seed, margin, budget, exhaustive, tuple(probes)
            )
            question = fingerprint(defense.model, defense.rejects, threat, margin, confidence, test)
            key = fingerprint(package_identity("pytest_gradmask"), process_state(), asked, provenance)
        except FingerprintError as error:
            progress(Message(f"no use of the cache, as {defense.name} contains {error}"))
            store = None
        else:
            taken = take_attempt(store.folder, question, asked)
            key = key_of_recorded(store, key, defense, images, threat=threat, seed=seed)
    audit_key = fingerprint(key, "audit", confidence, attempt)
    stored = None if store is None else store.audit(audit_key)
    if stored is not None:
        return replace(stored, test=test, earlier=taken.number - 1)
    opening = opened(engine, device) if isinstance(engine, str) else nullcontext(engine)
    try:
        with opening as running:
            progress(Message("preflight"))
            original, fresh, result = keep_original(defense.model), None, None
            search_first: tuple[int, ...] = ()
            while result is None:
                also = ("fresh copies", search_first) if fresh else search_first
                with prepared(
                    defense, images, labels, threat=threat, budget=budget, margin=margin, seed=seed, cache=store,
                    key=fingerprint(key, also) if also else key, engine=running, search_first=search_first,
                    first_state=fresh.first_state if fresh else None, precision=precision,
                    deadline=due,
                ) as ready:  # fmt: skip
                    run = AuditRun(
                        ready=ready, budget=budget, margin=margin, confidence=confidence, exhaustive=exhaustive,
                        attempt=attempt, probes=tuple(probes), progress=progress, original=original, fresh=fresh,
                        search_first=search_first,
                    )  # fmt: skip
                    before, result = search_first, run.until_decided()
                    searched_in = ready.scorer.search_precision if precision == "auto" else precision
                    provenance["search_precision"] = searched_in
                    fresh, search_first = run.fresh, run.search_first
                    if fresh is None:
                        _warn_if_stateful(ready)
                    if result is None:
                        why = "is stateful: all over again, on fresh copies"
                        if search_first != before:
                            why = "hides its gradient at images that no search looked at: all over again, with these"
                        progress(Message(f"{defense.name} {why}"))
            if fresh is not None:
                fresh.first_state.put_back()
    except Exception as error:
        if out_of_memory(error):
            raise DefenseError(
                f"{defense.name} needs more memory than there is, even for one image at a time "
                f"({type(error).__name__}: {error}); free some, or use another device"
            ) from error
        if isinstance(engine, str) and engine == "local" and lost(where):
            raise EngineError(
                f"the device {where} was lost ({type(error).__name__}: {error}). Finished attacks are in the "
                "cache: run the same command again to go on after them"
            ) from error
        raise
    finally:
        if result is None or result.gap is None:  # nothing was tested
            taken.release()
    result = replace(
        in_order(result, order[: result.total].tolist()), test=test, seconds=time.monotonic() - started,
        provenance=provenance, earlier=taken.number - 1, findings=(*batch.findings(), *joint, *result.findings),
    )  # fmt: skip
    interrupted = any(attack.note == INTERRUPTED for attack in result.attacks)
    if store is not None and not interrupted and not any(attack.status == "failed" for attack in result.attacks):
        store.store_audit(audit_key, result)
    return result


def _warn_if_stateful(ready: Prepared) -> None:
    """Warn where copies of a defense, one for each chunk of images, may behave differently from the defense itself."""
    scorer, defense = ready.scorer, ready.surface.defense
    if scorer.engine is not LOCAL and _changes_as_it_runs(defense, scorer.oracle, scorer.images[:1]):
        warnings.warn(
            f"{defense.name} changes as it runs, beyond the global random generators: every attack and chunk "
            "of images gets a copy of it, so that figures may differ from those of engine='local'",
            stacklevel=3,
        )


def _changes_as_it_runs(defense: Defense, oracle: Oracle, image: Tensor) -> bool:
    """Whether a forward pass changes the state of the defense, as far as it can be hashed."""
    models = tuple(all_modules(defense))
    try:
        before = fingerprint(models)
        with torch.no_grad():
            oracle(image)
        return fingerprint(models) != before
    except FingerprintError:
        return False


def _order(images: int, seed: int | None) -> Tensor:
    """The order in which images are attacked: they may come sorted by class."""
    if seed is None:
        return torch.arange(images)
    return torch.randperm(images, generator=torch.Generator().manual_seed(subseed(seed, "order of images")))


def _provenance(
    threat: PerturbationSet, budget: Budget, device: torch.device, seed: int, images: int
) -> dict[str, Any]:
    return {
        "versions": versions("pytest-gradmask", "torch", "torchvision", "timm", "pyautoattack", "autoattack"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "seed": seed,
        "images": images,
        "threat": {"norm": kind_of(threat), "eps": threat.eps, "bounds": list(threat.bounds)},
        "budget": budget.name,
        "budget_settings": {name: value for name, value in asdict(budget).items() if name != "name"},
        "autoattack": budget.autoattack,
    }
