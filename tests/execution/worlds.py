"""A folder of Python modules of its own, and the kinds of changes of a defense that are made in one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

FRONT = """
import functools, importlib, os, sys
import torch
from pathlib import Path
from torch import nn
{header}

class Front(nn.Module):
    def forward(self, x):
        return {result}
"""


class World:
    """Where a change happens.

    Attributes:
        amount: in (0, 1); of the change.
        folder: of the modules, which begins ``sys.path``.
        patch: undone at the end.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, amount: float) -> None:
        self.folder, self.patch, self.amount = folder, patch, amount
        self.forget()
        patch.syspath_prepend(folder)

    def write(self, name: str, text: str) -> None:
        """Write a module, and forget it if it has been imported."""
        file = self.folder / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.forget()

    def forget(self) -> None:
        """As if a new process had started."""
        for name in list(sys.modules):
            if name.partition(".")[0] in ("config", "front", "package", "spread"):
                del sys.modules[name]
        for cached in self.folder.rglob("*.pyc"):
            cached.unlink()
        importlib.invalidate_caches()

    def front(self, result: str, header: str = "", name: str = "front") -> Any:
        """A new module with the class ``Front``, whose forward returns ``result``, a text."""
        self.write(name, FRONT.format(header=header, result=result))
        return importlib.import_module(name)


Change = Callable[[World], Iterator[nn.Module]]
#: Those that code, attributes and the state of the process show, and those that only the answers show.
SEEN: dict[str, Change] = {}
HIDDEN: dict[str, Change] = {}


def seen(change: Change) -> Change:
    SEEN[change.__name__] = change
    return change


def hidden(change: Change) -> Change:
    HIDDEN[change.__name__] = change
    return change


def in_config(name: str, before: str, after: str, result: str, header: str) -> None:
    """A kind of change: a module ``config`` is edited, and the next process imports it."""

    def change(world: World) -> Iterator[nn.Module]:
        for text in (before, after):
            world.write("config", "import functools, torch\nfrom torch import nn\n" + text.format(world.amount))
            yield world.front(result, header).Front()

    SEEN[name] = change


class Plain(nn.Module):
    """Returns what it gets, less ``by`` of it."""

    by = 0.0

    def less(self, x: Tensor) -> Tensor:
        return x * (1 - self.by)

    def forward(self, x: Tensor) -> Tensor:
        return self.less(x)


class Descriptor:
    """An attribute of a class that computes."""

    def __init__(self, by: float) -> None:
        self.amount = by

    def __get__(self, instance: object, owner: type) -> float:
        return self.amount


def less(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A `Plain` with this function in place of its method."""
    front = Plain()
    setattr(front, "less", function)  # noqa: B010
    return front
