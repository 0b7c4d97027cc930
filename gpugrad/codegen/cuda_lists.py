"""CUDA kernels of whole lists of tensors: their joint norm, and unscaling of gradients.

Nothing is read back and nothing is copied to the device. Text: kernels/norm.cu and unscale.cu.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

from ..backend import cupy as backend
from ..errors import KernelError
from . import cuda_module
from .cuda import TYPES
from .cuda_updates import BLOCK, CHUNK, TYPES_OF_LISTS, table_type, tables

_JOIN = 1024  # threads that join what the chunks contribute


class _Usable:
    """Whether the kernels can be built; one that cannot is reported once."""

    now = True


def _fits(arrays: Sequence) -> bool:
    """Whether the kernels take these arrays: contiguous, floating, all on one device."""
    return (
        _Usable.now
        and cuda_module.enabled()
        and all(a.flags.c_contiguous and a.dtype.name in TYPES_OF_LISTS for a in arrays)
        and len({a.data.device_id for a in arrays}) == 1
    )


def _by_dtype(arrays: Sequence) -> dict[str, list]:
    """Arrays that have elements, by their dtypes."""
    groups: dict[str, list] = {}
    for a in arrays:
        if a.size:
            groups.setdefault(a.dtype.name, []).append(a)
    return groups


def _tables(arrays: Sequence) -> Iterator:
    return tables([[a.data.ptr for a in arrays]], [a.size for a in arrays])


@cache
def _kernel(function: str, dtype: str, term: tuple[str, str, str] | None) -> cuda_module.Launcher:
    name = "unscale.cu" if term is None else "norm.cu"
    return cuda_module.load_file(name, function, _defines(dtype, term))


def _defines(dtype: str, term: tuple[str, str, str] | None) -> list[str]:
    defines = [f"ELEMENT={TYPES[dtype]}", f"CAPACITY={table_type(1)[1]}"]
    if term is not None:
        each, reduce, root = term
        defines += [f"TERM(v)={each}", f"REDUCE={reduce}", f"ROOT(v)={root}"]
    return defines


def _term(order: float) -> tuple[str, str, str]:
    """What an element contributes to a norm, how contributions are joined, and what the total
    becomes."""
    if order == math.inf:
        return "op_abs(v)", "Max", "v"
    if order == -math.inf:
        return "op_abs(v)", "Min", "v"
    if order == 2:
        return "op_mul(v, v)", "Sum", "sqrt(v)"
    if order == 1:
        return "op_abs(v)", "Sum", "v"
    if order == 0:
        return "(v != C(0))", "Sum", "v"
    return f"op_pow(op_abs(v), C({order!r}))", "Sum", f"pow(v, {1 / order!r})"


def norm(arrays: Sequence, order: float):
    """The norm of all elements of CuPy arrays together, a zero-dimensional array; None where there
    is no kernel. float64 if one of them is, else float32."""
    groups = _by_dtype(arrays)
    if not groups or not _fits(arrays):
        return None
    xp = backend.cupy()
    first = arrays[0]
    try:
        with backend.on_device_of(first):
            chunks = sum(-(-a.size // CHUNK) for a in arrays)
            contributions = xp.empty(chunks, "float64")
            done = 0
            for dtype, members in groups.items():
                kernel = _kernel("norm_of_chunks", dtype, _term(order))
                for table, blocks in _tables(members):
                    kernel((blocks,), (BLOCK,), (table, contributions, done))
                    done += blocks
            out = xp.empty((), "float64" if "float64" in groups else "float32")
            join = _kernel("norm_of_norms", out.dtype.name, _term(order))
            join((1,), (_JOIN,), (contributions, chunks, out))
            return out
    except KernelError as error:
        cuda_module.report(error, "norms of lists of tensors")
        _Usable.now = False
        return None


def unscale(arrays: Sequence, inverse, found) -> bool:
    """Multiply CuPy arrays in place by a float32 array of one element, and set another, ``found``,
    to 1 if an element is infinite or NaN. False where there is no kernel."""
    if not _fits([*arrays, inverse, found]):
        return False
    try:
        with backend.on_device_of(found):
            for dtype, members in _by_dtype(arrays).items():
                kernel = _kernel("unscale", dtype, None)
                for table, blocks in _tables(members):
                    kernel((blocks,), (BLOCK,), (table, inverse, found))
        return True
    except KernelError as error:
        cuda_module.report(error, "unscaling of gradients")
        _Usable.now = False
        return False


def corpus() -> Iterator[tuple[str, str, str]]:
    """(name, text, function) of the kernels, for the checks without a GPU."""
    for dtype in sorted(TYPES_OF_LISTS):
        yield f"unscale {dtype}", _kernel("unscale", dtype, None).text, "unscale"
        for order in (2.0, math.inf) if dtype != "float32" else (2.0, 1.0, 0.0, 3.0, math.inf):
            kernel = _kernel("norm_of_chunks", dtype, _term(order))
            yield f"norm of order {order:g}, {dtype}", kernel.text, "norm_of_chunks"
    for dtype in ("float32", "float64"):
        kernel = _kernel("norm_of_norms", dtype, _term(2.0))
        yield f"norm of norms {dtype}", kernel.text, "norm_of_norms"
