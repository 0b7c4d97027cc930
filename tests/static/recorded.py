"""Graphs of recorded programs, and what they compute, bit for bit."""

from __future__ import annotations

import numpy as np

import gpugrad as gg
from gpugrad.static import recording, run_python
from gpugrad.static.compose import Cotangent
from gpugrad.static.graph import Graph
from gpugrad.static.sources import Argument, ArgumentGrad, HostResult
from gpugrad.tree import flatten


def graph_of(function, *args, calls: int = 2) -> Graph:
    """The graph of the last of some calls: an optimizer makes its state in the first."""
    leaves, _ = flatten((args, {}))
    for _ in range(calls):
        _, found = recording.record(function, args, {}, leaves, None)
    assert found.failure is None, found.failure
    return found.graph


def arrays_for(graph: Graph, args, rng) -> list:
    """Inputs for a graph: the arrays it was recorded with, each a little different."""
    leaves, _ = flatten((args, {}))
    given = []
    for v, source in zip(graph.inputs, graph.sources, strict=True):
        if v.dtype is None:
            given.append(float(rng.uniform(0.1, 0.9)))
            continue
        if isinstance(source, Argument):
            array = getattr(leaves[source.place], "array", leaves[source.place])
        elif isinstance(source, ArgumentGrad):
            array = leaves[source.place].grad.array
        elif isinstance(source, HostResult | Cotangent):
            array = rng.uniform(0, 1, v.shape).astype(v.dtype)
        else:
            array = source.read()
        array = np.array(array)
        if v.dtype.kind == "f":  # signs stay: second moments are not negative
            array *= rng.uniform(0.9, 1.1, v.shape).astype(v.dtype)
        given.append(array)
    return given


def results(graph: Graph, given: list, runner=run_python) -> list:
    """What the graph returns, and what it leaves in its inputs."""
    mine = [np.array(a) if isinstance(a, np.ndarray) else a for a in given]
    returned = runner.compile_graph(graph)(*mine)
    assert returned is not None, "a guard had another outcome"
    return [np.array(r) for r in returned], mine


def assert_same_bits(graph: Graph, other: Graph, given: list, runner=run_python) -> None:
    """Both give and leave the same; the other may need fewer inputs."""
    sources = {id(v): a for v, a in zip(graph.inputs, given, strict=True)}
    fewer = [sources[id(v)] for v in other.inputs]
    outputs, left = results(graph, given, runner)
    others, left_by_other = results(other, fewer, runner)
    remaining = [a for v, a in zip(graph.inputs, left, strict=True) if v in set(other.inputs)]
    pairs = [*zip(outputs, others, strict=True), *zip(remaining, left_by_other, strict=True)]
    for k, (a, b) in enumerate(pairs):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), k
        assert a.tobytes() == b.tobytes(), f"result {k} differs by {np.abs(a - b).max()}"


__all__ = ["arrays_for", "assert_same_bits", "gg", "graph_of", "results"]
