"""An audit restores the process and the models."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import audit
from pytest_gradmask.execution.isolation import moved, no_trace
from tests.toys import CPU, IMAGES, THREAT, TINY, KillGradient, audited, global_state, masked, seed_all

Inside = Callable[[nn.Module], AbstractContextManager[None]]


@contextlib.contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Leave the context normally."""
    with no_trace([model], CPU):
        yield


@contextlib.contextmanager
def raising(model: nn.Module) -> Iterator[None]:
    """Leave the context by an exception."""
    with contextlib.suppress(ZeroDivisionError), no_trace([model], CPU):
        yield
        _ = 1 / 0


@pytest.fixture(params=[quietly, raising], ids=["quietly", "raising"])
def inside(request: pytest.FixtureRequest) -> Inside:
    """A context manager that enters ``no_trace`` around a model, and leaves it in one of the two ways."""
    return request.param  # type: ignore[no-any-return]


class Stateful(nn.Module):
    """Has a frozen parameter, another with a gradient, buffers, and a submodule in train mode."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.eval()
        self.dropout.train()
        self.layer.bias.requires_grad_(False)
        self.layer.weight.grad = torch.ones(4, 4)


@pytest.fixture
def model() -> Stateful:
    """A model with every kind of state that an audit might change."""
    return Stateful()


def test_random_states(inside: Inside, model: nn.Module) -> None:
    seed_all(1)
    before = global_state()
    with inside(model):
        seed_all(4)
        assert global_state() != before
    assert global_state() == before


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode(inside: Inside, model: nn.Module, enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        with inside(model):
            torch.set_grad_enabled(not enabled)
        assert torch.is_grad_enabled() == enabled


def test_default_dtype(inside: Inside, model: nn.Module) -> None:
    with inside(model):
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() is torch.float32


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "default device": (lambda: torch.empty(0).device, lambda: torch.set_default_device("meta")),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "determinism": (torch.get_deterministic_debug_mode, lambda: torch.use_deterministic_algorithms(True)),
    "precision": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "cuDNN": (lambda: torch.backends.cudnn.deterministic, lambda: setattr(torch.backends.cudnn, "deterministic", True)),
    "profiler": (sys.getprofile, lambda: sys.setprofile(lambda *_: None)),
    "warnings": (lambda: warnings.filters[:], lambda: warnings.simplefilter("ignore", BytesWarning)),
    "oneDNN": (lambda: torch.backends.mkldnn.enabled, lambda: torch.backends.mkldnn.set_flags(False)),
    "fast path": (torch.backends.mha.get_fastpath_enabled, lambda: torch.backends.mha.set_fastpath_enabled(False)),
    "anomaly mode": (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(True)),
    "print options": (lambda: str(torch.tensor(1 / 3)), lambda: torch.set_printoptions(precision=2)),
    "print options of NumPy": (np.get_printoptions, lambda: np.set_printoptions(precision=2)),
    "errors of NumPy": (np.geterr, lambda: np.seterr(divide="raise")),
    "recursion limit": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1)),
    "path": (lambda: sys.path[:], lambda: sys.path.append("elsewhere")),
    "working directory": (os.getcwd, lambda: os.chdir("/")),
    "environment": (lambda: os.environ.get("GRADMASK_TOY"), lambda: os.environ.update(GRADMASK_TOY="1")),
    "level of a logger": (lambda: logging.getLogger().level, lambda: logging.getLogger().setLevel(1)),
    "a function of PyTorch": (lambda: torch.autograd.grad, lambda: setattr(torch.autograd, "grad", print)),
    "hooks of all modules": (
        lambda: dict(nn.modules.module._global_forward_hooks),
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    ),
}


@pytest.mark.parametrize(("read", "change"), CHANGES.values(), ids=CHANGES)
def test_settings_of_the_process(
    inside: Inside, model: nn.Module, read: Callable[[], object], change: Callable[[], object]
) -> None:
    before = read()
    with inside(model):
        change()
        assert read() != before
    assert read() == before


def test_default_device_of_the_user_stays(inside: Inside, model: nn.Module) -> None:
    torch.set_default_device("meta")
    try:
        with inside(model):
            torch.set_default_device("cpu")
        assert torch.empty(0).device == torch.device("meta")
    finally:
        torch.set_default_device(None)


def test_an_audit_leaves_hooks_and_loggers_alone() -> None:
    def loggers() -> dict[str, tuple[int, list[logging.Handler]]]:
        named = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
        return {
            name: (logger.level, logger.handlers[:])
            for name, logger in named.items()
            if isinstance(logger, logging.Logger)
        }

    def hooks(model: nn.Module) -> list[tuple[int, int, int]]:
        return [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ]

    audited(masked(KillGradient), exhaustive=True)  # imports libraries that may create loggers
    model = masked(KillGradient)
    model.register_forward_hook(lambda *_: None)
    before = loggers(), hooks(model)
    audited(model, exhaustive=True)
    assert (loggers(), hooks(model)) == before


def test_tracer(inside: Inside, model: nn.Module) -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with inside(model):
            sys.settrace(None)
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is trace


def test_train_flags(inside: Inside, model: nn.Module) -> None:
    before = [module.training for module in model.modules()]
    assert set(before) == {True, False}
    with inside(model):
        model.train()
    assert [module.training for module in model.modules()] == before


def test_parameters_require_no_gradient_inside(inside: Inside, model: Stateful) -> None:
    before = [parameter.requires_grad for parameter in model.parameters()]
    assert set(before) == {True, False}
    with inside(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model.layer.bias.requires_grad_(True)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_gradients(inside: Inside, model: Stateful) -> None:
    gradient = model.layer.weight.grad
    with inside(model):
        model.layer.weight.grad = None
        model.layer.bias.grad = torch.ones(4)
    assert model.layer.weight.grad is gradient
    assert model.layer.bias.grad is None


def test_buffers_written_to(inside: Inside, model: Stateful) -> None:
    with inside(model):
        model.mean.fill_(torch.nan)
        model.calls.add_(1)
    assert model.mean.tolist() == [0] * 4
    assert model.calls == 0


def test_buffers_replaced(inside: Inside, model: Stateful) -> None:
    buffer = model.calls
    with inside(model):
        model.calls += 1
        model.calls = model.calls + 1
    assert model.calls is buffer
    assert buffer == 0


def test_buffers_of_nan_are_no_problem(inside: Inside, model: Stateful) -> None:
    model.mean.fill_(torch.nan)
    with inside(model):
        model.mean.zero_()
    assert model.mean.isnan().all()


def _fill(model: Stateful) -> None:
    with torch.no_grad():
        model.layer.weight.fill_(7)


def _fill_data(model: Stateful) -> None:
    model.layer.weight.data.fill_(7)  # no version counter sees this


def _fill_numpy(model: Stateful) -> None:
    model.layer.weight.detach().numpy()[:] = 7


def _exchange_data(model: Stateful) -> None:
    model.layer.weight.data = torch.full((2, 3), 7.0, dtype=torch.float64)


def _replace(model: Stateful) -> None:
    model.layer.weight = nn.Parameter(torch.full((4, 4), 7.0))


def _freeze(model: Stateful) -> None:
    model.layer.weight.fill_(7)
    weight = model.layer.weight.data
    del model.layer.weight
    model.layer.register_buffer("weight", weight)


@pytest.mark.parametrize("change", [_fill, _fill_data, _fill_numpy, _exchange_data, _replace, _freeze])
def test_values_of_parameters(inside: Inside, model: Stateful, change: Callable[[Stateful], None]) -> None:
    weight, values = model.layer.weight, model.layer.weight.detach().clone()
    with inside(model):
        change(model)
        assert (model.layer.weight == 7).all()
    assert model.layer.weight is weight
    assert torch.equal(weight, values)
    assert not dict(model.layer.named_buffers())


class Restless(nn.Module):
    """Writes to its weights and hooks itself in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 4)

    def forward(self, images: Tensor) -> Tensor:
        self.linear.weight.data.add_(1e-4)
        self.linear.register_forward_hook(lambda _, __, output: output)
        return self.linear(images.flatten(1))  # type: ignore[no-any-return]


