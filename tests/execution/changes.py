"""Changes of a defense that each alter its answers: one generator function for each kind of change.

Each yields the defense before the change and the defense after it, and makes the change in between. What a kind needs
is in a `World`: a folder of Python modules of its own, and an amount that is drawn at random.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import importlib
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
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


in_config("imported value", "MASK = 0.0", "MASK = {}", "x * (1 - MASK)", "from config import MASK")
in_config("attribute of an imported module", "MASK = 0.0", "MASK = {}", "x * (1 - config.MASK)", "import config")
in_config("imported under another name", "MASK = 0.0", "MASK = {}", "x * (1 - c.MASK)", "import config as c")
in_config("star import", "MASK = 0.0", "MASK = {}", "x * (1 - MASK)", "from config import *")
in_config("imported dict", "C = dict(a=0.0)", "C = dict(a={})", "x * (1 - C['a'])", "from config import C")
in_config("imported nested list", "C = [[0.0]]", "C = [[{}]]", "x * (1 - C[0][0])", "from config import C")
in_config(
    "imported partial",
    "def scale(x, by): return x * (1 - by)\nf = functools.partial(scale, by=0.0)",
    "def scale(x, by): return x * (1 - by)\nf = functools.partial(scale, by={})",
    "f(x)", "from config import f",
)  # fmt: skip
in_config(
    "imported module of torch", "net = nn.Sequential(nn.Hardtanh(0, 1))", "net = nn.Sequential(nn.Hardtanh(0, 1 - {}))",
    "net(x)", "from config import net",
)  # fmt: skip
CALLED = "class Scale:\n    def __init__(self, by): self.by = by\n    def __call__(self, x): return x * (1 - self.by)\n"
in_config("imported callable", CALLED + "f = Scale(0.0)", CALLED + "f = Scale({})", "f(x)", "from config import f")
in_config(
    "imported closure", "def make(by): return lambda x: x * (1 - by)\nf = make(0.0)",
    "def make(by): return lambda x: x * (1 - by)\nf = make({})", "f(x)", "from config import f",
)  # fmt: skip
in_config("imported function", "def f(x): return x", "def f(x): return x * (1 - {})", "config.f(x)", "import config")
in_config(
    "function behind a function", "def g(x): return x\ndef f(x): return g(x)",
    "def g(x): return x * (1 - {})\ndef f(x): return g(x)", "f(x)", "from config import f",
)  # fmt: skip
in_config("imported tensor", "W = torch.zeros(1)", "W = torch.full((1,), {})", "x * (1 - W)", "from config import W")
in_config("imported set", "S = set()", "S = set([{}])", "x * (1 - sum(S))", "from config import S")
in_config("import in forward", "MASK = 0.0", "MASK = {}", "x * (1 - importer())", """
def importer():
    from config import MASK
    return MASK
""")  # fmt: skip
in_config("module import in forward", "MASK = 0.0", "MASK = {}", "x * (1 - importer())", """
def importer():
    import config
    return config.MASK
