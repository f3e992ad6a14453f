"""Methods of torch that behave otherwise in one context and one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ClassMethodDescriptorType
from typing import Any

#: ``run(class or object, its own method, arguments, options)`` returns what the method is to return.
Run = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Patch:
    """A method that other code can run in its place.

    Args:
        owner: the class that defines it.
        name: of a method or a class method.
    """

    def __init__(self, owner: type, name: str) -> None:
        self._owner, self._name, self._original = owner, name, owner.__dict__[name]
        self._runs = threading.local()  # for each thread, so that other threads keep the methods that they know
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def run_by(self, run: Run) -> Iterator[None]:
        """In this context and this thread, ``run`` is called in place of the method."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                setattr(self._owner, self._name, self._replacement())
        self._stack().append(run)
        try:
            yield
        finally:
            self._stack().pop()
            with self._lock:
                self._users -= 1
                if not self._users:
                    setattr(self._owner, self._name, self._original)

    def _stack(self) -> list[Run]:
        if not hasattr(self._runs, "stack"):
            self._runs.stack = []
        stack: list[Run] = self._runs.stack
        return stack

    def _replacement(self) -> object:
        of_class = isinstance(self._original, classmethod | ClassMethodDescriptorType)

        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            own = self._original.__get__(None, target) if of_class else self._original.__get__(target)
            stack = self._stack()
            return stack[-1](target, own, arguments, options) if stack else own(*arguments, **options)

        return classmethod(call) if of_class else call
