"""Audits on a device whose tensors may not mix with the CPU's: the same verdicts, and nothing left there.

Not collected by itself: `test_pretend_device` runs it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.records import stored
from pytest_gradmask import (
    Attack,
    Audit,
    Defense,
    DefenseError,
    ThreatModel,
    Verdict,
    apgd,
    audit,
    binarization_test,
    bypassed,
    pgd,
    transfer_matrix,
)
from pytest_gradmask.auditing import search_precision
from pytest_gradmask.auditing.bench import bench
from pytest_gradmask.errors import GradmaskError
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from pytest_gradmask.report.evidence.collection import collect_evidence
from tests.devices import pretend, waits
from tests.toys import TINY, Detach, KillGradient, Quantize, audited, draw, linear, masked, predictions, seeded

pretend.set_up()
IMAGES = draw(30, 3, 8, 8, seed=5)


@pytest.fixture
def device() -> torch.device:
    return torch.device(pretend.NAME)


class Noisy(nn.Module):
    """Adds noise to the image, from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + 0.01 * torch.randn_like(images))  # type: ignore[no-any-return]


class LastIsRejected(nn.Module):
    """A detector: a fifth class, which is never the largest, means rejected."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return torch.cat([logits, logits[:, :1] * 0 - 50], 1)


def with_attack(model: nn.Module) -> Defense:
    return Defense(model, attacks=[Attack(own_attack, kind="adaptive")])


def own_attack(model: Any, images: Tensor, labels: Tensor, *, threat: ThreatModel, generator: Any) -> Tensor:
    return pgd(model, images, labels, threat=threat, steps=3, generator=generator)


def approximation() -> nn.Module:
    """The same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv2d(3, 3, 3, padding=1)


def through_an_approximation(model: nn.Module) -> Defense:
    around = bypassed(model, {"0": approximation()})
    return Defense(model, attacks=[Attack(own_attack, kind="adaptive", through=around)])


DEFENSES: dict[str, Callable[[], Any]] = {
    "undefended": linear,
    "gradient-killer": lambda: masked(KillGradient),
    "quantized": lambda: masked(Quantize),
    "detached": lambda: masked(Detach),
    "own attack": lambda: with_attack(linear()),
    "a fitted approximation": lambda: Defense(masked(Quantize), bypass={"0": approximation()}),
    "ensemble, members known": lambda: Defense(
        RandomizedEnsemble([masked(KillGradient), masked(KillGradient)]).eval(),
        members=[masked(KillGradient), masked(KillGradient)],
    ),
    "an attack through an approximation": lambda: through_an_approximation(masked(Quantize)),
    "surrogate": lambda: Defense(masked(Quantize), sources=[linear()]),
    "detector": lambda: Defense(LastIsRejected().eval(), rejects=4),
}


def test_the_device_does_not_mix(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device=device) + torch.ones(3)
    assert (torch.ones(3, device=device) * 2 + torch.tensor(1.0)).cpu().tolist() == [3, 3, 3]
    with pretend.waiting() as counted:
        torch.ones(3, device=device).sum().item()
        torch.ones(3, device=device).nonzero()
    assert counted == {"_local_scalar_dense": 1, "nonzero": 1}


@pytest.mark.parametrize("name", DEFENSES)
def test_verdicts_are_those_of_the_cpu(name: str) -> None:
    # Where an attack settles the verdict, those after it run in an exhaustive audit only.
    exhaustive = "approximation" in name
    results = []
    for where in ("cpu", pretend.NAME):
        defense = DEFENSES[name]()
        results.append(
            audited(defense, IMAGES, threat=ThreatModel(0.15), margin=0.25, device=where, exhaustive=exhaustive)
        )
        model = defense.model if isinstance(defense, Defense) else defense
        assert {parameter.device.type for parameter in model.parameters()} <= {"cpu"}
    cpu, there = results
    assert there.verdict is cpu.verdict
    assert there.gap == cpu.gap
    assert [finding.id for finding in there.findings] == [finding.id for finding in cpu.findings]
    assert [(attack.name, attack.status) for attack in there.attacks] == [
        (attack.name, attack.status) for attack in cpu.attacks
    ]
    assert not [attack.note for attack in there.attacks if attack.status == "failed"]


def test_the_number_of_the_device_is_kept() -> None:
    """With several devices, work goes to the one that was asked for, and not to the current one."""
    with pretend.another_is_current():
        assert torch.ones(3, device=pretend.NAME).device == torch.device(pretend.NAME, 1)
        with pytest.raises(RuntimeError, match=f"{pretend.NAME}:0 and {pretend.NAME}:1"):
            torch.ones(3, device=f"{pretend.NAME}:0") + torch.ones(3, device=pretend.NAME)
        for name in ("undefended", "a fitted approximation", "ensemble, members known"):
            found = audited(DEFENSES[name](), IMAGES, threat=ThreatModel(0.15), margin=0.25, device=f"{pretend.NAME}:0")
            assert not [attack.note for attack in found.attacks if attack.status == "failed"], name


