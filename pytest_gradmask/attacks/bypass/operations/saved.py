"""Hooks on what autograd saves for the backward pass, which may get back something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd.graph import saved_tensors_hooks

from pytest_gradmask.attacks.bypass.operations.patches import Patch
from pytest_gradmask.attacks.bypass.operations.sites import Site, site_here

_ENTER, _EXIT = Patch(saved_tensors_hooks, "__enter__"), Patch(saved_tensors_hooks, "__exit__")


class SavedTensorsHooks:
    """Blocks of `torch.autograd.graph.saved_tensors_hooks`, which are left out where ``replaces`` says so.

    A backward pass that computes with compressed activations is another one (Chen et al., "ActNN", ICML 2021,
    arXiv:2104.14129).
    """

    def __init__(self, replaces: Callable[[Site], bool]) -> None:
        self._replaces = replaces
        self._left_out: list[saved_tensors_hooks] = []  # blocks that run now

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """In this context and this thread."""
        with _ENTER.run_by(self._enter), _EXIT.run_by(self._exit):
            yield

    def _enter(self, block: saved_tensors_hooks, own: Callable[..., Any], *_: Any) -> Any:
        if not self._replaces(site_here("torch.saved_tensors_hooks")):
            return own()
        self._left_out.append(block)
        return None

    def _exit(self, block: saved_tensors_hooks, own: Callable[..., Any], arguments: Any, _: Any) -> Any:
        if not any(each is block for each in self._left_out):
            return own(*arguments)
        self._left_out = [each for each in self._left_out if each is not block]
        return None