def test_an_audit_restores_a_defense_that_changes_itself() -> None:
    model = Restless().eval()
    weight, hooks = model.linear.weight.detach().clone(), _hooks(model)
    found = audit(model, IMAGES, torch.zeros(24, dtype=torch.long), threat=THREAT, budget=TINY)
    assert "stateful" in {finding.id for finding in found.findings}
    assert torch.equal(model.linear.weight, weight)
    assert _hooks(model) == hooks


def test_parts_added_and_removed(inside: Inside, model: Stateful) -> None:
    parts = list(model.named_modules())
    with inside(model):
        model.extra = nn.Linear(4, 4)
        model.register_buffer("seen", torch.zeros(9))
        model.register_module("dropout", nn.Identity())
        del model.layer
    assert list(model.named_modules()) == parts
    assert [name for name, _ in model.named_buffers()] == ["mean", "calls"]


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook",
        "register_full_backward_pre_hook", "register_state_dict_pre_hook", "register_load_state_dict_post_hook",
    ],
)  # fmt: skip
def test_hooks_of_the_model(inside: Inside, model: Stateful, register: str) -> None:
    removed = model.layer.register_forward_hook(lambda *_: None, with_kwargs=False)
    hooks = _hooks(model)
    with inside(model):
        removed.remove()
        getattr(model.layer, register)(lambda *_: None)
        assert _hooks(model) != hooks
    assert _hooks(model) == hooks


