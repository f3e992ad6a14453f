"""The warnings of AutoAttack's own checks on a defense, for comparison with our verdict."""

from __future__ import annotations

from typing import Any

import torch

from audits.zoo.truth import AuditedDefense
from pytest_gradmask.auditing.research import (
    Oracle,
    RandomStream,
    autoattack,
    known_models,
    logit_margin,
    no_trace,
    subseed,
)

#: Survivors that Square attacks where the audit skipped it.
_SQUARE = 40


class _Log:
    """A logger that records whether there was a warning."""

    def __init__(self) -> None:
        self.warned = False

    def warning(self, _: str) -> None:
        """Called by a check that warns."""
        self.warned = True


def autoattack_flags(case: AuditedDefense, *, queries: int) -> list[str]:
    """The names of the checks that warn.

    The checks are ``randomized``, ``probabilities``, ``dynamic``, ``zero-gradient`` and ``square``. They are upstream's
    functions, called as its ``run_standard_evaluation`` calls them: on outputs, on the gradient of the DLR loss at a
    random start, and on the robust accuracy before and after Square. ``zero-gradient`` warns if the gradient of a
    single image is zero, ``square`` if Square breaks more than one image in 500. Square makes ``queries`` queries,
    fewer than upstream's 5,000.

    Args:
        case: a defense with its audit; its images are on the CPU.
        queries: of Square.
    """
    images, labels, audit, threat, seed = case.images, case.labels, case.audit, case.threat, case.seed
    checks, apgd = autoattack.upstream("checks"), autoattack.upstream("autopgd_base")
    stream = RandomStream(subseed(seed, "flags"), images.device)
    oracle = Oracle(case.defense.model, stream)  # upstream does not support defenses that return probabilities
    correct = sorted(audit.survivors([]))
    clean_images, clean_labels = images[correct], labels[correct]
    warned = []
    with no_trace(known_models(case.defense), images.device):
        classes = oracle(clean_images[:1]).shape[1]
        settings = {"n_iter": 1, "eps": threat.eps, "norm": threat.norm, "seed": seed, "device": images.device}

        def zero_gradient(logger: _Log) -> None:
            if classes > 3:
                attack = apgd.APGDAttack_targeted(oracle, n_target_classes=1, logger=logger, **settings)
            else:
                attack = apgd.APGDAttack(oracle, loss="dlr", logger=logger, **settings)
            attack.perturb(clean_images, clean_labels)

        def dynamic(logger: _Log) -> None:
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # upstream never resets its counts
            checks.check_dynamic(oracle, clean_images[:8], logger=logger)

        def square_helps(logger: _Log) -> None:
            accuracy = audit.gradient_accuracy.value
            broken = _broken_by_square(oracle, case, queries) / audit.total
            checks.check_square_sr({"apgd": accuracy, "fab-t": accuracy, "square": accuracy - broken}, logger=logger)

        all_checks: dict[str, Any] = {
            "randomized": lambda logger: checks.check_randomized(oracle, images, labels, logger=logger),
            "probabilities": lambda logger: checks.check_range_output(oracle, images, logger=logger),
            "dynamic": dynamic,
            "square": square_helps,
        }
        if classes > 2:  # the DLR loss needs three classes
            all_checks["zero-gradient"] = zero_gradient
        for name, check in all_checks.items():
            log = _Log()
            check(logger=log)
            if log.warned:
                warned.append(name)
    return warned


def _broken_by_square(oracle: Oracle, case: AuditedDefense, queries: int) -> int:
    """How many survivors of the gradient attacks Square breaks: in the audit or, where it was skipped, here."""
    result = case.audit.attack("square")
    survivors = case.audit.survivors(case.audit.of_kind("gradient"))
    if result.status == "done":
        return len(set(result.broken) & survivors)
    chosen = sorted(survivors)[:_SQUARE]
    if not chosen:
        return 0
    images, labels = case.images[chosen], case.labels[chosen]
    generator = torch.Generator().manual_seed(subseed(case.seed, "square for flags"))
    returned = autoattack.square(oracle, images, labels, threat=case.threat, steps=queries, generator=generator)
    with torch.no_grad():
        return int((logit_margin(oracle(returned), labels) > 0).sum())
