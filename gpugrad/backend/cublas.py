"""Products of matrices on CUDA arrays by cuBLASLt, called through ctypes on handles of our own.

CuPy's cuBLAS refuses stream capture, computes batches of float16 in float32 and fails on batches
of bfloat16 (CuPy 14.2). Here every product is one ``cublasLtMatmul`` with a workspace that is
allocated once per stream, so that it can be captured, in all floating and complex types, with
float32 sums for the 16-bit ones.

Arrays are row-major and cuBLASLt's matrices column-major, which read each other transposed:
``D = A @ B`` is asked for as ``D.T = B.T @ A.T``, without a copy. What a product of given shapes,
strides and types needs (descriptors, the algorithm of the library's heuristic) is a ``Plan``, made
at the first call.

Functions return None where cuBLASLt is not the one to compute (integers, a missing library): the
caller's reference does.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..config import settings
from ..errors import KernelError
from . import cupy as backend

# cublasStatus_t
_STATUS = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH",
    11: "CUBLAS_STATUS_MAPPING_ERROR",
    13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
    16: "CUBLAS_STATUS_LICENSE_ERROR",
}
_UNSUPPORTED = (8, 15)

# Attributes of cublasLtMatmulDesc_t, cublasLtMatrixLayout_t and cublasLtMatmulPreference_t: number
# and type of the value.
_TRANS_A, _TRANS_B = (3, ctypes.c_int32), (4, ctypes.c_int32)
_EPILOGUE, _BIAS_POINTER = (7, ctypes.c_uint32), (8, ctypes.c_void_p)
_AUX_POINTER, _AUX_LD = (11, ctypes.c_void_p), (12, ctypes.c_int64)
_BATCH_COUNT, _BATCH_STRIDE = (5, ctypes.c_int32), (6, ctypes.c_int64)
_MAX_WORKSPACE, _REDUCTIONS = (1, ctypes.c_uint64), (3, ctypes.c_uint32)
_ALIGNMENTS = tuple((number, ctypes.c_uint32) for number in (5, 6, 7, 8))

# cublasComputeType_t, cudaDataType_t
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_TF32 = 68, 70, 77
_R_32F, _R_64F, _C_32F, _C_64F = 0, 1, 4, 5

# cublasLtReductionScheme_t: sums over parts of the inner dimension that stay in the compute type.
# The others round partial sums of float16 to float16.
_EXACT_REDUCTIONS, _ALL_REDUCTIONS = 2, 7

# cublasLtEpilogue_t. What follows the product before it is stored.
EPILOGUES = {
    "": 1,
    "bias": 4,
    "relu_bias": 6,
    "relu_aux_bias": 134,
    "gelu_bias": 36,
    "gelu_aux_bias": 164,
    "drelu": 136,
    "drelu_bgrad": 152,
    "dgelu": 192,
    "dgelu_bgrad": 208,
    "bgradb": 512,
}
BIAS_ALIGNMENT = 16  # bytes, of the vectors and matrices of epilogues
_LARGEST = (1 << 31) - 1  # cuBLASLt's sizes, in all but name
_MOST_CALLS = 32  # from here on a batch that needs more calls is copied instead


# What a user may allow, bits of settings.matmul_modes.
TF32, FP16_REDUCTIONS, BF16_REDUCTIONS = 1, 2, 4
_REDUCED = {"float16": FP16_REDUCTIONS, "bfloat16": BF16_REDUCTIONS}


class _Type(NamedTuple):
    """A dtype as cuBLASLt names it: of the data, of the sums, of alpha and beta."""

    data: int
    compute: int
    scale: int
    tf32: bool = False  # whether its factors may be rounded to ten bits of mantissa


_TYPES = {
    "float16": _Type(2, _COMPUTE_32F, _R_32F),
    "bfloat16": _Type(14, _COMPUTE_32F, _R_32F),
    "float32": _Type(_R_32F, _COMPUTE_32F, _R_32F, True),
    "float64": _Type(_R_64F, _COMPUTE_64F, _R_64F),
    "complex64": _Type(_C_32F, _COMPUTE_32F, _C_32F, True),
    "complex128": _Type(_C_64F, _COMPUTE_64F, _C_64F),
}


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algo", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


# ------------------------------------------------------------------------------------------------
# the library, handles, workspaces


class NoLibrary(Exception):
    """cuBLASLt is not installed, or cannot be used here."""


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES = {
    "cublasLtCreate": [_POINTER],
    "cublasLtGetVersion": [],
    "cublasLtMatmulDescCreate": [_POINTER, _INT, _INT],
    "cublasLtMatmulDescDestroy": [_POINTER],
    "cublasLtMatmulDescSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
    "cublasLtMatrixLayoutCreate": [
        _POINTER,
        _INT,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int64,
    ],
    "cublasLtMatrixLayoutDestroy": [_POINTER],
    "cublasLtMatrixLayoutSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
    "cublasLtMatmulPreferenceCreate": [_POINTER],
    "cublasLtMatmulPreferenceDestroy": [_POINTER],
    "cublasLtMatmulPreferenceSetAttribute": [_POINTER, _INT, _POINTER, _SIZE],
    "cublasLtMatmulAlgoGetHeuristic": [*[_POINTER] * 7, _INT, _POINTER, _POINTER],
    "cublasLtMatmul": [*[_POINTER] * 14, _SIZE, _POINTER],
}


def _candidates(major: int):
    """Names to load cuBLASLt by: the user's, that which CuPy has loaded, that of the wheels."""
    if os.environ.get("GPUGRAD_CUBLASLT"):
        yield os.environ["GPUGRAD_CUBLASLT"]
        return
    soname = f"libcublasLt.so.{major}"
    yield soname
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        yield load_nvidia_dynamic_lib("cublasLt").abs_path
    except Exception:  # not installed, or it finds nothing: its errors have changed names
        pass
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            yield os.path.join(os.environ[variable], "lib64", soname)
    yield f"/usr/local/cuda/lib64/{soname}"


