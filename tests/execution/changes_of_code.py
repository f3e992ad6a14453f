"""Changes of what a defense imports, and of its classes."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from tests.execution.worlds import FRONT, Descriptor, Plain, World, in_config, less, seen

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
FUNCTION = """
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * (1 - {})
    @staticmethod
    def backward(ctx, gradient): return gradient
f = Scale.apply
"""
in_config(
    "autograd function by its apply", FUNCTION.format(0.0), FUNCTION, "f(x)", "from config import f"
)  # fmt: skip
ORDER = "import collections\nSTEPS = collections.OrderedDict(a=lambda x: x + {}, b=lambda x: x * 0.5)\n"
in_config(
    "order of an ordered dict", ORDER.replace("{}", "0.7"), ORDER.replace("{}", "0.7") + "STEPS.move_to_end('a')  # {}",
    "functools.reduce(lambda x, f: f(x), STEPS.values(), x)", "from config import STEPS",
)  # fmt: skip
BOX = "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass Box(Generic[T]): by = {}\nKind = Box[int]"
in_config("class behind an alias", BOX.format(0.0), BOX, "x * (1 - Kind().by)", "from config import Kind")
MEMBER = "import enum\nclass Kind(enum.Enum):\n    A = 1\nKind.A.by = {}"
in_config("attribute of an enum member", MEMBER.format(0.0), MEMBER, "x * (1 - Kind.A.by)", "from config import Kind")
in_config(
    "name in a text of another function", "MASK = 0.0", "MASK = {}", "x * (1 - get('MASK'))",
    "from config import MASK\ndef get(name): return globals()[name]",
)  # fmt: skip
in_config(
    "text that is evaluated", "MASK = 0.0", "MASK = {}", "x * (1 - eval(TEXT))",
    "from config import MASK\nTEXT = 'MASK'",
)  # fmt: skip
in_config(
    "namespace of a function", "MASK = 0.0", "MASK = {}", "x * (1 - f.__globals__['MA' + 'SK'])",
    "from config import MASK\ndef f(): pass",
)  # fmt: skip
MADE = """
import sys, types
class Module(types.ModuleType):
    by = property(lambda self: {})
sys.modules[__name__].__class__ = Module
"""
in_config("class of a module", MADE.format(0.0), MADE, "x * (1 - getattr(config, 'b' + 'y'))", "import config")
in_config(
    "attributes that a module makes", "def __getattr__(name): return 0.0", "def __getattr__(name): return {}",
    "x * (1 - getattr(config, 'b' + 'y'))", "import config",
)  # fmt: skip
in_config(
    "setting of a decorator", "import contextlib\nclass C(contextlib.ContextDecorator):\n    by = 0.0",
    "import contextlib\nclass C(contextlib.ContextDecorator):\n    by = {}", "f(x)",
    "import config, contextlib\nmanager = config.C()\n@functools.wraps(print)\ndef f(x): return x * (1 - manager.by)",
)  # fmt: skip
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
def package_of_an_import_in_forward(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        world.write("package.__init__", f"MASK = {by}")
        world.write("package.inner", "")
        header = "def importer():\n    import package.inner\n    return package.MASK"
        yield world.front("x * (1 - importer())", header).Front()


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


@seen
def descriptor(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        yield type("Front", (Plain,), {"by": Descriptor(by)})()


@seen
def default_of_a_dataclass(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        made = dataclasses.make_dataclass("Settings", [("amount", float, by)])
        yield less(functools.partial(lambda x, made: x * (1 - made().amount), made=made))


@seen
def member_of_an_enum(world: World) -> Iterator[nn.Module]:
    for by in (0.0, world.amount):
        kinds: Any = enum.Enum("kinds", {"ONE": by})
        yield less(functools.partial(lambda x, kinds: x * (1 - kinds.ONE.value), kinds=kinds))
