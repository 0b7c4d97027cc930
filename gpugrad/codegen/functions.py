"""The array function behind each scalar primitive, per array module, all called as ``f(inputs...,
out)``."""

from __future__ import annotations

import math
import operator
import sys

from .expr import PRIMITIVES


class Functions:
    """The names an array program may use: primitives bound to one array module."""

    def __init__(self, xp, special: dict):
        self.xp = xp
        self.name = xp.__name__
        self.table = {"copyto": xp.copyto}
        self._special = special

    def refresh(self) -> None:
        """Bind primitives declared since; called once the rows of ``ops`` are there."""
        for name, primitive in PRIMITIVES.items():
            if name not in self.table:
                self.table[name] = self._special.get(name) or getattr(self.xp, primitive.array_name)


_by_module: dict[str, Functions] = {}


def functions_for(xp) -> Functions:
    """The bound primitives of an array module."""
    found = _by_module.get(xp.__name__)
    if found is None or len(found.table) < len(PRIMITIVES):
        found = found or Functions(xp, _special(xp))
        found.refresh()
        _by_module[xp.__name__] = found
    return found


def functions_of_numbers() -> Functions:
    """The primitives on Python numbers: Python's where stated, a tenth of the cost of NumPy's."""
    found = _by_module.get("numbers")
    if found is None:
        xp = sys.modules["numpy"]
        folds = {n: p.fold for n, p in PRIMITIVES.items() if p.fold}
        found = Functions(xp, _special(xp) | folds | _OF_NUMBERS)
        found.name = "numbers"
        found.refresh()
        _by_module["numbers"] = found
    return found


_OF_NUMBERS = {
    "pow": math.pow,
    "le": operator.le,
    "where": lambda condition, a, b: a if condition else b,
}


def _special(xp) -> dict:
    """Primitives that are no ufunc of the array module."""

    def where(condition, a, b, out=None):
        chosen = xp.where(condition, a, b)
        if out is None:
            return chosen
        xp.copyto(out, chosen)  # 8 us a block; copyto(..., where=condition) takes 50
        return out

    if xp.__name__ == "numpy":
        from .special import erf
    else:
        from cupyx.scipy.special import erf  # a ufunc on the device

    def maximum(a, b, out=None):  # NumPy >= 2.4 takes their output by keyword only
        return xp.maximum(a, b, out=out)

    def minimum(a, b, out=None):
        return xp.minimum(a, b, out=out)

    def along_rows(ufunc, method):  # CuPy's ufuncs cannot reduce, but for add
        if xp.__name__ == "numpy":
            return lambda x, out=None: ufunc.reduce(x, axis=-1, keepdims=True, out=out)
        return lambda x, out=None: getattr(x, method)(axis=-1, keepdims=True, out=out)

    def row_mean(x, out=None):
        return xp.divide(xp.add.reduce(x, axis=-1, keepdims=True), x.shape[-1], out=out)

    return {
        "where": where,
        "erf": erf,
        "maximum": maximum,
        "minimum": minimum,
        "row_sum": along_rows(xp.add, "sum"),
        "row_max": along_rows(xp.maximum, "max"),
        "row_mean": row_mean,
    }