def load(path: str | None = None) -> ctypes.CDLL:
    """The cuBLASLt library with typed functions; ``path`` instead of the usual places.

    Raises NoLibrary.
    """
    major = 0 if path else backend.cupy().cuda.runtime.runtimeGetVersion() // 1000
    tried = []
    for name in [path] if path else _candidates(major):
        try:
            library = ctypes.CDLL(name)
            for function, arguments in _SIGNATURES.items():
                getattr(library, function).argtypes = arguments
            library.cublasLtGetVersion.restype = _SIZE
            return library
        except (OSError, AttributeError) as error:  # absent, or another library of that name
            tried.append(str(error))
    if path:
        raise NoLibrary(f"{path} is not a cuBLASLt library: {tried[0]}")
    raise NoLibrary(
        f"cuBLASLt for CUDA {major} is not installed ({'; '.join(tried)}). Install "
        f"gpugrad[cuda{major}], or set GPUGRAD_CUBLASLT to the file libcublasLt.so.{major}"
    )


@cache
def _library() -> ctypes.CDLL:
    return load()


_lock = threading.RLock()
_handles: dict[int, ctypes.c_void_p] = {}


def _handle(device: int) -> ctypes.c_void_p:
    """The handle of a device, which is current; made at first use and never destroyed.

    A cuBLASLt handle holds no stream and no other state: threads may share it.
    """
    handle = _handles.get(device)
    if handle is None:
        made = ctypes.c_void_p()
        status = _library().cublasLtCreate(ctypes.byref(made))
        if status:
            raise NoLibrary(f"cublasLtCreate on cuda:{device}: {status_name(status)}")
        handle = _handles[device] = made
    return handle


def status_name(status: int) -> str:
    """``CUBLAS_STATUS_INVALID_VALUE (7)``."""
    return f"{_STATUS.get(status, 'unknown cuBLAS status')} ({status})"


