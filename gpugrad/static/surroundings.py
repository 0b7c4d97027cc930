"""What a function reads beside its arguments and tensors, and a replay would not read again."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from ..compiler import module_writes

_PLAIN = (bool, int, float, complex, str, type(None))


class Surroundings:
    """What the closure and the globals of a function hold, and the plain attributes (``training``,
    ``p``) of the modules it reaches: they are part of what a variant is looked up by.

    Attributes of other objects, and what functions called by this one read, are not looked at.
    """

    def __init__(self, function: Callable):
        self.function = function
        code, self.globals = _code_of(function)
        names = sorted(set(_global_names(code))) if code is not None else []
        self.names = [n for n in names if n in self.globals]
        self.cells = list(getattr(_plain(function), "__closure__", None) or ())
        self._modules: list[Any] = []
        self._of_modules: tuple = ()
        self._seen = -1
        self.refresh()

    def refresh(self) -> None:
        """Find the modules again: a submodule may have been added."""
        roots: list[Any] = [self.function, getattr(self.function, "__self__", None)]
        roots += [self.globals[n] for n in self.names if n in self.globals]
        roots += [c for cell in self.cells for c in _contents(cell)]
        self._modules = [m for root in roots if _is_module(root) for m in root.modules()]
        self._seen = -1

    def objects(self) -> list:
        """What the closure and the globals hold now."""
        found = [c for cell in self.cells for c in _contents(cell)]
        return found + [self.globals.get(name) for name in self.names]

    def values(self) -> list:
        """The same as parts of a key: numbers and strings by value, others by identity; and the
        plain attributes of the modules, looked at again when a module was written to."""
        if self._seen != module_writes.count:
            self._seen = module_writes.count
            plain = [
                (name, value.__class__, value)
                for m in self._modules
                for name, value in vars(m).items()
                if value.__class__ in _PLAIN
            ]
            self._of_modules = tuple(plain)
        return [*map(_key, self.objects()), self._of_modules]


def _key(value):
    if value.__class__ in _PLAIN:
        return (value.__class__, value)
    return Identity(value)


class Identity:
    """An object as itself, whatever it says of equality; kept, so that its identity comes once."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __eq__(self, other) -> bool:
        return other.__class__ is Identity and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _contents(cell) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:  # not assigned yet
        return


def _is_module(value) -> bool:
    return hasattr(value, "training") and callable(getattr(value, "modules", None))


def _plain(function: Callable) -> Callable:
    """The Python function behind a method or a module."""
    if _is_module(function):
        function = type(function).forward  # type: ignore[attr-defined]
    return getattr(function, "__func__", function)


def _code_of(function: Callable) -> tuple[types.CodeType | None, dict]:
    plain = _plain(function)
    return getattr(plain, "__code__", None), getattr(plain, "__globals__", {})


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
