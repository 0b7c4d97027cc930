"""Which runner a graph gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..codegen.machine import machine
from . import passes, run_cpu, run_python
from .graph import Graph
from .sources import Host


def optimized(graph: Graph, algebra: str = "exact") -> Graph:
    """The graph after the passes of the runner that it gets; ``algebra`` as for ``compile``."""
    native = machine() is not None and not _on_devices(graph)
    return passes.optimize(graph, passes.chosen(native, algebra))


def _on_devices(graph: Graph) -> bool:
    values = [*graph.inputs, *graph.constants, *[v for n in graph.nodes for v in n.outputs]]
    return any(v.device is not None for v in values)


def runner_for(graph: Graph) -> Callable[..., Sequence | None]:
    """Native tasks for graphs of CPU arrays where there is a compiler, a captured CUDA graph for
    those of one CUDA device, else lines of Python."""
    if _on_devices(graph):
        from . import run_cuda

        if run_cuda.device_of(graph) is not None:
            return run_cuda.compile_graph(graph)
    elif machine() is not None:
        return run_cpu.compile_graph(graph)
    return run_python.compile_graph(graph)


def with_draws(graph: Graph, hosts: Sequence[Host]) -> tuple[Graph, list[Host]]:
    """A graph that draws its random numbers itself where its runner can, and the hosts that are
    left to be asked before a call. A program that sets the state of a generator between two draws
    leaves all of them to the hosts, whose order is that of the program."""
    drawn = [h for h in hosts if h.generator is not None]
    if drawn and not any(h.name == "random state" for h in hosts):
        from . import draws, run_cuda

        if run_cuda.device_of(graph) is not None:
            return draws.with_draws(graph, hosts)
    return graph, list(hosts)