@cache
def workspace_bytes(device: int) -> int:
    """What algorithms may use between their kernels: 32 MiB on Hopper and data-centre Blackwell, 12
    on other Blackwell, 8 on older devices (the cuBLAS guide asks for at least 4)."""
    capability = int(backend.cupy().cuda.Device(device).compute_capability)
    return (12 if capability >= 120 else 32 if capability >= 90 else 8) << 20


_workspaces: dict[tuple[int, int], tuple[int, Any]] = {}


def _workspace(device: int, stream: int) -> int:
    """Address of the workspace of a stream. Products on one stream follow each other, so that they
    can share it; those on two streams cannot.

    Kept alive, because captured graphs go on using that of the stream they were captured on. Two
    graphs of one capture stream share it and must not be replayed at the same time.
    """
    found = _workspaces.get((device, stream))
    if found is None:
        from .cuda_memory import allocator

        with _lock:
            found = _workspaces.get((device, stream))
            if found is None:  # from the common pool: that of a graph ends with the graph
                allocate = allocator(backend.cupy().get_default_memory_pool())
                memory = allocate(workspace_bytes(device))
                found = _workspaces[device, stream] = (memory.ptr, memory)
    return found[0]


def release_workspaces() -> None:
    """Give the workspaces of all streams back to the memory pool. Not while a captured graph with a
    product in it may still be launched."""
    _workspaces.clear()


# ------------------------------------------------------------------------------------------------
# operands


def _matrix(rows: int, cols: int, row_stride: int, col_stride: int) -> tuple[bool, int] | None:
    """Whether memory holds the transpose of a matrix row after row, and the leading dimension; None
    if neither rows nor columns are contiguous, or they overlap."""
    if (cols == 1 or col_stride == 1) and (rows == 1 or row_stride >= cols):
        return False, row_stride if rows > 1 else cols
    if (rows == 1 or row_stride == 1) and (cols == 1 or col_stride >= rows):
        return True, col_stride if cols > 1 else rows
    return None


def _contiguous(shape) -> tuple:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _merged(shape, strides) -> tuple[int, int] | None:
    """Number and stride of all elements of axes as one axis, or None if they do not lie so."""
    size, step = 1, 0
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n == 1:
            continue
        if size > 1 and s != step * size:
            return None
        size, step = size * n, s if size == 1 else step
    return size, step


class _Operand(NamedTuple):
    """An operand with its matrix in the last two axes; strides in elements."""

    shape: tuple
    strides: tuple
    copied: bool = (
        False  # whether the array is to be made contiguous (in the shape ``spread``) first
    )
    spread: tuple | None = None

    def copy(self, spread=None) -> _Operand:
        shape = spread or self.shape
        return _Operand(shape, _contiguous(shape), True, spread)

    @property
    def matrix(self):
        return _matrix(*self.shape[-2:], *self.strides[-2:])

    def ready(self, array):
        """The array as the plan reads it."""
        if not self.copied:
            return array
        whole = array if self.spread is None else backend.broadcast_to(array, self.spread)
        return backend.contiguous(whole)

    def usable(self) -> _Operand:
        """Itself, or its contiguous copy where cuBLASLt cannot read it."""
        fits = self.matrix is not None and min(self.strides[:-2], default=0) >= 0
        return self if fits else self.copy()


