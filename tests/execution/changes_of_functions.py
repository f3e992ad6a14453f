"""Changes of functions, of names that they read, and of what is around them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.execution.worlds import World, seen


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
