"""In-place updates of lists of tensors from one scalar expression: what optimizers are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .backend.arrays import array_module, backend_of
from .codegen import expr, llvm
from .codegen.arrays import Program
from .codegen.functions import functions_for, functions_of_numbers
from .dtypes import float32
from .tensor import bump_versions


class Update:
    """A compiled update; see ``foreach``."""

    def __init__(self, function: Callable):
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        code: Any = function.__code__  # inspect.signature would take 25 ms to import
        names = code.co_varnames
        self.tensors = list(names[: code.co_argcount])
        self.scalars = list(names[code.co_argcount :][: code.co_kwonlyargcount])
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
        self._scalar_names = set(self.scalars)
        self._find_numbers()
        self.program = Program(self.outputs, [*self.tensors, *self.numbers], ())

    def _find_numbers(self) -> None:
        """Take subexpressions of numbers alone, such as ``1 - beta``, out of the loop.

        They are computed once per call and in float64: 1 - 0.999 in float32 is wrong by 1.3e-5.
        ``numbers`` names what reaches the loop; the first are the scalars themselves.
        """
        found: dict[expr.Expr, expr.Expr] = {}
        for e in expr.topological(self.outputs):
            if e.op in ("input", "const"):
                continue
            inputs = expr.inputs_of([e])
            if inputs and inputs <= self._scalar_names:
                found[e] = expr.variable(f"_number{len(found)}")
        largest = expr.substitute(self.outputs, found)
        used = expr.inputs_of(largest)
        kept = {e: v for e, v in found.items() if v.args[0] in used}
        self.outputs = largest
        self.numbers = [*self.scalars, *[v.args[0] for v in kept.values()]]
        self._computed = Program(list(kept), self.scalars, ()) if kept else None
        self._compute: Callable | None = None

    def _values(self, scalars: dict) -> list[float]:
        """The numbers the loop needs, in float64."""
        values = [v if v.__class__ is float else _number(v) for v in map(scalars.get, self.scalars)]
        if self._computed is None:
            return values
        if self._compute is None:
            self._compute = self._computed.direct(functions_of_numbers(), reuse=False)
        try:
            results = self._compute(*values)
        except ArithmeticError:  # e.g. 1 / 0: NumPy says infinity, and warns
            functions = functions_for(array_module(1.0))
            results = self._computed.direct(functions, reuse=False)(*values)
        several = len(self._computed.outputs) > 1
        return values + [float(r) for r in (results if several else [results])]

    def __call__(self, *lists, **scalars) -> None:
        if len(lists) != len(self.tensors):
            raise TypeError(f"{self.__name__}() takes lists for {self.tensors}, got {len(lists)}")
        if scalars.keys() != self._scalar_names:
            raise TypeError(
                f"{self.__name__}() takes the numbers {self.scalars}, got {sorted(scalars)}"
            )
        lists = tuple([list(tensors) for tensors in lists])  # generators too
        count = len(lists[0])
        if any(len(tensors) != count for tensors in lists):
            raise ValueError(
                f"{self.__name__}() takes lists of one length, got {[len(t) for t in lists]}"
            )
        values = self._values(scalars)
        arrays = [t.array for tensors in lists for t in tensors]
        if not llvm.update(self.program, arrays, count, values):
            groups = [arrays[i::count] for i in range(count)]
            for index, group in enumerate(groups):
                self._check_shapes(group, index)
            for group in groups:
                self._update(group, values)
        bump_versions(lists[: len(self.outputs)])

    def _check_shapes(self, arrays, index: int) -> None:
        shape = arrays[0].shape
        if any(a.shape != shape for a in arrays):
            shapes = ", ".join(
                f"{name} {tuple(a.shape)}" for name, a in zip(self.tensors, arrays, strict=True)
            )
            raise RuntimeError(
                f"{self.__name__}(): tensors updated together must have the same shape, got "
                f"{shapes} at position {index} of the lists"
            )

    def _update(self, arrays, values) -> None:
        first = arrays[0]
        dtype, outputs = first.dtype, arrays[: len(self.outputs)]
        backend = backend_of(first)
        flat = backend.name == "numpy" and dtype.itemsize >= 4
        if not flat or not all(a.flags.c_contiguous and a.dtype == dtype for a in arrays):
            self._update_any(arrays, values, outputs)
            return
        block, floats, bools = self.program.block(
            functions_for(array_module(first)), self.written, dtype
        )
        scratch = [dtype] * floats + [bool] * bools
        if first.size <= backend.BLOCK:  # one block: as it is
            empty = array_module(first).empty
            block(*arrays, *values, *outputs, *[empty(first.shape, d) for d in scratch])
        else:
            backend.launch(block, (*arrays, *values), outputs, scratch)

    def _update_any(self, arrays, values, outputs) -> None:
        """Any layout, dtype and device; half precision computes in float32 (an eps of 1e-8 would
        vanish in it)."""
        xp = array_module(arrays[0])
        wide = [a.astype(float32) if a.dtype.itemsize < 4 else a for a in arrays]
        results = self.program.direct(functions_for(xp), reuse=False)(*wide, *values)
        results = results if len(self.outputs) > 1 else [results]
        for a, r in zip(outputs, results, strict=True):
            a[...] = r


def _number(value) -> float:
    """A scalar of an update: Python's, NumPy's, or a tensor with one element."""
    return float(value.item() if hasattr(value, "item") else value)


def foreach(function: Callable) -> Update:
    """Make an in-place update over lists of tensors from a scalar expression.

    Positional parameters are tensors (called with lists of them), keyword-only parameters are
    numbers. The returned values overwrite the first tensors. Nothing is recorded; versions are
    bumped. Large tensors are processed in pieces that stay in the cache, on several threads;
    half-precision tensors are computed in float32.

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