def _strides(array) -> tuple:
    size = array.itemsize
    return tuple([s // size for s in array.strides])


def _rows(array) -> _Operand:
    """All leading axes merged into the rows of one matrix."""
    shape, strides = array.shape, _strides(array)
    matrix = (prod(shape[:-1]), shape[-1])
    merged = _merged(shape[:-1], strides[:-1])
    if merged is None:
        return _Operand(matrix, _contiguous(matrix), True)
    return _Operand(matrix, (merged[1], strides[-1])).usable()


def _swapped(x: _Operand) -> _Operand:
    """The transpose of a matrix."""
    return x._replace(shape=x.shape[::-1], strides=x.strides[::-1])


def _loops(batch, a: _Operand, b: _Operand) -> list[tuple[int, int, int]]:
    """Size and strides of ``a`` and ``b`` for each axis of a batch, axes merged where both allow
    it; the result is contiguous and always does."""

    def strides(x):
        lead = len(batch) - (len(x.shape) - 2)
        own = [0 if n == 1 else s for n, s in zip(x.shape[:-2], x.strides[:-2], strict=True)]
        return [*[0] * lead, *own]

    merged: list[tuple[int, int, int]] = []
    for n, sa, sb in zip(batch, strides(a), strides(b), strict=True):
        if n == 1:
            continue
        if merged and merged[-1][1:] == (sa * n, sb * n):
            merged[-1] = (merged[-1][0] * n, sa, sb)
        else:
            merged.append((n, sa, sb))
    return merged


# ------------------------------------------------------------------------------------------------
# one problem of cuBLASLt


class _Problem(NamedTuple):
    """``D (m, n) = A (m, k) @ B (k, n)`` for row-major arrays; ``ld`` are leading dimensions,
    ``stride`` the distances of a batch's matrices. A transposed operand lies column after column.
    """

    m: int
    n: int
    k: int
    transposed_a: bool
    transposed_b: bool
    ld_a: int
    ld_b: int
    ld_d: int
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_d: int = 0
    epilogue: str = ""
    ld_aux: int = 0


class Unsupported(Exception):
    """cuBLASLt has no algorithm for a problem on this device."""


class _Product:
    """Descriptors and algorithm of one problem, and the call."""

    def __init__(self, problem: _Problem, dtype, device: int, alignment: int, modes: int):
        self.problem, self.dtype, self.device = problem, dtype, device
        self.library, self.handle = _library(), _handle(device)
        self.matmul = self.library.cublasLtMatmul
        self._owned: list = []
        self._pointers = threading.Lock()
        kind = _TYPES[dtype.name]
        compute = _COMPUTE_TF32 if kind.tf32 and modes & TF32 else kind.compute
        self.scale = kind.scale
        p = problem
        self.desc = self._descriptor("MatmulDesc", compute, kind.scale)
        # cuBLASLt's A is our B, each read as its transpose
        self._set("MatmulDesc", self.desc, _TRANS_A, int(p.transposed_b))
        self._set("MatmulDesc", self.desc, _TRANS_B, int(p.transposed_a))
        self.epilogue = EPILOGUES[p.epilogue]
        self._bias = self._aux = 0
        if p.epilogue:
            self._set("MatmulDesc", self.desc, _EPILOGUE, self.epilogue)
            # the heuristic looks at the alignment of an address and no further
            self._bias = BIAS_ALIGNMENT
            self._set("MatmulDesc", self.desc, _BIAS_POINTER, self._bias)
        if p.ld_aux:
            self._aux = BIAS_ALIGNMENT
            self._set("MatmulDesc", self.desc, _AUX_LD, p.ld_aux)
            self._set("MatmulDesc", self.desc, _AUX_POINTER, self._aux)
        first = (p.k, p.n) if p.transposed_b else (p.n, p.k)
        second = (p.m, p.k) if p.transposed_a else (p.k, p.m)
        self.a = self._layout(kind.data, *first, p.ld_b, p.stride_b)
        self.b = self._layout(kind.data, *second, p.ld_a, p.stride_a)
        self.d = self._layout(kind.data, p.n, p.m, p.ld_d, p.stride_d)
        exact = dtype.itemsize == 2 and not modes & _REDUCED[dtype.name]
        self._choose(alignment, _EXACT_REDUCTIONS if exact else _ALL_REDUCTIONS)
        self.one, self.zero = scalar(1, self.scale), scalar(0, self.scale)

    def _descriptor(self, kind: str, *arguments) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        create = getattr(self.library, f"cublasLt{kind}Create")
        self._check(create(ctypes.byref(made), *arguments), f"cublasLt{kind}Create")
        self._owned.append((getattr(self.library, f"cublasLt{kind}Destroy"), made))
        return made

    def _layout(self, data: int, rows: int, cols: int, ld: int, stride: int) -> ctypes.c_void_p:
        layout = self._descriptor("MatrixLayout", data, rows, cols, ld)
        if self.problem.batch > 1:
            self._set("MatrixLayout", layout, _BATCH_COUNT, self.problem.batch)
            self._set("MatrixLayout", layout, _BATCH_STRIDE, stride)
        return layout

    def _set(self, kind: str, descriptor, attribute, value) -> None:
        number, type_ = attribute
        cell = type_(value)
        set_ = getattr(self.library, f"cublasLt{kind}SetAttribute")
        status = set_(descriptor, number, ctypes.byref(cell), ctypes.sizeof(cell))
        self._check(status, f"cublasLt{kind}SetAttribute({number})")

    def _choose(self, alignment: int, reductions: int) -> None:
        """Ask the library's heuristic for the algorithm."""
        preference = self._descriptor("MatmulPreference")
        limit = workspace_bytes(self.device)
        wanted = [(_MAX_WORKSPACE, limit), (_REDUCTIONS, reductions)]
        for attribute, value in wanted + [(a, alignment) for a in _ALIGNMENTS]:
            self._set("MatmulPreference", preference, attribute, value)
        results, count = (_Heuristic * 4)(), ctypes.c_int(0)
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle, self.desc, self.a, self.b, self.d, self.d, preference,
            len(results), results, ctypes.byref(count),
        )  # fmt: skip
        usable = [r for r in results[: count.value] if not r.state]
        if status in _UNSUPPORTED or (not status and not usable):
            raise Unsupported(self.describe())
        self._check(status, "cublasLtMatmulAlgoGetHeuristic")
        self._result = usable[0]  # owns the memory of ``algo``
        self.algo = ctypes.byref(self._result)  # its first field
        self.workspace = usable[0].workspace

    def run(self, a: int, b: int, c: int, d: int, stream: int, alpha=None, beta=None) -> None:
        """Queue ``D = alpha A @ B + beta C`` at these addresses on a stream of the device."""
        size = self.workspace
        status = self.matmul(
            self.handle, self.desc, alpha or self.one, b, self.a, a, self.b, beta or self.zero,
            c, self.d, d, self.d, self.algo, _workspace(self.device, stream) if size else None,
            size, stream,
        )  # fmt: skip
        if status:
            self._check(status, "cublasLtMatmul")

    def run_with(self, bias: int, aux: int, *arguments) -> None:
        """The same with the addresses of an epilogue, which belong to the descriptor: one thread at
        a time."""
        with self._pointers:
            if bias != self._bias:  # a layer's bias stays where it is
                self._set("MatmulDesc", self.desc, _BIAS_POINTER, bias)
                self._bias = bias
            if aux != self._aux:
                self._set("MatmulDesc", self.desc, _AUX_POINTER, aux)
                self._aux = aux
            self.run(*arguments)

    def describe(self) -> str:
        p = self.problem
        batch = f"{p.batch} x " if p.batch > 1 else ""
        epilogue = f", epilogue {p.epilogue}" if p.epilogue else ""
        where = f"in {self.dtype.name} on cuda:{self.device}"
        return f"{batch}({p.m}, {p.k}) @ ({p.k}, {p.n}) {where}{epilogue}"

    def _check(self, status: int, call: str) -> None:
        if status:
            hint = ""
            if status == 13:
                hint = ". The cause is often a kernel queued before it: synchronize to find which"
            raise KernelError(f"{call}: {status_name(status)} for {self.describe()}{hint}")

    def __del__(self):
        for destroy, descriptor in getattr(self, "_owned", ()):
            destroy(descriptor)


_scalars: dict[tuple, Any] = {}


def scalar(value, scale: int):
    """alpha or beta in host memory, in the type of the sums; read when the product is queued."""
    found = _scalars.get((value, scale))
    if found is None:
        real = ctypes.c_float if scale in (_R_32F, _C_32F) else ctypes.c_double
        parts = (
            (complex(value).real, complex(value).imag) if scale in (_C_32F, _C_64F) else (value,)
        )
        found = ctypes.byref((real * len(parts))(*parts))
        if len(_scalars) > 1000:
            _scalars.clear()
        _scalars[value, scale] = found
    return found


# ------------------------------------------------------------------------------------------------
# plans


class Plan:
    """A product of arrays of given shapes and strides: which to copy first, which problem, how
    often.

    ``problem`` is None for results without elements or without terms. ``offsets`` are the elements
    by which operands and result move from call to call, where one call is not enough.
    """

    __slots__ = ("a", "b", "device", "direct", "itemsize", "offsets", "problem", "product", "shape")

    def __init__(self, shape, a: _Operand, b: _Operand, problem: _Problem | None, offsets=None):
        self.shape, self.a, self.b, self.problem, self.offsets = shape, a, b, problem, offsets
        self.direct = not (a.copied or b.copied or offsets)
        self.product: Any = None

    def prepare(self, dtype, device: int, alignment: int, modes: int) -> None:
        """Choose the algorithm. Raises Unsupported and NoLibrary."""
        self.device, self.itemsize = device, dtype.itemsize
        if self.problem is None:
            return
        if max(self.problem[:3] + self.problem[5:9]) > _LARGEST:
            raise Unsupported(f"a dimension of {self.problem[:3]} is beyond {_LARGEST}")
        for offset in self.offsets or ():
            for elements in offset:
                alignment = min(alignment, lowest_bit(elements * self.itemsize))
        self.product = _Product(self.problem, dtype, device, alignment, modes)

    def run(self, a, b, d, alpha=None, beta=None) -> None:
        """Queue ``d = alpha * a @ b + beta * d`` on the current stream (alpha 1, beta 0)."""
        stream = _current_stream().ptr
        if self.direct:
            at = d.data.ptr
            self.product.run(a.data.ptr, b.data.ptr, at, at, stream, alpha, beta)
            return
        a, b = self.a.ready(a), self.b.ready(b)
        places = a.data.ptr, b.data.ptr, d.data.ptr
        for offset in self.offsets or ((0, 0, 0),):
            pa, pb, pd = (p + o * self.itemsize for p, o in zip(places, offset, strict=True))
            self.product.run(pa, pb, pd, pd, stream, alpha, beta)

    def run_with(self, a, b, d, bias, aux) -> None:
        """The same with the arrays of an epilogue; None for one that it has not."""
        if not self.direct:
            a, b = self.a.ready(a), self.b.ready(b)
        at = d.data.ptr
        self.product.run_with(
            0 if bias is None else bias.data.ptr, 0 if aux is None else aux.data.ptr,
            a.data.ptr, b.data.ptr, at, at, _current_stream().ptr,
        )  # fmt: skip


def lowest_bit(address: int) -> int:
    """The alignment of an address in bytes, as far as algorithms care (256)."""
    low = address & 255
    return low & -low or 256


def _problem(a: _Operand, b: _Operand, **more) -> _Problem:
    (m, k), n = a.shape[-2:], b.shape[-1]
    (ta, la), (tb, lb) = a.matrix, b.matrix
    return _Problem(m, n, k, ta, tb, la, lb, n, **more)


def _layer(shape, a: _Operand, b: _Operand, **more) -> Plan:
    """One product of two matrices."""
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"matrices of {a.shape} and {b.shape} do not fit")
    if not prod(shape) or not a.shape[1]:
        return Plan(shape, a, b, None)
    return Plan(shape, a, b, _problem(a, b, **more))


