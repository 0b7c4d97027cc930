"""Kernels on the CPU, without a device: every generated elementwise kernel against float64, and the
launches that ``make host-device`` has recorded, in other schedules and under ThreadSanitizer.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gpugrad.codegen import cuda, cuda_module
from gpugrad.codegen.arrays import BOOLEAN, Program
from gpugrad.codegen.cuda_module import Unsupported
from gpugrad.codegen.functions import functions_for
from gpugrad.ops import REGISTRY
from gpugrad.ops.core import Elementwise
from tests.cuda import nvrtc, recordings, shim
from tests.cuda.judging import DTYPES, ROUNDING, dtype_named
from tests.cuda.shim import Launch, Pointer, compiler, launches, race

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(shim.missing()), reason=shim.missing()),
]

# ---- generated elementwise kernels ---------------------------------------------------------------

ROWS = sorted(name for name, op in REGISTRY.items() if isinstance(op, Elementwise))
SIZES = (1, 31, 257, 1000)
# Of intermediate results: float32's, but for float64.
INTERMEDIATE = {"float64": 1e-13}


class Case(NamedTuple):
    """A program and a float64 array or mask for each of its inputs."""

    program: Program
    values: list[np.ndarray]


def cases(op: Elementwise, size: int, rng) -> Iterator[Case]:
    """A row forward and backward, on values of its domain."""
    domains = op.domain if isinstance(op.domain[0], tuple) else (op.domain,) * op.arity
    args = [rng.uniform(*domain, size) for domain in domains[: op.arity]]
    if op.name == "where":
        args[0] = args[0] > 0.5
    forward = Program([op.body], op.names, ())
    yield Case(forward, args)
    needs = tuple(op.differentiable(i) for i in range(op.arity))
    if any(needs) and op.rule(needs).computed:
        y = forward.direct(functions_for(np), None, False)(*args)
        named = {"g": rng.normal(size=size), "y": y, **dict(zip(op.names, args))}
        backward = op.rule(needs).program
        yield Case(backward, [named[n] for n in backward.inputs])


def launch_of(program: Program, arrays: list[np.ndarray], dtype: np.dtype) -> Launch:
    """The launch that a device would get for these arrays, outputs full of garbage."""
    read = [k for k, name in enumerate(program.inputs) if name in program.used]
    kinds = ["-"] * len(arrays)
    for k in read:
        kinds[k] = "b" if arrays[k].dtype == bool else "v"
    taken = [arrays[k] for k in read]
    shape = np.broadcast_shapes(*[a.shape for a in taken])
    operands = cuda._Operands(dtype, shape, taken, read, [], "".join(kinds))
    layout = cuda._layout(shape, taken)
    variant = cuda._variant(operands, layout)
    text = cuda_module.source(cuda.kernel_text(program, variant))
    outputs = [
        np.full(shape, 0xFF, np.uint8).repeat(1 if e.op in BOOLEAN else dtype.itemsize)
        for e in program.outputs
    ]
    buffers = [np.ascontiguousarray(a) for a in taken] + outputs
    sizes = [np.int64(n).tobytes() for n in layout.parameters(variant.pattern)]
    arguments = [*(Pointer(k) for k in range(len(buffers))), *sizes]
    blocks = max(1, -(-int(np.prod(shape)) // (variant.lanes * cuda.BLOCK)))
    return Launch(text, "elementwise", (blocks,), (cuda.BLOCK,), buffers, arguments)


def close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Within one rounding to the dtype, and a few of what it was computed in."""
    with np.errstate(over="ignore"):
        expected = expected.astype(found.dtype).astype(np.float64)  # beyond the range: infinite
    size = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    atol = 8 * INTERMEDIATE.get(dtype, 1e-6) * size
    np.testing.assert_allclose(
        found.astype(np.float64), expected, rtol=2 * ROUNDING[dtype], atol=atol
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_elementwise_row(name, dtype, rng):
    """Forward and backward, sizes that fill packs and blocks and that do not, every schedule."""
    kind = dtype_named(dtype)
    compared = 0
    for size in SIZES:
        for program, values in cases(REGISTRY[name], size, rng):
            arrays = [np.asarray(v) if v.dtype == bool else v.astype(kind) for v in values]
            wide = [a if a.dtype == bool else a.astype(np.float64) for a in arrays]
            try:
                launch = launch_of(program, arrays, kind)
            except Unsupported:  # among booleans, say: CuPy computes it
                continue
            expected = program.direct(functions_for(np), None, False)(*wide)
            expected = expected if isinstance(expected, list | tuple) else [expected]
            order = SIZES.index(size) % 3
            results = shim.replay(launch, order, seed=size)[-len(expected) :]
            for result, e, formula in zip(results, expected, program.outputs):
                if formula.op in BOOLEAN:
                    np.testing.assert_array_equal(result.view(bool), e)
                else:
                    close(result.view(kind), np.broadcast_to(e, size), dtype)
            compared += 1
    assert compared or not Program([REGISTRY[name].body], REGISTRY[name].names, ()).computed


# ---- recorded launches ---------------------------------------------------------------------------


@cache
def recorded() -> tuple[Launch, ...]:
    """Of the latest ``make host-device``; without one, those that are kept in the repository."""
    folder = Path(os.environ.get("GPUGRAD_RECORDINGS") or recordings.FOLDER)
    found = list(recordings.read(folder))
    if not found and recordings.PACKED.exists():
        found = recordings.read_packed()
    return tuple(found)


@pytest.fixture(scope="module")
def launched() -> tuple[Launch, ...]:
    if not recorded():
        pytest.skip("no launches are recorded: make host-device")
    shim.build_all(sorted({launch.text for launch in recorded()}))  # on all cores
    return recorded()


# Sums of floating-point numbers by atomics, documented to depend on the order of threads.
IN_ANY_ORDER = {"add_atomically"}


ERROR_RECORD = "s24"  # struct ErrorRecord of kernels/errors.cuh: the operation comes first


def differences(launch: Launch, order: int, seed: int) -> list[str]:
    """Buffers that a replay leaves otherwise than the recorded launch did."""
    found = []
    try:
        results = shim.replay(launch, order, seed)
    except shim.ShimError as error:
        return [f"{launch.function}: {error}"]
    types = launches.with_types(launch).types
    for k, (result, expected) in enumerate(zip(results, launches.expected(launch))):
        if types[k] == ERROR_RECORD:  # of several errors any may be the one that is kept
            result, expected = result[:4], expected[:4]
        if not np.array_equal(result, expected):
            at = int(np.flatnonzero(result != expected)[0])
            found.append(f"{launch.function}: byte {at} of buffer {k} in order {order}")
    return found


@pytest.mark.parametrize(("order", "seed"), shim.SCHEDULES)
def test_results_depend_on_no_schedule(launched, order, seed):
    wrong = [
        problem
        for launch in launched
        if launch.function not in IN_ANY_ORDER
        for problem in differences(launch, order, seed)
    ]
    assert not wrong, f"{len(wrong)} of {len(launched)} launches:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_blocks_fit_into_the_registers(launched, arch):
    """A launch fails on a GPU if its block needs more than the 65536 registers there are."""
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy")
    largest: dict[tuple[str, str], int] = {}
    for launch in launched:
        key = launch.text, launch.function
        largest[key] = max(largest.get(key, 0), int(np.prod(launch.block)))
    texts = sorted({text for text, _ in largest})
    results = dict(zip(texts, nvrtc.compile_all([nvrtc.Job(t, arch) for t in texts])))
    for (text, function), threads in largest.items():
        registers = results[text].usage[function].registers
        rounded = -(-registers // 8) * 8  # what hardware hands out
        assert rounded * threads <= 65536, f"{function}: {threads} threads of {registers} registers"


# ---- races ---------------------------------------------------------------------------------------

_TYPES = re.compile(r"\b(__half2?|__nv_bfloat162?|float|double|bool)\b")


def cooperates(launch: Launch) -> bool:
    """Whether threads of the kernel meet, share memory or use atomics."""
    path, _ = shim.build(launch.text)
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True).stdout
    own = compiler.blanked(launch.text)
    return "block_barrier" in symbols or "4meet" in symbols or "atomic" in own


def structure(launch: Launch) -> str:
    """The kernel without its types: one of each structure is checked for races."""
    return launch.function + _TYPES.sub("T", re.sub(r"\d+", "0", compiler.blanked(launch.text)))


def for_race_checks() -> list[Launch]:
    """For each structure of kernels whose threads cooperate the launch with the fewest threads, but
    more than a warp if there is one."""
    chosen: dict[str, Launch] = {}
    for launch in sorted(recorded(), key=lambda launch: (launch.threads <= 32, launch.threads)):
        chosen.setdefault(structure(launch), launch)
    return [launch for launch in chosen.values() if cooperates(launch)]


def test_no_races(launched):
    if not race.available():
        pytest.skip("no ThreadSanitizer")
    checked = for_race_checks()
    reports = zip(checked, race.check(checked, timeout=1800))
    wrong = [f"{launch.function}\n{report[:2000]}" for launch, report in reports if report]
    assert not wrong, f"{len(wrong)} of {len(checked)} kernels:\n" + "\n\n".join(wrong[:5])


# ---- kernels broken on purpose -------------------------------------------------------------------

MEAN = """#include "common.cuh"
extern "C" __global__ void k(const float* x, float* y, long long n) {
  __shared__ float scratch[32];
  float v = 0;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) v += x[blockIdx.x * n + i];
  v = reduce_block<Sum>(v, scratch);
  v = reduce_block<Sum>(v / n, scratch);
  if (!threadIdx.x) y[blockIdx.x] = v / blockDim.x;
}"""
COUNT = """extern "C" __global__ void k(const float* x, int* y, long long n) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&y[int(x[i] * 8)], 1);
}"""


def mean(text: str) -> Launch:
    x = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    arguments = [Pointer(0), Pointer(1), np.int64(1000).tobytes()]
    made = Launch(text, "k", (2,), (128,), [x, np.zeros(2, np.float32)], arguments)
    return made._replace(after=shim.replay(made))


def count(text: str) -> Launch:
    x = np.random.default_rng(0).uniform(size=300).astype(np.float32)
    arguments = [Pointer(0), Pointer(1), np.int64(300).tobytes()]
    made = Launch(text, "k", (3,), (128,), [x, np.zeros(8, np.int32)], arguments)
    return made._replace(after=shim.replay(made))


def seen(launch: Launch) -> list[str]:
    """What the checks above say of a launch."""
    return [p for order, seed in shim.SCHEDULES for p in differences(launch, order, seed)]


class Broken(NamedTuple):
    """A kernel, what is replaced in it by what, and whether schedules and race checks see it."""

    make: object
    text: str
    right: str
    wrong: str
    by_schedules: bool
    by_race_check: bool


BARRIER = "scratch[warp] = v;\n  __syncthreads();"
ATOMIC = "atomicAdd(&y[int(x[i] * 8)], 1)"
BROKEN = {
    "a barrier is missing": Broken(mean, MEAN, BARRIER, "scratch[warp] = v;", True, True),
    "memory is reused too early": Broken(
        mean, MEAN, "  __syncthreads();\n  return v;", "  return v;", True, True
    ),
    "one element too many": Broken(mean, MEAN, "i < n; i", "i <= n; i", True, False),
    "no atomic": Broken(count, COUNT, ATOMIC, "y[int(x[i] * 8)] += 1", False, True),
    "a barrier that some pass by": Broken(
        mean, MEAN, "if (!lane) " + BARRIER, "if (!lane) {" + BARRIER + "}", True, True
    ),
    "a wrong mask": Broken(mean, MEAN, "0xffffffffu", "0xffffu", True, True),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_refused(name):
    case = BROKEN[name]
    text = cuda_module.source(case.text)
    good = case.make(text)
    assert not seen(good)
    assert case.right in text, "the text to break is not there any more"
    broken = good._replace(text=text.replace(case.right, case.wrong, 1))
    assert bool(seen(broken)) == case.by_schedules
    if race.available():
        nothing, report = race.check([good, broken])
        assert not nothing
        assert bool(report) == case.by_race_check
