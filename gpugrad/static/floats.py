"""Floats among the arguments of a compiled function: constants of a variant as long as they do not
change, inputs of the program if they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend.arrays import _ndarray
from ..backend.numpy import xp as np
from ..tensor import Tensor, wrap
from .numbers import FloatArgument

# Different numbers in one place from which it becomes an input.
_MANY = 3
FOLLOWED = "followed"


class Floats:
    """Which places among the arguments are inputs of the program (``followed``), and which cannot
    be, because the function does with the number what a recorder does not see."""

    def __init__(self):
        self.followed: set[int] = set()
        self._refused: set[int] = set()
        self._seen: dict[Any, dict[int, set[float]]] = {}

    def note(self, key: tuple, first: int, leaves: Sequence) -> bool:
        """Look at arguments for which there is no variant; ``key[first:]`` are their parts of the
        key. Whether a place is followed from now on."""
        if any(isinstance(x, Tensor) and x.array.__class__ is not _ndarray for x in leaves):
            return False
        places = [
            k for k, x in enumerate(leaves)
            if x.__class__ is float and k not in self.followed and k not in self._refused
        ]  # fmt: skip
        if not places or len(self._seen) > 64:
            return False
        rest = tuple(part for k, part in enumerate(key) if k - first not in places)
        seen = self._seen.setdefault(rest, {})
        for k in places:
            seen.setdefault(k, set()).add(leaves[k])
        new = {k for k in places if len(seen[k]) >= _MANY}
        self.followed |= new
        return bool(new)

    def refuse(self) -> None:
        """The followed places cannot be followed."""
        self._refused |= self.followed
        self.followed = set()

    def marked(self, leaves: Sequence) -> list:
        """The arguments, those that are followed with a tensor for the recorder."""
        return [
            FloatArgument.of(x, wrap(np.array(x)))
            if k in self.followed and x.__class__ is float
            else x
            for k, x in enumerate(leaves)
        ]


def followed_values(leaves: Sequence) -> tuple[float, ...]:
    """The numbers that were followed in a call."""
    return tuple([x.value for x in leaves if x.__class__ is FloatArgument])
