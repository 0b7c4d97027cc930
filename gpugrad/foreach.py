"""In-place updates of lists of tensors from one scalar expression: what optimizers are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .backend import arrays as backend_arrays
from .backend.arrays import array_module, backend_of
from .codegen import cuda_updates, expr, llvm
from .codegen.arrays import Program
from .codegen.functions import functions_for, functions_of_numbers
from .config import modes
from .dtypes import float32, float64
from .tensor import Tensor, bump_versions

_ndarray = backend_arrays._ndarray


class Update:
    """A compiled update; see ``foreach``."""

    def __init__(self, function: Callable):
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._function = function
        self._storing: Update | None = None
        self.tensors, self.scalars = _parameters(function)
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
        self.whole = tuple(self.outputs)  # as expressions of tensors and scalars alone
        self._scalar_names = set(self.scalars)
        self._find_numbers()
        self.program = Program(self.outputs, [*self.tensors, *self.numbers], ())

    def storing(self) -> Update:
        """The same update with one more list before the others, which takes the values of the first
        in its own dtype: 16-bit parameters beside their float32 master copies."""
        if self._storing is None:
            function = self._function

            def store(*tensors, **scalars):
                outputs = function(*tensors[1:], **scalars)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                return (outputs[0], *outputs)

            store.__name__, store.__doc__ = self.__name__, self.__doc__
            store.parameters = ["stored", *self.tensors], self.scalars  # type: ignore[attr-defined]
            self._storing = Update(store)
        return self._storing

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
        self.outputs = expr.substitute(self.outputs, found)
        used = expr.inputs_of(self.outputs)
        made = {v.args[0]: e for e, v in found.items() if v.args[0] in used}
        self.numbers = [n for n in (*self.scalars, *made) if n in used]
        self._computed = None
        if made:
            wanted = [made[n] if n in made else expr.variable(n) for n in self.numbers]
            self._computed = Program(wanted, self.scalars, ())
        self._compute: Callable | None = None
        self.formula = cuda_updates.Formula(
            self.__name__, self.tensors, self.scalars, self.outputs, made, self.numbers
        )

    def values(self, scalars: dict) -> list[float]:
        """The numbers the loop needs, in float64."""
        if self._computed is None:
            return [_number(scalars[name]) for name in self.numbers]
        if self._compute is None:
            self._compute = self._computed.direct(functions_of_numbers(), reuse=False)
        given = [v if v.__class__ is float else _number(v) for v in map(scalars.get, self.scalars)]
        try:
            results = self._compute(*given)
        except (ArithmeticError, ValueError):  # e.g. 1 / 0: NumPy says infinity, and warns
            functions = functions_for(array_module(1.0))
            results = self._computed.direct(functions, reuse=False)(*given)
            results = results if len(self.numbers) > 1 else [results]
            return [float(r) for r in results]
        return results if len(self.numbers) > 1 else [results]

    def host_numbers(self, scalars: dict) -> list[float]:
        """The scalars that do not lie on a CUDA device, in order."""
        given = [scalars[name] for name in self.scalars if name in scalars]
        return [_number(v) for v in given if not on_device(v)]

    def __call__(self, *lists, unless: Tensor | None = None, **scalars) -> None:
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
        arrays = [t.array for tensors in lists for t in tensors]
        if count and arrays[0].__class__ is _ndarray:
            if unless is not None and unless:
                return
            values = self.values(scalars)
            if llvm.update(self.program, arrays, count, values):
                self._written(lists, scalars, unless)
                return
        self._update_each([arrays[i::count] for i in range(count)], scalars, unless)
        self._written(lists, scalars, unless)

    def _written(self, lists, scalars: dict, unless: Tensor | None) -> None:
        if modes.special and modes.local.recording is not None:
            # on the CPU its truth was asked for, and the recorder told
            unless = unless if unless is not None and unless.is_cuda else None
            modes.local.recording.update(self, lists, scalars, unless)
        bump_versions(lists[: len(self.outputs)])

    def _update_each(self, groups: list[list], scalars: dict, unless: Tensor | None) -> None:
        """Update groups of arrays of any device: those of CUDA by kernels for many at a time."""
        for index, group in enumerate(groups):
            self._check_shapes(group, index)
        on_cuda = [k for k, group in enumerate(groups) if group[0].__class__ is not _ndarray]
        if on_cuda:
            chosen = {name: _chosen(value, on_cuda) for name, value in scalars.items()}
            left = cuda_updates.run(
                self.formula,
                list(zip(*[groups[k] for k in on_cuda])),
                chosen,
                lambda: self.values(scalars),
                None if unless is None else unless.array,
            )
            for k in left:
                mine = {n: v[k] if v.__class__ is list else v for n, v in chosen.items()}
                self._update_on_device(groups[on_cuda[k]], mine, unless)
        if len(on_cuda) < len(groups) and not (unless is not None and unless):
            values = self.values(scalars)
            for group in groups:
                if group[0].__class__ is _ndarray:
                    self._update(group, values)

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
        """Any layout, dtype and device."""
        for a, r in zip(outputs, self._results(arrays, values), strict=True):
            a[...] = r

    def _results(self, arrays, values) -> list:
        """The new values; half precision computes in float32 (an eps of 1e-8 would vanish in
        it)."""
        wide = [a.astype(float32) if a.dtype.itemsize < 4 else a for a in arrays]
        functions = functions_for(array_module(arrays[0]))
        results = self.program.direct(functions, reuse=False)(*wide, *values)
        return results if len(self.outputs) > 1 else [results]

    def _update_on_device(self, arrays, scalars: dict, unless: Tensor | None) -> None:
        """Update CUDA arrays by CuPy's functions; scalars may be arrays there, and stay there."""
        flag = None if unless is None else unless.array
        for a, r in zip(arrays, self.results(arrays, scalars, flag), strict=False):
            a[...] = r

    def results(self, arrays, scalars: dict, unless) -> list:
        """What the update makes of arrays, which stay as they are. Scalars are numbers or arrays;
        with an array ``unless`` that is not zero the results are the first arrays."""
        xp = array_module(arrays[0])
        if any(hasattr(v, "dtype") for v in scalars.values()):
            wide = float64 if any(a.dtype == float64 for a in arrays) else float32
            given = {name: xp.asarray(scalars[name], float64) for name in self.scalars}
            if self._computed is None:
                values = [given[name] for name in self.numbers]
            else:
                compute = self._computed.direct(functions_for(xp), reuse=False)
                values = compute(*given.values())
                values = values if len(self.numbers) > 1 else [values]
            values = [v.astype(wide) for v in values]
        else:
            values = self.values(scalars)
        results = self._results(arrays, values)
        if unless is not None:
            results = [xp.where(unless != 0, a, r) for a, r in zip(arrays, results, strict=False)]
        return [
            xp.asarray(r).astype(a.dtype, copy=False) for a, r in zip(arrays, results, strict=False)
        ]


