"""Where in the code of a user an operation is."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from pytest_gradmask.verdict.results import Operation

#: Frames of these folders are not the code of the user.
_LIBRARIES = (*(str(Path(file).parent) for file in (torch.__file__, __file__)), "<frozen")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One operation at one line of code.

    Attributes:
        file: path of the file.
        line: of the call; of a decorator or a hook, where its function begins.
        operation: name, such as ``torch.round``.
    """

    file: str
    line: int
    operation: str

    def __str__(self) -> str:
        return f"`{self.operation}` at {Path(self.file).name}:{self.line}"


def described_sites(counts: Mapping[Site, int]) -> tuple[Operation, ...]:
    """Sites and how often each runs in a forward pass, as results. Paths are relative where that is shorter."""
    return tuple(
        Operation(name=site.operation, file=_shown(site.file), line=site.line, count=count)
        for site, count in counts.items()
    )


def _shown(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def site_here(operation: str) -> Site:
    """The site of an operation that runs now: the innermost line that is not in torch itself."""
    frame: FrameType | None = sys._getframe(1)
    outermost = frame
    while frame is not None:
        code = frame.f_code
        if code.co_name == "decorate_context" and "func" in frame.f_locals:
            # ``@torch.no_grad()``: the function that it decorates, and not the code that calls this function
            decorated = getattr(frame.f_locals["func"], "__code__", None)
            if decorated is not None:
                return Site(decorated.co_filename, decorated.co_firstlineno, operation)
        if not code.co_filename.startswith(_LIBRARIES):
            return Site(code.co_filename, frame.f_lineno, operation)
        outermost, frame = frame, frame.f_back
    assert outermost is not None
    return Site(outermost.f_code.co_filename, outermost.f_lineno, operation)


def site_of(function: object, operation: str) -> Site:
    """The site of a function, such as a hook."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    if code is None:
        return Site("?", 0, operation)
    return Site(code.co_filename, code.co_firstlineno, operation)