""")  # fmt: skip
in_config(
    "import by name", "MASK = 0.0", "MASK = {}", "x * (1 - importlib.import_module('config').MASK)", "import config"
)
in_config("module passed on", "MASK = 0.0", "MASK = {}", "x * (1 - getattr(config, 'MA' + 'SK'))", "import config")
in_config(
    "module in a container", "MASK = 0.0", "MASK = {}", "x * (1 - M['c'].MASK)", "import config\nM = dict(c=config)"
)
in_config("global by its name", "MASK = 0.0", "MASK = {}", "x * (1 - globals()['MASK'])", "from config import MASK")
in_config("name in evaluated text", "MASK = 0.0", "MASK = {}", "x * (1 - eval('MASK'))", "from config import MASK")
BASE = "class Base(nn.Module):\n    {body}\n    def scale(self, x): return x * (1 - self.by)\n"
in_config(
    "attribute of an imported base", BASE.replace("{body}", "by = 0.0"), BASE.replace("{body}", "by = {}"),
    "Middle().scale(x)", "from config import Base\nclass Middle(Base): pass",
)  # fmt: skip


@seen
def base_of_the_front(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("config", f"class Base:\n    @property\n    def by(self): return {by}")
        module = world.front("x * (1 - self.by)", "from config import Base")
        yield type("Both", (module.Front, module.Base), {})()


@seen
def relative_import(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("package.__init__", "")
        world.write("package.config", f"MASK = {by}")
        yield world.front("x * (1 - MASK)", "from .config import MASK", "package.front").Front()


@seen
def relative_import_in_forward(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("package.__init__", "")
        world.write("package.config", f"MASK = {by}")
        header = "def importer():\n    from . import config\n    return config.MASK"
        yield world.front("x * (1 - importer())", header, "package.front").Front()


@seen
def folder_without_init(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("spread.config", f"MASK = {by}")
        yield world.front("x * (1 - spread.config.MASK)", "import spread.config").Front()


@seen
def deep_package(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("package.__init__", "from package.inner import config")
        world.write("package.inner.__init__", "")
        world.write("package.inner.config", f"MASK = {by}")
        yield world.front("x * (1 - package.inner.config.MASK)", "import package").Front()


@seen
def edited_while_it_runs(world: World) -> Iterator[nn.Module]:
    old = world.front("x")
    world.write("front", FRONT.format(header="", result=f"x * (1 - {world.amount})"))
    yield old.Front()  # as it was imported, though its file is new already
    yield importlib.import_module("front").Front()


@seen
def class_of_a_factory(world: World) -> Iterator[nn.Module]:
    def make(by: float) -> type[nn.Module]:
        class Front(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * (1 - by)

        return Front

    yield make(0.0)()
    yield make(world.amount)()


class Plain(nn.Module):
    """Returns what it gets, less ``by`` of it."""

    by = 0.0

    def less(self, x: Tensor) -> Tensor:
        return x * (1 - self.by)

    def forward(self, x: Tensor) -> Tensor:
        return self.less(x)


@seen
def class_attribute(world: World) -> Iterator[nn.Module]:
    yield Plain()
    world.patch.setattr(Plain, "by", world.amount)
    yield Plain()


@seen
def patched_method(world: World) -> Iterator[nn.Module]:
    yield Plain()
    amount = world.amount
    world.patch.setattr(Plain, "less", lambda self, x: x * (1 - amount))
    yield Plain()


@seen
def patched_method_of_an_instance(world: World) -> Iterator[nn.Module]:
    yield Plain()
    front, amount = Plain(), world.amount
    front.less = lambda x: x * (1 - amount)  # type: ignore[method-assign]
    yield front


@seen
def patched_method_of_torch(world: World) -> Iterator[nn.Module]:
    yield nn.Identity()
    amount = world.amount
    world.patch.setattr(nn.Identity, "forward", lambda self, x: x * (1 - amount))
    yield nn.Identity()


@seen
def class_made_by_type(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield type("Made", (Plain,), {"by": by})()


@seen
def class_said_to_be_of_torch(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield type("Linear", (Plain,), {"by": by, "__module__": "torch.nn.modules.linear"})()


@seen
def order_of_bases(world: World) -> Iterator[nn.Module]:
    one, other = type("One", (), {"by": 0.0}), type("Other", (), {"by": world.amount})
    for bases in ((one, other), (other, one)):
        yield type("Front", (*bases, Plain), {})()


@seen
def changed_bases(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        base = type("Base", (), {"by": by})
        yield type("Front", (base, Plain), {})()


@seen
def attribute_of_a_metaclass(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        meta = type("Meta", (type,), {"amount": by})

        class Front(nn.Module, metaclass=meta):  # type: ignore[metaclass]
            def forward(self, x: Tensor) -> Tensor:
                return x * (1 - type(self).amount)  # type: ignore[attr-defined, no-any-return]

        yield Front()


@seen
def property_of_a_class(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield type("Front", (Plain,), {"by": property(functools.partial(lambda self, value: value, value=by))})()


@seen
def static_and_class_methods(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):

        class Front(nn.Module):
            @staticmethod
            def one(x: Tensor, by: float = by) -> Tensor:
                return x * (1 - by)

            @classmethod
            def two(cls, x: Tensor, by: float = by) -> Tensor:
                return x * (1 - by)

            def forward(self, x: Tensor) -> Tensor:
                return self.one(self.two(x))

        yield Front()


class Descriptor:
    """An attribute of a class that computes."""

    def __init__(self, by: float) -> None:
        self.amount = by

    def __get__(self, instance: object, owner: type) -> float:
        return self.amount


@seen
def descriptor(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield type("Front", (Plain,), {"by": Descriptor(by)})()


@seen
def default_of_a_dataclass(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        made = dataclasses.make_dataclass("Settings", [("amount", float, by)])
        yield _less(functools.partial(lambda x, made: x * (1 - made().amount), made=made))


@seen
def member_of_an_enum(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        kinds: Any = enum.Enum("kinds", {"ONE": by})
        yield _less(functools.partial(lambda x, kinds: x * (1 - kinds.ONE.value), kinds=kinds))


def _less(function: Callable[[Tensor], Tensor]) -> nn.Module:
    front = Plain()
    setattr(front, "less", function)  # noqa: B010
    return front


@seen
def function_default(world: World) -> Iterator[nn.Module]:
    module = world.front("f(x)", "def f(x, by=0.0):\n    return x * (1 - by)")
    yield module.Front()
    module.f.__defaults__ = (world.amount,)
    yield module.Front()


@seen
def keyword_default(world: World) -> Iterator[nn.Module]:
    module = world.front("f(x)", "def f(x, *, by=0.0):\n    return x * (1 - by)")
    yield module.Front()
    module.f.__kwdefaults__["by"] = world.amount
    yield module.Front()


@seen
def replaced_code(world: World) -> Iterator[nn.Module]:
    module = world.front("f(x)", f"def f(x):\n    return x\ndef g(x):\n    return x * (1 - {world.amount})")
    yield module.Front()
    module.f.__code__ = module.g.__code__
    yield module.Front()


@seen
def global_set_at_run_time(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - MASK)", "MASK = 0.0")
    yield module.Front()
    world.patch.setattr(module, "MASK", world.amount)
    yield module.Front()


@seen
def global_set_by_a_function(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - MASK)", "MASK = 0.0\ndef switch(by):\n    global MASK\n    MASK = by")
    yield module.Front()
    module.switch(world.amount)
    yield module.Front()


@seen
def global_made_later(world: World) -> Iterator[nn.Module]:
    module = world.front(
        "read(x)", "def read(x):\n    try:\n        return x * (1 - MASK)\n    except NameError:\n        return x"
    )
    yield module.Front()
    module.MASK = world.amount
    yield module.Front()


@seen
def environment_at_import(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.patch.setenv("TOY_MASK", str(by))
        yield world.front("x * (1 - MASK)", "MASK = float(os.environ['TOY_MASK'])").Front()


@seen
def environment_in_forward(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float(os.environ.get('TOY_MASK', 0)))")
    yield module.Front()
    world.patch.setenv("TOY_MASK", str(world.amount))
    yield module.Front()


@seen
def environment_by_a_global_name(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float(os.environ.get(NAME, 0)))", "NAME = 'TOY_MASK'")
    yield module.Front()
    world.patch.setenv("TOY_MASK", str(world.amount))
    yield module.Front()


@seen
def file_at_import(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield world.front("x * (1 - MASK)", "MASK = float((Path(__file__).parent / 'config.txt').read_text())").Front()


@seen
def registry(world: World) -> Iterator[nn.Module]:
    module = world.front("REGISTRY['f'](x)", "REGISTRY = dict(f=lambda x: x)")
    yield module.Front()
    amount = world.amount
    module.REGISTRY["f"] = lambda x: x * (1 - amount)
    yield module.Front()


@seen
def builtin_replaced(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - abs(0.0))")
    yield module.Front()
    amount = world.amount
    module.abs = lambda value: amount
    yield module.Front()


@seen
def function_of_torch_replaced(world: World) -> Iterator[nn.Module]:
    module = world.front("torch.positive(x)")
    yield module.Front()
    amount = world.amount
    world.patch.setattr(torch, "positive", lambda x: x * (1 - amount))
    yield module.Front()


@seen
def weight_norm_around_it(world: World) -> Iterator[nn.Module]:
    header = "class Conv(nn.Conv2d):\n    def forward(self, x):\n        return super().forward(x) * (1 - {})"
    for by in (0.0, world.amount):
        conv = world.front("x", header.format(by)).Conv(3, 3, 1)
        with torch.no_grad():
            conv.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            conv.bias.zero_()
        yield nn.utils.parametrizations.weight_norm(conv)


class Shrink(nn.Module):
    """A parametrization."""

    by = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 - self.by)


@seen
def parametrization(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        conv = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.ones_(conv.weight)
        nn.utils.parametrize.register_parametrization(conv, "weight", type("Shrunk", (Shrink,), {"by": by})())
        yield conv


@seen
def decorated_function(world: World) -> Iterator[nn.Module]:
    header = """
