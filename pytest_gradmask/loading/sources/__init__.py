"""The public `load_model`: load a classifier from a one-line specification. The table is in `specs`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_gradmask.checks import check_is
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.loading.checkpoints import load_checkpoint
from pytest_gradmask.loading.importing import called
from pytest_gradmask.loading.sources.onnx import load_onnx
from pytest_gradmask.loading.sources.zoos import load_robustbench, load_timm, load_torchvision
from pytest_gradmask.loading.specs import check_model


def load_model(spec: str, *, download: bool = False) -> nn.Module:
    """Load a classifier, on the CPU and in eval mode.

    Args:
        spec: specification; the table is in `pytest_gradmask.loading.specs`. ``"resnet-standard"`` is a fixture of this
            package, ``"timm:resnet50"`` has the pretrained weights of timm, ``"timm:resnet50@FILE"`` has the weights of
            a local file, and ``"import:my_project:load_defense"`` is a function of the user.
        download: whether pretrained weights that are not on this machine may be downloaded.

    Returns:
        A module from images in [0, 1], N x 3 x H x W, to logits. It normalises images itself, except for a model of an
        ONNX file, which gets them as they are. For models of timm and
        torchvision, the normalisation is the first part of an ``nn.Sequential``, with the mean and standard deviation
        from the configuration of the model. A module of the user is returned itself, not a copy.

    Raises:
        InputError: there is no such specification, model or file, or the user's code returned no module.
        CheckpointError: the weights are not on this machine, cannot be read without running code from them, or do not
            fit.
        DependencyError: RobustBench or ONNX Runtime is needed and not installed.
    """
    check_is("download", download, "True or False", bool)
    found = check_model(spec)
    if found.kind == "fixture":
        return load_checkpoint(found.name)
    if found.kind == "checkpoint":
        assert found.file is not None
        return load_checkpoint(found.file.stem, found.file.parent)
    if found.kind == "import":
        module: nn.Module = called(f"model {spec!r}", found.name, nn.Module)
        try:
            return module.cpu().eval()
        except Exception as error:  # the module is the user's, and may be on the device meta
            raise InputError(f"model {spec!r}: cannot be moved to the CPU ({type(error).__name__}: {error})") from error
    load = {
        "timm": load_timm, "torchvision": load_torchvision, "robustbench": load_robustbench, "onnx": load_onnx,
    }[found.kind]  # fmt: skip
    return load(found, download=download)


def check_classes(what: str, model: nn.Module, images: Tensor, classes: int | None, data: str) -> None:
    """Check that a model accepts images of this size and has as many classes as the data.

    Args:
        what: name of the model, for messages.
        model: runs on the first image, on the CPU. Its state is restored.
        images: N x C x H x W, in [0, 1].
        classes: number of classes of the data; None if unknown.
        data: name of the data, for messages.

    Raises:
        InputError: the model raises an error on such images, or has another number of classes.
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
