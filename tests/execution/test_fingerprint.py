"""Fingerprints change exactly when the computation of a defense changes."""

from __future__ import annotations

import cProfile
import decimal
import functools
import io
import itertools
import logging
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradmask import Defense, load_model
from pytest_gradmask.execution import packages
from pytest_gradmask.execution.fingerprint import FingerprintError, fingerprint
from pytest_gradmask.execution.packages import is_installed, package_identity
from tests.toys import KillGradient, Noisy, Quantize, convolutional, linear, masked


class Slotted:
    """An object with slots only."""

    __slots__ = ("__hidden", "__weakref__", "number")

    def __init__(self, number: float, hidden: float) -> None:
        self.number, self.__hidden = number, hidden


@dataclass
class Plain:
    """An object with attributes."""

    number: float = 0.5


SENTINEL = object()


class Holder(nn.Module):
    """Holds anything."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


def closed_over(number: float) -> Callable[[float], float]:
    return lambda value: value * number


def shared() -> list[torch.Tensor]:
    return [torch.zeros(2)] * 2


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    model = masked(Quantize, convolutional())
    change(model)
    return model


def _drawn() -> Holder:
    """The generators of all, after some numbers: audits seed them."""
    random.random(), np.random.random(), torch.rand(1)
    return Holder([random.uniform, np.random.normal, torch.default_generator])


def hooked(*with_kwargs: bool) -> nn.Module:
    model = linear()
    for each in with_kwargs:
        model.register_forward_hook(lambda *arguments: None if len(arguments) > 3 else arguments[2], with_kwargs=each)
    return model


SAME: dict[str, Callable[[], object]] = {
    "weights": lambda: convolutional(),
    "defense": lambda: Defense(masked(KillGradient), bypass=["0"]),
    "noise": lambda: Noisy(linear(), 0.1).eval(),
    "trained": lambda: load_model("resnet-standard-composite"),
    "partial": lambda: Holder(functools.partial(torch.clamp, min=0.0)),
    "closure": lambda: Holder(closed_over(2.0)),
    "method": lambda: Holder(Plain(1.0).__repr__),
    "object": lambda: Holder(Plain(1.0)),
    "slots": lambda: Holder(Slotted(1.0, 2.0)),
    "namespace": lambda: Holder(SimpleNamespace(number=1.0)),
    "set": lambda: Holder({"a", "b", "c", "d"}),
    "arrays": lambda: Holder([np.arange(3), np.float64(0.5), np.dtype("f4"), np.array([Plain()], dtype=object)]),
    "generators": lambda: Holder(
        [random.Random(0), np.random.default_rng(0), np.random.RandomState(0), torch.Generator().manual_seed(0)]
    ),
    "plain": lambda: Holder([None, ..., 1, 1.0, "x", b"x", 1j, Path("x"), torch.float32, torch.Size([1]), {"a": (1,)}]),
    "module": lambda: Holder(re),
    "pattern": lambda: Holder(re.compile("x+")),
    "method of a builtin": lambda: Holder(b"x".decode),
    "logger": lambda: Holder(logging.getLogger("some")),
    "sentinel": lambda: Holder(SENTINEL),
    "typing": lambda: Holder([list[int], int | None, Callable[[int], int]]),
    "global generators": _drawn,
    "compiled": lambda: torch.compile(linear(), backend="eager"),
    "universal functions": lambda: Holder([np.add, np.maximum]),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_the_same_thing_made_twice_has_one_fingerprint(make: Callable[[], object]) -> None:
    assert fingerprint(make()) == fingerprint(make())


OTHER: dict[str, tuple[object, object]] = {
    "weight": (linear(), linear(seed=1)),
    "one bit": (torch.zeros(3), torch.tensor([0.0, -0.0, 0.0])),
    "dtype": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "number type": (1, 1.0),
    "boolean": (1, True),
    "text": ("1", 1),
    "nesting": ([[1], 2], [1, [2]]),
    "list or tuple": ([1], (1,)),
    "attribute": (Noisy(linear(), 0.1), Noisy(linear(), 0.2)),
    "closure": (Holder(closed_over(2.0)), Holder(closed_over(3.0))),
    "code": (Holder(lambda value: value + 1), Holder(lambda value: value + 2)),
    "global name": (Holder(lambda value: torch.sin(value)), Holder(lambda value: torch.cos(value))),
    "default": (Holder(lambda value, more=1: value), Holder(lambda value, more=2: value)),
    "partial": (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=1)),
    "builtin": (torch.sin, torch.cos),
    "object": (Holder(Plain(1.0)), Holder(Plain(2.0))),
    "slot": (Holder(Slotted(1.0, 2.0)), Holder(Slotted(2.0, 2.0))),
    "private slot": (Holder(Slotted(1.0, 2.0)), Holder(Slotted(1.0, 3.0))),
    "namespace": (Holder(SimpleNamespace(number=1.0)), Holder(SimpleNamespace(number=2.0))),
    "set": ({1, 2}, {1, 3}),
    "generator": (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    "front end": (masked(Quantize), masked(KillGradient)),
    "order": (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
    "bypass": (Defense(masked(Quantize)), Defense(masked(Quantize), bypass=["0"])),
    "pattern": (re.compile("x"), re.compile("x", re.I)),
    "method of a builtin": (b"x".decode, b"y".decode),
    "shared or equal": (shared(), [torch.zeros(2), torch.zeros(2)]),
    "mode": (nn.Dropout(), nn.Dropout().eval()),
    "hook with arguments": (hooked(True, False), hooked(False, True)),
    "union": (Holder(int | Slotted), Holder(int | Plain)),
}


@pytest.mark.parametrize(("first", "second"), OTHER.values(), ids=OTHER)
def test_another_thing_has_another_fingerprint(first: object, second: object) -> None:
    assert fingerprint(first) != fingerprint(second)


CHANGES: dict[str, Callable[[Any], object]] = {
    "buffer": lambda model: model[1].register_buffer("extra", torch.ones(1)),
    "hook": lambda model: model[1][0].register_forward_hook(lambda module, inputs, output: output * 2),
    "forward": lambda model: setattr(model[0], "forward", lambda images: images),
    "stride": lambda model: setattr(model[1][0], "stride", (1, 1)),
    "submodule": lambda model: setattr(model[1], "1", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_done_to_a_model_shows(change: Callable[[nn.Module], object]) -> None:
    assert fingerprint(changed(lambda model: None)) != fingerprint(changed(change))


def test_what_only_training_needs_does_not_show() -> None:
    model = convolutional()
    before = fingerprint(model)
    model.requires_grad_(False)
    assert fingerprint(model) == before


def test_what_holds_itself_is_no_trap() -> None:
    def knot(depth: int) -> list[Any]:
        inner: list[Any] = []
        outer = inner
        for _ in range(depth):
            outer = [outer]
        inner.append(outer)
        return outer

    assert fingerprint(knot(2)) == fingerprint(knot(2)) != fingerprint(knot(3))


class Text(io.StringIO):
    """Has a state that is not in its attributes."""


class WrongError(Exception):
    """Also has a state that is not in its attributes."""


#: Most of the last ones have their state in C. Newer Pythons define some of these like ordinary classes.
UNHASHABLE: tuple[object, ...] = (
    threading.Lock(), iter([]), torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"), iter([]).__next__,
    io.StringIO("x"), Text("x"), WrongError("x"), itertools.count(), decimal.Decimal(1),
    np.frompyfunc(lambda value: value, 1, 1),
)  # fmt: skip


@pytest.mark.parametrize("value", UNHASHABLE)
def test_object_without_fingerprint_is_an_error(value: object) -> None:
    with pytest.raises(FingerprintError):
        fingerprint(Holder(value))


def typed(text: str) -> Any:
    """The class ``Front`` of code that has no file, such as that typed at a prompt."""
    namespace: dict[str, Any] = {"__name__": "typed"}
    exec(text, namespace)
    return namespace["Front"]


def test_code_without_a_file_is_read_from_memory() -> None:
    text = "class Front:\n    def __call__(self, x):\n        return x * {}"
    one, again, other = (fingerprint(typed(text.format(by))) for by in (1, 1, 2))
    assert one == again != other


def test_what_refuses_to_be_read_is_an_error() -> None:
    class Refuses(dict[str, int]):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise OSError("not now")

    with pytest.raises(FingerprintError, match=r"cannot be read \(OSError: not now"):
        fingerprint(Refuses())


def test_data_that_is_nested_too_deeply_is_an_error() -> None:
    outer: list[Any] = []
    for _ in range(10_000):
        outer = [outer]
    with pytest.raises(FingerprintError, match="RecursionError"):
        fingerprint(outer)


def test_long_chains_of_calls_are_followed() -> None:
    def chain(end: int) -> Any:
        lines = [f"def f{number}():\n    return f{number + 1}()" for number in range(3000)]
        return typed(
            "\n".join([*lines, f"def f3000():\n    return {end}", "class Front:\n    call = lambda self: f0()"])
        )

    assert fingerprint(chain(1)) != fingerprint(chain(2))


def test_bytecode_is_the_same_after_many_calls() -> None:
    def add(one: float, other: float) -> float:
        return one + other + len(str(one))

    before = fingerprint(Holder(add))
    for _ in range(10_000):  # the interpreter rewrites instructions for the types that it sees
        add(1.0, 2.0)
    assert fingerprint(Holder(add)) == before


DEFENSE = """
from helper import blur

