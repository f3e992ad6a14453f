"""Installed packages: which code is theirs, and what identifies it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import site
import sys
import sysconfig
from pathlib import Path

_OURS = __name__.partition(".")[0]
_FOLDERS = tuple(
    {
        os.path.realpath(path)
        for path in (
            *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            *site.getsitepackages(),
            site.getusersitepackages(),
        )
    }
)


@functools.cache
def is_installed_file(file: str) -> bool:
    """Whether a file of code came with Python or from an installer, or is this package's."""
    if file.startswith("<frozen"):
        return True
    folder = f"{os.path.realpath(os.path.dirname(file))}{os.sep}"
    return os.path.isabs(file) and any(
        folder.startswith(f"{installed}{os.sep}") for installed in (*_FOLDERS, str(_our_folder()))
    )


@functools.cache
def is_of_python(file: str) -> bool:
    """Whether a file of code came with Python itself."""
    parts = os.path.realpath(file).split(os.sep)
    folder = os.path.realpath(sysconfig.get_path("stdlib"))
    inside = os.path.realpath(file).startswith(f"{folder}{os.sep}")
    return file.startswith("<frozen") or (inside and "site-packages" not in parts and "dist-packages" not in parts)


def is_installed(module: str) -> bool:
    """Whether the code of a module, or of the package that it is in, is installed; see `package_identity`."""
    package = module.partition(".")[0]
    if package in sys.builtin_module_names:
        return True
    if package == "__main__":  # under a profiler, its file is that of the profiler
        return False
    found = sys.modules.get(module) or sys.modules.get(package)
    file = getattr(found, "__file__", None)
    if file is None:  # a namespace package, or a module made by a program
        file = next((f"{path}{os.sep}__init__.py" for path in getattr(found, "__path__", ())), None)
        if file is None:
            return _comes_with_python(package)
    return is_installed_file(file)


def _comes_with_python(package: str) -> bool:
    return package in sys.stdlib_module_names


@functools.cache
def package_identity(package: str) -> str:
    """What tells the code of an installed package from that of another version, or of another build of it.

    This is its version and what its installer wrote down about its files: their hashes, where there are any. It is
    read once in a process.
    """
    if _comes_with_python(package):
        return sys.version
    if package == _OURS:
        return _hash_of(sorted(_our_folder().rglob("*.py")))
    module, parts = sys.modules.get(package), []
    found = _distribution(package)
    if found is not None:
        parts.append(f"{found.metadata['Name']} {found.version}")
        lines = (found.read_text("RECORD") or "").splitlines()
        files = [line for line in lines if line.startswith((f"{package}/", f"{package}.")) and "sha256=" in line]
        if files:
            return _digest("\n".join([*parts, *sorted(files)]).encode())
    parts.append(str(getattr(module, "__version__", "")))
    file = getattr(module, "__file__", None)  # other installers: the times of its outermost files
    folder = Path(file).parent if file and Path(file).stem == "__init__" else None
    outer = sorted(folder.glob("*.py")) if folder else [Path(file)] if file else []
    parts += [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in outer if path.is_file()]
    return _digest("\n".join(parts).encode())


def _distribution(package: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    for found in importlib.metadata.distributions():  # named otherwise, as Pillow's PIL
        record = found.read_text("RECORD") or ""
        if record.startswith(f"{package}/") or f"\n{package}/" in record or f"\n{package}.py," in record:
            return found
    return None


def _our_folder() -> Path:
    return Path(__file__).resolve().parents[1]


def _hash_of(files: list[Path]) -> str:
    return _digest(b"\n".join(hashlib.sha256(file.read_bytes()).digest() for file in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
