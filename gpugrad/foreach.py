"""In-place updates of lists of tensors from one scalar expression: what optimizers are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from .backend.arrays import array_module, backend_of
from .codegen import expr
from .codegen.arrays import Program
from .codegen.functions import functions_for
from .dtypes import float32
from .tensor import bump_version


class Update:
    """A compiled update; see ``foreach``."""

    def __init__(self, function: Callable):
        parameters = inspect.signature(function).parameters.values()
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self.tensors = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.scalars = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        variables = {p: expr.variable(p) for p in (*self.tensors, *self.scalars)}
        outputs = function(
            *[variables[p] for p in self.tensors], **{p: variables[p] for p in self.scalars}
        )
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if len(outputs) > len(self.tensors):
            raise ValueError(
                f"{self.__name__} returns {len(outputs)} values for {len(self.tensors)} lists of "
                f"tensors"
            )
        self.written = self.tensors[: len(outputs)]
        # A value that is another list's old value must be computed before that list is overwritten.
        self.outputs = [
            expr.build("positive", o)
            if expr.as_expr(o).op == "input" and o is not variables[w]
            else expr.as_expr(o)
            for o, w in zip(outputs, self.written, strict=True)
        ]
        self.program = Program(self.outputs, [*self.tensors, *self.scalars], ())

    def __call__(self, *lists, **scalars) -> None:
        if len(lists) != len(self.tensors):
            raise TypeError(f"{self.__name__}() takes lists for {self.tensors}, got {len(lists)}")
        if scalars.keys() != set(self.scalars):
            raise TypeError(
                f"{self.__name__}() takes the numbers {self.scalars}, got {sorted(scalars)}"
            )
        values = [scalars[name] for name in self.scalars]
        n = len(self.written)
        for tensors in zip(*lists, strict=True):
            self._update(tensors, values, n)
            for t in tensors[:n]:
                bump_version(t)

    def _update(self, tensors, values, n) -> None:
        arrays = [t.array for t in tensors]
        first = arrays[0]
        shape, dtype = first.shape, first.dtype
        for a in arrays:
            if a.shape != shape:
                shapes = ", ".join(
                    f"{name} {tuple(t.shape)}"
                    for name, t in zip(self.tensors, tensors, strict=True)
                )
                raise RuntimeError(
                    f"{self.__name__}(): tensors updated together must have the same shape, got "
                    f"{shapes}"
                )
        backend = backend_of(first)
        if (
            backend.name == "numpy"
            and dtype.itemsize >= 4
            and all(a.flags.c_contiguous and a.dtype == dtype for a in arrays)
        ):
            block, floats, bools = self.program.block(
                functions_for(array_module(first)), self.written, dtype
            )
            backend.launch(block, (*arrays, *values), arrays[:n], [dtype] * floats + [bool] * bools)
            return
        self._update_any(arrays, values, n)

    def _update_any(self, arrays, values, n) -> None:
        """Any layout, dtype and device; half precision computes in float32 (an eps of 1e-8 would
        vanish in it)."""
        xp = array_module(arrays[0])
        wide = [a.astype(float32) if a.dtype.itemsize < 4 else a for a in arrays]
        results = self.program.direct(functions_for(xp), reuse=False)(*wide, *values)
        results = results if len(self.outputs) > 1 else [results]
        for a, r in zip(arrays[:n], results, strict=True):
            a[...] = r


def foreach(function: Callable) -> Update:
    """Make an in-place update over lists of tensors from a scalar expression.

    Positional parameters are tensors (called with lists of them), keyword-only parameters are
    numbers. The returned
    values overwrite the first tensors. Nothing is recorded; versions are bumped. Large tensors are
    processed in pieces that
    stay in the cache, on several threads; half-precision tensors are computed in float32.

    >>> import gpugrad as gg
    >>> @gg.foreach
    ... def descend(p, g, *, lr):
    ...     return p - lr * g
    >>> p = gg.tensor([1.0, 2.0])
    >>> descend([p], [gg.ones(2)], lr=0.5)
    >>> p
    tensor([0.5, 1.5])
    """
    return Update(function)
