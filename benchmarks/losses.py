"""What would strengthen the gradient attacks: other losses, other starts and averaged gradients, at equal passes.

None of the variants is part of an audit unless this measurement says that it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask import Dataset, Defense, ThreatModel, apgd
from pytest_gradmask.auditing.research import bench, cross_entropy, logit_margin

_STEPS = 50
#: Share of the steps that go to a diversified start, and to the first of two stages of a loss.
_START, _FIRST_STAGE = 0.1, 0.5
#: Noisy passes over which an averaged gradient is averaged, and the noise as a share of eps.
_PASSES, _NOISE = 10, 0.5
#: Steps of PGD with momentum, as a share of eps.
_STEP = 0.25
Progress = Callable[[object], None]


def losses(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Images that each variant breaks, of those that are classified correctly, each with the same number of passes."""
    rows = []
    with bench(defense, data.images, data.labels, device=device, seed=seed) as prepared:
        for variant, run in VARIANTS.items():
            progress(variant)
            result = prepared.runner(run)()
            rows.append(
                {
                    "variant": variant, "broken": len(result.broken), "of": len(result.attacked),
                    "passes": result.passes, "images": sorted(result.broken),
                }
            )  # fmt: skip
    return {"defense": name, "images": len(data.labels), "steps": _STEPS, "seed": seed, "rows": rows}


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilistic margin attack (PMA; Xie et al. 2024): the margin of probabilities, not of logits."""
    return logit_margin(logits.float().softmax(1), labels)


def label_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """The first stage of margin decomposition (Ma et al. 2020, arXiv:2006.13726): the label's logit alone."""
    return -logits.float().gather(1, labels[:, None]).squeeze(1)


def _plain(loss: Any) -> Any:
    return partial(apgd, steps=_STEPS, loss=loss)


def margin_decomposition(model: Any, images: Tensor, labels: Tensor, *, threat: Any, generator: Any) -> Tensor:
    """The label's logit for one half of the steps; then, from there, the whole margin."""
    first = int(_FIRST_STAGE * _STEPS)
    start = apgd(
        model, images, labels, threat=threat, steps=first, generator=generator, loss=label_logit, stop_early=False
    )
    return _from(model, start, images, labels, threat, generator, _STEPS - first)


def diversified_start(model: Any, images: Tensor, labels: Tensor, *, threat: Any, generator: Any) -> Tensor:
    """Output-diversified initialization (ODI; Tashiro et al. 2020, arXiv:2003.06878), then the logit margin."""
    steps = int(_START * _STEPS)
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    weights = torch.empty(len(images), classes).uniform_(-1, 1, generator=generator).to(images.device)
    current = threat.random_start(images, generator)
    for _ in range(steps):
        current.requires_grad_(True)
        (gradient,) = torch.autograd.grad((weights * model(current)).sum(), current)
        current = threat.project(current.detach() + threat.eps * threat.step(gradient), images)
    return _from(model, current, images, labels, threat, generator, _STEPS - steps)


def averaged_gradients(model: Any, images: Tensor, labels: Tensor, *, threat: Any, generator: Any) -> Tensor:
    """Gradients averaged over noise, with momentum and large steps (Dong et al. 2018, arXiv:1710.06081)."""
    current, momentum = images.clone(), torch.zeros_like(images)
    for _ in range(_STEPS // _PASSES):
        total = torch.zeros_like(images)
        for _ in range(_PASSES):
            noise = torch.randn(images.shape, generator=generator).to(images.device) * _NOISE * threat.eps
            point = (current + noise).clamp(*threat.bounds).requires_grad_(True)
            (gradient,) = torch.autograd.grad(logit_margin(model(point), labels).sum(), point)
            total += gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        momentum = momentum + total
        current = threat.project(current + _STEP * threat.eps * threat.step(momentum), images)
    return current


def _from(
    model: Any, start: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Any, steps: int
) -> Tensor:
    """APGD on the logit margin from a given start."""

    class Started(ThreatModel):
        """The threat model, with this start in place of a random one."""

        def random_start(self, images: Tensor, _generator: Any) -> Tensor:
            return start[: len(images)]

    started = Started(threat.eps, threat.norm, threat.bounds)
    return apgd(model, images, labels, threat=started, steps=steps, generator=generator, loss=logit_margin)


VARIANTS: dict[str, Any] = {
    "cross-entropy": _plain(cross_entropy),
    "logit margin": _plain(logit_margin),
    "probability margin": _plain(probability_margin),
    "margin decomposition": margin_decomposition,
    "diversified start": diversified_start,
    "averaged gradients": averaged_gradients,
}
