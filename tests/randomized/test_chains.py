"""Defenses of many steps, such as purification by diffusion: memory, noise in checkpoints, and shorter chains."""

from __future__ import annotations

import math
import random
import re
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.auditing.run import audit
from pytest_gradmask.defense import Attack, Defense
from pytest_gradmask.probes.derivative import wrong_gradient
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from tests.toys import TINY, Noisy, draw, linear, seeded

PAGE = Path(__file__).parents[2] / "docs" / "purification.md"
IMAGES = draw(4, 3, 8, 8)
THREAT = ThreatModel(0.05)


def torch_noise(x: Tensor) -> Tensor:
    return torch.randn_like(x)


def numpy_noise(x: Tensor) -> Tensor:
    return torch.from_numpy(np.random.standard_normal(x.shape)).to(x)


def python_noise(x: Tensor) -> Tensor:
    return torch.tensor([random.gauss(0, 1) for _ in range(x.numel())]).view_as(x)


class Chain(nn.Module):
    """Steps that each remove a little of what a layer predicts, and add noise.

    Args:
        steps: how many.
        segment: steps of a checkpoint; 0 for no checkpoints.
        noise: from a tensor to one of its shape.
    """

    def __init__(self, steps: int, segment: int = 0, noise: Callable[[Tensor], Tensor] = torch_noise) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.1, generator=seeded())
        self.steps, self.segment, self.noise = steps, segment, noise
        self.runs = 0

    def reverse(self, x: Tensor, steps: int) -> Tensor:
        self.runs += 1
        for _ in range(steps):
            x = x - self.layers(x) / self.steps + 0.05 / self.steps * self.noise(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        if not self.segment:
            return self.reverse(images, self.steps)
        for first in range(0, self.steps, self.segment):
            images = checkpoint(
                self.reverse,
                images,
                min(self.segment, self.steps - first),
                use_reentrant=False,
                determinism_check="none",
            )
        return images


def defense(chain: nn.Module) -> nn.Sequential:
    return nn.Sequential(chain, linear()).eval().requires_grad_(False)


def oracle(model: nn.Module) -> Oracle:
    return Oracle(model, RandomStream(0, torch.device("cpu")))


def gradient(model: nn.Module) -> Tensor:
    """That of the largest logits at the images, with the first noise of the stream."""
    x = IMAGES.clone().requires_grad_(True)
    return torch.autograd.grad(oracle(model)(x).amax(1).sum(), x)[0]


class Memory(TorchDispatchMode):
    """Bytes of the tensors that operations inside make, as far as they are alive at once.

    Attributes:
        peak: most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: set[int] = set()
        self._bytes = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive.add(storage._cdata)
                    self._bytes += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._bytes)
        return made

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size


def peak(steps: int, segment: int) -> int:
    """Bytes that a step of APGD needs."""
    model = oracle(defense(Chain(steps, segment)))
    memory = Memory()
    with memory:
        apgd(model, IMAGES, torch.zeros(4).long(), threat=THREAT, steps=1, generator=seeded())
    return memory.peak


def test_memory_grows_with_the_number_of_steps_and_with_checkpoints_with_its_root() -> None:
    numbers = (9, 36, 144)
    plain = [peak(number, 0) for number in numbers]
    kept = [peak(number, math.isqrt(number)) for number in numbers]
    assert [later / earlier for earlier, later in pairwise(plain)] == pytest.approx([4, 4], rel=0.2)
    assert [later / earlier for earlier, later in pairwise(kept)] == pytest.approx([2, 2], rel=0.2)
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(numbers)
    assert [1000 * int(each) for _, each, _ in rows] == pytest.approx(plain, rel=0.1)
    assert [1000 * int(each) for *_, each in rows] == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("segment", [1, 4, 7])
def test_a_checkpoint_repeats_its_noise(segment: int) -> None:
    assert torch.allclose(gradient(defense(Chain(20, segment))), gradient(defense(Chain(20))), rtol=1e-4, atol=1e-7)


def test_a_checkpoint_repeats_no_noise_of_numpy_and_python_and_a_finding_says_so() -> None:
    class Loud(Chain):
        """Its noise decides what its steps do."""

        def reverse(self, x: Tensor, steps: int) -> Tensor:
            for _ in range(steps):
                x = x * (1 + 0.3 * self.noise(x))
            return x

    def found(noise: Callable[[Tensor], Tensor]) -> list[str]:
        target = oracle(defense(Loud(6, 2, noise)))
        with target.frozen():
            return [finding.id for finding in wrong_gradient(target, IMAGES, THREAT, seeded())]

    assert found(numpy_noise) == ["wrong-gradient"]
    assert found(python_noise) == ["wrong-gradient"]
    assert found(torch_noise) == []


def test_an_approximation_keeps_its_checkpoints() -> None:
    short = {segment: Chain(4, segment) for segment in (0, 2)}
    model = defense(Chain(20))
    expected, received = (gradient(bypassed(model, {"0": short[segment]})) for segment in (0, 2))
    assert torch.allclose(received, expected, rtol=1e-4, atol=1e-7)
    assert bool(received.any())
    assert (short[0].runs, short[2].runs) == (1, 4)  # two parts, and each again in the backward pass


def test_where_several_parts_are_bypassed_an_approximation_runs_once() -> None:
    """Another replaced forward would not be there any more in the backward pass."""
    short = Chain(4, 2)
    gradient(bypassed(defense(Chain(20)), {"0": short, "1": linear()}))
    assert short.runs == 2


class Detached(Chain):
    """Leaves no graph."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


@pytest.mark.longer
def test_attacks_may_take_fewer_steps_than_the_defense() -> None:
    short = Chain(4)
    model, source = defense(Detached(20)), defense(short)
    follow = Attack(partial(apgd, steps=5, eot=2), name="short chain", through=source)
    labels = linear()(IMAGES.repeat(6, 1, 1, 1)).argmax(1)
    found = audit(
        Defense(model, bypass={"0": short}, sources=[source], attacks=[follow]),
        IMAGES.repeat(6, 1, 1, 1), labels, threat=ThreatModel(0.2), budget=TINY, exhaustive=True,
    )  # fmt: skip
    assert {found.attack(name).status for name in ("short chain", "bpda", "transfer-source-0")} == {"done"}
    assert all(found.attack(name).broken for name in ("short chain", "bpda", "transfer-source-0"))


@pytest.mark.longer
def test_a_source_of_a_randomized_defense_is_averaged_over_its_noise() -> None:
    images = draw(24, 3, 8, 8)
    labels = linear()(images).argmax(1)
    passes = []
    for model in (Noisy(linear(), 0.1).eval(), linear().eval()):
        found = audit(
            Defense(model, bypass=(), sources=[Noisy(linear(), 0.1).eval()]), images, labels, threat=THREAT,
            budget=TINY, exhaustive=True,
        )  # fmt: skip
        attack = found.attack("transfer-source-0")
        passes.append(attack.backwards / len(attack.attacked))
    assert passes[0] == TINY.eot * passes[1]
