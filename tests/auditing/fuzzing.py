"""Hypothesis strategies for the inputs of an audit: valid, unusual and invalid ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel
from pytest_gradmask.auditing.budgets import Budget
from tests.toys import Counting, Detach, KillGradient, Quantize, RaisingBackward, Shape, linear, predictions, seeded

#: The smallest amount of each attack.
LEAST = Budget(
    name="least",
    samples=8,
    margin=0.3,
    apgd_steps=2,
    targets=1,
    fab_steps=1,
    square_queries=3,
    bpda_steps=2,
    zero_order_steps=1,
    zero_order_pairs=1,
    eot=1,
    pilot_samples=3,
)


class Through(nn.Module):
    """A classifier with functions on its images and logits. They also receive the number of the call."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor, int], Any] = lambda images, _: images,
        after: Callable[[Tensor, int], Any] = lambda logits, _: logits,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.calls = 0

    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        return self.after(self.model(self.before(images, self.calls)), self.calls)


class NoParameters(nn.Module):
    """Classifies an image by its mean brightness."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        bins = torch.linspace(0, 1, self.classes, device=images.device)
        return -10 * (images.flatten(1).mean(1, keepdim=True) - bins).square()


class _NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


def _raised(error: BaseException) -> Any:
    raise error


def _sometimes(value: float, every: int) -> Callable[[Tensor, int], Any]:
    """Set one logit to this value in each call whose number is a multiple of ``every``."""

    def change(logits: Tensor, call: int) -> Tensor:
        if call % every:
            return logits
        logits = logits.clone()
        logits[0, 0] = value
        return logits

    return change


def _without_gradients(model: nn.Module, guard: Any) -> Callable[[Tensor, int], Any]:
    def run(images: Tensor, _: int) -> Tensor:
        with guard():
            return model(images)  # type: ignore[no-any-return]

    return run


#: Changes of a model's output.
OUTPUTS: dict[str, Callable[[Tensor, int], Any]] = {
    "tuple": lambda logits, _: (logits,),
    "list": lambda logits, _: [logits],
    "dict": lambda logits, _: {"logits": logits},
    "nothing": lambda logits, _: None,
    "numpy": lambda logits, _: logits.detach().numpy(),
    "complex": lambda logits, _: logits.to(torch.complex64),
    "sparse": lambda logits, _: logits.to_sparse(),
    "integers": lambda logits, _: logits.long(),
    "booleans": lambda logits, _: logits > 0,
    "half": lambda logits, _: logits.half(),
    "double": lambda logits, _: logits.double(),
    "bfloat16": lambda logits, _: logits.bfloat16(),
    "elsewhere": lambda logits, _: logits.to("meta"),
    "one axis": lambda logits, _: logits[:, 0],
    "three axes": lambda logits, _: logits[..., None],
    "scalar": lambda logits, _: logits.sum(),
    "one image fewer": lambda logits, _: logits[1:],
    "one class": lambda logits, _: logits[:, :1],
    "no class": lambda logits, _: logits[:, :0],
    "other number of classes": lambda logits, call: torch.cat([logits, logits[:, : call % 3]], 1),
    "softmax": lambda logits, _: logits.softmax(1),
    "log-softmax": lambda logits, _: logits.log_softmax(1),
    "sigmoid": lambda logits, _: logits.sigmoid(),
    "one-hot": lambda logits, _: nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float(),
    "huge": lambda logits, _: logits * 1e30,
    "tiny": lambda logits, _: logits * 1e-30,
    "constant": lambda logits, _: logits.detach() * 0 + 1,
    "NaN": lambda logits, _: logits * torch.nan,
    "infinite": lambda logits, _: logits / 0,
    "NaN at times": _sometimes(torch.nan, 2),
    "NaN later": _sometimes(torch.nan, 25),
    "infinity later": _sometimes(torch.inf, 25),
    "minus infinity": _sometimes(-torch.inf, 7),
    "noise": lambda logits, _: logits + torch.randn_like(logits),
    "much noise": lambda logits, _: 100 * torch.randn_like(logits),
    "numpy noise": lambda logits, _: logits + torch.from_numpy(np.random.randn(*logits.shape)).to(logits),
    "raises": lambda *_: _raised(ValueError("out of order")),
    "raises later": lambda logits, call: logits if call < 30 else _raised(ValueError("out of order")),
    "raises under gradients": lambda logits, _: _raised(IndexError("no")) if logits.requires_grad else logits,
    "asserts": lambda *_: _raised(AssertionError()),
    "memory": lambda *_: _raised(MemoryError("no room")),
    "raising backward": lambda logits, _: RaisingBackward.apply(logits),
    "NaN backward": lambda logits, _: _NanBackward.apply(logits),
    "in place": lambda logits, _: logits.relu_(),
    "batch": lambda logits, _: logits - logits.mean(0),
    "sorted": lambda logits, _: logits.sort(0).values,
}


def _in_place(images: Tensor, _: int) -> Tensor:
    return images.mul_(0.5).add_(0.1)


def _switch_gradients_off(images: Tensor, _: int) -> Tensor:
    torch.set_grad_enabled(False)
    return images


def _reseed(images: Tensor, _: int) -> Tensor:
    torch.manual_seed(0)
    np.random.seed(0)
    return images + 0.01 * torch.randn_like(images)


def _double_by_default(images: Tensor, _: int) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return images


def _differentiate(images: Tensor, _: int) -> Tensor:
    with torch.enable_grad():
        point = images.detach().requires_grad_()
        return images + 0.01 * torch.autograd.grad(point.square().sum(), point)[0]


#: Changes of a model's input.
INPUTS: dict[str, Callable[[Tensor, int], Any]] = {
    "in place": _in_place,
    "detach": lambda images, _: images.detach(),
    "round": lambda images, _: images.round(),
    "numpy": lambda images, _: torch.from_numpy(images.detach().numpy().copy()),
    "gradients off": _switch_gradients_off,
    "reseeds": _reseed,
    "default dtype": _double_by_default,
    "noise": lambda images, _: images + 0.1 * torch.randn_like(images),
    "dropped": lambda images, _: nn.functional.dropout(images, 0.3),
    "flipped at times": lambda images, call: images.flip(3) if call % 2 else images,
    "one image only": lambda images, _: images if len(images) == 1 else _raised(RuntimeError("one at a time")),
    "differentiates": _differentiate,
}

FRONTS: dict[str, Callable[[], nn.Module]] = {"quantized": Quantize, "detached": Detach, "killed": KillGradient}


def _batch_norm(classes: int, shape: Shape, *, train: bool) -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(shape[0]), linear(classes, 0, shape)).eval()
    model[0].train(train)
    return model


@st.composite
def models(draw: st.DrawFn, classes: int, shape: Shape) -> nn.Module:
    """A module for images of this shape, made from the linear toy. Its output may be of any kind."""
    model: nn.Module = linear(classes, 0, shape)
    kind = draw(st.sampled_from(["sound", "output", "input", "front", "other"]))
    if kind == "output":
        model = Through(model, after=OUTPUTS[draw(st.sampled_from(sorted(OUTPUTS)))])
    elif kind == "input":
        model = Through(model, before=INPUTS[draw(st.sampled_from(sorted(INPUTS)))])
    elif kind == "front":
        model = nn.Sequential(FRONTS[draw(st.sampled_from(sorted(FRONTS)))](), model)
    elif kind == "other":
        other: dict[str, Callable[[], nn.Module]] = {
            "half": model.half,
            "double": model.double,
            "bfloat16": model.bfloat16,
            "stateful": lambda: Counting(model, growth=0.01),
            "no parameters": lambda: NoParameters(classes),
            "batch norm": lambda: _batch_norm(classes, shape, train=False),
            "batch norm in train mode": lambda: _batch_norm(classes, shape, train=True),
            "dropout": lambda: nn.Sequential(nn.Dropout(0.2), model),
            "no_grad": lambda: Through(nn.Identity(), before=_without_gradients(model, torch.no_grad)),
            "inference mode": lambda: Through(nn.Identity(), before=_without_gradients(model, torch.inference_mode)),
            "identity": nn.Identity,
            "wrong shape": lambda: linear(classes, 0, (shape[0] + 1, *shape[1:])),
            "frozen": lambda: model.requires_grad_(False),
        }
        return other[draw(st.sampled_from(sorted(other)))]().eval() if draw(st.booleans()) else model.eval()
    return model.train(draw(st.integers(0, 9)) == 0)


@st.composite
def defenses(draw: st.DrawFn, classes: int, shape: Shape) -> Callable[[], nn.Module | Defense]:
    """A function that makes a module, or a `Defense` with hints. The hints may be wrong."""
    model = draw(models(classes, shape))
    if draw(st.integers(0, 2)):
        return lambda: model
    hints: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "bypass": st.sampled_from([(), ["0"], {"0": nn.Identity()}, ["nowhere"]]),
                "members": st.lists(models(classes, shape), max_size=2),
                "sources": st.lists(models(classes, shape), max_size=1),
                "outputs": st.sampled_from(["logits", "probabilities", "scores"]),
            },
        )
    )
    return lambda: Defense(model, **hints)


@st.composite
def batches(draw: st.DrawFn, classes: int, shape: Shape) -> tuple[Any, Any]:
    """Images and labels. Most are valid, and most labels are the predictions of the linear toy."""
    count = draw(st.integers(1, 30))
    images: Any = torch.rand(count, *shape, generator=seeded(draw(st.integers(0, 3))))
    labels: Any = predictions(linear(classes, 0, shape), images)
    if draw(st.integers(0, 5)) == 0:
        labels = torch.randint(classes, (count,), generator=seeded(1))
    if draw(st.integers(0, 5)) == 0:
        change: dict[str, Callable[[], Any]] = {
            "double": images.double,
            "half": images.half,
            "bytes": lambda: (images * 255).byte(),
            "complex": lambda: images.to(torch.complex64),
            "sparse": images.to_sparse,
            "on meta": lambda: images.to("meta"),
            "NaN": lambda: images * torch.nan,
            "infinite": lambda: images / 0,
            "beyond": lambda: images * 2,
            "below": lambda: images - 1,
            "bytes as floats": lambda: images * 255,
            "numpy": images.numpy,
            "list": images.tolist,
            "nothing": lambda: None,
            "no image": lambda: images[:0],
            "one image without a batch": lambda: images[0],
            "channels last": lambda: images.permute(0, 2, 3, 1),
            "five axes": lambda: images[None],
            "strided": lambda: images.flip(3).transpose(2, 3),
            "expanded": lambda: images[:1].expand(count, *shape),
            "with a gradient": lambda: images.clone().requires_grad_(),
            "no width": lambda: images[..., :0],
        }
        images = change[draw(st.sampled_from(sorted(change)))]()
    if draw(st.integers(0, 5)) == 0:
        other: dict[str, Callable[[], Any]] = {
            "floats": labels.float,
            "int32": labels.int,
            "bytes": labels.byte,
            "booleans": lambda: labels > 0,
            "negative": lambda: labels - 1,
            "too large": lambda: labels + classes,
            "one-hot": lambda: nn.functional.one_hot(labels, classes),
            "column": lambda: labels[:, None],
            "fewer": lambda: labels[1:],
            "numpy": labels.numpy,
            "list": labels.tolist,
            "nothing": lambda: None,
            "on meta": lambda: labels.to("meta"),
            "sparse": labels.to_sparse,
        }
        labels = other[draw(st.sampled_from(sorted(other)))]()
    return images, labels


#: Valid and invalid arguments of `audit`.
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "margin": st.sampled_from([None, 0.05, 0.3, 0.99, 0, 1, -1, "0.1", float("nan")]),
    "confidence": st.sampled_from([0.99, 0.9, 0.6, 0.5, 1, 2, float("nan"), "high", None]),
    "device": st.sampled_from(["cpu", "cpu", "cuda", "cuda:7", "meta", "gpu", "", None]),
    "seed": st.sampled_from([0, 1, 2**31, 2**63, 2**80, -1, 1.5, "0", None]),
    "budget": st.sampled_from([LEAST, "tiny", None, 3]),
    "exhaustive": st.booleans(),
}

THREATS: dict[str, st.SearchStrategy[Any]] = {
    "eps": st.sampled_from([1e-8, 0.01, 0.1, 0.5, 1.0, 8, 0, -0.1, float("nan"), float("inf"), "8/255", None, True]),
    "norm": st.sampled_from(["Linf", "L2", "L1", "linf", None]),
    "bounds": st.sampled_from([(0, 1), (-1, 1), (0, 255), (1, 0), (0, 0), (0,), None, (0, float("inf"))]),
}


@st.composite
def audits(draw: st.DrawFn) -> dict[str, Any]:
    """All inputs of an audit. ``defense`` and ``threat`` are functions that make them."""
    classes = draw(st.sampled_from([1, 2, 3, 10, 100, 1000]))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)))
    images, labels = draw(batches(classes, shape))
    arguments = {"budget": LEAST, **_few(draw, ARGUMENTS)}
    threat = _few(draw, THREATS)
    return {
        "defense": draw(defenses(classes, shape)),
        "threat": lambda: ThreatModel(**threat),
        "images": images,
        "labels": labels,
        "arguments": arguments,
    }


def _few(draw: st.DrawFn, choices: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """At most one argument, and usually none: one of two errors would hide the other."""
    if draw(st.integers(0, 4)):
        return {}
    name = draw(st.sampled_from(sorted(choices)))
    return {name: draw(choices[name])}
