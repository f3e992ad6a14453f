"""Classifiers in ONNX files, run by ONNX Runtime. They have no gradient."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pytest_gradmask.errors import CheckpointError, DependencyError
from pytest_gradmask.loading.models.black_box import black_box
from pytest_gradmask.loading.specs import ModelSpec


class OnnxFunction:
    """A session of ONNX Runtime as a function of arrays. Copies and other processes open the file again.

    Args:
        file: with one input, of images.

    Raises:
        CheckpointError: it cannot be opened, or has another number of inputs.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        runtime = importlib.import_module("onnxruntime")
        try:
            self.session: Any = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            names = [each.name for each in self.session.get_inputs()]
        except Exception as error:  # the errors of the runtime have no common class
            raise CheckpointError(f"model {str(file)!r}: ONNX Runtime cannot open it: {error}") from error
        if len(names) != 1:
            raise CheckpointError(
                f"model {str(file)!r}: has the inputs {', '.join(names) or 'none'}; only models with one input can be "
                "loaded. Give a function of your own to pytest_gradmask.black_box"
            )
        self.name = names[0]

    def __call__(self, images: np.ndarray[Any, Any]) -> Any:
        """The first output that is N x K and of floats, such as logits; the first of all if there is none."""
        outputs = self.session.run(None, {self.name: images})
        fits = (each for each in outputs if getattr(each, "ndim", 0) == 2 and each.dtype.kind == "f")
        return next(fits, outputs[0])

    def __reduce__(self) -> tuple[type[OnnxFunction], tuple[Path]]:
        return OnnxFunction, (self.file,)


def load_onnx(spec: ModelSpec, *, download: bool) -> nn.Module:  # noqa: ARG001 (every loader takes it)
    """Load the model of an ONNX file.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        CheckpointError: the file cannot be used.
    """
    try:
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DependencyError(
            f"model {spec.text!r}: needs ONNX Runtime; install it with pip install 'pytest-gradmask[onnx]'"
        ) from error
    assert spec.file is not None
    return black_box(OnnxFunction(spec.file))
