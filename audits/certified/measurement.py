"""Attacks and audits of certified classifiers: what the floor says about both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audits.certified.bounds import certified
from audits.certified.digits import EPS, digits, load
from audits.defenses.backward import AddedVector
from audits.defenses.shattered import Detached, GradientKiller
from pytest_gradmask import Defense, ThreatModel, audit
from pytest_gradmask.auditing.research import bench

#: Balls inside that of the certificate. Those of L2 and L1 touch it from inside.
NORMS: tuple[Any, ...] = ("Linf", "L2", "L1")


class Steep(nn.Module):
    """Multiplies the logits: classes stay the same, and the gradient of a saturated cross-entropy vanishes."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits a million times as large."""
        return 1e6 * logits


class NoisyBackward(nn.Module):
    """The identity, whose backward pass adds noise to the gradient."""

    def forward(self, images: Tensor) -> Tensor:
        """The images, whose gradient is drowned in noise."""
        images = images.clone()
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient + 100 * gradient.norm() * torch.randn_like(gradient))
        return images


#: Masks that leave every output where it is, or its class. Each makes a defense of a certified classifier.
MASKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "gradient-killer": lambda model: nn.Sequential(GradientKiller(), model),
    "detached": lambda model: nn.Sequential(Detached(), model),
    "added-vector": lambda model: nn.Sequential(AddedVector(nn.Identity()), model),
    "noisy-backward": lambda model: nn.Sequential(NoisyBackward(), model),
    "steep": lambda model: nn.Sequential(model, Steep()),
}


def floor(name: str, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is certified; bool, N."""
    return certified(load(name), images, labels, EPS)


def defended(name: str, mask: str) -> Defense:
    """A stored classifier behind a mask; bare if the mask is empty."""
    model = MASKS[mask](load(name)).eval() if mask else load(name)
    return Defense(model, name=mask or name)


def attacked(
    name: str, *, images: int, seeds: Sequence[int], budget: str = "smoke", masks: Sequence[str] = ()
) -> dict[str, Any]:
    """Run every attack of an audit, in every norm and with every seed, on the classifier and behind masks.

    Returns:
        How many images were attacked, how many of these are certified, and how many of the certified were broken.
    """
    data, labels = (part[:images] for part in digits(train=False))
    safe = floor(name, data, labels)
    counts = {"attacked": 0, "certified": 0, "crossed": 0}
    crossed: list[str] = []
    for mask in ("", *masks):
        defense = defended(name, mask)
        for norm in NORMS:
            for seed in seeds:
                with bench(defense, data, labels, threat=ThreatModel(EPS, norm), budget=budget, seed=seed) as prepared:
                    for attack, planned in prepared.attacks.items():
                        correct = [index for index, right in enumerate(prepared.clean) if right]
                        found = prepared.scorer.run(planned, correct)
                        if found.status != "done":
                            continue
                        wrong = [index for index in found.broken if safe[index]]
                        counts["attacked"] += len(correct)
                        counts["certified"] += int(safe[correct].sum())
                        counts["crossed"] += len(wrong)
                        crossed += [f"{mask or 'bare'} {norm} {attack} seed {seed} image {index}" for index in wrong]
    return {"network": name, "images": images, "seeds": list(seeds), "budget": budget, **counts, "which": crossed}


def audited(name: str, mask: str, *, images: int, seed: int = 0, margin: float = 0.1) -> dict[str, Any]:
    """Audit the classifier behind a mask (none if empty), without any hint; its accuracy beside the floor."""
    data, labels = (part[:images] for part in digits(train=False))
    found = audit(
        defended(name, mask), data, labels, threat=ThreatModel(EPS), margin=margin, seed=seed, exhaustive=True
    )
    safe = floor(name, data, labels)
    broken = {found.images[index] for result in found.attacks for index in result.broken}
    return {
        "network": name, "mask": mask, "images": images, "seed": seed, "verdict": found.verdict.name,
        "floor": float(safe.float().mean()), "gradient": found.gradient_accuracy.value,
        "all": found.robust_accuracy.value, "crossed": sum(bool(safe[index]) for index in broken),
    }  # fmt: skip
