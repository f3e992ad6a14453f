"""Operation-level BPDA on code that hides the gradient, and on code that does not."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cosine_similarity

from pytest_gradmask import load_model
from pytest_gradmask.attacks.bypass.operations.model import OperationsBypassed
from pytest_gradmask.attacks.bypass.operations.search import ValuesChangedError, find_operations
from pytest_gradmask.attacks.bypass.operations.sites import Site
from tests.attacks.bypass.operations import masks_of_gradients
from tests.attacks.bypass.operations.masks import MASKS, PARTS, Masked

#: Warnings of torch about the code of some masks.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        "To copy construct from a tensor",
        "torch.quantize_per_tensor",
        "Converting a tensor with requires_grad",
    )
]

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradient(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    """Of a fixed mix of the logits; zeros where there is none."""
    point = images.clone().requires_grad_(True)
    torch.manual_seed(0)
    logits = model(point.clone())
    mix = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (found,) = torch.autograd.grad(logits, point, mix, allow_unused=True)
    return torch.zeros_like(point) if found is None else found


def marked(module: ModuleType) -> dict[int, set[str]]:
    """The operations named in comments, by line."""
    found = {}
    for number, line in enumerate(inspect.getsource(module).splitlines(), 1):
        _, hides, names = line.partition("# hides: ")
        if hides:
            found[number] = set(names.split(", "))
    return found


MARKED = {module.__name__: (module.__file__, marked(module)) for module in PARTS}


@pytest.mark.parametrize("name", MASKS)
def test_natural_gradient_is_found_and_its_line_named(name: str) -> None:
    model = Masked(MASKS[name])
    sites = find_operations(model, IMAGES)
    assert sites, "nothing was found"
    file, lines = MARKED[MASKS[name].__module__]
    for site in sites:
        assert site.operation in lines.get(site.line, set()), f"{site} is not what hides the gradient"
        assert site.file == file
    natural = gradient(OperationsBypassed(model, sites))
    similarity = cosine_similarity(natural.flatten(), gradient(Masked(lambda x: x)).flatten(), dim=0)
    assert similarity > 0.75
    torch.manual_seed(0)
    plain = model(IMAGES)
    torch.manual_seed(0)
    assert torch.equal(OperationsBypassed(model, sites)(IMAGES.clone().requires_grad_(True)), plain)


IMAGE_BY_IMAGE = (
    *("rounded", "without_remainder", "signs", "steps", "as_integer"),
    *("saturated_tanh", "saturated_sigmoid", "saturated_hardtanh", "saturated_softmax"),
)


@pytest.mark.parametrize("name", IMAGE_BY_IMAGE)
def test_masks_inside_of_vmap(name: str) -> None:
    sites = find_operations(Masked(lambda x: torch.vmap(MASKS[name])(x)), IMAGES)
    assert sites, "nothing was found"
    _, lines = MARKED[MASKS[name].__module__]
    assert all(site.operation in lines.get(site.line, set()) for site in sites)


@pytest.mark.parametrize("name", sorted(set(MASKS) - {"drawn"}))
def test_the_masks_have_no_such_gradient_themselves(name: str) -> None:
    try:
        own = gradient(Masked(MASKS[name]))
    except RuntimeError:  # nothing to differentiate
        return
    similarity = cosine_similarity(own.flatten(), gradient(Masked(lambda x: x)).flatten(), dim=0)
    assert similarity < 0.2


@torch.library.custom_op("honest::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


halved.register_autograd(lambda ctx, gradient: gradient / 2)


def kept_on_the_cpu(x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return x * x


def with_logged_gradient(x: Tensor) -> Tensor:
    result = x * 1.0
    if result.grad_fn is not None:
        result.grad_fn.register_hook(lambda *_: None)
    return result


def written(x: Tensor) -> Tensor:
    x = x * 1.0
    x[x < 0.1] = 0.0
    return x


def put_back(x: Tensor) -> Tensor:
    values, order = x.flatten(1).sort(1)
    return torch.zeros(order.shape).scatter(1, order, values).view_as(x)


HONEST: dict[str, Callable[[Tensor], Any]] = {
    "relu by hand": lambda x: torch.where(x > 0.5, x, 0.5),
    "times a truth value": lambda x: x * (x > 0.3),
    "largest of pairs": lambda x: torch.maximum(x, x.roll(1, 3)),
    "dark pixels written": written,
    "largest two of a row": lambda x: x.topk(2).values.repeat(1, 1, 1, 4),
    "sorted and put back": put_back,
    "divided by its spread": lambda x: (x - 0.5) / (x - 0.5).std(),
    "sign of a number": lambda x: torch.copysign(x - 0.5, torch.tensor(-1.0)),
    "distance": lambda x: torch.cdist(x, torch.ones(1, 3, 8, 8), p=1),
    "median": lambda x: x.unfold(3, 3, 1).median(-1).values.repeat(1, 1, 1, 2)[..., :8],
    "straight-through": lambda x: x + (x.round() - x).detach(),
    "loop with numbers": lambda x: x * float(x.mean()),
    "constant without a gradient": lambda x: x + x.detach().mean() * 0,
    "operator with its own backward pass": lambda x: halved(x),
    "activations on the CPU": kept_on_the_cpu,
    "hook that only looks": with_logged_gradient,
    "image by image": lambda x: torch.vmap(lambda image: torch.where(image > 0.5, image, 0.5 * image))(x),
    "image by image, with functions that could saturate": lambda x: torch.vmap(
        lambda image: torch.tanh(image).clamp(0.2, 0.8) + torch.sigmoid(image) * image.softmax(0)
    )(x),
    "divided image by image": lambda x: torch.vmap(lambda image: image / (1 + image.abs()))(x),
    "overload": lambda x: torch.ops.aten.relu.default(x - 0.5),
    "tanh": lambda x: torch.tanh(3 * (x - 0.5)),
    "tanh of large numbers here and there": lambda x: torch.tanh(torch.where(x > 0.7, 100 * x, x)),
    "sigmoid": lambda x: torch.sigmoid(8 * (x - 0.5)),
    "attention": lambda x: (8 * x @ x.transpose(2, 3)).softmax(3) @ x,
    "clamp at both ends": lambda x: x.clamp(0.2, 0.8),
    "relu as a clamp": lambda x: (x - 0.8).clamp(0, 6),
    "sign by its bit": lambda x: x * (x.view(torch.int32) >= 0),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_code_keeps_its_gradient(name: str) -> None:
    model = Masked(HONEST[name])
    assert find_operations(model, IMAGES) == {}
    assert torch.equal(gradient(OperationsBypassed(model, ())), gradient(model))


@pytest.mark.parametrize("name", ["resnet-standard", "vgg-standard", "vit-standard"])
def test_backbones_keep_their_gradient_to_the_last_bit(name: str) -> None:
    model = load_model(name).requires_grad_(False)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert find_operations(model, images) == {}
    assert torch.equal(gradient(OperationsBypassed(model), images), gradient(model, images))


def test_right_custom_function_keeps_its_backward_pass() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient  # type: ignore[no-any-return]

    assert find_operations(Masked(Cube.apply), IMAGES) == {}


def test_opaque_function_keeps_its_backward_pass() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.tensor([[[[float(value) for value in row] for row in part] for part in image] for image in x])

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    def front_end(x: Tensor) -> Any:
        return Opaque.apply(x.detach() if x.sum() < 0 else x)

    model = Masked(front_end)
    assert find_operations(model, IMAGES) == {}


def test_module_hooks_are_bypassed_and_come_back() -> None:
    model = Masked(lambda x: x)

    def tamper(_module: nn.Module, grad_input: Any, _output: Any) -> Any:
        return tuple(None if each is None else 0 * each for each in grad_input)

    model.convolution.register_full_backward_hook(tamper)
    hooks = dict(model.convolution._backward_hooks)
    (site,) = find_operations(model, IMAGES)
    assert site.operation == "backward hook"
    assert site.line == tamper.__code__.co_firstlineno
    assert torch.equal(gradient(OperationsBypassed(model, [site])), gradient(Masked(lambda x: x)))
    assert dict(model.convolution._backward_hooks) == hooks
    assert not gradient(model).any()


def test_hooks_on_all_modules_are_bypassed_and_come_back() -> None:
    model = Masked(lambda x: x)

    def tamper(module: nn.Module, grad_input: Any, _output: Any) -> Any:
        return tuple(None if each is None else 0 * each for each in grad_input) if module is model.convolution else None

    hooks = torch.nn.modules.module._global_backward_hooks
    before = dict(hooks)
    handle = torch.nn.modules.module.register_module_full_backward_hook(tamper)
    try:
        (site,) = find_operations(model, IMAGES)
        assert (site.operation, site.line) == ("backward hook", tamper.__code__.co_firstlineno)
        assert torch.equal(gradient(OperationsBypassed(model, [site])), gradient(Masked(lambda x: x)))
        assert not gradient(model).any()
        assert dict(hooks) == {**before, handle.id: tamper}
    finally:
        handle.remove()


def test_masks_in_residual_branches_of_a_network() -> None:
    class Branch(nn.Module):
        def __init__(self, kept: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolution, self.kept = nn.Conv2d(3, 3, 3, padding=1), kept

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(self.kept and torch.is_grad_enabled()):
                branch: Tensor = self.convolution(x).relu()
            return x + branch

    hidden, honest = Masked(Branch(False)), Masked(Branch(True))
    sites = find_operations(hidden, IMAGES)
    assert {site.operation for site in sites} == {"torch.no_grad"}
    assert torch.equal(gradient(OperationsBypassed(hidden, sites)), gradient(honest))
    assert find_operations(honest, IMAGES) == {}


def test_majority_of_members_becomes_soft() -> None:
    members = [Masked(partial(torch.add, shift)) for shift in torch.tensor([0.0, 0.1, 0.2])]

    class Majority(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            answers = torch.stack([member(images).argmax(1) for member in members])
            return nn.functional.one_hot(torch.mode(answers, 0).values, 10).float()

    model = Majority()
    (site,) = find_operations(model, IMAGES)
    assert site.operation == "torch.argmax"
    assert gradient(OperationsBypassed(model, [site])).flatten(1).any(1).all()


# Nothing is left behind


class Keeping(nn.Module):
    """Writes what it sees into a buffer and an attribute, and may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Masked(lambda x: x)
        self.mean: Tensor
        self.last: Tensor
        self.register_buffer("mean", torch.zeros(3))
        self.raises = False

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.copy_(images.mean((0, 2, 3)))
            self.last = images * 1.0
        if self.raises:
            torch.set_grad_enabled(False)
            raise ValueError("no")
        return self.inner(images.detach())  # type: ignore[no-any-return]