def _plan_matmul(a_array, b_array) -> Plan:
    """NumPy's matmul: a vector is a row on the left and a column on the right, leading axes
    broadcast."""
    a, b = _as_matrices(a_array, -2), _as_matrices(b_array, -1)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: shapes {a_array.shape} and {b_array.shape} do not fit")
    tail = (a.shape[-2],) * (a_array.ndim > 1) + (b.shape[-1],) * (b_array.ndim > 1)
    shape = (*batch, *tail)
    if not prod(shape) or not a.shape[-1]:
        return Plan(shape, a, b, None)
    a, b = a.usable(), b.usable()
    loops = _loops(batch, a, b)
    if len(loops) == 1 and not loops[0][2]:  # one matrix on the right: the batch is more rows
        b = b._replace(shape=b.shape[-2:], strides=b.strides[-2:])
        rows = _merged((loops[0][0], a.shape[-2]), (loops[0][1], a.strides[-2]))
        if rows is not None:
            folded = a._replace(shape=(rows[0], a.shape[-1]), strides=(rows[1], a.strides[-1]))
            if folded.matrix is not None:
                return Plan(shape, folded, b, _problem(folded, b))
    if prod(n for n, *_ in loops) // max((n for n, *_ in loops), default=1) > _MOST_CALLS:
        a, b = (x.copy((*batch, *x.shape[-2:])) for x in (a, b))
        loops = _loops(batch, a, b)
    return _batched(shape, a, b, loops)


