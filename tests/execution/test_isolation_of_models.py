"""An audit restores the models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Verdict, audit
from pytest_gradmask.execution.isolation import moved, no_trace
from tests.execution.isolation_toys import Inside, Stateful
from tests.toys import CPU, IMAGES, THREAT, TINY, predictions, seeded


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


class Projected(nn.Module):
    """A classifier with a sparse matrix, which may fade with every forward."""

    def __init__(self, layout: torch.layout, *, fades: bool) -> None:
        super().__init__()
        weight = torch.randn(4, 192, generator=seeded()) * (torch.rand(4, 192, generator=seeded(1)) < 0.5)
        self.register_buffer("weight", weight.to_sparse(layout=layout))
        self.fades = fades

    def forward(self, images: Tensor) -> Tensor:
        weight: Any = self.weight
        if self.fades:
            weight.values().mul_(0.999)
        return (weight @ (images.flatten(1) - 0.5).T).T  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
@pytest.mark.parametrize("fades", [False, True], ids=["constant", "fades"])
@pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")  # that they are in beta
def test_sparse_buffers(layout: torch.layout, fades: bool) -> None:
    model = Projected(layout, fades=fades)
    before = model.weight.to_dense()  # type: ignore[operator]
    labels = predictions(Projected(layout, fades=False), IMAGES)
    found = audit(model.eval(), IMAGES, labels, threat=THREAT, budget=TINY)
    assert found.verdict is (Verdict.INCONCLUSIVE if fades else Verdict.NOT_MASKED)
    assert ("stateful" in [finding.id for finding in found.findings]) is fades
    assert torch.equal(model.weight.to_dense(), before)  # type: ignore[operator]


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