def decorated(by):
    def decorate(function):
        @functools.wraps(function)
        def inner(x):
            return function(x) * (1 - by)
        return inner
    return decorate

@decorated({})
def f(x):
    return x
"""
    for by in (0.0, world.amount):
        yield world.front("f(x)", header.format(by)).Front()


@seen
def function_in_a_decorator_of_torch(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield world.front("f(x)", f"@torch.enable_grad()\ndef f(x):\n    return x * (1 - {by})").Front()


@seen
def function_in_a_decorator_of_python(world: World) -> Iterator[nn.Module]:
    header = "@functools.singledispatch\ndef f(x):\n    return x * (1 - {0})\n"
    header += "@functools.lru_cache\ndef g(x):\n    return {0}"
    for by in (0.0, world.amount):
        yield world.front("f(x) * (1 - g(1))", header.format(by)).Front()


class Mapped(dict[str, int]):
    """A dict with an attribute."""


class Listed(list[int]):
    """A list with an attribute."""


class Number(float):
    """A float with an attribute."""


class Text(str):
    """A text with an attribute."""


class Pair(tuple[int, int]):
    """A tuple with an attribute."""


class Array(np.ndarray[Any, Any]):
    """An array with an attribute."""


class Slotted:
    """An object with a slot."""

    __slots__ = ("amount",)


class Both(collections.OrderedDict[str, int]):
    """An ordered dict with an attribute."""


class Held(torch.Tensor):
    """A tensor with an attribute."""

    amount: float


HOLDERS: dict[str, Callable[[], Any]] = {
    "dict": Mapped, "list": Listed, "float": Number, "text": Text, "tuple": Pair, "ordered dict": Both,
    "array": lambda: np.zeros(1).view(Array), "slots": Slotted, "tensor": lambda: torch.zeros(1).as_subclass(Held),
    "plain tensor": lambda: torch.zeros(1), "namespace": types.SimpleNamespace, "function": lambda: lambda: None,
    "parameter": lambda: nn.Parameter(torch.zeros(1)), "set": type("Set", (set,), {}), "int": type("Int", (int,), {}),
    "deque": type("Queue", (collections.deque,), {}), "partial": lambda: functools.partial(max),
}  # fmt: skip


class Reads(nn.Module):
    """Reads the attribute ``amount`` of what it holds."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.held.amount)  # type: ignore[no-any-return, attr-defined]