def _as_matrices(array, added: int) -> _Operand:
    shape, strides = array.shape, _strides(array)
    if array.ndim > 1:
        return _Operand(shape, strides)
    if added == -2:
        return _Operand((1, *shape), (shape[0], *strides))
    return _Operand((*shape, 1), (*strides, 1))


def _batched(shape, a: _Operand, b: _Operand, loops) -> Plan:
    """The longest axis of a batch in one call, one call for each place on the others."""
    m, n = a.shape[-2], b.shape[-1]
    steps, step = [], m * n  # of the result
    for size, *_ in reversed(loops):
        steps.insert(0, step)
        step *= size
    axes = [(size, sa, sb, sd) for (size, sa, sb), sd in zip(loops, steps, strict=True)]
    if not axes:
        return Plan(shape, a, b, _problem(a, b))
    inner = axes.pop(max(range(len(axes)), key=lambda i: axes[i][0]))
    offsets = [(0, 0, 0)]
    for size, *strides in axes:
        offsets = [
            tuple(o + i * s for o, s in zip(offset, strides, strict=True))
            for offset in offsets
            for i in range(size)
        ]
    count, sa, sb, sd = inner
    problem = _problem(a, b, batch=count, stride_a=sa, stride_b=sb, stride_d=sd)
    return Plan(shape, a, b, problem, offsets if axes else None)


