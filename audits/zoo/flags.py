"""What AutoAttack's own checks say of a defense, to stand beside our verdict."""

from __future__ import annotations

from typing import Any

import torch

from pytest_gradmask import Defense
from pytest_gradmask.attacks.autoattack import square, upstream
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import known_models
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit

#: Survivors that Square gets where the audit spared it.
_SQUARE = 40


class _Log:
    """A logger that remembers whether it was warned."""

    def __init__(self) -> None:
        self.warned = False

    def warning(self, _: str) -> None:
        """What a check does that sees something."""
        self.warned = True


def autoattack_flags(
    defense: Defense,
    images: torch.Tensor,
    labels: torch.Tensor,
    audit: Audit,
    *,
    threat: ThreatModel,
    queries: int,
    seed: int,
) -> list[str]:
    """The checks that warn, of ``randomized``, ``probabilities``, ``dynamic``, ``zero-gradient`` and ``square``.

    They are upstream's functions, called as its ``run_standard_evaluation`` calls them: on outputs, on the gradient of
    the DLR loss at a random start, and on what Square does to the robust accuracy. ``zero-gradient`` warns of a single
    image, ``square`` of one in 500. Square makes ``queries`` queries, fewer than upstream's 5,000.

    Args:
        defense, images, labels: as they were audited; on the CPU.
        audit: of them.
        threat: of the audit.
        queries: of Square.
        seed: of all random numbers.
    """
    checks, apgd = upstream("checks"), upstream("autopgd_base")
    stream = RandomStream(subseed(seed, "flags"), images.device)
    look = Oracle(defense.model, stream)  # upstream knows no defenses that return probabilities
    correct = sorted(audit.survivors([]))
    clean, right = images[correct], labels[correct]
    warned = []
    with no_trace(known_models(defense), images.device):
        classes = look(clean[:1]).shape[1]
        settings = {"n_iter": 1, "eps": threat.eps, "norm": threat.norm, "seed": seed, "device": images.device}

        def zero_gradient(logger: _Log) -> None:
            if classes > 3:
                attack = apgd.APGDAttack_targeted(look, n_target_classes=1, logger=logger, **settings)
            else:
                attack = apgd.APGDAttack(look, loss="dlr", logger=logger, **settings)
            attack.perturb(clean, right)

        def dynamic(logger: _Log) -> None:
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # upstream's counts are never reset
            checks.check_dynamic(look, clean[:8], logger=logger)

        def square_helps(logger: _Log) -> None:
            accuracy = audit.gradient_accuracy.value
            fallen = _fallen_to_square(look, images, labels, audit, threat, queries, seed) / audit.total
            checks.check_square_sr({"apgd": accuracy, "fab-t": accuracy, "square": accuracy - fallen}, logger=logger)

        analyses: dict[str, Any] = {
            "randomized": lambda logger: checks.check_randomized(look, images, labels, logger=logger),
            "probabilities": lambda logger: checks.check_range_output(look, images, logger=logger),
            "dynamic": dynamic,
            "square": square_helps,
        }
        if classes > 2:  # with two there is no DLR
            analyses["zero-gradient"] = zero_gradient
        for name, check in analyses.items():
            log = _Log()
            check(logger=log)
            if log.warned:
                warned.append(name)
    return warned


def _fallen_to_square(
    look: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    audit: Audit,
    threat: ThreatModel,
    queries: int,
    seed: int,
) -> int:
    result = audit.attack("square")
    if result.status == "done":
        return len(set(result.broken) & audit.survivors(audit.of_kind("gradient")))
    left = sorted(audit.survivors(audit.of_kind("gradient")))[:_SQUARE]
    if not left:
        return 0
    generator = torch.Generator().manual_seed(subseed(seed, "square for flags"))
    returned = square(look, images[left], labels[left], threat=threat, steps=queries, generator=generator)
    with torch.no_grad():
        return int((logit_margin(look(returned), labels[left]) > 0).sum())
