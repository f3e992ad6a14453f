"""Modules as they are deployed: compiled, TorchScript, exported, quantized and checkpointed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.bypass.inner_logits import find_inner_logits
from pytest_gradmask.attacks.bypass.search import find_bypass
from pytest_gradmask.attacks.oracle import parameter_dtype
from pytest_gradmask.auditing.plan_adaptive import OPERATIONS
from pytest_gradmask.auditing.surface import SEARCH_FAILED, find_attack_surface
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Verdict
from tests.toys import CPU, IMAGES, Quantize, audited, convolutional, draw, linear, masked, seeded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Network(nn.Module):
    """Features and a head, with hidden layers in both."""

    def __init__(self, front_end: nn.Module | None = None, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.front_end = front_end or nn.Identity()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4))
        self.reentrant = reentrant
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.3, generator=seeded())

    def forward(self, images: Tensor) -> Tensor:
        images = self.front_end(images)
        if self.reentrant is None:
            features = self.features(images)
        else:
            features = checkpoint(self.features, images, use_reentrant=self.reentrant)
        return self.head(features)  # type: ignore[no-any-return]


def exported(model: nn.Module) -> nn.Module:
    number = torch.export.Dim("number", min=1, max=1000)
    return torch.export.export(model, (IMAGES,), dynamic_shapes=({0: number},)).module()


class Scriptable(nn.Module):
    """`Network` without checkpoints, which TorchScript cannot compile."""

    def __init__(self, front_end: nn.Module | None = None) -> None:
        super().__init__()
        network = Network(front_end)
        self.front_end, self.features, self.head = network.front_end, network.features, network.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(self.front_end(images)))  # type: ignore[no-any-return]


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    """The model compiled; as torch types it, a function."""
    return cast(nn.Module, torch.compile(model, **options))


def static_int8() -> nn.Module:
    """Weights and activations of 8 bits. The quantized layers have no backward pass."""
    ends = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
    model = nn.Sequential(ends[0], Network().eval(), ends[1]).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)
    model(IMAGES)
    torch.ao.quantization.convert(model, inplace=True)
    return model


HONEST: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: compiled(Network().eval(), backend="eager"),
    "compiled with autograd": lambda: compiled(Network().eval(), backend="aot_eager"),
    "compiled as one graph": lambda: compiled(Network().eval(), backend="eager", fullgraph=True),
    "traced": lambda: torch.jit.trace(Network().eval(), IMAGES),
    "scripted": lambda: torch.jit.script(Scriptable().eval()),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(Scriptable().eval())),
    "scripted part": lambda: nn.Sequential(nn.Identity(), torch.jit.script(Scriptable().eval())).eval(),
    "exported": lambda: exported(Network().eval()),
    "graph module": lambda: torch.fx.symbolic_trace(Network().eval()),
    "re-entrant checkpoints": lambda: Network(reentrant=True).eval(),
    "checkpoints": lambda: Network(reentrant=False).eval(),
    "data parallel": lambda: nn.DataParallel(Network()).eval(),
}


@pytest.fixture(autouse=True)
def _no_compiled_code_left() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.longer
@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST.keys())
def test_honest_module_is_not_masked(make: Callable[[], nn.Module]) -> None:
    found = audited(make())
    assert found.verdict is Verdict.NOT_MASKED
    assert found.findings == ()
    assert found.bypassed == ()
    assert all(attack.status != "failed" for attack in found.attacks)


MASKED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "compiled": (lambda: compiled(Network(Quantize()).eval(), backend="eager"), ("_orig_mod.front_end",)),
    "scripted front end": (lambda: masked(lambda: torch.jit.script(Quantize())), ("0",)),
    "scripted backbone": (lambda: masked(Quantize, torch.jit.script(Scriptable().eval())), ("0",)),
    "graph module": (lambda: torch.fx.symbolic_trace(Network(Quantize()).eval()), ("all before features.0",)),
    "data parallel": (lambda: nn.DataParallel(Network(Quantize())).eval(), ("module.front_end",)),
    "re-entrant checkpoints": (lambda: Network(Quantize(), reentrant=True).eval(), ("front_end",)),
    "dynamic int8": (
        lambda: torch.ao.quantization.quantize_dynamic(Network().eval(), {nn.Linear}, dtype=torch.qint8),
        ("head.1", "head.3"),
    ),
}


@pytest.mark.parametrize(("make", "parts"), MASKED.values(), ids=MASKED.keys())
def test_part_without_a_gradient_is_bypassed(make: Callable[[], nn.Module], parts: tuple[str, ...]) -> None:
    found = audited(make())
    assert found.verdict is Verdict.MASKED
    assert found.bypassed == parts
    assert all(attack.status != "failed" for attack in found.attacks)


SCRIPTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "whole": (lambda: torch.jit.script(Scriptable(Quantize()).eval()), "the whole defense"),
    "front end": (lambda: masked(lambda: torch.jit.script(Quantize())), "0"),
    "two parts": (
        lambda: nn.Sequential(torch.jit.script(nn.Identity()), torch.jit.script(Scriptable().eval())).eval(), "0, 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "parts"), SCRIPTED.values(), ids=SCRIPTED.keys())
def test_the_report_says_where_operations_cannot_be_watched(make: Callable[[], nn.Module], parts: str) -> None:
    natural = audited(make()).attack(OPERATIONS)
    assert (natural.status, natural.note) == ("skipped", f"{parts}: TorchScript, whose operations cannot be watched")


def test_without_torchscript_it_says_nothing() -> None:
    assert OPERATIONS not in {attack.name for attack in audited(Network().eval()).attacks}
    assert audited(Network(Quantize()).eval()).attack(OPERATIONS).status == "done"


def test_static_int8_is_masked_and_has_nothing_to_bypass() -> None:
    found = audited(static_int8(), threat=ThreatModel(0.3))
    assert found.verdict is Verdict.MASKED
    assert found.bypassed == ()
    assert "interrupted-graph" in {finding.id for finding in found.findings}


def test_frozen_module_in_half_precision() -> None:
    frozen = torch.jit.freeze(torch.jit.script(Scriptable().eval().bfloat16()))
    assert parameter_dtype(frozen) is torch.bfloat16
    labels = frozen(IMAGES.bfloat16()).argmax(1)
    assert audited(frozen, labels=labels).verdict is Verdict.NOT_MASKED


def test_masking_inside_torchscript_is_never_cleared() -> None:
    found = audited(torch.jit.script(Scriptable(Quantize()).eval()))
    assert found.verdict is not Verdict.NOT_MASKED
    assert "zero-gradient" in {finding.id for finding in found.findings}


def test_searches_compile_nothing() -> None:
    versions = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        nonlocal versions
        versions += 1
        return graph.forward

    model = compiled(masked(Quantize, convolutional()), backend=count)
    model(IMAGES[:8])
    before = versions
    found = find_bypass(model, IMAGES[:8])
    assert find_inner_logits(model, IMAGES[:8]) == ""
    bypassed(model, found)(IMAGES[:8].clone().requires_grad_(True))
    assert versions == before > 0


def test_exported_program_in_train_mode() -> None:
    assert exported(Network().eval()).training
    with pytest.raises(DefenseError, match="train mode"):
        audited(torch.fx.symbolic_trace(Network().eval()).train(), labels=torch.zeros(24, dtype=torch.long))


def test_checkpoints_refuse_again_after_an_audit() -> None:
    model = Network(reentrant=True).eval()
    audited(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    point = draw(2, 3, 8, 8).requires_grad_(True)
    with pytest.raises(RuntimeError, match="use_reentrant"):
        torch.autograd.grad(model(point).sum(), point)


# searches that fail


class NoHooks(nn.Sequential):
    """Raises while it is observed."""

    def forward(self, images: Tensor) -> Tensor:
        if any(module._forward_hooks for module in self):
            raise TypeError("no hooks here")
        return nn.Sequential.__call__(nn.Sequential(*self), images)  # type: ignore[no-any-return]


class NoRewiring(nn.Sequential):
    """Raises once the forward of a submodule is replaced."""

    def forward(self, images: Tensor) -> Tensor:
        if any("forward" in module.__dict__ for module in self):
            raise ValueError("who replaced my forward?")
        return nn.Sequential.__call__(nn.Sequential(*self), images)  # type: ignore[no-any-return]


def search(model: nn.Module, **arguments: object) -> tuple[dict[str, object], list[str]]:
    """What is bypassed, and the messages of searches that failed."""
    surface = find_attack_surface(
        Defense(model, **arguments),  # type: ignore[arg-type]
        IMAGES, stream=RandomStream(0, CPU), classes=4, randomized=bool(arguments), threat=ThreatModel(0.1), eot=1,
    )  # fmt: skip
    assert all(finding.id == SEARCH_FAILED and not finding.undermines_attacks for finding in surface.findings)
    return surface.approximations, [finding.message for finding in surface.findings]


def test_a_search_that_raises_has_found_nothing() -> None:
    found, messages = search(NoHooks(Quantize(), linear()).eval())
    assert found == {}
    assert [message.partition(" found")[0] for message in messages] == [
        "the search for parts to bypass",
        "the search for inner logits",
        "the search for inner classifiers",
    ]
    assert all("TypeError: no hooks here" in message for message in messages)


def test_a_bypass_that_cannot_run_is_dropped() -> None:
    found, messages = search(NoRewiring(Quantize(), linear()).eval())
    assert found == {}
    assert len(messages) == 1
    assert "ValueError: who replaced my forward?" in messages[0]


class RefusesReplacement(Quantize):
    """Raises once its forward is replaced."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if "forward" in self.__dict__:
            raise ValueError("who replaced my forward?")
        return super().__call__(*arguments, **options)


@pytest.mark.parametrize("parts", [(Quantize, RefusesReplacement), (RefusesReplacement, Quantize)])
def test_a_bypass_that_can_run_is_kept(parts: tuple[type[nn.Module], ...]) -> None:
    found, messages = search(nn.Sequential(*(part() for part in parts), linear()).eval())
    assert list(found) == [str(parts.index(Quantize))]
    assert [message.partition(" found")[0] for message in messages] == [
        f"the search for a way to bypass {parts.index(RefusesReplacement)}"
    ]


def test_a_search_that_succeeds_has_no_finding() -> None:
    assert search(nn.Sequential(Quantize(), linear()).eval()) == ({"0": None}, [])


def test_an_audit_goes_on_without_its_searches() -> None:
    found = audited(NoHooks(nn.Identity(), linear()).eval())
    assert found.verdict is Verdict.NOT_MASKED
    assert {finding.id for finding in found.findings} == {SEARCH_FAILED}