def _hooks(model: nn.Module) -> list[dict[str, Any]]:
    """All hooks of all modules of a model."""
    return [
        {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(module).items()
            if "hook" in name
        }
        for module in model.modules()
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript(inside: Inside) -> None:
    scripted = torch.jit.script(nn.BatchNorm1d(4))
    with inside(scripted):
        scripted.running_mean.fill_(7)
        scripted.weight.data.fill_(7)
        scripted.eval()
    assert scripted.running_mean.tolist() == [0] * 4
    assert scripted.weight.tolist() == [1] * 4
    assert scripted.training


def test_shared_parts(inside: Inside, model: Stateful) -> None:
    # The same part in several places, as in the members of an ensemble.
    twice = nn.Sequential(model, nn.Sequential(model, model.layer))
    with inside(twice):
        model.mean.add_(1)
        model.train()
    assert model.mean.tolist() == [0] * 4
    assert not model.training
    assert model.dropout.training
    assert model.layer.weight.requires_grad


def test_exception_is_passed_on(model: Stateful) -> None:
    with pytest.raises(KeyboardInterrupt), no_trace([model], CPU):
        raise KeyboardInterrupt
    assert model.layer.weight.requires_grad


class Elsewhere(nn.Module):
    """Records its device without a tensor on it, so that no second device is needed. Moves its parts with it."""

    def __init__(self, *parts: Elsewhere) -> None:
        super().__init__()
        self.parts, self.device = parts, torch.device("cpu")

    def to(self, device: torch.device) -> Elsewhere:  # type: ignore[override]
        self.device = device
        for part in self.parts:
            part.to(device)
        return self

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        del recurse
        yield nn.Parameter(torch.empty(0, device=self.device))


def test_weights_get_their_own_memory_back(model: Stateful) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (tensor, tensor.data_ptr(), tensor.clone()) for name, tensor in tensors.items()}
    gradient = model.layer.weight.grad
    with contextlib.suppress(NotImplementedError), moved([model], torch.device("meta")):
        assert {tensor.device.type for tensor in model.state_dict().values()} == {
            "meta"
        }  # nothing is left to copy back
        raise NotImplementedError
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[name] is tensor for name, (tensor, _, _) in before.items())
    assert all(tensor.data_ptr() == pointer for tensor, pointer, _ in before.values())
    assert all(torch.equal(tensor, values) for tensor, _, values in before.values())
    assert model.layer.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(4, 4))  # type: ignore[arg-type]


def test_nested_models_are_moved_back() -> None:
    member = Elsewhere()
    model, device = Elsewhere(member), torch.device("meta")
    with contextlib.suppress(RuntimeError), moved([model, member], device):
        assert model.device == member.device == device
        raise RuntimeError("stop")
    assert model.device == member.device == torch.device("cpu")
