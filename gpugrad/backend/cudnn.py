"""cuDNN: graphs of operations on CUDA arrays, through NVIDIA's package nvidia-cudnn-frontend.

``run(key, make, arrays)`` executes the graph that ``make(graph)`` describes. A graph is built when
its key is first seen on a device, which takes about 0.1 s, and kept; after that a call binds the
addresses of the arrays, takes the workspace from CuPy's pool and executes on the current stream, so
that it may be captured. A graph that cuDNN has no engine for answers False, and whoever asked
computes it otherwise.

What has been tested, as no GPU was at hand: that NVIDIA's frontend accepts the graphs, that cuDNN
9.28 finds engines for them for an H100 (described to it, tests/cuda/test_cudnn.py), and shapes,
strides, addresses and streams with a stand-in for the frontend that computes with NumPy. That the
library executes them is yet to be seen on a GPU.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from . import cupy as backend

_LEAST_VERSION = 90000
# Graphs kept at most: a training run has some hundred.
_MOST_GRAPHS = 4096
ALIGNMENT = 16  # bytes, what graphs promise of addresses


class Switches:
    """What cuDNN may do; ``gpugrad.backends.cudnn`` is where users set it."""

    __slots__ = ("allow_tf32", "benchmark", "deterministic", "enabled")

    def __init__(self):
        self.enabled = True
        self.benchmark = False
        self.deterministic = True
        self.allow_tf32 = False


switches = Switches()


@cache
def module() -> ModuleType | None:
    """The frontend, if it and a cuDNN it can use are installed."""
    try:
        import cudnn

        return cudnn if cudnn.backend_version() >= _LEAST_VERSION else None
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None  # not installed, or without libcudnn


def usable() -> bool:
    """Whether graphs may be run: installed and not switched off."""
    return switches.enabled and module() is not None


def version() -> int | None:
    """The version of libcudnn, 92800 for 9.28.0; None without it."""
    found = module()
    return None if found is None else found.backend_version()


# ------------------------------------------------------------------------------------------------
# graphs


class _Plan:
    """A graph that was built for a device: which of its plans to execute, and its workspace."""

    __slots__ = ("graph", "index", "workspace")

    def __init__(self, graph, workspace: int, index: int | None = None):
        self.graph, self.workspace, self.index = graph, workspace, index

    def execute(self, addresses: dict[int, int], handle) -> None:
        # the pool hands the block to later work of this stream only
        memory = backend.cupy().cuda.alloc(self.workspace) if self.workspace else None
        workspace = memory.ptr if memory else 0
        if self.index is None:
            self.graph.execute(addresses, workspace, handle=handle)
        else:
            self.graph.execute_plan_at_index(addresses, workspace, self.index, handle=handle)


_plans: dict[tuple, _Plan | None] = {}
_lock = threading.Lock()


class _Handles(threading.local):
    """The handles of a thread, by device: two threads must not share one."""

    def __init__(self):
        self.by_device: dict[int, list] = {}  # handle and its stream


_handles = _Handles()


def run(key: tuple, make: Callable[[Any], None], arrays: dict[int, Any]) -> bool:
    """Execute a graph on CUDA arrays by the uids of its tensors; False if cuDNN has no engine.

    ``key`` says everything the graph depends on: operation, shapes, strides, dtypes and options.
    The arrays lie on the current device and begin at multiples of ``ALIGNMENT`` bytes.
    """
    device = backend.current_device()
    handle = _handle(device)
    switched = (switches.benchmark, switches.deterministic, switches.allow_tf32)
    full = (key, device, switched)
    addresses = {uid: array.data.ptr for uid, array in arrays.items()}
    plan = _plans.get(full, _missing)
    if plan is _missing:
        with _lock:
            if len(_plans) >= _MOST_GRAPHS:
                _plans.clear()
            plan = _plans[full] = _planned(make, handle, addresses)
    if plan is None:
        return False
    plan.execute(addresses, handle)
    return True


_missing: Any = object()


def _handle(device: int):
    """The handle of this thread on a device, on the current stream."""
    stream = backend.cupy().cuda.get_current_stream().ptr
    found = _handles.by_device.get(device)
    if found is None:
        found = _handles.by_device[device] = [module().create_handle(), None]
    if found[1] != stream:
        module().set_stream(handle=found[0], stream=stream)
        found[1] = stream
    return found[0]


def _planned(make: Callable[[Any], None], handle, addresses: dict[int, int]) -> _Plan | None:
    """The plan for a graph, or None if cuDNN cannot compute it."""
    try:
        graph = build(make, handle=handle)
        graph.check_support()
        if not switches.benchmark or backend.cupy().cuda.get_current_stream().is_capturing():
            graph.build_plans()
            return _Plan(graph, graph.get_workspace_size())
        graph.build_plans(module().build_plan_policy.ALL)
        return _fastest(graph, addresses, handle)
    except module().cudnnGraphNotSupportedError:
        return None
    except RuntimeError as error:
        warnings.warn(f"cuDNN cannot build a graph, another kernel is used: {error}", stacklevel=4)
        return None


def build(make: Callable[[Any], None], **where) -> Any:
    """The graph that ``make`` describes, with its execution plans ranked but not yet built.

    ``where`` is the ``handle`` it is for, or a ``device_property`` where there is no device. What
    the switches forbid is left out of the plans.
    """
    cudnn = module()
    float32 = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=float32, intermediate_data_type=float32, compute_data_type=float32, **where
    )
    make(graph)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    notes, forbidden = cudnn.numerical_note, []
    if switches.deterministic:
        forbidden.append(notes.NONDETERMINISTIC)
    if not switches.allow_tf32 and _is_float32(graph):
        forbidden += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS]
    if forbidden:
        graph.deselect_numeric_notes(forbidden)
    return graph


def _is_float32(graph) -> bool:
    """Whether all inputs are float32, which engines could round to TF32. Sums beside operands of
    half precision, as the gradient of attention reads, are no factors."""
    float32 = module().data_type.FLOAT
    return all(tensor.get_data_type() == float32 for tensor in graph.get_inputs())


def _fastest(graph, addresses: dict[int, int], handle) -> _Plan | None:
    """The plan that takes the least time of three executions on these arrays. Waits for the
    device."""
    cuda = backend.cupy().cuda
    best, least = None, float("inf")
    for index in range(graph.get_execution_plan_count()):
        try:
            plan = _Plan(graph, graph.get_workspace_size_plan_at_index(index), index)
            plan.execute(addresses, handle)
        except RuntimeError:
            continue  # left out by the switches, or not buildable
        start, end = cuda.Event(), cuda.Event()
        start.record()
        for _ in range(3):
            plan.execute(addresses, handle)
        end.record()
        end.synchronize()
        took = cuda.get_elapsed_time(start, end)
        if took < least:
            best, least = plan, took
    return best


def data_type(dtype) -> Any:
    """cuDNN's name of a dtype, or None if graphs here have none for it."""
    names = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}
    name = names.get(dtype.name)
    return None if name is None else getattr(module().data_type, name)


def tensor(graph, uid: int, array) -> Any:
    """The tensor of a graph for arrays like this one."""
    return graph.tensor(
        dim=list(array.shape), stride=strides(array), data_type=data_type(array.dtype), uid=uid
    )


def result(tensor, uid: int, array) -> None:
    """Make a tensor of a graph a result, to be written to arrays like this one."""
    tensor.set_output(True).set_uid(uid).set_data_type(data_type(array.dtype))
    tensor.set_dim(list(array.shape)).set_stride(strides(array))


def strides(array) -> list[int]:
    """In elements."""
    return [s // array.itemsize for s in array.strides]


def clear() -> None:
    """Forget all graphs."""
    with _lock:
        _plans.clear()
