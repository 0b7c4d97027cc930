"""What a CUDA device does, measured: copies, kernels, matrix products, host time, training steps.

    python -m benchmarks.cuda PART [gpugrad|torch|jax] [--scale S]

writes one JSON object to stdout. ``tests/cuda/gpu_session.py`` runs all parts and keeps the
results. Times of kernels are between events on the device; host times are of the clock. A part that
cannot be measured says why and does not stop the others.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import workloads

# Rows whose time is that of launches, and of work (the shapes of the table of speed targets).
LIGHT = ("w1", "w2", "w4/8", "w5", "w11")  # all that a trial without a GPU can wait for
STEPS = ("w1", "w2", "w3", "w4/8", "w4/64", "w5", "w6", "w7", "w8", "w9", "w11", "w12")
LIBRARIES = ("gpugrad", "torch", "jax")
Measured = dict[str, Any]


# ---- clocks --------------------------------------------------------------------------------------


class Device:
    """A library's device: its name for it, waiting, and times between events."""

    def wait(self, result: Any) -> None:
        """Until the work behind a result is done."""
        self.synchronize()

    def __init__(self, library: str):
        self.library = library
        self.lib = importlib.import_module(library)
        self.name = "cuda"
        self.synchronize = self.lib.cuda.synchronize

    def event(self):
        return self.lib.cuda.Event(enable_timing=True)

    def tensor(self, *shape: int, dtype: str = "float32", seed: int = 0):
        values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return self.lib.from_numpy(values).to(self.name).to(getattr(self.lib, dtype))

    def seconds(self, call: Callable[[], Any], budget: float = 0.5) -> Measured:
        """Of one call on the device: median, least and quartiles of blocks of calls."""
        start = time.perf_counter()
        for _ in range(3):
            call()
        self.synchronize()
        once = max((time.perf_counter() - start) / 3, 1e-6)
        calls = max(1, min(200, round(2e-3 / once)))
        blocks: list[float] = []
        end = time.perf_counter() + budget
        while len(blocks) < 5 or (time.perf_counter() < end and len(blocks) < 200):
            first, last = self.event(), self.event()
            first.record()
            for _ in range(calls):
                call()
            last.record()
            last.synchronize()
            blocks.append(first.elapsed_time(last) / 1e3 / calls)
        return spread(blocks)

    def host_seconds(self, call: Callable[[], Any], calls: int) -> Measured:
        """Of one call for the host, which does not wait for the device."""
        for _ in range(calls // 10 + 3):
            call()
        blocks = []
        for _ in range(7):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            blocks.append((time.perf_counter() - start) / calls)
        self.synchronize()
        return spread(blocks)


class JaxDevice:
    """What the compiled steps need of JAX, whose arrays are on a GPU by themselves."""

    library = "jax"

    def __init__(self) -> None:
        import jax

        self.lib, self.wait = jax, jax.block_until_ready


def device_of(library: str) -> Any:
    return JaxDevice() if library == "jax" else Device(library)


def spread(blocks: list[float]) -> Measured:
    ordered = sorted(blocks)
    quarter = len(ordered) // 4
    return {
        "median": statistics.median(ordered),
        "least": ordered[0],
        "quartiles": [ordered[quarter], ordered[-1 - quarter]],
        "blocks": len(ordered),
    }


def progress(found: dict[str, Measured]) -> None:
    """Told what has been measured so far, for those who keep it (``gpu_session.py`` replaces it):
    the process may be ended before the end."""


def attempts(named: Iterator[tuple[str, Callable[[], Measured]]]) -> dict[str, Measured]:
    """Each measurement, or why there is none."""
    found: dict[str, Measured] = {}
    for name, measure in named:
        try:
            found[name] = measure()
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"[:1000]}
        progress(found)
    return found


# ---- copies and kernels --------------------------------------------------------------------------


def copy(device: Device, scale: float) -> dict[str, Measured]:
    """Rates of copies on the device, which bound everything that works element by element."""

    def rate(megabytes: int) -> Measured:
        source = device.tensor(max(1, int(megabytes * scale * 2**20 / 4)))
        target = device.lib.empty_like(source)
        time_ = device.seconds(lambda: target.copy_(source))
        return time_ | {"bytes_per_second": 2 * 4 * source.numel() / time_["median"]}

    sizes = (16, 64, 256, 1024)
    return attempts((f"{size} MiB", functools.partial(rate, size)) for size in sizes)


def kernels(device: Device, scale: float) -> dict[str, Measured]:
    """Fused operations on large arrays: the bytes they must move per second."""
    lib, functional = device.lib, device.lib.nn.functional
    rows, columns = max(2, int(16384 * scale)), 4096
    x, y = device.tensor(rows, columns), device.tensor(rows, columns, seed=1)
    half = x.to(lib.bfloat16)
    weight, bias = device.tensor(columns), device.tensor(columns, seed=2)
    labels = lib.from_numpy(np.random.default_rng(0).integers(0, columns, rows)).to(device.name)
    size = 4 * x.numel()
    leaf = x.clone().requires_grad_()
    g = lib.ones_like(x)
    parameter = device.tensor(rows, columns).requires_grad_()
    parameter.grad = g
    optimizer = lib.optim.AdamW([parameter], lr=1e-3, **workloads.fused(lib))

    def backward_of(f):
        out = f(leaf)

        def run():
            leaf.grad = None
            out.backward(g if out.shape == g.shape else None, retain_graph=True)

        return run

    def norm(t):
        return functional.layer_norm(t, (columns,), weight, bias)

    cases: dict[str, tuple[int, Callable[[], Any]]] = {
        "add": (3 * size, lambda: x + y),
        "add bfloat16": (3 * size // 2, lambda: half + half),
        "gelu": (2 * size, lambda: functional.gelu(x)),
        "gelu backward": (3 * size, backward_of(functional.gelu)),
        "broadcast multiply": (2 * size, lambda: x * weight),
        "softmax": (2 * size, lambda: functional.softmax(x, 1)),
        "softmax backward": (3 * size, backward_of(lambda t: functional.softmax(t, 1))),
        "layer_norm": (2 * size, lambda: norm(x)),
        "layer_norm backward": (3 * size, backward_of(norm)),
        "cross_entropy": (size, lambda: functional.cross_entropy(x, labels)),
        "cross_entropy backward": (
            2 * size,
            backward_of(lambda t: functional.cross_entropy(t, labels)),
        ),
        "sum": (size, lambda: x.sum()),
        "sum of rows": (size, lambda: x.sum(1)),
        "sum of columns": (size, lambda: x.sum(0)),
        "AdamW": (7 * size, optimizer.step),
    }

    def measure(nbytes: int, call: Callable[[], Any]) -> Measured:
        time_ = device.seconds(call)
        return time_ | {"bytes": nbytes, "bytes_per_second": nbytes / time_["median"]}

    return attempts((n, functools.partial(measure, *case)) for n, case in cases.items())


# ---- matrix products -----------------------------------------------------------------------------

CUBES = tuple((n, n, n) for n in (1024, 4096, 8192))
SHAPES = (*CUBES, (256, 4096, 1024), (64, 128, 784))
PRECISIONS = {  # dtype and precision of float32 products
    "float32": ("float32", "highest"),
    "tf32": ("float32", "high"),
    "float16": ("float16", "highest"),
    "bfloat16": ("bfloat16", "highest"),
}


def gemm(device: Device, scale: float) -> dict[str, Measured]:
    """Products of matrices, and beside gpugrad's cuBLASLt alone, into memory that is there."""

    def measure(shape: tuple[int, ...], dtype: str, precision: str) -> Measured:
        m, n, k = (max(8, int(d * scale)) for d in shape)
        device.lib.set_float32_matmul_precision(precision)
        a, b = device.tensor(m, k, dtype=dtype), device.tensor(k, n, dtype=dtype, seed=1)
        found = device.seconds(lambda: a @ b)
        found["flops_per_second"] = 2 * m * n * k / found["median"]
        if device.library == "gpugrad":
            found["cublaslt"] = device.seconds(directly(a.array, b.array))
        device.lib.set_float32_matmul_precision("highest")
        return found

    return attempts(
        (f"{'x'.join(map(str, shape))} {name}", functools.partial(measure, shape, *kind))
        for shape in SHAPES
        for name, kind in PRECISIONS.items()
    )


def directly(a, b) -> Callable[[], Any]:
    """The product by cuBLASLt with descriptors, algorithm, workspace and result prepared."""
    import cupy

    from gpugrad.backend import cublas

    out = cupy.empty((a.shape[0], b.shape[1]), a.dtype)
    plan = cublas._find("matmul", cublas._plan_matmul, a, b)
    if plan is None:
        raise RuntimeError("no cuBLASLt for these arrays")
    return lambda: plan.run(a, b, out)


# ---- time of the host ----------------------------------------------------------------------------


def host(device: Device, scale: float) -> dict[str, Measured]:
    """Host time of one operation on arrays so small that the device is never behind."""
    lib, functional = device.lib, device.lib.nn.functional
    x, y = device.tensor(16, 16), device.tensor(16, 16, seed=1)
    leaf = x.clone().requires_grad_()
    calls = max(20, int(1000 * scale))

    def step():
        leaf.grad = None
        (leaf * y).sum().backward()

    cases: dict[str, Callable[[], Any]] = {
        "add": lambda: x + y,
        "mul, recorded": lambda: leaf * y,
        "tanh": lambda: lib.tanh(x),
        "sum": lambda: x.sum(),
        "matmul": lambda: x @ y,
        "softmax": lambda: functional.softmax(x, 1),
        "view": lambda: x.reshape(-1),
        "mul, sum, backward": step,
    }
    return attempts((n, functools.partial(device.host_seconds, c, calls)) for n, c in cases.items())


# ---- training steps ------------------------------------------------------------------------------


class OnDevice:
    """A library whose new tensors lie on its device: the workloads name none."""

    MOVED = ("from_numpy", "tensor", "zeros", "ones", "empty", "full", "arange", "randn", "rand")

    def __init__(self, device: Device):
        self._device = device

    def __getattr__(self, name: str):
        value = getattr(self._device.lib, name)
        if name not in self.MOVED:
            return value
        return lambda *args, **kwargs: value(*args, **kwargs).to(self._device.name)


Built = tuple[Callable[[], Any], Callable[[], Measured]]  # a step, and what is to be told about it


def steps(device: Device, scale: float) -> dict[str, Measured]:
    """Steps of the workloads: forward, backward and update. Losses, to compare libraries by."""
    return of_rows(device, scale, lambda row: (row.build(OnDevice(device), 0)[0], dict))


def static(device: Any, scale: float) -> dict[str, Measured]:
    """The same steps compiled: gpugrad's replayed CUDA graphs, ``torch.compile`` with CUDA graphs,
    ``jax.jit``. ``host`` is the time of a call that does not wait, ``first`` that of the calls
    before the steps that are measured, compilation included."""
    return of_rows(device, scale, functools.partial(_compiled, device))


def _compiled(device: Any, row: workloads.Row) -> Built:
    if device.library == "jax":
        program = getattr(importlib.import_module("benchmarks.jax_workloads"), row.program.__name__)
        return program(row.data(0, **row.shape))[0], dict
    if device.library == "torch":
        import torch

        reduced = functools.partial(torch.compile, mode="reduce-overhead")
        return row.build(OnDevice(device), 0, reduced)[0], dict
    step, _ = row.build(OnDevice(device), 0)
    compiled = device.lib.compile(step)
    return compiled, lambda: {"explain": compiled.explain()}


def of_rows(
    device: Any, scale: float, build: Callable[[workloads.Row], Built]
) -> dict[str, Measured]:
    """Seconds of a step of each workload, and of the host in a step."""
    initialise = workloads.initialise

    def on_device(_, module, weights):
        return initialise(device.lib, module, weights).to(device.name)

    def measure(row: workloads.Row) -> Measured:
        step, described = build(row)
        start = time.perf_counter()
        losses = [float(total(step())) for _ in range(8)]
        first = time.perf_counter() - start
        calls = max(2, int(20 * scale))
        blocks, hosts, end = [], [], time.perf_counter() + 2 * scale
        while len(blocks) < 5 or (time.perf_counter() < end and len(blocks) < 100):
            device.wait(step())
            start = time.perf_counter()
            for _ in range(calls):
                result = step()
            queued = time.perf_counter()
            device.wait(result)
            blocks.append((time.perf_counter() - start) / calls / row.ops)
            hosts.append((queued - start) / calls / row.ops)
        found = spread(blocks) | {"host": spread(hosts), "first": first, "losses": losses}
        return found | described()

    workloads.initialise = on_device
    try:
        chosen = [workloads.ROWS[n] for n in (STEPS if scale > 0.1 else LIGHT)]
        return attempts((row.name, functools.partial(measure, row)) for row in chosen)
    finally:
        workloads.initialise = initialise


def total(result: Any) -> Any:
    """The sum of a step's loss, a tensor or an array of JAX."""
    if isinstance(result, tuple):
        result = result[0]
    return result.detach().sum() if hasattr(result, "detach") else result.sum()


PARTS = {
    "copy": copy, "kernels": kernels, "gemm": gemm, "host": host, "steps": steps, "static": static,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("library", nargs="?", default="gpugrad", choices=LIBRARIES)
    parser.add_argument("--scale", type=float, default=1.0, help="of sizes and repetitions")
    options = parser.parse_args()
    sys.stdout, answer = sys.stderr, sys.stdout  # whatever a library prints goes to stderr
    device = device_of(options.library)
    found = PARTS[options.part](device, options.scale)
    json.dump(
        {"library": options.library, "version": device.lib.__version__, "found": found}, answer
    )


if __name__ == "__main__":
    main()