def test_state_has_no_graph_afterwards() -> None:
    model = Keeping()
    mean = model.mean
    output = OperationsBypassed(model)(IMAGES.clone().requires_grad_(True))
    assert output.requires_grad
    assert model.mean is mean
    assert not model.mean.requires_grad
    assert not model.last.requires_grad
    assert torch.allclose(model.mean, IMAGES.mean((0, 2, 3)))


@pytest.mark.parametrize("raises", [False, True])
def test_torch_is_as_before(raises: bool) -> None:
    model = Keeping()
    model.raises = raises
    before = torch.autograd.Function.apply, torch.is_grad_enabled(), saved_tensors_hooks.__enter__
    try:
        OperationsBypassed(model)(IMAGES.clone().requires_grad_(True))
    except ValueError:
        torch.set_grad_enabled(True)  # the defense itself switched it off
    assert (torch.autograd.Function.apply, torch.is_grad_enabled(), saved_tensors_hooks.__enter__) == before
    assert torch.overrides._get_current_function_mode_stack() == []
    assert type(masks_of_gradients._Zero.apply(IMAGES.clone().requires_grad_(True)).grad_fn).__name__ == "_ZeroBackward"


def test_other_threads_keep_their_functions() -> None:
    inside, seen = threading.Event(), threading.Event()
    gradients: list[Tensor] = []

    def front_end(x: Tensor) -> Tensor:
        inside.set()
        assert seen.wait(10)
        return masks_of_gradients._Zero.apply(x)  # type: ignore[no-any-return]

    def other() -> None:
        assert inside.wait(10)
        point = IMAGES.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(masks_of_gradients._Zero.apply(point).sum(), point)[0])
        seen.set()

    thread = threading.Thread(target=other)
    thread.start()
    natural = gradient(OperationsBypassed(Masked(front_end)))
    thread.join()
    assert not gradients[0].any()
    assert natural.any()