# ------------------------------------------------------------------------------------------------
# what the rows call


_plans: dict[tuple, Plan | None] = {}
_MOST_PLANS = 4096  # shapes a process may see before all plans are made anew: 2 KiB each
_MISSING: Any = object()
# CuPy's array class, cupy.cuda.get_current_stream and cupy.cuda.runtime.getDevice: looked up once.
_array: Any = None
_current_stream: Any = None
_current_device: Any = None


def _begin() -> bool:
    """Look up what every call needs; False on a stand-in for CuPy, which has no memory to name."""
    global _array, _current_stream, _current_device
    cupy = backend.cupy()
    if not hasattr(cupy, "RawModule"):
        return False
    _current_stream, _current_device = cupy.cuda.get_current_stream, cupy.cuda.runtime.getDevice
    _array = cupy.ndarray
    return True


def _key(kind: str, a, b, more: int = 0) -> tuple:
    """What decides how two arrays are multiplied, the alignment of their memory and of the address
    ``more`` included. A new result is aligned to 512 bytes."""
    memory_a, memory_b = a.data, b.data
    low = (memory_a.ptr | memory_b.ptr | more) & 255
    return (
        kind, a.dtype.num, b.dtype.num, a.shape, a.strides, b.shape, b.strides,
        memory_a.device_id, low & -low, settings.matmul_modes,
    )  # fmt: skip


