"""Once an audit is over and its result is dropped, no tensor of it is left in memory."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, RandomizedEnsemble, ThreatModel, binarization_test, transfer_matrix
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.execution.chunks import graph_bytes
from pytest_gradmask.report.evidence.collection import collect_evidence
from tests.toys import IMAGES, KillGradient, Noisy, Quantize, audited, convolutional, masked, predictions, seeded


class Remembers(nn.Module):
    """Answers later queries otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.seen = convolutional(), [0]

    def forward(self, images: Tensor) -> Tensor:
        self.seen[0] += 1
        return self.model(images) + torch.eye(4)[0] * (self.seen[0] > 3)  # type: ignore[no-any-return]


def ensemble() -> Defense:
    members = [masked(KillGradient, convolutional()), masked(Quantize, convolutional())]
    return Defense(RandomizedEnsemble(members).eval(), members=members)


def audit_of(make: Callable[[], nn.Module | Defense], eps: float) -> None:
    audited(make(), threat=ThreatModel(eps))


def binarization() -> None:
    binarization_test(
        partial(apgd, steps=5), convolutional(), IMAGES[:2], predictions(convolutional(), IMAGES[:2]),
        threat=ThreatModel(0.05), generator=seeded(),
    )  # fmt: skip


def transfer() -> None:
    models = {"one": convolutional(), "other": masked(KillGradient, convolutional())}
    transfer_matrix(models, IMAGES, predictions(convolutional(), IMAGES), threat=ThreatModel(0.05), steps=2, seed=0)


def evidence() -> None:
    model = masked(Quantize, convolutional())
    labels = predictions(model, IMAGES)
    found = audited(model, threat=ThreatModel(0.1))
    collect_evidence(found, model, IMAGES, labels, threat=ThreatModel(0.1))


WORK: dict[str, Callable[[], object]] = {
    "honest": partial(audit_of, convolutional, 0.1),
    "honest and robust": partial(audit_of, convolutional, 1e-6),
    "masked": partial(audit_of, lambda: masked(KillGradient, convolutional()), 0.1),
    "rounded": partial(audit_of, lambda: masked(Quantize, convolutional()), 0.1),
    "randomized": partial(audit_of, lambda: Noisy(convolutional(), 0.05).eval(), 0.05),
    "ensemble": partial(audit_of, ensemble, 0.1),
    "stateful": partial(audit_of, lambda: Remembers().eval(), 0.1),
    "memory of a graph": lambda: graph_bytes(convolutional(), IMAGES),
    "binarization test": binarization,
    "transfer": transfer,
    "evidence": evidence,
}


def tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking some objects of PyTorch for their class is deprecated
        return sum(isinstance(each, Tensor) for each in gc.get_objects())


def kept(work: Callable[[], object]) -> int:
    """How many tensors each repetition leaves; less than 0 if others, of earlier tests, are freed meanwhile."""
    work()  # constants are made once
    counts = [tensors()]
    for _ in range(2):
        work()
        counts.append(tensors())
    return min(after - before for before, after in pairwise(counts))


@pytest.mark.parametrize("name", WORK)
def test_no_tensor_is_kept(name: str) -> None:
    assert kept(WORK[name]) <= 0


def test_one_that_is_kept_is_counted() -> None:
    keeps: list[Tensor] = []
    assert kept(lambda: keeps.append(torch.zeros(1))) == 1
