"""Time to a verdict, beside the time to run AutoAttack and then BPDA by hand on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import clock
from pytest_gradmask import Dataset, Defense, ThreatModel, audit, bypassed
from pytest_gradmask.auditing.research import autoattack, moved, no_trace, random_state_kept, replaced

_CHUNK = 100  # images at a time, as audits do on a CPU
_BPDA_STEPS = 50

Progress = Callable[[object], None]


def time_to_verdict(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    budget: str = "ci",
    device: str = "cpu",
    seed: int = 0,
    enough: float = math.inf,
    stages: Path | None = None,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """One audit, then the same question by hand: AutoAttack ``standard``, and PGD-50 with bypassed front ends.

    The work by hand includes only the attacks, and no comparison or test. The audit gets no information about the
    defense and has no cache. AutoAttack takes hours on a CPU. The result of each of its attacks is stored in the folder
    ``stages``, so that a measurement that was interrupted can continue. AutoAttack is stopped when the work by hand has
    taken ``enough`` times as long as the audit. The ratio is then a lower bound, and the accuracy under AutoAttack is
    not known.
    """
    threat, torch_device, timed = ThreatModel(), torch.device(device), _Stages(stages, clock(device), progress)

    def run_audit() -> dict[str, Any]:
        found = audit(
            defense, data.images, data.labels, threat=threat, budget=budget, device=device, seed=seed, progress=progress
        )
        return {
            "verdict": found.verdict.name, "analysed": found.total, "clean": found.clean_accuracy.value,
            "gradient": found.gradient_accuracy.value, "all": found.robust_accuracy.value,
        }  # fmt: skip

    verdict = timed.run("audit", run_audit)
    model = defense.model
    images, labels = data.images.to(torch_device), data.labels.to(torch_device)
    with moved([model], torch_device), no_trace([model], torch_device), random_state_kept(torch_device):
        attack = autoattack.upstream("autoattack").AutoAttack(
            model, norm="Linf", eps=threat.eps, version="standard", seed=seed, device=torch_device
        )
        attack.logger.setLevel("ERROR")
        attackable = bypassed(model, {path: None for path, _ in model.named_modules() if path.endswith("front_end")})
        survives_bpda = timed.run("bpda", partial(_bpda, attackable, images, labels, threat, seed))["survives"]
        attacked, stopped = images.clone(), None
        try:
            for which in list(attack.attacks_to_run):
                attack.attacks_to_run = [which]  # on the survivors, as in one call with all attacks
                remaining = (1 + enough) * timed.seconds["audit"] - sum(timed.seconds.values())
                with _stopped_after(remaining, model, timed.now):
                    done = timed.run(which, partial(_attacked, attack, model, attacked, images, labels))
                attacked = done["images"].to(torch_device)
        except _EnoughError as error:
            stopped = which
            timed.seconds[which] = error.seconds
        survives = _is_correct(model, attacked, labels)
    audited, by_bpda = timed.seconds["audit"], timed.seconds["bpda"]
    standard = sum(timed.seconds.values()) - audited - by_bpda
    return {
        "defense": name, "budget": budget, "seed": seed, "images": len(labels), **verdict,
        "seconds": audited, "autoattack_seconds": standard, "bpda_seconds": by_bpda,
        "ratio": (standard + by_bpda) / audited, "stopped": stopped,
        "autoattack": float(survives.float().mean()),
        "with_bpda": float((survives & survives_bpda.to(torch_device)).float().mean()),
    }  # fmt: skip


class _EnoughError(Exception):
    """The time limit has been reached."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


@contextmanager
def _stopped_after(seconds: float, model: nn.Module, now: Callable[[], float]) -> Iterator[None]:
    """Stop the code inside at the first forward of the model after this many seconds."""
    started = now()

    def check(*_: object) -> None:
        if now() - started > seconds:
            raise _EnoughError(now() - started)

    hook = model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


class _Stages:
    """Parts of a measurement with their seconds, stored in a folder if there is one."""

    def __init__(self, folder: Path | None, now: Callable[[], float], progress: Progress) -> None:
        self.folder, self.now, self.progress = folder, now, progress
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of the work, or its stored result."""
        file = None if self.folder is None else self.folder / f"{name}.pt"
        if file is not None and file.exists():
            found: dict[str, Any] = torch.load(file, weights_only=True)
        else:
            self.progress(name)
            started = self.now()
            found = work()
            found = {"found": found, "seconds": self.now() - started}
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replaced(file) as part:
                    torch.save(found, part)
        self.seconds[name] = found["seconds"]
        result: dict[str, Any] = found["found"]
        return result


def _attacked(attack: Any, model: nn.Module, attacked: Tensor, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The images after one more attack, which runs on the survivors of the attacks before."""
    attacked, survives = attacked.clone(), _is_correct(model, attacked, labels)
    if survives.any():
        returned = attack.run_standard_evaluation(images[survives], labels[survives])
        attacked[survives] = (returned[0] if isinstance(returned, tuple) else returned).detach()
    return {"images": attacked}


def _bpda(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int) -> dict[str, Any]:
    chunks = zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
    return {"survives": torch.cat([_pgd(model, *chunk, threat, seed) for chunk in chunks])}


def _is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(chunk).argmax(1) for chunk in images.split(_CHUNK)]) == labels


def _pgd(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int) -> Tensor:
    """Whether each image survives a plain PGD, as a user would write it."""
    generator = torch.Generator().manual_seed(seed)
    current = threat.random_start(images, generator)
    size = 2.5 * threat.eps / _BPDA_STEPS
    for _ in range(_BPDA_STEPS):
        current.requires_grad_(True)
        loss = nn.functional.cross_entropy(model(current), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, current)
        current = threat.project(current.detach() + size * gradient.sign(), images)
    return _is_correct(model, current, labels)