def _new_plan(key: tuple, make, a, b) -> Plan | None:
    """The plan of a key, made and kept; None where the reference is to compute."""
    plan = None
    if a.dtype == b.dtype and a.dtype.name in _TYPES and a.size < 1 << 62:
        plan = make(a, b)
        try:
            with _lock, backend.at(key[7]):
                plan.prepare(a.dtype, key[7], key[8] or 256, key[9])
        except Unsupported as error:
            plan = None
            if "+" not in key[0]:  # an epilogue has a way without it, equal in everything but time
                _report(a.dtype.name, f"cuBLASLt has no algorithm for {error}")
        except NoLibrary as error:
            plan = None
            _report("library", str(error))
    if len(_plans) >= _MOST_PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


_reported: set[str] = set()


def _report(about: str, message: str) -> None:
    """Say that CuPy computes instead, once for a library that is missing and for each dtype."""
    if about not in _reported:
        _reported.add(about)
        warnings.warn(
            f"{message}; CuPy's cuBLAS computes it, which cannot be captured", stacklevel=2
        )


def _find(kind: str, make, a, b, more: int = 0) -> Plan | None:
    if a.__class__ is not _array and not (_array is None and _begin()):
        return None
    if not settings.cuda_kernels:
        return None
    key = _key(kind, a, b, more)
    plan = _plans.get(key, _MISSING)
    return _new_plan(key, make, a, b) if plan is _MISSING else plan


def _compute(plan: Plan, a, b):
    """The product as a new array on the device of ``a``."""
    if _current_device() != plan.device:
        with backend.at(plan.device):
            return _compute(plan, a, b)
    out = _array(plan.shape, a.dtype)
    if plan.problem is None:
        out.fill(0)
    else:
        plan.run(a, b, out)
    return out


def matmul(a, b):
    """NumPy's ``matmul`` of two CuPy arrays of one floating or complex dtype; None for others.

    Any strides: what is contiguous along rows or columns is read in place, the rest is copied.
    Raises ValueError for shapes that do not fit and KernelError with the library's status.
    """
    plan = _find("matmul", _plan_matmul, a, b)
    return None if plan is None else _compute(plan, a, b)


def linear(x, w):
    """``x @ w.T`` for ``x`` (..., in) and ``w`` (out, in)."""
    plan = _find("linear", _plan_linear, x, w)
    return None if plan is None else _compute(plan, x, w)


def linear_input(g, w):
    """``g @ w`` for ``g`` (..., out) and ``w`` (out, in)."""
    plan = _find("linear_input", _plan_linear_input, g, w)
    return None if plan is None else _compute(plan, g, w)


def linear_weight(g, x):
    """``g.T @ x`` over all leading axes, for ``g`` (..., out) and ``x`` (..., in)."""
    plan = _find("linear_weight", _plan_linear_weight, g, x)
    return None if plan is None else _compute(plan, g, x)


def _plan_linear(x, w, **more) -> Plan:
    return _layer((*x.shape[:-1], w.shape[0]), _rows(x), _swapped(_rows(w)), **more)


def _plan_linear_input(g, w, **more) -> Plan:
    return _layer((*g.shape[:-1], w.shape[1]), _rows(g), _rows(w), **more)


def _plan_linear_weight(g, x, **more) -> Plan:
    return _layer((g.shape[-1], x.shape[-1]), _swapped(_rows(g)), _rows(x), **more)


def accumulate(a, b, c, alpha=1.0, beta=1.0) -> bool:
    """``c = alpha * a @ b + beta * c`` in the memory of ``c``; False where the caller is to do it.

    ``c`` is contiguous in the shape of the product; with ``beta`` 0 its old values are not read.
    """
    plan = _find("matmul", _plan_matmul, a, b, c.data.ptr)
    if plan is None or c.dtype != a.dtype or not c.flags.c_contiguous or c.shape != plan.shape:
        return False
    if plan.problem is None:
        c *= beta
        return True
    scale = plan.product.scale
    with backend.at(plan.device):
        plan.run(a, b, c, alpha=scalar(alpha, scale), beta=scalar(beta, scale))
    return True