def _held(make: Callable[[], Any], world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        held = make()
        held.amount = by
        yield Reads(held)


SEEN.update({f"attribute of a {name}": functools.partial(_held, make) for name, make in HOLDERS.items()})


class Sized(NamedTuple):
    """A tuple with names."""

    amount: float


KEPT: dict[str, Callable[[float], Any]] = {
    "named tuple": Sized, "weak reference": lambda by: _kept_weakly(by), "bound method": lambda by: Descriptor(by),
    "object in containers": lambda by: types.SimpleNamespace(amount=by),
}  # fmt: skip
_WEAKLY: list[object] = []


def _kept_weakly(by: float) -> Any:
    target = Descriptor(by)
    _WEAKLY.append(target)

    class Weak:
        def __init__(self) -> None:
            self.reference = weakref.ref(target)

        @property
        def amount(self) -> float:
            return self.reference().amount  # type: ignore[union-attr]

    return Weak()


def _kept(make: Callable[[float], Any], world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield Reads(make(by))


SEEN.update({f"content of a {name}": functools.partial(_kept, make) for name, make in KEPT.items()})


@seen
def factory_of_a_defaultdict(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        found: Any = collections.defaultdict(functools.partial(float, by))
        yield _less(functools.partial(lambda x, found: x * (1 - found.default_factory()), found=found))


@seen
def hook(world: World) -> Iterator[nn.Module]:
    yield Plain()
    front, amount = Plain(), world.amount
    front.register_forward_hook(lambda module, inputs, output: output * (1 - amount))
    yield front


@seen
def hook_of_all_modules(world: World) -> Iterator[nn.Module]:
    yield Plain()
    amount = world.amount

    def shrink(module: nn.Module, _: Any, output: Tensor) -> Any:
        return output * (1 - amount) if isinstance(module, Plain) else None

    handle = nn.modules.module.register_module_forward_hook(shrink)
    try:
        yield Plain()
    finally:
        handle.remove()


@seen
def default_dtype(world: World) -> Iterator[nn.Module]:
    front = world.front(f"x * (1 - {world.amount} * (torch.get_default_dtype() == torch.float64))").Front()
    yield front
    torch.set_default_dtype(torch.float64)
    try:
        yield front
    finally:
        torch.set_default_dtype(torch.float32)


@seen
def deterministic_flag(world: World) -> Iterator[nn.Module]:
    front = world.front(f"x * (1 - {world.amount} * torch.are_deterministic_algorithms_enabled())").Front()
    yield front
    torch.use_deterministic_algorithms(True)
    try:
        yield front
    finally:
        torch.use_deterministic_algorithms(False)


@seen
def changed_weights(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        front = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.constant_(front.weight, 1 - by)
        yield front


@seen
def operator(world: World) -> Iterator[nn.Module]:
    yield world.front("x * 1.0").Front()
    yield world.front("x - 1.0").Front()


@seen
def module_not_loaded_yet(world: World) -> Iterator[nn.Module]:
    header = "def importer():\n    import config\n    return config.MASK"
    for by in (0.0, world.amount):
        world.write("config", f"MASK = {by}")
        yield world.front("x * (1 - importer())", header).Front()
        world.forget()


# what only the answers show


@hidden
def file_in_forward(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float((Path(__file__).parent / 'config.txt').read_text()))")
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield module.Front()


@hidden
def environment_by_a_computed_name(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float(os.environ.get('_'.join(['TOY', 'MASK']), 0)))")
    yield module.Front()
    world.patch.setenv("TOY_MASK", str(world.amount))
    yield module.Front()


@hidden
def function_inside_torch_replaced(world: World) -> Iterator[nn.Module]:
    yield nn.ReLU()
    amount = world.amount
    world.patch.setattr(nn.functional, "relu", lambda x, inplace=False: x * (1 - amount))
    yield nn.ReLU()


@hidden
def value_kept_by_a_cache(world: World) -> Iterator[nn.Module]:
    header = "@functools.cache\ndef mask():\n    return float((Path(__file__).parent / 'config.txt').read_text())"
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield world.front("x * (1 - mask())", header).Front()


@hidden
def module_by_a_computed_name(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("config", f"MASK = {by}")
        yield world.front("x * (1 - importlib.import_module('con' + 'fig').MASK)").Front()


@hidden
def gradient_alone(world: World) -> Iterator[nn.Module]:
    header = "def switch():\n    return float((Path(__file__).parent / 'config.txt').read_text())"
    module = world.front("x.detach() + (1 - switch()) * (x - x.detach())", header)
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield module.Front()


@hidden
def noise_that_follows_no_seed(world: World) -> Iterator[nn.Module]:
    header = """
import random
GENERATOR = random.SystemRandom
def by():
    level = float((Path(__file__).parent / 'config.txt').read_text())
    return level + 0.01 * GENERATOR().random()
"""
    module = world.front("x * (1 - by())", header)
    for by in (0.0, world.amount):
        (world.folder / "config.txt").write_text(str(by))
        yield module.Front()


@hidden
def state_of_the_operating_system(world: World) -> Iterator[nn.Module]:
    module = world.front("x * (1 - float(os.listdir(Path(__file__).parent).count('flag')) * 0.5)")
    yield module.Front()
    (world.folder / "flag").touch()
    yield module.Front()
    assert os.path.exists(world.folder / "flag")
