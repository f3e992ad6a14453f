"""What compiled code computes and refers to, read from its bytecode: the file that it came from may have changed since.

Everything here depends on a code object alone, which never changes, so that it is computed once in a process.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import types
from collections.abc import Iterator
from dataclasses import dataclass

_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
#: Instructions between a name and its attribute that do nothing to either.
_FILLERS = ("CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL")
#: What reaches names by their text. The texts of code that uses one of them are taken for such names.
_REFLECTIVE = {"eval", "exec", "globals", "import_module", "locals", "modules", "vars", "__dict__", "__import__"}


#: What reaches all names of a module, also such as are computed.
_ALL_NAMES = {"eval", "exec", "globals", "__globals__", "f_globals"}


@dataclass(frozen=True, slots=True)
class References:
    """What code refers to beyond its arguments.

    Attributes:
        names: global names, each with the attributes that are read from it, as in ``("config", "MASK")``.
        imports: of statements inside the code: the module, the level of a relative import, and the imported names.
        texts: its constants that are texts or bytes.
        reflective: whether names may be hidden in these texts.
        looks_up_any_name: whether it may reach any name of its module.
    """

    names: tuple[tuple[str, ...], ...]
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    texts: tuple[str | bytes, ...]
    reflective: bool
    looks_up_any_name: bool


@functools.lru_cache(maxsize=65536)
def code_digest(code: types.CodeType) -> bytes:
    """Hash of what code does, without names of files and numbers of lines: a comment changes nothing."""
    total = hashlib.sha256()
    parts = (
        code.co_code, getattr(code, "co_exceptiontable", b""), code.co_flags, code.co_argcount, code.co_posonlyargcount,
        code.co_kwonlyargcount, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
    )  # fmt: skip
    for part in (*map(repr, parts), *map(_constant, code.co_consts)):
        total.update(f"{len(part)} {part}".encode(errors="surrogatepass"))
    return total.digest()


def _constant(value: object) -> str:
    if isinstance(value, types.CodeType):
        return code_digest(value).hex()
    if isinstance(value, frozenset):  # its order differs between runs
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(each) for each in value]}"
    return f"{type(value).__name__} {value!r}"


@functools.lru_cache(maxsize=65536)
def references(code: types.CodeType) -> References:
    """What code and the code of its inner functions and classes refer to."""
    names: dict[tuple[str, ...], None] = {}
    imports: dict[tuple[str, int, tuple[str, ...]], None] = {}
    texts: dict[str | bytes, None] = {}
    used: set[str] = set()
    for each in _with_inner(code):
        texts.update((const, None) for const in _texts(each.co_consts))
        used.update(each.co_names)
        instructions = [found for found in dis.get_instructions(each) if found.opname not in _FILLERS]
        for index, found in enumerate(instructions):
            if found.opname in _LOADS:
                names[(found.argval, *_attributes(instructions, index + 1))] = None
            elif found.opname == "IMPORT_NAME":
                level, wanted = instructions[index - 2].argval, instructions[index - 1].argval
                imports[(found.argval, level if isinstance(level, int) else 0, tuple(wanted or ()))] = None
    return References(
        tuple(names), tuple(imports), tuple(texts),
        reflective=not used.isdisjoint(_REFLECTIVE), looks_up_any_name=not used.isdisjoint(_ALL_NAMES),
    )  # fmt: skip


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _with_inner(const)


def _texts(consts: tuple[object, ...]) -> Iterator[str | bytes]:
    for const in consts:
        if isinstance(const, (str, bytes)):
            yield const
        elif isinstance(const, (tuple, frozenset)):
            yield from _texts(tuple(const))


def _attributes(instructions: list[dis.Instruction], start: int) -> Iterator[str]:
    for found in instructions[start:]:
        if found.opname not in _ATTRIBUTES:
            return
        yield found.argval
