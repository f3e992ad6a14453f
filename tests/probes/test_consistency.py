"""The defense that is attacked is the one that is scored, or a finding says in what they differ."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import load_model
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from pytest_gradmask.probes.consistency import Recording, check_again, check_consistency, keep_original
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding, Verdict
from tests.probes.probe_toys import ON_GRID, Ripple, off_grid
from tests.toys import (
    CPU,
    Counting,
    Noisy,
    Quantize,
    Spy,
    audited,
    convolutional,
    global_state,
    linear,
    predictions,
)

DATA = load_dataset("embedded")
THREAT = ThreatModel(0.03)


def coarse(images: Tensor) -> Tensor:
    """A robust version of the images, on which the answers do not follow small changes."""
    return torch.round(images * 4) / 4


class Switch(nn.Module):
    """A classifier that is another, robust one under a condition."""

    def __init__(self, robust: Callable[[Switch, Tensor], bool | Tensor]) -> None:
        super().__init__()
        self.backbone, self.robust, self.calls = linear(), robust, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        condition = torch.as_tensor(self.robust(self, images)).view(-1, 1, 1, 1)
        return self.backbone(torch.where(condition, coarse(images), images))  # type: ignore[no-any-return]


def only_without_autograd(_: Switch, __: Tensor) -> bool:
    return not torch.is_grad_enabled()


def only_if_no_gradient_is_asked(_: Switch, images: Tensor) -> bool:
    return not images.requires_grad


def only_in_batches(_: Switch, images: Tensor) -> bool:
    return len(images) > 1


def only_while_parameters_need_no_gradient(model: Switch, _: Tensor) -> bool:
    return not any(parameter.requires_grad for parameter in model.parameters())


def only_in_inference_mode(_: Switch, __: Tensor) -> bool:
    return torch.is_inference_mode_enabled()


def only_off_the_grid(_: Switch, images: Tensor) -> Tensor:
    return off_grid(images)


def only_after_some_calls(model: Switch, _: Tensor) -> bool:
    return model.calls > 50


class Memory(nn.Module):
    """Answers what is near an earlier query as it answered that one."""

    def __init__(self, reach: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.reach = linear(), reach
        self.queries: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.backbone(images)
        if self.queries:
            known, answers = torch.cat(self.queries), torch.cat(self.answers)
            distances = (images.detach()[:, None] - known).abs().flatten(2).amax(2)
            near = distances.amin(1) <= self.reach
            logits = torch.where(near[:, None], answers[distances.argmin(1)], logits)
        if len(self.queries) < 40:
            self.queries.append(images.detach().clone())
            self.answers.append(logits.detach().clone())
        return logits  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention, of which torch has a faster version without autograd; with buffers that the first call makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
        self.head = nn.Linear(24, 4)
        self.mean: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = torch.full((3, 1, 1), 0.5)
        tokens = (images - self.mean).permute(0, 2, 1, 3).flatten(2)
        return self.head(self.layer(tokens).mean(1))  # type: ignore[no-any-return]


def check(
    model: nn.Module,
    images: Tensor = ON_GRID,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel = THREAT,
    randomized: bool = False,
    queries: int = 0,
) -> list[Finding]:
    """Findings before ``queries`` queries of an attack and after them, as an audit asks."""
    stream = RandomStream(0, CPU)
    fresh = functools.partial(Oracle, stream=stream)
    original = keep_original(model)
    labels = predictions(copy.deepcopy(model), images) if labels is None else labels
    with no_trace([model], CPU):
        oracle = fresh(model)
        with torch.no_grad():
            oracle(images)  # as the preflight
        found, recording = check_consistency(
            oracle, oracle, images, labels, threat=threat, original=original, fresh=fresh, randomized=randomized,
            batch_dependent=False, seed=1,
        )  # fmt: skip
        with torch.no_grad():
            for _ in range(queries):
                oracle(images)
        return found + ([] if recording is None else check_again(oracle, recording))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (only_without_autograd, "with autograd and without"),
        (only_if_no_gradient_is_asked, "with autograd and without"),
        (only_in_batches, "alone and in a batch"),
        (only_while_parameters_need_no_gradient, "while parameters require gradients"),
        (only_in_inference_mode, "under torch.inference_mode"),
        (only_off_the_grid, "on the grid of 8 bits and off it"),
    ],
)
def test_what_changes_the_answers_is_named(condition: Callable[..., Any], words: str) -> None:
    [finding] = check(Switch(condition).eval())
    assert finding.id == "behaves-differently"
    assert finding.undermines_attacks
    assert words in finding.message
    assert "points" in finding.message


class Shy(Switch):
    """Cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shy:
        raise TypeError("no copy of me")


@pytest.mark.parametrize("kind", [Switch, Shy])
def test_a_robustness_that_comes_with_calls_is_found(kind: type[Switch]) -> None:
    labels = predictions(linear(), ON_GRID)
    [finding] = check(kind(only_after_some_calls).eval(), labels=labels, queries=60)
    assert finding.id == "stateful"
    assert finding.undermines_attacks
    assert "after the attacks" in finding.message
    assert check(kind(only_after_some_calls).eval(), labels=labels, queries=5) == []


