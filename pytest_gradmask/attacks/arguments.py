"""Checks of images and labels, and of the arguments of attacks that users call."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.attacks.users_set import named_if_it_fails
from pytest_gradmask.checks import as_number, check_callable, check_is, check_whole, is_a, refuse
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import PerturbationSet, ThreatModel, contained

#: Of a `PerturbationSet`.
_METHODS = ("project", "random_start", "step", "contains")


def check_images(images: Tensor) -> None:
    """Raise `InputError` unless images are finite float32, N x ..."""
    check_tensor("images", images)
    shape = tuple(images.shape)
    if images.dtype == torch.uint8:
        raise InputError("images: dtype is uint8; scale them to the bounds, as in images.float() / 255")
    if images.dtype != torch.float32:
        raise InputError(f"images: dtype is {images.dtype}; use images.float()")
    if images.ndim < 2:
        raise InputError(f"images: shape is {shape}; a batch has at least two axes, such as N x C x H x W, or N x D")
    if images.ndim == 4 and shape[1] > 4 and shape[3] in (1, 3, 4):
        raise InputError(f"images: shape {shape} looks like N x H x W x C; use images.permute(0, 3, 1, 2)")
    if images.numel() == 0:
        raise InputError(f"images: shape is {shape}; there is no image to attack")
    if not images.isfinite().all():
        bad = int((~images.isfinite()).flatten(1).any(1).sum())
        raise InputError(
            f"images: {bad} of {len(images)} hold NaN or infinite values; leave these out, or see how they were scaled"
        )


def check_labels_of(images: Tensor, labels: Tensor) -> None:
    """Raise `InputError` unless labels are integers, one for each image."""
    check_tensor("labels", labels)
    one_hot = "; for one-hot labels use labels.argmax(1)" if labels.ndim == 2 else ""
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise InputError(f"labels: dtype is {labels.dtype}; use class indices, as in labels.long(){one_hot}")
    if labels.shape != (len(images),):
        single = images.ndim == 3 and labels.ndim < 2
        hint = "; for one image C x H x W use images[None]" if single else one_hot
        raise InputError(f"labels: shape is {tuple(labels.shape)}; must be ({len(images)},), one label an image{hint}")


def check_tensor(argument: str, value: Tensor) -> None:
    """Raise `InputError` unless the value is a tensor that holds its values in the usual layout."""
    if not is_a(value, Tensor):
        convertible = not is_a(value, str, PurePath, type(None))
        fix = "use torch.as_tensor(...)" if convertible else f"load them first, and give the {argument} as a tensor"
        raise InputError(f"{argument}: must be a torch.Tensor, got {type(value).__name__}; {fix}")
    if value.is_nested or value.is_quantized:
        raise InputError(f"{argument}: is a {'nested' if value.is_nested else 'quantized'} tensor; give a plain one")
    if value.layout is not torch.strided:
        raise InputError(f"{argument}: layout is {value.layout}; use {argument}.to_dense()")
    if value.is_meta:
        raise InputError(f"{argument}: on the device meta, which holds no values; load them on cpu or cuda")


def check_set(threat: object) -> None:
    """Raise `InputError` unless this is a threat model, or has the attributes and methods of a `PerturbationSet`."""
    if is_a(threat, ThreatModel):
        return
    wanted = "a ThreatModel, such as ThreatModel(eps=8/255), or another PerturbationSet"
    if is_a(threat, type) or not all(callable(_attribute(threat, name)) for name in _METHODS):
        raise refuse("threat", threat, f"{wanted}, with {', '.join(_METHODS)}")
    eps, bounds = as_number(_attribute(threat, "eps")), _attribute(threat, "bounds")
    if eps is None or eps <= 0:
        raise refuse("threat.eps", _attribute(threat, "eps"), "a number above 0")
    ThreatModel(bounds=bounds, eps=1e-9)  # raises what is wrong with the bounds


def check_set_on(threat: PerturbationSet, images: Tensor) -> None:
    """Raise `InputError` unless the methods of a set work on these images, and say that they belong to it."""
    if isinstance(threat, ThreatModel):
        return
    named, generator = named_if_it_fails(threat), torch.Generator().manual_seed(0)
    steps = images + threat.eps * named.step(torch.ones_like(images), at=images)
    points = {
        "a clean image": images,
        "what random_start() returns": named.random_start(images, generator),
        "what project() returns": named.project(steps, images),
    }
    for what, of_images in points.items():
        if not contained(named, of_images, images).all():
            raise InputError(f"threat: contains() says that {what} is outside of the set")


def _attribute(value: object, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # the object is not ours
        return None


def check_attack(
    model: object,
    images: Tensor,
    labels: Tensor,
    *,
    threat: object,
    generator: object,
    loss: object,
    stop_early: object,
    step_size: object = None,
    **counts: object,
) -> None:
    """Raise `InputError` unless the arguments of an attack are usable. ``counts`` are whole numbers from 1."""
    check_callable("model", model, "a torch.nn.Module, or a function from images to logits")
    check_set(threat)
    check_tensor("images", images)
    check_tensor("labels", labels)
    if images.ndim < 2 or not images.numel() or not images.is_floating_point():
        raise InputError(f"images: {images.dtype}, {tuple(images.shape)}; must be floats, N x C x H x W or N x ...")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise InputError(f"labels: {labels.dtype}, {tuple(labels.shape)}; must be int64, ({len(images)},)")
    for name, value in counts.items():
        check_whole(name, value, 1)
    if not is_a(generator, torch.Generator) or generator.device.type != "cpu":  # type: ignore[attr-defined]
        raise refuse("generator", generator, "a CPU generator, as in torch.Generator().manual_seed(0)")
    losses: Any = loss if is_a(loss, list, tuple) else [loss]
    for each in losses or [loss]:
        check_callable("loss", each, "a function of logits and labels")
    check_is("stop_early", stop_early, "True or False", bool)
    if step_size is not None and ((number := as_number(step_size)) is None or number <= 0):
        raise refuse("step_size", step_size, "a number above 0, in input units")
