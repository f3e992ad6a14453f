"""Where in a defense the gradient stops being the derivative: a submodule, a hook or an ``autograd.Function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.probes.calls import Call, TensorHooks, in_graph, recording, watching
from pytest_gradmask.probes.differences import Comparison, Function, Subject, backward, compare_module

_DIRECTIONS = 8
#: Inputs are moved by this share of their size: values that a ReLU made zero lie on the kinks of what follows.
_JITTER = 1e-2
#: Places to name at most.
_MOST = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where derivatives disagree.

    Attributes:
        name: what it is called.
        source: file and line of its code; empty if unknown.
        cosine: of its gradient with the derivative.
        is_step: whether its outputs do not change when its inputs do, though it has a gradient (straight-through).
        is_random: whether it draws random numbers. Its gradient may then be that of its mean over draws.
    """

    name: str
    source: str
    cosine: float
    is_step: bool
    is_random: bool = False

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        kinds = {", a step with a gradient of its own": self.is_step, ", which is random": self.is_random}
        return f"{self.name}{source}" + "".join(kind for kind, applies in kinds.items() if applies)


def locate(
    subject: Subject, whole: Function, point: Tensor, weights: Tensor, generator: torch.Generator
) -> list[Place]:
    """The innermost submodules, hooks or functions whose gradient is not their derivative.

    Each is run by itself on what it got at the point, with the gradient that arrived at it. Costs about 20 passes of
    one image for each level of submodules.

    Args:
        subject: the defense.
        whole: runs it.
        point: 1 x C x H x W.
        weights: of the logits.
        generator: draws directions.
    """
    calls: dict[nn.Module, Call] = {}
    found: dict[str, Place] = {}
    with suppress(Exception):  # a defense may refuse hooks, or to be run in parts: the place is then not known
        with recording(subject.model, calls):
            backward(whole, [point.to(subject.dtype)], [weights])
        _Search(subject, calls, generator).below(subject.model, "", found)
    return list(found.values())[:_MOST]


@dataclass(frozen=True, slots=True)
class _Search:
    subject: Subject
    calls: dict[nn.Module, Call]
    generator: torch.Generator

    def below(self, module: nn.Module, name: str, found: dict[str, Place]) -> bool:
        """Add what disagrees in a module; whether anything does."""
        call, seen = self.calls.get(module), None
        if call is not None:
            seen = self._compare(call, module)
            if seen is not None and not self._wrong(seen) and not seen.measured.isnan().any():
                return False
        inner = [self.below(child, f"{name}.{key}".lstrip("."), found) for key, child in module.named_children()]
        if any(inner):
            return True
        if call is None or seen is None or not self._wrong(seen):
            return False
        self._blame(module, name, call, seen, found)
        return True

    def _blame(self, module: nn.Module, name: str, call: Call, seen: Comparison, found: dict[str, Place]) -> None:
        title = name or "the model itself"
        hooks = _hooks(module)
        bare = self._compare(call, module.forward) if hooks else None
        if bare is not None and not self._wrong(bare):
            places = [Place(f"{title}, hook {_named(hook)}", source(hook), seen.cosine(), False) for hook in hooks]
        else:
            places = self._functions(module, title, call)
        if not places:
            with TensorHooks() as watch:
                self._run_once(call, module)
            extra = f", which sets the hook {_named(watch.seen[0])}" if watch.seen else ""
            places = [
                Place(f"{title}, {type(module).__name__}.forward{extra}", source(type(module).forward), seen.cosine(),
                      seen.is_step())
            ]  # fmt: skip
        is_random = self._is_random(call, module)
        for place in places:
            found[str(place)] = replace(place, is_random=is_random)

    def _functions(self, module: nn.Module, title: str, call: Call) -> list[Place]:
        """The autograd functions that a module's own graph contains and whose gradient is wrong."""
        places = []
        for function in in_graph(self._run_once(call, module)):
            record: list[Call] = []
            with watching(function, record):
                arguments = call.arguments()
                weights = self._weights(call, module)
                if weights is None:
                    continue
                backward(self._bound(call, module), arguments, weights)
            for each in record[:1]:
                seen = self._compare(each, function.apply)
                if seen is not None and self._wrong(seen):
                    name = f"{title}, autograd.Function {function.__name__}"
                    places.append(Place(name, source(function), seen.cosine(), seen.is_step()))
        return places

    def _is_random(self, call: Call, module: nn.Module) -> bool:
        run = call.bound(module, nullcontext)
        with torch.no_grad(), self.subject.inside():
            first, second = (run([each.to(self.subject.dtype) for each in call.arguments()]) for _ in range(2))
        return any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))

    def _wrong(self, seen: Comparison) -> bool:
        return bool((seen.errors() > self.subject.disagree).any())

    def _compare(self, call: Call, run: Callable[..., Any]) -> Comparison | None:
        """None where it cannot be run by itself."""
        try:
            arguments, weights = self._jittered(call.arguments()), self._weights(call, run)
            if not arguments or weights is None:
                return None
            return compare_module(self.subject, self._bound(call, run), arguments, weights, self.generator, _DIRECTIONS)
        except Exception:  # a part of a defense may not run outside of it
            return None

    def _jittered(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        tensors = [each.to(self.subject.dtype) for each in tensors]
        return [
            each + _JITTER * each.square().mean().sqrt() * torch.randn(each.shape, generator=self.generator).to(each)
            for each in tensors
        ]

    def _weights(self, call: Call, run: Callable[..., Any]) -> list[Tensor] | None:
        """The gradients that arrived at the outputs; where none did, random ones."""
        with torch.no_grad():
            outputs = self._bound(call, run)([each.clone() for each in call.arguments()])
        weights = []
        for number, output in enumerate(outputs):
            arrived = call.arrived.get(number)
            if arrived is None or arrived.shape != output.shape or not bool(arrived.any()):
                arrived = torch.randn(output.shape, generator=self.generator)
            weights.append(arrived.to(output))
        return weights or None

    def _run_once(self, call: Call, run: Callable[..., Any]) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [each.requires_grad_(True) * 1 for each in self._jittered(call.arguments())]
            return self._bound(call, run)(leaves)

    def _bound(self, call: Call, run: Callable[..., Any]) -> Function:
        return call.bound(run, self.subject.inside)


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Hooks on a module: those of the backward pass if there are any, or else those of the forward pass."""
    backward_kinds, forward_kinds = ("_backward_pre_hooks", "_backward_hooks"), ("_forward_pre_hooks", "_forward_hooks")
    for kinds in (backward_kinds, forward_kinds):
        found = [hook for kind in kinds for hook in getattr(module, kind, {}).values()]
        if found:
            return found
    return []


def _named(hook: Any) -> str:
    return getattr(hook, "__qualname__", None) or type(hook).__qualname__


def source(code: Any) -> str:
    """File, relative to the working directory if it is below, and line of a function or class; empty if unknown."""
    try:
        code = inspect.unwrap(code)
        file, line = inspect.getsourcefile(code), inspect.getsourcelines(code)[1]
    except (TypeError, OSError):
        return ""
    path = Path(file or "")
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