def _parameters(function: Any) -> tuple[list[str], list[str]]:
    """Names of the positional and of the keyword-only parameters."""
    if hasattr(function, "parameters"):
        return function.parameters
    code = function.__code__  # inspect.signature would take 25 ms to import
    names = code.co_varnames
    tensors = names[: code.co_argcount]
    return list(tensors), list(names[code.co_argcount :][: code.co_kwonlyargcount])


def on_device(value) -> bool:
    """Whether a scalar of an update lies on a CUDA device: a tensor, or one for each tensor."""
    if isinstance(value, list):
        return True
    return isinstance(value, Tensor) and value.array.__class__ is not _ndarray


def _chosen(value, positions: list[int]):
    """A scalar as cuda_updates takes it: a number, an array of the device, or a list of arrays for
    these positions."""
    if value.__class__ is float:
        return value
    if isinstance(value, list):
        return [value[k].array for k in positions]
    if isinstance(value, Tensor) and value.array.__class__ is not _ndarray:
        return value.array
    return _number(value)


def _number(value) -> float:
    """A scalar of an update: Python's, NumPy's, or a tensor with one element."""
    return float(value.array.item() if isinstance(value, Tensor) else value)


def foreach(function: Callable) -> Update:
    """Make an in-place update over lists of tensors from a scalar expression.

    Positional parameters are tensors (called with lists of them), keyword-only parameters are
    numbers. The returned values overwrite the first tensors. Nothing is recorded; versions are
    bumped. Large tensors are processed in pieces that stay in the cache, on several threads;
    half-precision tensors are computed in float32. CUDA tensors of any floating dtypes are updated
    by one kernel launch for many tensors.

    A number may be a zero-dimensional tensor; one on a CUDA device is read there by the kernel, and
    so is one of a list with one for each tensor. ``unless=flag`` writes nothing if that tensor of
    one element is not zero, decided on its device.

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