def test_defense_that_notices_is_refused() -> None:
    def front_end(x: Tensor) -> Tensor:
        x = x.detach()
        return 0.5 * x if x.requires_grad else x

    with pytest.raises(ValuesChangedError):
        find_operations(Masked(front_end), IMAGES)


def test_forward_alone_is_not_watched() -> None:
    seen = []

    def front_end(x: Tensor) -> Tensor:
        seen.append(len(torch.overrides._get_current_function_mode_stack()))
        return x

    model = OperationsBypassed(Masked(front_end))
    with torch.no_grad():
        model(IMAGES)
    model(IMAGES)
    model(IMAGES.clone().requires_grad_(True))
    assert seen == [0, 0, 1]


def test_a_site_says_where_it_is() -> None:
    assert str(Site("/home/you/defense.py", 14, "torch.round")) == "`torch.round` at defense.py:14"


class Normalized(nn.Module):
    """Features are rounded outside of PyTorch. The statistics of the batch norm behind resemble them."""

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, norm, self.head = nn.Linear(192, 32), nn.BatchNorm1d(32), nn.Linear(32, 10)
        with torch.no_grad():
            self.features.bias.mul_(50)
            assert norm.running_mean is not None
            norm.running_mean.copy_(self.features(IMAGES.flatten(1)).mean(0))
        self.norm = norm if registered else None
        self.kept = [norm.eval()]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images.flatten(1))
        rounded = torch.from_numpy(features.detach().numpy().round(1))
        return self.head(self.kept[0](rounded))  # type: ignore[no-any-return]


@pytest.mark.parametrize("registered", [True, False])
def test_statistics_of_a_batch_norm_have_not_come_back(registered: bool) -> None:
    model = Normalized(registered=registered)
    assert not gradient(model).any()
    sites = find_operations(model, IMAGES)
    true = nn.Sequential(nn.Flatten(), model.features, model.kept[0], model.head)
    assert cosine_similarity(gradient(OperationsBypassed(model, sites)).flatten(), gradient(true).flatten(), 0) > 0.9
