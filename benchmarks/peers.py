"""The libraries that are measured, and the ways each can run a row.

A peer's `start` runs in a process of its own (`benchmarks/worker.py`) and is the only place that
knows how the library is told its number of threads, how it compiles, and how its results are
waited for. Everything else treats all peers alike.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.workloads import Row, State, Step


class Absent(Exception):
    """The library here does not have this mode, or nobody wrote this row for it."""


def nothing(result: Any) -> None:
    """Calls of most libraries return when their work is done."""


class Running(NamedTuple):
    step: Step
    state: State
    wait: Callable[[Any], Any] = nothing  # for the work behind a step's result
    info: Callable[[], dict[str, Any]] = dict  # what the library says about its compiled step
    compiling: Callable[[], float | None] = lambda: None  # seconds, as the library counts them


@dataclass(frozen=True)
class Peer:
    """A library in one of its modes."""

    name: str
    library: str  # the module
    start: Callable[[Row, int, int], Running]  # of row, seed, threads
    static: bool = False  # whether it compiles whole steps
    caches: dict[str, str] = field(default_factory=dict)  # environment; "{}" is the cache's folder

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None


# ---- gpugrad and torch ---------------------------------------------------------------------------


def gpugrad_eager(row: Row, seed: int, threads: int) -> Running:
    import gpugrad

    gpugrad.set_num_threads(threads)
    return Running(*row.build(gpugrad, seed))


def gpugrad_static(row: Row, seed: int, threads: int) -> Running:
    import gpugrad

    compile_ = getattr(gpugrad, "compile", None)
    if compile_ is None:
        raise Absent("this gpugrad has no static mode (gpugrad.compile)")
    gpugrad.set_num_threads(threads)
    step, state = row.build(gpugrad, seed)
    compiled = compile_(step)

    def info() -> dict[str, Any]:
        recording = cost_of_recording(row.build(gpugrad, seed)[0], compile_)
        return described(compiled) | {"recording": recording}

    return Running(compiled, state, info=info, compiling=lambda: compiled.stats["compile_seconds"])


def cost_of_recording(step: Step, compile_: Callable[[Step], Any], tries: int = 3) -> float:
    """A recorded call / an eager step, in a process that has run the step before: kernels are
    loaded, and the optimizer has its state. The least of a few tries, taken in turns."""
    recorded, eager = [], []
    step()
    for _ in range(tries):
        for _ in range(3):
            start = time.perf_counter()
            step()
            eager.append(time.perf_counter() - start)
        compiled = compile_(step)
        while not compiled.stats["replays"] and compiled.stats["calls"] < 6:
            compiled()
        recorded.append(compiled.stats["record_seconds"] / compiled.stats["recorded"])
    return min(recorded) / min(eager)


def described(compiled: Any) -> dict[str, Any]:
    """What a compiled function of gpugrad says about itself."""
    found = {
        name: getattr(compiled, name)
        for name in ("num_ops", "num_kernels", "stats")
        if hasattr(compiled, name)
    }
    if hasattr(compiled, "explain"):
        found["explain"] = compiled.explain()
    return found


def torch_eager(row: Row, seed: int, threads: int) -> Running:
    import torch

    torch.set_num_threads(threads)
    step, state = row.build(torch, seed)
    return Running(step, state, info=lambda: {"ops": dispatched_ops(step)})


def dispatched_ops(step: Step) -> int:
    """How many operations torch dispatches in a step: the row's number of ops, for everybody."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += 1
            return func(*args, **(kwargs or {}))

    with Count() as count:
        step()
    return count.found


def torch_compile(row: Row, seed: int, threads: int) -> Running:
    """The whole step; torch breaks it into graphs around what it does not trace."""
    import torch

    torch.set_num_threads(threads)
    step, state = row.build(torch, seed)
    return Running(torch.compile(step), state)


def torch_compile_loss(row: Row, seed: int, threads: int) -> Running:
    """The loss, and with it the backward; the fused optimizer runs eagerly."""
    import torch

    torch.set_num_threads(threads)
    return Running(*row.build(torch, seed, torch.compile))


# ---- libraries of another style ------------------------------------------------------------------


def written_for(library: str, row: Row) -> Callable[..., tuple[Step, State]]:
    """The row's program in the file of a library, under the name it has in `workloads.py`."""
    module = importlib.import_module(f"benchmarks.{library}_workloads")
    try:
        return getattr(module, row.program.__name__)
    except AttributeError:
        raise Absent(f"not written for {library}") from None


def numpy_by_hand(row: Row, seed: int, threads: int) -> Running:
    return Running(*written_for("numpy", row)(row.data(seed, **row.shape)))


def jax_jit(row: Row, seed: int, threads: int) -> Running:
    """Its threads are set by the environment variable NPROC, before the import."""
    import jax

    program = written_for("jax", row)
    return Running(*program(row.data(seed, **row.shape)), wait=jax.block_until_ready)


def tensorflow(wrap_of: Callable[[Any], Callable[[Step], Step]]) -> Callable[..., Running]:
    def start(row: Row, seed: int, threads: int) -> Running:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        program = written_for("tensorflow", row)
        return Running(*program(row.data(seed, **row.shape), wrap_of(tf)))

    return start


JAX_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": "{}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
OURS = {"GPUGRAD_CACHE_DIR": "{}"}
INDUCTOR = {"TORCHINDUCTOR_CACHE_DIR": "{}"}

PEERS = {
    peer.name: peer
    for peer in (
        Peer("gpugrad eager", "gpugrad", gpugrad_eager, caches=OURS),
        Peer("gpugrad static", "gpugrad", gpugrad_static, static=True, caches=OURS),
        Peer("torch eager", "torch", torch_eager),
        Peer("torch compile", "torch", torch_compile, static=True, caches=INDUCTOR),
        Peer("torch compile loss", "torch", torch_compile_loss, static=True, caches=INDUCTOR),
        Peer("jax jit", "jax", jax_jit, static=True, caches=JAX_CACHE),
        Peer("tf eager", "tensorflow", tensorflow(lambda tf: lambda step: step)),
        Peer("tf function", "tensorflow", tensorflow(lambda tf: tf.function), static=True),
        Peer(
            "tf xla",
            "tensorflow",
            tensorflow(lambda tf: lambda step: tf.function(step, jit_compile=True)),
            static=True,
        ),
        Peer("numpy by hand", "numpy", numpy_by_hand),
    )
}

# Whose losses are right, the first that ran; torch is the judge of everything else, too.
REFERENCES = ("torch eager", "gpugrad eager", "jax jit", "tf eager", "numpy by hand")

# Static and eager of one library: what does static pay?
PAIRS = {
    "gpugrad": ("gpugrad static", "gpugrad eager"),
    "torch": ("torch compile", "torch eager"),
    "torch, loss only": ("torch compile loss", "torch eager"),
    "tf function": ("tf function", "tf eager"),
    "tf xla": ("tf xla", "tf eager"),
}

# Gradients derived by hand are a yardstick, not a library that could be used instead.
RIVALS = tuple(
    name for name, peer in PEERS.items() if peer.library not in ("gpugrad", "numpy")
)  # fmt: skip
