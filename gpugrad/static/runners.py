"""Which runner a graph gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..codegen.machine import machine
from . import run_cpu, run_python
from .graph import Graph


def runner_for(graph: Graph) -> Callable[..., Sequence | None]:
    """Native tasks for graphs of CPU arrays where there is a compiler, else lines of Python."""
    on_cuda = any(v.device is not None for v in graph.inputs)
    if machine() is not None and not on_cuda:
        return run_cpu.compile_graph(graph)
    return run_python.compile_graph(graph)
