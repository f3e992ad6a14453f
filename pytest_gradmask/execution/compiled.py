"""Code that `torch.compile` has compiled, run as if it were not."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def eagerly() -> AbstractContextManager[Any]:
    """Inside, compiled code runs as the code that it was made of.

    Each batch size, hook and mode counts against the number of versions that torch compiles. Beyond it, a model stays
    slow, or raises if it must be one graph.
    """
    compiler = sys.modules.get("torch._dynamo")  # not imported: nothing is compiled, and importing it takes seconds
    if compiler is None or torch.compiler.is_compiling():
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