def test_a_switch_before_the_attacks_shows_on_a_copy() -> None:
    model = Switch(only_after_some_calls).eval()
    original = keep_original(model)
    stream = RandomStream(0, CPU)
    fresh = functools.partial(Oracle, stream=stream)
    model.calls = 100
    found, recording = check_consistency(
        fresh(model), fresh(model), ON_GRID, predictions(linear(), ON_GRID), threat=THREAT, original=original,
        fresh=fresh, randomized=False, batch_dependent=False, seed=1,
    )  # fmt: skip
    assert [finding.id for finding in found] == ["stateful"]
    assert "from a copy that has answered nothing before" in found[0].message
    assert recording is None


@pytest.mark.parametrize("model", [Counting(linear(), growth=0.2), Memory()], ids=["counts", "remembers"])
def test_a_state_is_found(model: nn.Module) -> None:
    [finding] = check(model.eval(), randomized=isinstance(model, Counting))
    assert finding.id == "stateful"
    assert finding.undermines_attacks


@pytest.mark.parametrize("reach", [0.0, 0.02])
def test_a_memory_of_what_is_nearer_than_an_attack_goes_is_found(reach: float) -> None:
    found = check(Memory(reach).eval())
    assert [finding.id for finding in found] == (["stateful"] if reach else [])
    assert all("from a copy that has answered points near them" in finding.message for finding in found)


class OwnNoise(nn.Module):
    """Noise on the logits from a generator that nobody else can freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.generator = linear(), torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.backbone(images)
        return logits + torch.randn(logits.shape, generator=self.generator)  # type: ignore[no-any-return]


def dropout() -> nn.Module:
    model = nn.Sequential(nn.Dropout(0.2), linear()).eval()
    model[0].train()
    return model


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Noisy(linear(), 0.5), id="noise"),
        pytest.param(dropout(), id="dropout"),
        pytest.param(OwnNoise(), id="noise of its own"),
        pytest.param(RandomizedEnsemble([linear(), linear(seed=1)]), id="ensemble"),
    ],
)
def test_randomness_alone_is_no_finding(model: nn.Module) -> None:
    if not isinstance(model, nn.Sequential):
        model.eval()
    assert check(model, randomized=True, queries=3) == []


def test_a_switch_under_randomness_is_found() -> None:
    [finding] = check(Noisy(Switch(only_without_autograd), 0.1).eval(), randomized=True)
    assert finding.id == "behaves-differently"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(linear(), id="linear"),
        pytest.param(convolutional(), id="convolutional"),
        pytest.param(convolutional().half(), id="half precision"),
        pytest.param(convolutional().bfloat16(), id="bfloat16"),
        pytest.param(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), linear()).eval(), id="batch norm"),
        pytest.param(nn.Sequential(Quantize(), linear()).eval(), id="rounds"),
        pytest.param(nn.Sequential(Ripple(), linear()).eval(), id="shatters"),
        pytest.param(Attention().eval(), id="attention"),
        pytest.param(Counting(linear()).eval(), id="counts without effect"),
        pytest.param(Spy(linear()).eval(), id="records"),
    ],
)
@pytest.mark.parametrize("eps", [0.001, 0.03, 0.3])
def test_honest_defenses_have_no_finding(model: nn.Module, eps: float) -> None:
    assert check(model, threat=ThreatModel(eps), queries=2) == []


@functools.cache
def trained(name: str) -> nn.Module:
    return load_model(name)


@pytest.mark.longer
@pytest.mark.parametrize("name", ["resnet-standard", "vgg-adversarial", "vit-standard", "resnet-standard-composite"])
def test_trained_models_have_no_finding(name: str) -> None:
    right = predictions(trained(name), DATA.images) == DATA.labels
    assert check(trained(name), DATA.images[right], DATA.labels[right], threat=ThreatModel(8 / 255)) == []


def test_no_trace_is_left() -> None:
    model = linear()
    before = global_state()
    original = keep_original(model)
    assert original.copy is not model
    assert check(model) == []
    assert global_state() == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("late", [0, 120])
def test_an_audit_refuses_what_behaves_otherwise(late: int) -> None:
    model = Switch(only_without_autograd if not late else lambda model, _: model.calls > late).eval()
    labels, threat = predictions(linear(), ON_GRID), ThreatModel(0.002)
    audit = audited(model, ON_GRID, labels=labels, threat=threat)
    assert ("stateful" if late else "behaves-differently") in [finding.id for finding in audit.findings]
    assert audit.verdict is not Verdict.NOT_MASKED
    honest = audited(linear(), ON_GRID, labels=labels, threat=threat)
    assert honest.verdict is Verdict.NOT_MASKED
    assert honest.findings == ()


def test_a_recording_holds_points_and_answers() -> None:
    model = linear()
    oracle = Oracle(model, RandomStream(0, CPU))
    points = ON_GRID[:3]
    recording = Recording(points, model(points).detach(), 0)
    assert check_again(oracle, recording) == []
    assert [finding.id for finding in check_again(oracle, Recording(points, -recording.answers, 0))] == ["stateful"]


class Limited(nn.Module):
    """Answers a number of queries, and then no more."""

    def __init__(self, model: nn.Module, queries: int) -> None:
        super().__init__()
        self.model, self.left = model, queries

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no queries left")
        return self.model(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("queries", "found"), [(1, True), (2, False)])
def test_refused_answers_are_a_finding(queries: int, found: bool) -> None:
    oracle = Oracle(Limited(linear(), queries), RandomStream(0, CPU))
    points = ON_GRID[:3]
    with torch.no_grad():
        recording = Recording(points, oracle(points), 0)
    findings = check_again(oracle, recording)
    assert [finding.id for finding in findings] == ["stateful"] * found
    assert all(finding.undermines_attacks and "no queries left" in finding.message for finding in findings)
