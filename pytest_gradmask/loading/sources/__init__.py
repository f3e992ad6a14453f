"""The public `load_model`: a classifier from a one-line specification; `specs` has the table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.loading.checkpoints import load_checkpoint
from pytest_gradmask.loading.importing import called
from pytest_gradmask.loading.sources.zoos import load_robustbench, load_timm, load_torchvision
from pytest_gradmask.loading.specs import check_model


def load_model(spec: str, *, download: bool = False) -> nn.Module:
    """Load a classifier, on the CPU and in eval mode.

    Args:
        spec: which; `pytest_gradmask.loading.specs` has the table. ``"resnet-standard"`` is one of the package's own,
            ``"timm:resnet50"`` has timm's pretrained weights, ``"timm:resnet50@FILE"`` those of a local file,
            ``"import:my_project:load_defense"`` is yours.
        download: whether pretrained weights that are not on this machine may be downloaded.

    Returns:
        A module from images in [0, 1], N x 3 x H x W, to logits: what normalises images is inside. Of models of timm
        and torchvision, that is the first part of an ``nn.Sequential``, with the mean and deviation of their own
        configuration. A module of your own is no copy.

    Raises:
        InputError: no such specification, model or file, or your own code gave no module.
        CheckpointError: weights are not here, cannot be read without running code from them, or do not fit.
        DependencyError: RobustBench is needed and not installed.
    """
    found = check_model(spec)
    if found.kind == "fixture":
        return load_checkpoint(found.name)
    if found.kind == "checkpoint":
        assert found.file is not None
        return load_checkpoint(found.file.stem, found.file.parent)
    if found.kind == "import":
        module: nn.Module = called(f"model {spec!r}", found.name, nn.Module)
        return module.cpu().eval()
    load = {"timm": load_timm, "torchvision": load_torchvision, "robustbench": load_robustbench}[found.kind]
    return load(found, download)


def check_classes(what: str, model: nn.Module, images: Tensor, classes: int | None, data: str) -> None:
    """Raise unless a model classifies images of this size into as many classes as the data have.

    Args:
        what: the model, for messages.
        model: is run on the first image, on the CPU, and left as it was.
        images: N x C x H x W, in [0, 1].
        classes: how many the data have; None if they do not tell.
        data: for messages.

    Raises:
        InputError: it raises on such images, or has another number of classes.
    """
    try:
        with no_trace([model], torch.device("cpu")), torch.no_grad():
            outputs = model(images[:1])
    except Exception as error:
        raise InputError(
            f"model {what!r}: raised {type(error).__name__} on an image of data {data!r}, of shape "
            f"{tuple(images.shape[1:])}: {error}"
        ) from error
    count = outputs.shape[-1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else classes
    if classes is not None and count != classes:
        raise InputError(
            f"model {what!r}: has {count} classes, but data {data!r} have {classes}; bring images of the classes that "
            "the model was trained for"
        )
