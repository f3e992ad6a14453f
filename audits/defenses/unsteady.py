"""Defenses whose answers depend on how, when or beside what they are asked."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from audits.defenses.entry import Entry, Loader, around, story
from audits.defenses.references import ITSELF, attack_views, inside, multi_targeted
from audits.defenses.shattered import Quantization
from pytest_gradmask import Defense
from pytest_gradmask.auditing.research import as_defense


class QueryMemory(nn.Module):
    """Remembers its queries. One that has many near neighbours in its memory gets the answer of the first of them.

    Chen, Carlini and Wagner ("Stateful detection of black-box adversarial attacks", 2019, arXiv:1907.05587) remember
    queries, and ban a user whose query is close to 50 earlier ones on average. Blacklight (Li et al., USENIX Security
    2022) rejects such queries. Both defend against attacks that need many queries. Chen, Carlini and Wagner evade the
    detector with queries that it does not see as similar, and an attacker who knows the weights asks nothing at all:
    the reference attacks the classifier inside, and then asks once.

    An audit asks about each image a thousand times. What it measures afterwards is the memory and not the classifier,
    so that it must not call the defense robust. Here 10 near queries are enough, and they are compared as 8 x 8 pixels,
    in place of the trained encoder.

    Args:
        model: the classifier inside.
        neighbours: number of near queries before one counts as part of an attack.
        distance: between two near queries, the root mean square over pixels, in input units.
        size: queries that are remembered; older ones are forgotten.
    """

    def __init__(self, model: nn.Module, neighbours: int = 10, distance: float = 0.03, size: int = 10_000) -> None:
        super().__init__()
        self.model, self.neighbours, self.distance, self.size = model, neighbours, distance, size
        self.queries: Tensor | None = None
        self.answers: Tensor | None = None
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        codes = adaptive_avg_pool2d(images.detach(), 8).flatten(1)
        if self.queries is None or self.answers is None:
            self.queries, self.answers = codes, logits.detach()
            return logits  # type: ignore[no-any-return]
        near = torch.cdist(codes, self.queries) < self.distance * codes.shape[1] ** 0.5
        first = self.answers[near.int().argmax(1)]
        known = near.sum(1) >= self.neighbours
        self.queries = torch.cat([self.queries, codes])[-self.size :]
        self.answers = torch.cat([self.answers, logits.detach()])[-self.size :]
        return torch.where(known[:, None], first, logits)


class BatchStatistics(nn.Module):
    """A batch norm that normalises by the mean and variance of the batch, at inference, too.

    Test-time batch norm adapts to corrupted images (Nado et al. 2020, arXiv:2006.10963; Schneider et al., NeurIPS 2020,
    arXiv:2006.16971). Each image changes the answers about all others, which an attacker can use (Wu et al.,
    "Uncovering adversarial risks of test-time adaptation", ICML 2023, arXiv:2301.12576). The robustness of an image
    alone is another than that in a batch, so that no audit of batches can vouch for it. The reference follows the exact
    gradient, in batches as the audit.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, _BatchNorm)
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, hidden: Tensor) -> Tensor:
        return batch_norm(hidden, None, None, self.weight, self.bias, training=True, eps=self.eps)


class RoundsUnderAutograd(nn.Module):
    """Rounds images to 3 bits, but only while gradients are enabled.

    A construction: users ask under ``no_grad`` and are answered by the plain classifier, gradient attacks meet the
    rounding. Carlini et al. ("On evaluating adversarial robustness", 2019, arXiv:1902.06705) ask that the defense which
    is attacked be the one that is deployed. The reference attacks the plain classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.round = model, Quantization()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.round(images) if torch.is_grad_enabled() else images)  # type: ignore[no-any-return]


class RobustWithoutAutograd(nn.Module):
    """An adversarially trained classifier that a weak one replaces while gradients are enabled.

    A construction: attacks follow the gradient of the weak classifier and are scored on the robust one. What is found
    on one says little about the other (see `RoundsUnderAutograd`). The reference attacks the robust classifier.

    Args:
        deployed: answers under ``no_grad``.
        decoy: answers otherwise.
    """

    def __init__(self, deployed: nn.Module, decoy: nn.Module) -> None:
        super().__init__()
        self.deployed, self.decoy = deployed, decoy
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.decoy if torch.is_grad_enabled() else self.deployed)(images)  # type: ignore[no-any-return]


def adapt_batch_norms(model: nn.Module) -> nn.Module:
    """Replace every batch norm of a model. The model is changed itself.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, BatchStatistics(child))
    return model.eval()


def _on_a_copy(defense: Defense | nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """`attack_views` on a copy of the defense, which keeps the memory of the defense as it is."""
    return attack_views(copy.deepcopy(as_defense(defense).model), images, labels, views=[inside("model")], **settings)


def _deployed(load: Loader) -> nn.Module:
    return RobustWithoutAutograd(load("vgg-adversarial"), load("vgg-standard"))


ENTRIES = (
    Entry(
        name="query-memory",
        backbone="vgg-standard",
        build=around(QueryMemory, "vgg-standard"),
        reference=_on_a_copy,
        story=story(QueryMemory),
        suspicious=True,
        slow=True,
        refused="stateful",
    ),
    Entry(
        name="batch-statistics",
        backbone="vgg-adversarial",
        build=around(adapt_batch_norms, "vgg-adversarial"),
        reference=partial(attack_views, views=[ITSELF], losses=multi_targeted(10), steps=40),
        story=story(BatchStatistics),
        suspicious=True,
        slow=True,
        refused="batch-dependence",
    ),
    Entry(
        name="rounds-under-autograd",
        backbone="vgg-standard",
        build=around(RoundsUnderAutograd, "vgg-standard"),
        reference=partial(attack_views, views=[inside("model")]),
        story=story(RoundsUnderAutograd),
        suspicious=True,
        refused="behaves-differently",
    ),
    Entry(
        name="robust-without-autograd",
        backbone="vgg-adversarial",
        build=_deployed,
        reference=partial(attack_views, views=[inside("deployed")], losses=multi_targeted(10), steps=40),
        story=story(RobustWithoutAutograd),
        suspicious=True,
        slow=True,
        refused="behaves-differently",
    ),
)
