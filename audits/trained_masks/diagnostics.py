"""What a front end does to images and to gradients: is it a mask, and what of it is one?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from audits.trained_masks.front_end import IdentityStart, batch_statistics
from audits.trained_masks.package import Composite, Dataset, ThreatModel, apgd, bypassed, pgd

_THREAT = ThreatModel(8 / 255)


def diagnosed(
    front_end: IdentityStart, backbone: nn.Module, data: Dataset, *, steps: int = 10, seed: int = 0
) -> dict[str, Any]:
    """All figures, with the running statistics of batch norm and with those of the images themselves.

    Args:
        front_end: in eval mode.
        backbone: frozen and in eval mode.
        data: images to measure on, all in one batch.
        steps: of PGD and BPDA, at 8/255 Linf, randomly started.
        seed: of the attacks' starts and of the random directions.

    Returns:
        ``{"images": N, "running": {...}, "batch": {...}}``; see `figures`.
    """
    result: dict[str, Any] = {"images": len(data)}
    training = [parameter.requires_grad for parameter in front_end.parameters()]
    front_end.requires_grad_(False)
    try:
        for statistics in ("running", "batch"):
            with batch_statistics(front_end, used=statistics == "batch"):
                result[statistics] = figures(front_end, backbone, data, steps=steps, seed=seed)
    finally:
        for parameter, needed in zip(front_end.parameters(), training, strict=True):
            parameter.requires_grad_(needed)
    return result


def figures(front_end: nn.Module, backbone: nn.Module, data: Dataset, *, steps: int, seed: int) -> dict[str, float]:
    """Accuracies in shares, and what the front end does to pixels and gradients, as means over the images.

    Returns:
        ``clean``, ``pgd``, ``bpda``: accuracies. ``loss``: clean cross-entropy. ``residual_sd``: standard deviation of
        what the front end changes, in input units; ``residual_tint_sd``: of its means over each image's channels, the
        part of it that no pixel tells from another. With J the Jacobian of the front end, R that of its residual
        (J = I - R), v of unit norm: ``front_end_gain_random`` and ``residual_gain_random``, of a random v: norms of
        J'v and R'v; ``..._gradient``, of the backbone's loss gradient: the same. ``cosine``: between the composite's
        gradient and the backbone's at the front end's output; ``cosine_at_images``: and the backbone's without it.
    """
    composite = Composite(front_end, backbone)
    images, labels = data.images, data.labels

    def accuracy(perturbed: Tensor) -> float:
        with torch.no_grad():
            return float((composite(perturbed).argmax(1) == labels).float().mean())

    def attacked(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(seed)
        return accuracy(pgd(model, images, labels, threat=_THREAT, steps=steps, generator=generator))

    result = {
        "clean": accuracy(images),
        "pgd": attacked(composite),
        "bpda": attacked(bypassed(composite, {"front_end": None})),
    }
    return {**result, **_local(front_end, backbone, images, labels, seed)}


def under_stronger_attacks(
    front_end: nn.Module, backbone: nn.Module, data: Dataset, *, steps: int = 40, seed: int = 0
) -> dict[str, float]:
    """Accuracy under longer gradient attacks: does the mask stand, or were ten steps too few?

    Args:
        front_end, backbone: in eval mode, with no parameter that requires a gradient.
        data: images to attack.
        steps: of each attack; twice as many forward and backward passes for the one with two starts.
        seed: of random starts.

    Returns:
        ``clean``; ``pgd`` (steps of 2.5 eps by ``steps``); ``pgd_fine`` (steps of a tenth of that, which follow the
        gradient where it changes over short distances); ``apgd``; ``apgd_restarts`` (two starts).
    """
    composite = Composite(front_end, backbone)
    images, labels = data.images, data.labels
    size = 2.5 * _THREAT.eps / steps

    def accuracy(perturbed: Tensor) -> float:
        with torch.no_grad():
            return float((composite(perturbed).argmax(1) == labels).float().mean())

    def start() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    common: dict[str, Any] = {"threat": _THREAT, "steps": steps}
    return {
        "clean": accuracy(images),
        "pgd": accuracy(pgd(composite, images, labels, generator=start(), step_size=size, **common)),
        "pgd_fine": accuracy(pgd(composite, images, labels, generator=start(), step_size=size / 10, **common)),
        "apgd": accuracy(apgd(composite, images, labels, generator=start(), **common)),
        "apgd_restarts": accuracy(apgd(composite, images, labels, generator=start(), restarts=2, **common)),
    }


def _local(front_end: nn.Module, backbone: nn.Module, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    own = images.detach().requires_grad_()
    cleaned = front_end(own)
    behind = cleaned.detach().requires_grad_()
    loss = cross_entropy(backbone(behind), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, behind)
    (bare,) = torch.autograd.grad(cross_entropy(backbone(own), labels, reduction="sum"), own)
    residual = (images - cleaned).detach()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    result = {
        "loss": loss.item() / len(labels),
        "residual_sd": residual.std().item(),
        "residual_tint_sd": residual.mean((2, 3)).std().item(),
        "gradient_norm": _norms(gradient).mean().item(),
    }
    for name, direction in (("random", noise), ("gradient", gradient)):
        (through,) = torch.autograd.grad(cleaned, own, direction, retain_graph=True)
        scale = _norms(direction).clamp_min(1e-30)
        result[f"front_end_gain_{name}"] = (_norms(through) / scale).mean().item()
        result[f"residual_gain_{name}"] = (_norms(direction - through) / scale).mean().item()
        if name == "gradient":
            result["cosine"] = cosine_similarity(through.flatten(1), gradient.flatten(1)).mean().item()
            result["cosine_at_images"] = cosine_similarity(through.flatten(1), bare.flatten(1)).mean().item()
    return result


def _norms(values: Tensor) -> Tensor:
    norms: Tensor = values.flatten(1).norm(dim=1)
    return norms
