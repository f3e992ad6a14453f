"""An attack on a GPU synchronises seldom, not in each step: whenever the program needs a value, it waits for the GPU.

The tests need no GPU. The attacks run on the CPU but behave as on a GPU, and the operations that would synchronise are
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_gradmask.attacks import arc, pgd, zero_order
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.evaluate import should_sync
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.loading.models.composites import Mixture
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from tests.toys import CPU, IMAGES, convolutional, predictions, seeded

_SYNCING = {"_local_scalar_dense", "nonzero", "equal", "masked_select"}
_INDEXING = {"index", "index_put", "index_put_"}
_STEPS = 40


class CountSyncs(TorchDispatchMode):
    """Counts the convolutions after which a GPU would synchronise before the next one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._running = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masked = name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if self._running and (name in _SYNCING or masked):
            self.count, self._running = self.count + 1, False
        self._running = self._running or name == "convolution"
        return func(*args, **(kwargs or {}))


#: With how often each may synchronise to find out which images are done, also at the end of each restart.
ATTACKS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "pgd": (partial(pgd.pgd, steps=_STEPS), 1),
    "pgd, stopped early": (partial(pgd.pgd, steps=_STEPS, stop_early=True), 5),
    "apgd, whole": (partial(pgd.apgd, steps=_STEPS, stop_early=False, eot=2), 0),
    "apgd": (partial(pgd.apgd, steps=_STEPS), 12),  # at the start, and after each of its 10 windows
    "zero-order": (partial(zero_order.zero_order, steps=_STEPS, pairs=2), 4),
    "joint margins": (partial(pgd.apgd, steps=_STEPS, loss=joint_margins), 12),
    "member by member": (partial(member_by_member, steps=_STEPS), 0),
    "arc": (partial(arc.arc, steps=_STEPS), 5),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_number_of_gpu_synchronisations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pgd, zero_order, arc):
        monkeypatch.setattr(module, "should_sync", lambda images, steps_since: steps_since == 0)
    mixture = Mixture([convolutional(), convolutional()])
    ensemble = name in ("joint margins", "member by member", "arc")
    stream = RandomStream(0, CPU)
    target = Oracle.of_mixture(mixture, stream) if ensemble else Oracle(mixture, stream)
    attack, expected = ATTACKS[name]
    with CountSyncs() as syncs:
        attack(target, IMAGES, predictions(mixture, IMAGES), threat=ThreatModel(0.002), generator=seeded())
    assert syncs.count == expected


@pytest.mark.parametrize(
    "operation",
    [
        lambda images: bool(images.sum() > 0),
        lambda images: images[images > 0.5],
        lambda images: images.nonzero(),
        lambda images: torch.equal(images, images),
    ],
)
def test_synchronisations_are_counted(operation: Callable[[Tensor], object]) -> None:
    with CountSyncs() as syncs:
        operation(convolutional()(IMAGES))
        operation(IMAGES)
        torch.where(IMAGES > 0.5, IMAGES, 0).sum()
    assert syncs.count == 1


def test_should_sync() -> None:
    cpu, other = torch.zeros(1), torch.zeros(1, device="meta")
    assert [should_sync(cpu, since) for since in (0, 1, 2)] == [True, True, True]
    assert [should_sync(other, since) for since in (0, 1, 2)] == [True, False, False]
