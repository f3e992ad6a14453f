"""How many images an attack gets at a time follows from memory. Verdicts do not follow from it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel, Verdict
from pytest_gradmask.execution import chunks
from pytest_gradmask.execution.chunks import chunk_size, graph_bytes
from tests.toys import Detach, KillGradient, Noisy, audited, convolutional, draw, linear, masked, predictions

_MIB = 2**20


class Hungry(nn.Module):
    """A classifier that keeps ``size`` bytes of each image for its backward pass, beside what a linear one keeps."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.numbers = model, size // 4

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        wide = logits[:, :1].expand(-1, self.numbers) + 1
        return logits + 1e-12 * wide.square().mean(1, keepdim=True)


class OnGPU:
    """Stands in for images on a GPU, each of them ``image``."""

    device = torch.device("cuda", 0)

    def __init__(self, image: object) -> None:
        self.image = image

    def __getitem__(self, _: int) -> object:
        return self.image


def on_a_machine(patch: pytest.MonkeyPatch, memory: int) -> None:
    """Pretend that every device has so many bytes."""
    patch.setattr(chunks, "_memory", lambda _: memory)


@pytest.mark.parametrize("size", [_MIB, 8 * _MIB])
def test_what_the_graph_keeps_of_one_image_is_counted(size: int) -> None:
    assert graph_bytes(Hungry(linear(), size), draw(3, 3, 8, 8)) == pytest.approx(size, rel=0.01)


def test_larger_images_cost_more_and_weights_cost_nothing() -> None:
    small, large = (graph_bytes(nn.Conv2d(3, 8, 3).eval(), draw(1, 3, side, side)) for side in (8, 32))
    assert large == 16 * small == 3 * 32 * 32 * 4  # a convolution keeps its input
    narrow, wide = (nn.Sequential(nn.Flatten(), nn.Linear(192, width)).eval() for width in (2, 2000))
    assert graph_bytes(narrow, draw(1, 3, 8, 8)) == graph_bytes(wide, draw(1, 3, 8, 8))


def test_no_version_of_compiled_code_is_spent() -> None:
    runs: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        runs.append(1)
        return graph.forward

    model = torch.compile(linear(), backend=backend)
    assert graph_bytes(model, draw(2, 3, 8, 8)) == graph_bytes(linear(), draw(2, 3, 8, 8))
    assert not runs
    model(draw(2, 3, 8, 8))
    assert runs


def test_a_defense_without_a_graph_or_that_raises_costs_nothing() -> None:
    def broken(_: Tensor) -> Tensor:
        raise ValueError("no images, please")

    assert graph_bytes(nn.Sequential(Detach(), linear()), draw(2, 3, 8, 8)) <= 3 * 8 * 8 * 4
    assert graph_bytes(broken, draw(2, 3, 8, 8)) == 0


def test_where_two_images_do_not_fit_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def cramped(images: Tensor) -> Tensor:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.flatten(1)

    on_a_machine(monkeypatch, 16 * 2**30)
    images = draw(2, 3, 8, 8)
    assert chunk_size(images, graph_bytes(cramped, images)) == 1


def test_large_images_are_attacked_in_smaller_chunks_and_tiny_ones_in_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine(monkeypatch, 16 * 2**30)
    sides = {8: 400, 32: 1_300_000, 224: 82 * _MIB, 512: 420 * _MIB}  # of networks that were measured, but the last
    sizes = [chunk_size(draw(1, 3, side, side), graph) for side, graph in sides.items()]
    assert sizes == sorted(sizes, reverse=True)
    tiny, usual, large, huge = sizes
    assert tiny > 1000
    assert usual == 100
    assert 10 <= large <= 30
    assert 1 <= huge <= 5
    assert chunk_size(draw(1, 3, 8, 8), 10**15) == 1


def test_a_chunk_fits_into_the_memory_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    images, graph = draw(1, 3, 224, 224), 82 * _MIB
    sizes = {}
    for memory in (2, 8, 64):
        on_a_machine(monkeypatch, memory * 2**30)
        sizes[memory] = chunk_size(images, graph)
        assert sizes[memory] * graph < memory * 2**30 / 4
    assert sizes[2] < sizes[8] == sizes[64]  # many workers share the memory of a large machine
    assert chunk_size(images, graph, graphs=4) == pytest.approx(sizes[64] / 4, abs=1)


@pytest.mark.parametrize("memory", [8, 24, 139])
def test_a_gpu_gets_what_a_quarter_of_its_memory_holds(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory * 2**30))
    image = SimpleNamespace(nbytes=3 * 224 * 224 * 4)
    images: Any = OnGPU(image)
    assert chunk_size(images, 82 * _MIB) == pytest.approx(memory * 2**30 / 4 / (82 * _MIB), rel=0.15)
    image.nbytes = 3 * 32 * 32 * 4
    assert chunk_size(images, 1_300_000) > 1000


def test_the_memory_of_this_machine_is_known_and_stays() -> None:
    [memory] = {chunks._memory(torch.device("cpu")) for _ in range(3)}
    assert 2**28 < memory < 2**50


@pytest.mark.parametrize(("size", "largest"), [(256, 6), (256 * 2**10, 3)], ids=["frugal", "hungry"])
def test_attacks_get_such_chunks(size: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine(monkeypatch, 4 * _MIB)
    images, defense = draw(6, 3, 8, 8), Hungry(linear(), size).eval()
    asked: list[int] = []

    def own(model: nn.Module, images: Tensor, *_: Any, **__: Any) -> Tensor:
        asked.append(len(images))
        model(images)
        return images

    found = audited(Defense(defense, attacks=[own]), images, threat=ThreatModel(1e-4))
    assert found.attack("own").status == "done"
    assert sum(asked) == 6
    assert max(asked) == largest


CASES: dict[str, tuple[Callable[[], nn.Module], float, Verdict]] = {
    "masked": (lambda: masked(KillGradient), 0.05, Verdict.MASKED),
    "robust": (linear, 1e-4, Verdict.NOT_MASKED),
    "breakable": (convolutional, 0.3, Verdict.NOT_MASKED),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_the_same_with_other_chunks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, eps, verdict = CASES[case]
    found = []
    for size in (5, 1000):
        monkeypatch.setattr("pytest_gradmask.auditing.scoring.chunk_size", lambda *_, size=size: size)
        found.append(audited(make(), draw(24, 3, 8, 8), threat=ThreatModel(eps)))
    assert [each.verdict for each in found] == [verdict, verdict]
    if case != "masked":  # there a gradient attack breaks what its random start breaks, as with another seed
        assert len({(each.gap, each.clean, each.robust_accuracy) for each in found}) == 1


def test_a_randomized_defense_has_the_random_numbers_it_had_before_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = draw(24, 3, 8, 8)
    labels = predictions(linear(), images)  # its own would be random

    def run() -> Any:
        return audited(Noisy(linear(), 0.05).eval(), images, labels=labels).predictions

    measured = run()
    monkeypatch.setattr("pytest_gradmask.auditing.prepare.graph_bytes", lambda *_: 0)
    assert run() == measured
