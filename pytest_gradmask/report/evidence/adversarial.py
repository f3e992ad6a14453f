"""Adversarial images in a file, so that anyone can ask the defense for them again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_gradmask.attacks.users_set import as_given
from pytest_gradmask.auditing.bench import Bench
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.report.evidence.reruns import Rerun, done
from pytest_gradmask.threat import kind_of

_LONGEST = 100  # characters of a file's name that come from the name of the test


def file_name(test: str, number: int) -> str:
    """A name for the file of a test's audit: readable, and different for each test.

    Args:
        test: node id.
        number: which audit of the test it is, from 1.
    """
    readable = re.sub(r"[^\w.]+", "-", test)[:_LONGEST]
    return f"{readable}-{hashlib.sha256(test.encode()).hexdigest()[:8]}-{number}.npz"


def save(bench: Bench, rerun: Rerun, numbers: Sequence[int], file: Path) -> dict[str, Any]:
    """Write what an attack returned to an npz file, in one atomic step. ``numpy.load`` reads it without pickles.

    Its arrays, each with an entry for each of N images unless said otherwise:

    - ``images`` and ``adversarial``: without and with the perturbation; float32, N x C x H x W, in the audit's bounds.
    - ``labels``: int64.
    - ``indices``: of the images, among those that the audit was given; int64.
    - ``predictions_clean`` and ``predictions``: for ``images`` and ``adversarial``, in one forward; int64.
    - ``broken``: whether the attack succeeded; bool. On a randomized defense, in most of many forwards.
    - ``attack``, ``norm``, ``eps`` and ``bounds``: its name and the threat model, once.

    Args:
        bench: with the images.
        rerun: of the attack.
        numbers: for each image of the bench, its index among those that the audit was given.
        file: to write. Its folder is created if needed.

    Returns:
        Plain data: ``file`` (its name), ``attack``, ``images`` (how many), ``broken`` (how many) and ``example`` (the
        first that is broken, counted from 0; None if there is none).

    Raises:
        RuntimeError: the attack failed.
        OSError: the file cannot be written.
    """
    broken = set(done(rerun).broken)
    chosen = list(rerun.attacked)
    scorer = bench.scorer
    images = scorer.images[chosen]
    scorer.oracle.reseed(subseed(scorer.seed, "defense under images to save"))
    with torch.no_grad():
        before, after = (scorer.oracle(some).argmax(1) for some in (images, rerun.returned))
    flags = [index in broken for index in chosen]
    threat = as_given(scorer.threat)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as part, part.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=images.cpu().numpy(),
            adversarial=rerun.returned.cpu().numpy(),
            labels=scorer.labels[chosen].cpu().numpy(),
            indices=np.array([numbers[index] for index in chosen]),
            predictions_clean=before.cpu().numpy(),
            predictions=after.cpu().numpy(),
            broken=np.array(flags),
            attack=np.array(rerun.name),
            norm=np.array(kind_of(threat)),
            eps=np.array(threat.eps),
            bounds=np.array(threat.bounds),
        )
    return {
        "file": file.name,
        "attack": rerun.name,
        "images": len(chosen),
        "broken": len(broken),
        "example": flags.index(True) if broken else None,
    }