class Front:
    def __call__(self, x):
        return blur(x)
"""
ASK = """
import other, defense
from pytest_gradmask.execution.fingerprint import fingerprint
print(fingerprint(defense.Front()))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of three modules: ``defense`` imports ``helper``; nothing imports ``other``."""
    (tmp_path / "defense.py").write_text(DEFENSE)
    (tmp_path / "helper.py").write_text("def blur(x):\n    return x\n")
    (tmp_path / "other.py").write_text("NUMBER = 1\n")
    return tmp_path


def front_of(project: Path) -> str:
    return subprocess.run([sys.executable, "-c", ASK], cwd=project, check=True, capture_output=True, text=True).stdout


@pytest.mark.longer
def test_fingerprint_covers_imported_code_only(project: Path) -> None:
    before = front_of(project)
    (project / "other.py").write_text("NUMBER = 2\n")
    assert front_of(project) == before
    (project / "helper.py").write_text("def blur(x):\n    return x / 2\n")
    helper = front_of(project)
    assert helper != before
    (project / "defense.py").write_text(f"# a comment\n{DEFENSE}        # and another")
    assert front_of(project) == helper


def test_identity_of_this_package_is_that_of_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = package_identity.__wrapped__("pytest_gradmask")
    monkeypatch.setattr(packages, "_our_folder", lambda: tmp_path)
    assert package_identity.__wrapped__("pytest_gradmask") != before


REINSTALLED = "reinstalled/__init__.py,sha256={},10\nreinstalled/__pycache__/x.pyc,,\n../bin/tool,sha256={},1\n"


def test_a_package_installed_again_at_its_version_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "other_name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-name\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for code, tool in (("a", "b"), ("a", "c"), ("d", "c")):
        (info / "RECORD").write_text(REINSTALLED.format(code, tool))
        found.append(package_identity.__wrapped__("reinstalled"))
    assert found[0] == found[1] != found[2]


AFTER_COMPILE = """
import torch
from torch import nn
from pytest_gradmask.execution.fingerprint import fingerprint
from tests.toys import KillGradient, masked

torch.manual_seed(0)
model = masked(KillGradient)
before = fingerprint(model)
init = nn.Module.__init__
torch.compile(nn.Linear(2, 2), backend="eager")(torch.zeros(1, 2))
assert nn.Module.__init__ is not init, "PyTorch has replaced nothing: this test is of no use any more"
assert fingerprint(model) == before
call = nn.Module.__call__
nn.Module.__call__ = lambda self, *inputs: 2 * call(self, *inputs)
assert fingerprint(model) != before
"""


@pytest.mark.longer
def test_what_compile_does_to_all_modules_changes_no_fingerprint() -> None:
    run = subprocess.run(
        [sys.executable, "-c", AFTER_COMPILE], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_script_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a profiler, the main module has the file of the profiler."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", cProfile.__file__, raising=False)
    assert is_installed("cProfile")
    assert not is_installed("__main__")
