"""A GPU runs behind the program unless that asks for a value: an attack on one does so now and then, not at each step.

There is no GPU here: the attacks run on the CPU and are told that it is none, and the operations for which a GPU would
have to stop are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_gradmask.attacks import arc, pgd, zero_order
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.evaluate import should_sync
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.loading.models.composites import Mixture
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from tests.toys import CPU, IMAGES, convolutional, predictions, seeded

_STOPS = {"_local_scalar_dense", "nonzero", "equal", "masked_select"}
_INDEXING = {"index", "index_put", "index_put_"}
_STEPS = 40


class Stops(TorchDispatchMode):
    """Counts after how many convolutions a GPU would have to stop before the next one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._running = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masked = name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if self._running and (name in _STOPS or masked):
            self.count, self._running = self.count + 1, False
        self._running = self._running or name == "convolution"
        return func(*args, **(kwargs or {}))


#: With how often each may ask which images are done, the end of each restart included.
ATTACKS: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
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
def test_an_attack_seldom_stops_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pgd, zero_order, arc):
        monkeypatch.setattr(module, "should_sync", lambda images, steps_since: steps_since == 0)
    mixture = Mixture([convolutional(), convolutional()])
    ensemble = name in ("joint margins", "member by member", "arc")
    stream = RandomStream(0, CPU)
    target = Oracle.of_mixture(mixture, stream) if ensemble else Oracle(mixture, stream)
    attack, analyses = ATTACKS[name]
    with Stops() as stops:
        attack(target, IMAGES, predictions(mixture, IMAGES), threat=ThreatModel(0.002), generator=seeded())
    assert stops.count == analyses


@pytest.mark.parametrize(
    "stop",
    [
        lambda images: bool(images.sum() > 0),
        lambda images: images[images > 0.5],
        lambda images: images.nonzero(),
        lambda images: torch.equal(images, images),
    ],
)
def test_what_stops_a_gpu_is_counted(stop: Callable[[torch.Tensor], object]) -> None:
    with Stops() as stops:
        stop(convolutional()(IMAGES))
        stop(IMAGES)
        torch.where(IMAGES > 0.5, IMAGES, 0).sum()
    assert stops.count == 1


def test_a_cpu_is_asked_at_each_step_and_a_gpu_is_not() -> None:
    cpu, other = torch.zeros(1), torch.zeros(1, device="meta")
    assert [should_sync(cpu, since) for since in (0, 1, 2)] == [True, True, True]
    assert [should_sync(other, since) for since in (0, 1, 2)] == [True, False, False]