def test_a_randomized_defense() -> None:
    """Its random numbers are those of the device, so only the verdict is compared."""
    result = audited(Noisy().eval(), IMAGES, threat=ThreatModel(0.15), margin=0.3, device=pretend.NAME)
    assert result.verdict is Verdict.NOT_MASKED
    assert not [attack.note for attack in result.attacks if attack.status == "failed"]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_attack_runs_there(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_precision, "fast_bfloat16", lambda device: False)  # as on the device
    model = masked(Quantize)
    eps = {"Linf": 0.15, "L2": 1.5, "L1": 12.0}[norm]
    labels = predictions(model, IMAGES)
    broken = {}
    for where in ("cpu", pretend.NAME):
        with bench(model, IMAGES, labels, threat=ThreatModel(eps, norm), device=where) as prepared:
            broken[where] = {name: prepared.runner(name)().broken for name in prepared.attacks}
    # Zero-order PGD asks less often there which images are hopeless.
    lost = {len(set(found.pop("zero-order"))) for found in broken.values()}
    assert max(lost) - min(lost) <= 2
    assert broken["cpu"] == broken[pretend.NAME]
    assert len(broken["cpu"]) >= 7


def test_transfer_evidence_and_binarization_test() -> None:
    model, other = masked(Quantize), linear()
    labels = predictions(model, IMAGES)
    matrices = [
        transfer_matrix(
            {"first": model, "second": other}, IMAGES, labels, threat=ThreatModel(0.15), steps=5, seed=0, device=where
        )
        for where in ("cpu", pretend.NAME)
    ]
    assert matrices[0].robust_accuracy("first", "second") == matrices[1].robust_accuracy("first", "second")
    approximations = {"first": {"0": approximation()}, "second": ()}
    approximated = transfer_matrix(
        {"first": model, "second": other}, IMAGES, labels, attack="bpda", bypass=approximations, device=pretend.NAME,
        threat=ThreatModel(0.15), steps=2, seed=0,
    )  # fmt: skip
    assert len(approximated.common) > 0
    found_there = audited(model, IMAGES, threat=ThreatModel(0.15), device=pretend.NAME)
    evidence = collect_evidence(found_there, model, IMAGES, labels, threat=ThreatModel(0.15), device=pretend.NAME)
    assert not [part["error"] for part in evidence.values() if isinstance(part, dict) and "error" in part]
    there = torch.device(pretend.NAME)
    found = binarization_test(
        lambda *arguments, **keywords: apgd(*arguments, steps=10, **keywords), linear().to(there), IMAGES.to(there),
        labels.to(there), threat=ThreatModel(0.15), generator=seeded(),
    )  # fmt: skip
    assert found.tested + found.trivial + found.unseparable == len(IMAGES)


class Wide(nn.Module):
    """Needs several times the memory of its images."""

    def __init__(self, model: nn.Module, times: int) -> None:
        super().__init__()
        self.model, self.times = model, times

    def forward(self, images: Tensor) -> Tensor:
        copies = images.repeat(1, self.times, 1, 1).unflatten(1, (self.times, 3))
        return self.model(copies[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("times", [4, 30])
@pytest.mark.parametrize(("make", "verdict"), [(lambda: masked(Quantize), "MASKED"), (linear, "NOT_MASKED")])
def test_batches_are_halved_where_memory_is_short(make: Callable[[], nn.Module], verdict: str, times: int) -> None:
    """Other batches draw other random numbers: the verdict is the same, figures may differ."""
    model = Wide(make(), times).eval()
    labels = predictions(model, IMAGES)
    with pretend.faulty(numbers=IMAGES.numel()):
        with pytest.raises(torch.OutOfMemoryError):
            model(IMAGES.to(pretend.NAME))
        found = audit(model, IMAGES, labels, threat=ThreatModel(0.15), budget=TINY, margin=0.25, device=pretend.NAME)
    assert found.verdict.name == verdict
    assert not [attack.note for attack in found.attacks if attack.status == "failed"]


class RoundsWithoutAutograd(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if torch.is_grad_enabled() else (images * 4).round() / 4


def test_with_memory_for_one_image_it_is_asked_in_several_ways() -> None:
    model = Wide(nn.Sequential(RoundsWithoutAutograd(), linear()), 30).eval()
    labels = predictions(model, IMAGES)
    with pretend.faulty(numbers=IMAGES.numel()):
        found = audit(model, IMAGES, labels, threat=ThreatModel(0.1), budget=TINY, device=pretend.NAME)
    (finding,) = [each for each in found.findings if each.id == "behaves-differently"]
    assert "with autograd and without" in finding.message


def test_without_memory_for_one_image_the_fix_is_named() -> None:
    model = Wide(linear(), 31).eval()
    with pretend.faulty(numbers=IMAGES.numel()), pytest.raises(DefenseError, match="more memory than there is"):
        audit(model, IMAGES, predictions(model, IMAGES), threat=ThreatModel(0.15), budget=TINY, device=pretend.NAME)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("operations", [0, 1, 100, 1000, 3000])
def test_a_lost_device_costs_one_audit(operations: int) -> None:
    model = masked(Quantize)
    labels = predictions(model, IMAGES)

    def audited_there() -> Audit:
        return audit(
            model, IMAGES, labels, threat=ThreatModel(0.15), budget=TINY, margin=0.25, device=pretend.NAME,
            exhaustive=True,
        )  # fmt: skip

    with (
        pretend.faulty(operations=operations),
        pytest.raises(GradmaskError, match=r"the device pretend was lost|device='pretend': cannot be used"),
    ):
        audited_there()
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert torch.equal(predictions(model, IMAGES), labels)
    assert audited_there().verdict is Verdict.MASKED


@pytest.mark.parametrize("name", waits.ATTACKS)
def test_an_attack_hardly_makes_a_gpu_wait(name: str, device: torch.device) -> None:
    """They look every few steps which images are broken already. The documents show what is counted here."""
    found = waits.waits(name, device)
    assert all(count <= int(steps) for steps, count in found.items())
    assert found["60"] - found["20"] <= 20
    [record] = stored("waits")
    assert record["waits"][name] == found
