"""A defense whose gradient is that of its operations, each with its natural gradient."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.hooks import plainly
from pytest_gradmask.attacks.bypass.operations.sites import Site, site_of
from pytest_gradmask.attacks.bypass.operations.watch import Watch

_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
#: Of torch's own module, which has hooks on all modules of the process.
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


class OperationsBypassed(nn.Module):
    """Operation-level BPDA: a model with the same outputs, whose operations at some sites have another gradient.

    Args:
        model: not changed between calls.
        sites: where to replace gradients, as `find_operations` found them; None: wherever it is possible.
    """

    def __init__(self, model: nn.Module, sites: Collection[Site] | None = None) -> None:
        super().__init__()
        self.model, self.sites = model, None if sites is None else frozenset(sites)

    def forward(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self.model(images)  # type: ignore[no-any-return]
        return self.watched(images)[0]

    def watched(self, images: Tensor) -> tuple[Tensor, Watch]:
        """The outputs for images that require a gradient, and what was seen on the way."""
        watch = Watch(self.sites)
        watch.exits.exclude((*self.model.parameters(), *self.model.buffers()))
        with plainly(), _state_without_graph(self.model), watch.on(), _without_hooks(self.model, watch):
            # A copy, because the model may write into its input, and because a leaf belongs to the caller.
            return watch.returned(self.model(images.clone())), watch


@contextmanager
def _without_hooks(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Inside, backward hooks on modules at the chosen sites, which may change gradients, do not run."""
    removed: list[tuple[dict[int, object], dict[int, object]]] = []
    every = [(module, kind) for module in model.modules() for kind in _HOOKS]
    try:
        for module, kind in (*every, *((torch.nn.modules.module, kind) for kind in _GLOBAL_HOOKS)):
            hooks = getattr(module, kind, None)
            if hooks:
                before = dict(hooks)
                removed.append((hooks, before))
                for key, hook in before.items():
                    if watch.replaces(site_of(hook, "backward hook")):
                        del hooks[key]
        yield
    finally:
        for hooks, before in removed:
            hooks.clear()
            hooks.update(before)


@contextmanager
def _state_without_graph(model: nn.Module) -> Iterator[None]:
    """On exit, what the model has kept of the images is without a graph, as it would be if it were not watched."""
    before = {id(tensor) for module in model.modules() for tensor in _kept(module).values()}
    try:
        yield
    finally:
        for module in model.modules():
            for name, tensor in _kept(module).items():
                if tensor.grad_fn is None:
                    continue
                if id(tensor) in before:
                    tensor.detach_()  # the same tensor, written into
                elif name in module._buffers:
                    module._buffers[name] = tensor.detach()
                else:
                    module.__dict__[name] = tensor.detach()


def _kept(module: nn.Module) -> dict[str, Tensor]:
    own = {name: value for name, value in module.__dict__.items() if isinstance(value, Tensor)}
    return own | {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
