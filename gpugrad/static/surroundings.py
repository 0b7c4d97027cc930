"""What a function reads beside its arguments and tensors, and a replay would not read again."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = (bool, int, float, complex, str, type(None))


class Surroundings:
    """Numbers and strings in the closure and among the globals of a function, and the training
    flags of the modules it reaches: they are part of what a variant is looked up by.

    Attributes of other objects, and what functions called by this one read, are not looked at.
    """

    def __init__(self, function: Callable):
        self.function = function
        code, self._globals = _code_of(function)
        names = sorted(set(_global_names(code))) if code is not None else []
        self._names = [n for n in names if n in self._globals]
        self._cells = list(getattr(_plain(function), "__closure__", None) or ())
        self._modules: list[Any] = []
        self.refresh()

    def refresh(self) -> None:
        """Find the modules again: a submodule may have been added."""
        roots = [self.function, getattr(self.function, "__self__", None)]
        roots += [self._globals[n] for n in self._names if n in self._globals]
        roots += [c for cell in self._cells for c in _contents(cell)]
        self._modules = [m for root in roots if _is_module(root) for m in root.modules()]

    def values(self) -> list:
        """Numbers, strings and flags as they are now."""
        found: list = []
        for cell in self._cells:
            for c in _contents(cell):
                found.append(_key(c))
        for name in self._names:
            found.append(_key(self._globals.get(name)))
        for m in self._modules:
            found.append(m.training)
        return found


def _key(value):
    if value.__class__ in _PLAIN:
        return (value.__class__, value)
    return None


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
