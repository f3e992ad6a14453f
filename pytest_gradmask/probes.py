"""Probes explain a verdict: each looks at one symptom and returns findings.

A finding that undermines the attacks keeps an audit from saying ``NOT_MASKED``: attacks that cannot work prove nothing.
"""

from __future__ import annotations

import torch

from pytest_gradmask.attacks.gradient import pgd
from pytest_gradmask.attacks.losses import cross_entropy, margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.results import Finding
from pytest_gradmask.threat import ThreatModel

#: A gradient attack of this many steps in an unbounded ball should reach any image.
_UNBOUNDED_STEPS = 20
_UNBOUNDED_IMAGES = 16
#: Share of images that may survive it before the attack counts as failing.
_UNBOUNDED_SHARE = 0.1


def gradient_health(oracle: Oracle, images: torch.Tensor, labels: torch.Tensor) -> list[Finding]:
    """Zero and NaN gradients of the cross-entropy and of the margin at the clean images.

    The margin is looked at because a cross-entropy's gradient also vanishes where a model is merely very sure.
    """
    point = images.detach().requires_grad_(True)
    findings: list[Finding] = []
    flat = {}
    for name, loss in (("cross-entropy", cross_entropy), ("margin", margin)):
        with torch.enable_grad():
            value = loss(oracle(point), labels).sum()
        flat[name] = torch.autograd.grad(value, point)[0].flatten(1)
    bad = int((~flat["cross-entropy"].isfinite().all(1) | ~flat["margin"].isfinite().all(1)).sum())
    if bad:
        findings.append(
            Finding(
                "nan-gradient", f"{bad} of {len(images)} images have NaN or infinite gradients", undermines_attacks=True
            )
        )
    for name, gradient in flat.items():
        zero = int((gradient == 0).all(1).sum())
        if zero:
            findings.append(
                Finding(
                    "zero-gradient",
                    f"the gradient of the {name} is exactly zero at {zero} of {len(images)} images",
                    # A saturated cross-entropy alone does not stop attacks on the margin.
                    undermines_attacks=name == "margin",
                )
            )
    return findings


def unbounded_attack(
    oracle: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    eot: int,
) -> list[Finding]:
    """Whether PGD breaks (nearly) every image once the ball is as large as the bounds (Carlini et al. 2019)."""
    images, labels = images[:_UNBOUNDED_IMAGES], labels[:_UNBOUNDED_IMAGES]
    low, high = threat.bounds
    eps = (high - low) if threat.norm == "Linf" else (high - low) * images[0].numel() ** 0.5
    wide = ThreatModel(eps, threat.norm, threat.bounds)
    adversarial = pgd(
        oracle,
        images,
        labels,
        threat=wide,
        steps=_UNBOUNDED_STEPS,
        generator=generator,
        restarts=2,
        loss=margin,
        eot=eot,
    )
    with torch.no_grad():
        standing = int((margin(oracle(adversarial), labels) <= 0).sum())
    if standing <= _UNBOUNDED_SHARE * len(images):
        return []
    return [
        Finding(
            "unbounded-attack-fails",
            f"PGD with unlimited perturbations leaves {standing} of {len(images)} images standing: "
            "the gradient is no guide",
            undermines_attacks=True,
        )
    ]
