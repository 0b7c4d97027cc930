"""CUDA kernels of in-place updates of lists of tensors: one launch for many tensors.

The kernel is generated from the expressions of a ``foreach`` update, like those of the CPU. Its
arguments hold a table of addresses and sizes (kernels/multi_tensor.cuh); a longer list takes
several launches. Numbers are arguments, or are read from device memory where zero-dimensional CUDA
arrays are given: a captured graph follows when these change. Numbers that depend on such an array
(a bias correction, say) are computed in float64 by one thread of every block.

Tensors of one position may have different floating types; arithmetic is in float64 if one of them
has it, else in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ..backend import cupy as backend
from ..errors import KernelError
from . import cuda_module
from .cuda import TYPES, Scalars
from .cuda_module import Unsupported
from .expr import Expr

BLOCK = 256  # threads
CHUNK = 16384  # elements of a block, see kernels/multi_tensor.cuh
_ARGUMENTS = 4096  # bytes of a kernel's arguments on every device
TYPES_OF_LISTS = frozenset(("float16", "bfloat16", "float32", "float64"))


class Formula:
    """What an update computes.

    ``outputs`` overwrite the first of the lists named in ``tensors``. Beside these they read
    ``numbers``: scalars, or what ``made`` says of scalars alone.
    """

    __slots__ = ("kernels", "made", "name", "numbers", "outputs", "scalars", "tensors", "usable")

    def __init__(
        self,
        name: str,
        tensors: Sequence[str],
        scalars: Sequence[str],
        outputs: Sequence[Expr],
        made: dict[str, Expr],
        numbers: Sequence[str],
    ):
        self.name, self.tensors, self.scalars = name, tuple(tensors), tuple(scalars)
        self.outputs, self.made, self.numbers = tuple(outputs), made, tuple(numbers)
        self.kernels: dict[Variant, cuda_module.Launcher] = {}
        self.usable = True

    def kernel(self, variant: Variant) -> cuda_module.Launcher:
        """The kernel for a variant, made on first use."""
        found = self.kernels.get(variant)
        if found is None:
            text = kernel_text(self, variant)
            found = self.kernels[variant] = cuda_module.load(text, "update", f"{self.name}.cu")
        return found


class Variant(NamedTuple):
    """What the text of a kernel depends on, beside the formula: the dtypes of the lists; per scalar
    None for a number or the dtype of a device array, in capitals if there is one per tensor; the
    dtype of the flag that forbids the update, if there is one."""

    lists: tuple[str, ...]
    scalars: tuple[str | None, ...]
    unless: str | None

    @property
    def on_device(self) -> bool:
        """Whether numbers must be computed on the device."""
        return any(self.scalars)

    @property
    def each(self) -> int:
        """How many scalars there are per tensor."""
        return sum(s is not None and s.isupper() for s in self.scalars)


# ------------------------------------------------------------------------------------------------
# the table of tensors


@cache
def table_type(lists: int) -> tuple[np.dtype, int]:
    """The struct ``Tensors`` for so many lists, and how many tensors it holds."""
    room = _ARGUMENTS - 256  # for numbers and the rest of the struct
    tensors = room // (8 * lists + 8 + 4)
    fields = [
        ("at", "<u8", (lists, tensors)),
        ("size", "<i8", (tensors,)),
        ("first_chunk", "<i4", (tensors + 1,)),
        ("count", "<i4"),
    ]
    return np.dtype(fields, align=True), tensors


def tables(lists: Sequence[Sequence], sizes: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Tables for lists of addresses of tensors with these sizes, and the blocks that each takes."""
    dtype, most = table_type(len(lists))
    for start in range(0, len(sizes), most):
        part = np.asarray(sizes[start : start + most], np.int64)
        table = np.zeros(1, dtype)
        entry = table[0]
        for k, addresses in enumerate(lists):
            entry["at"][k, : len(part)] = addresses[start : start + most]
        entry["size"][: len(part)] = part
        chunks = np.cumsum((part + (CHUNK - 1)) // CHUNK)
        entry["first_chunk"][1 : len(part) + 1] = chunks
        entry["count"] = len(part)
        yield table, int(chunks[-1])


# ------------------------------------------------------------------------------------------------
# source


def kernel_text(formula: Formula, variant: Variant) -> str:
    """The source of ``update(tensors, numbers..., unless)``."""
    wide = "float64" in variant.lists
    types = [TYPES[d] for d in variant.lists]
    count = len(types)
    numbers = formula.numbers
    parts = [
        '#include "multi_tensor.cuh"',
        f"typedef {'double' if wide else 'float'} C;",
        f"constexpr int WIDTH = {2 if wide else 4};",
        f"typedef Tensors<{count + variant.each}, {table_type(count + variant.each)[1]}> Table;",
        "",
        *_compute_numbers(formula, variant, numbers),
        *_compute(formula, types, numbers),
        "",
        f'extern "C" __global__ void __launch_bounds__({BLOCK}) update(',
        f"    {', '.join(_parameters(formula, variant, numbers))}) {{",
        *[f"  {line}" for line in _body(formula, variant, types, numbers)],
        "}",
        "",
    ]
    return "\n".join(parts)


def _compute_numbers(formula: Formula, variant: Variant, numbers: Sequence[str]) -> list[str]:
    """The function that computes numbers from scalars, in double."""
    if not variant.on_device:
        return []
    scalars = Scalars({n: f"v_{n}" for n in formula.scalars})
    roots = [formula.made[n] for n in numbers if n in formula.made]
    lines = scalars.statements(roots)
    for k, name in enumerate(numbers):
        value = scalars.real(formula.made[name]) if name in formula.made else f"v_{name}"
        lines.append(f"out[{k}] = {value};")
    given = ", ".join(f"double v_{n}" for n in formula.scalars)
    return [
        "template <class C>",
        f"__device__ __forceinline__ void compute_numbers({given}, C* out) {{",
        *[f"  {line}" for line in lines],
        "}",
        "",
    ]


def _compute(formula: Formula, types: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """The function of one element of every list; it overwrites the first of them."""
    scalars = Scalars({n: f"v_{n}" for n in (*formula.tensors, *numbers)})
    lines = [f"const C v_{n} = C(widen(x_{n}));" for n in formula.tensors]
    lines += scalars.statements(formula.outputs)
    results = [scalars.real(e) for e in formula.outputs]
    for name, type, value in zip(formula.tensors, types, results, strict=False):
        lines.append(f"x_{name} = narrow<{type}>({value});")
    values = [f"{type}& x_{n}" for n, type in zip(formula.tensors, types, strict=True)]
    values += [f"const C v_{n}" for n in numbers]
    head = f"__device__ __forceinline__ void compute({', '.join(values)}) {{"
    return [head, *[f"  {line}" for line in lines], "}"]


def _parameters(formula: Formula, variant: Variant, numbers: Sequence[str]) -> list[str]:
    parameters = ["const __grid_constant__ Table tensors"]
    if variant.on_device:
        for name, source in zip(formula.scalars, variant.scalars, strict=True):
            if source is None:
                parameters.append(f"double n_{name}")
            elif source.islower():
                parameters.append(f"const {TYPES[source]}* n_{name}")
    else:
        parameters += [f"double n_{name}" for name in numbers]
    if variant.unless:
        parameters.append(f"const {TYPES[variant.unless]}* unless")
    return parameters


def _body(
    formula: Formula, variant: Variant, types: Sequence[str], numbers: Sequence[str]
) -> list[str]:
    """One chunk: packs of WIDTH elements where all parts are aligned, then what is left."""
    lines = []
    if variant.unless:
        lines.append("if (widen(*unless) != 0) return;")
    lines.append("const Chunk chunk = chunk_of(tensors, blockIdx.x);")
    lines += _read_numbers(formula, variant, types, numbers)
    names = formula.tensors
    for k, (name, type) in enumerate(zip(names, types, strict=True)):
        lines.append(f"{type}* const p_{name} = part<{type}>(tensors, {k}, chunk);")
    aligned = " && ".join(f"is_aligned<WIDTH>(p_{n})" for n in names)
    written = names[: len(formula.outputs)]

    def call(place: str) -> str:
        given = [f"{'q' if 'at' in place else 'x'}_{n}{place}" for n in names]
        return f"compute({', '.join([*given, *[f'c_{n}' for n in numbers]])});"

    lines += [
        f"const int packed = {aligned} ? chunk.size / WIDTH * WIDTH : 0;",
        f"for (int i = threadIdx.x * WIDTH; i < packed; i += {BLOCK} * WIDTH) {{",
        *[f"  auto q_{n} = load_pack<WIDTH>(p_{n} + i);" for n in names],
        "#pragma unroll",
        f"  for (int k = 0; k < WIDTH; ++k) {call('.at[k]')}",
        *[f"  store_pack(p_{n} + i, q_{n});" for n in written],
        "}",
        f"for (int i = packed + threadIdx.x; i < chunk.size; i += {BLOCK}) {{",
        *[f"  {type} x_{n} = p_{n}[i];" for n, type in zip(names, types, strict=True)],
        f"  {call('')}",
        *[f"  p_{n}[i] = x_{n};" for n in written],
        "}",
    ]
    return lines


def _read_numbers(
    formula: Formula, variant: Variant, types: Sequence[str], numbers: Sequence[str]
) -> list[str]:
    """``const C c_lr = ...`` for every number; those of the device by way of shared memory."""
    if not numbers:
        return []
    if not variant.on_device:
        return [f"const C c_{n} = C(n_{n});" for n in numbers]
    given, place = [], len(types)
    for name, source in zip(formula.scalars, variant.scalars, strict=True):
        if source is None:
            given.append(f"n_{name}")
        elif source.islower():
            given.append(f"double(widen(*n_{name}))")
        else:
            type, at = TYPES[source.lower()], f"tensors.at[{place}][chunk.tensor]"
            given.append(f"double(widen(*reinterpret_cast<const {type}*>({at})))")
            place += 1
    return [
        f"__shared__ double shared[{len(numbers)}];",
        f"if (!threadIdx.x) compute_numbers<double>({', '.join(given)}, shared);",
        "__syncthreads();",
        *[f"const C c_{n} = C(shared[{k}]);" for k, n in enumerate(numbers)],
    ]


# ------------------------------------------------------------------------------------------------
# launching


class _Group:
    """Tensors of one device and one combination of dtypes: addresses per list, sizes."""

    __slots__ = ("indices", "lists", "sizes")

    def __init__(self, lists: int):
        self.indices: list[int] = []
        self.lists: list[list[int]] = [[] for _ in range(lists)]
        self.sizes: list[int] = []


def run(formula: Formula, lists: Sequence[Sequence], scalars, numbers, unless) -> list[int]:
    """Update CUDA arrays; the positions that have no kernel are left alone and returned.

    Args:
        lists: lists of CuPy arrays; those at one position have the same shape.
        scalars: by name a number, a zero-dimensional CuPy array, or a list of such, one per
            position.
        numbers: returns the numbers of the loop if all scalars are numbers.
        unless: None or an array with one element: nothing is written if it is not zero.
    """
    positions = range(len(lists[0]))
    if not formula.usable or not cuda_module.enabled():
        return list(positions)
    groups, left = _grouped(lists, [s for s in scalars.values() if s.__class__ is list])
    sources = tuple(_source(scalars[name]) for name in formula.scalars)
    read = [*[s.lower() for s in sources if s], *([] if unless is None else [unless.dtype.name])]
    if not TYPES_OF_LISTS.issuperset(read):
        return list(positions)
    for (device, *dtypes), group in groups.items():
        variant = Variant(tuple(dtypes), sources, None if unless is None else unless.dtype.name)
        try:
            with backend.at(device):
                _launch(
                    formula, variant, group, _arguments(formula, variant, scalars, numbers, unless)
                )
        except Unsupported:
            left += group.indices
        except KernelError as error:
            cuda_module.report(error, formula.name)
            formula.usable = False
            left += group.indices
    return left


def _source(scalar) -> str | None:
    """The letter of a scalar in ``Variant``."""
    if scalar.__class__ is list:
        return scalar[0].dtype.name.upper() if scalar else None
    return scalar.dtype.name if hasattr(scalar, "dtype") else None


def _grouped(lists, each) -> tuple[dict[tuple, _Group], list[int]]:
    """Positions by device and dtypes, and those that no kernel can do."""
    groups: dict[tuple, _Group] = {}
    left: list[int] = []
    several = backend.several()
    for index, arrays in enumerate(zip(*lists)):
        first = arrays[0]
        size, device = first.size, first.data.device_id
        if not size:
            continue
        if not all(a.flags.c_contiguous for a in arrays) or (
            several and any(a.data.device_id != device for a in arrays)
        ):
            left.append(index)
            continue
        key = (device, *[a.dtype.name for a in arrays])
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(len(lists) + len(each))
        group.indices.append(index)
        group.sizes.append(size)
        for addresses, a in zip(group.lists, (*arrays, *[s[index] for s in each])):
            addresses.append(a.data.ptr)
    for key in [k for k in groups if not set(k[1:]) <= TYPES_OF_LISTS]:
        left += groups.pop(key).indices
    return groups, left


def _arguments(formula: Formula, variant: Variant, scalars, numbers, unless) -> list:
    """What a kernel takes beside the table."""
    if variant.on_device:
        values = [scalars[name] for name in formula.scalars]
        given = [v if hasattr(v, "dtype") else float(v) for v in values if v.__class__ is not list]
    else:
        given = numbers()
    return given if unless is None else [*given, unless]


def _launch(formula: Formula, variant: Variant, group: _Group, arguments: list) -> None:
    kernel = formula.kernel(variant)
    written = [a for addresses in group.lists[: len(formula.outputs)] for a in addresses]
    if len(set(written)) == len(written):
        for table, blocks in tables(group.lists, group.sizes):
            kernel((blocks,), (BLOCK,), (table, *arguments))
        return
    for k, size in enumerate(group.sizes):  # a tensor is listed twice: one after the other
        for table, blocks in tables([[addresses[k]] for addresses in group.lists], [size]):
            kernel((blocks,), (BLOCK,), (table, *arguments))


def corpus() -> Iterator[tuple[str, str, str]]:
    """(name, text, function) of representative kernels, for the checks without a GPU."""
    from .expr import build, variable

    p, m, v, g, lr, step = (variable(n) for n in ("p", "m", "v", "g", "lr", "step"))
    mean, square = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    moved = p - variable("size") * mean / (build("sqrt", square) + 1e-8)
    size = lr / (1 - build("pow", 0.9, step))
    adam = Formula("adam", "pmvg", ("lr", "step"), (moved, mean, square), {"size": size}, ["size"])
    sgd = Formula("sgd", "pg", ("lr",), (p - lr * g,), {}, ["lr"])
    none: tuple = (None, None)
    variants = {
        "numbers": Variant(("float32",) * 4, none, None),
        "float64": Variant(("float64",) * 4, none, None),
        "mixed": Variant(("bfloat16", "float32", "float32", "bfloat16"), none, None),
        "half, skipped": Variant(("float16",) * 4, none, "float32"),
        "step of each": Variant(("float32",) * 4, ("float64", "FLOAT32"), "float32"),
    }
    for name, variant in variants.items():
        yield f"adam {name}", cuda_module.source(kernel_text(adam, variant)), "update"
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        text = kernel_text(sgd, Variant((dtype, dtype), (None,), None))
        yield f"sgd {dtype}", cuda_module.source(text), "update"
