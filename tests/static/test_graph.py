"""Graphs as text, as drawings, and checked."""

from __future__ import annotations

import sys
from itertools import chain

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.codegen.expr import literally, variable
from gpugrad.ops.core import REGISTRY
from gpugrad.static import passes, text
from gpugrad.static.graph import Graph, Node, OpCall
from gpugrad.static.record import _Memories, bounds
from tests.static.recorded import arrays_for, graph_of, results
from tests.static.test_passes import PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_text_is_read_back(program, rng):
    gg.manual_seed(0)
    step, *args = program(rng)
    graph = graph_of(step, *args)
    given = dict(zip(map(id, graph.inputs), arrays_for(graph, args, rng), strict=True))
    for g in (graph, passes.optimize(graph)):
        g.check(evaluate=True)
        again = Graph.parse(str(g))
        assert str(again) == str(g)
        arrays = [given[id(v)] for v in g.inputs]
        outcome, expected = results(again, arrays), results(g, arrays)
        for a, b in zip(chain(*outcome), chain(*expected), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    "value",
    [
        None, True, -3, 2.5, 1e-05, -0.0, float("inf"), float("-inf"), "a 'quoted' \\ \"word\"",
        (), (1,), (1, (2, None)), [1, [2]], slice(1, None, -2), (Ellipsis, None, slice(None)),
        np.dtype("float32"), np.dtype("int64"), {"a": 1, "b": {"c": (2,)}}, "mean",
    ],
    ids=repr,
)  # fmt: skip
def test_metadata(value):
    graph = Graph()
    x, y = graph.value((2,), np.dtype("float32")), graph.value((2,), np.dtype("float32"))
    graph.inputs, graph.sources, graph.outputs = [x], ["argument 0"], [y]
    graph.nodes = [Node(OpCall(REGISTRY["reshape"], {"shape": value, "other": 1}), (x,), (y,))]
    params = Graph.parse(str(graph)).nodes[0].call.params
    assert repr(params) == repr({"shape": value, "other": 1})


def test_metadata_that_name_operations():
    chain = ((REGISTRY["getslice"], {"index": (slice(0, 2),)}),)
    assert text.literal(chain) == "((@getslice, {index: (slice(0, 2, None),)}),)"


def test_what_is_used_twice_has_a_name():
    x = variable("t0")
    e = literally("exp", x)
    for _ in range(200):  # written out, it would have 2 ** 200 terms
        e = literally("add", e, e)
    written = text.program(["t0"], [("", e)])
    assert written.startswith("{t0 -> t0_ = exp(t0); ")
    assert len(written) < 10_000


def test_constants_are_written_out_or_named():
    def function(x):
        one = x + gg.linspace(0, 1, 3), x.sum() + gg.linspace(0, 1, 40, dtype=gg.float64)
        return one, x + gg.full((50, 3), -0.0), x + gg.zeros(3)

    graph = graph_of(function, gg.randn(3))
    assert len(graph.constants) == 4
    assert "constant [0.0, 0.5, 1.0]" in str(graph)
    assert "float32[50, 3] = constant -0.0" in str(graph)
    with pytest.raises(ValueError, match="is needed: parse"):
        Graph.parse(str(graph))
    named = {repr(v): a for v, a in graph.constants.items()}
    again = Graph.parse(str(graph), named)
    for a, b in zip(graph.constants.values(), again.constants.values(), strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


HEAD = "graph:\n  %0: float32[2] <- x\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%1: float32[2] = explode(%0)", "no operation 'explode'"),
        ("%1: float32[2] = exp(%3)", "'%3' is no value made before"),
        ("%0: float32[2] = exp(%0)", "%0 is made twice"),
        ("%1: float32[2] = program {x -> system(x)}(%0)", "no scalar operation 'system'"),
        ("%1: float32[2] = program {x -> y}(%0)", "'y' is no input"),
        ("%1: float32[2] = os.system('true')", "only functions of gpugrad"),
        ("%1: float32[2] = gpugrad.ops.nn.nothing(%0)", "no function gpugrad.ops.nn.nothing"),
        ("%1: floaty[2] = exp(%0)", "'floaty' is no dtype"),
        ("%1: float32[2] = exp(%0", "',' is expected"),
        ("%1: float32[2] = exp[a=<object>](%0)", "cannot be read"),
    ],
)
def test_wrong_text(line, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        Graph.parse(f"{HEAD}  {line}\n  return %0")


def test_check_finds_what_is_wrong():
    f32 = np.dtype("float32")

    def graph(*outputs_of_exp):
        g = Graph()
        x = g.value((2, 3), f32)
        g.inputs, g.sources = [x], ["x"]
        outputs = [g.value(*t) for t in outputs_of_exp]
        g.nodes = [Node(OpCall(REGISTRY["exp"], {}), (x,), outputs)]
        g.outputs = list(outputs)
        return g

    graph(((2, 3), f32)).check(evaluate=True)
    with pytest.raises(ValueError, match=r"%1 is float32\[2, 3\] in fact"):
        graph(((3, 2), f32)).check(evaluate=True)
    with pytest.raises(ValueError, match="in fact"):
        graph(((2, 3), np.dtype("float64"))).check(evaluate=True)
    wrong = graph(((2, 3), f32))
    wrong.nodes = wrong.nodes * 2
    with pytest.raises(ValueError, match="computed twice"):
        wrong.check()
    wrong = graph(((2, 3), f32))
    wrong.stores = [(wrong.inputs[0], wrong.outputs[0])] * 2
    with pytest.raises(ValueError, match="stored to twice"):
        wrong.check()
    wrong.stores = [(wrong.outputs[0], wrong.inputs[0])]
    with pytest.raises(ValueError, match="no input"):
        wrong.check()
    wrong = graph(((2, 3), f32))
    wrong.outputs = [wrong.value((), f32)]
    with pytest.raises(ValueError, match="nothing computes it"):
        wrong.check()


def test_dot():
    graph = graph_of(lambda x: (x.exp() @ x, x * 2), gg.randn(3, 3))
    dot = graph.to_dot()
    assert dot.startswith("digraph {")
    for line in (
        r'  v0 [shape=ellipse label="argument 0\nfloat32[3, 3]"]',
        r'  n0 [shape=box label="exp\nfloat32[3, 3]"]',
        '  v0 -> n0 [label="%0"]',
        '  n0 -> n1 [label="%1"]',
        '  n1 -> r0 [label="%2"]',
    ):
        assert line in dot.splitlines()


def test_svg_says_what_it_needs(monkeypatch):
    graph = graph_of(lambda x: x.exp(), gg.randn(3))
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(ImportError, match="pip install graphviz"):
        _ = graph.svg


@pytest.mark.parametrize("memory", [np.zeros(256, np.uint8), bytearray(256)], ids=type)
def test_known_memory_is_found_by_where_it_lies(memory):
    """As looking at every array would find it, in whatever order arrays come, of memory that NumPy
    owns or somebody else does; and beside arrays of other owners."""
    rng, base = np.random.default_rng(0), np.frombuffer(memory, np.uint8)

    def part():
        start, stop = sorted(rng.integers(0, base.size, 2))
        return base[start : stop : int(rng.integers(1, 4))][:: int(rng.choice([-1, 1]))]

    for _ in range(100):
        memories, known = _Memories(), []
        for _ in range(8):
            known += [part(), np.zeros(3)]
            memories.add(known[-2])
            memories.add(known[-1])
            array = part()
            low, high = bounds(array)
            spans = [(x, bounds(x)) for x in known]
            wanted = {id(x) for x, (start, stop) in spans if low < stop and start < high}
            assert set(map(id, memories.overlapping(array))) == wanted
            assert memories.overlapping(np.zeros(3)) == []


def test_memory_of_others_is_compared_with_that_of_numpy():
    """An array over the buffer of another has that one's memory, but not as its owner."""
    array = np.zeros(8)
    over = np.asarray(memoryview(array))[2:4]
    for known, asked in ((array, over), (over, array)):
        memories = _Memories()
        memories.add(known)
        (found,) = memories.overlapping(asked)
        assert found is known


def test_numbers_stay_numbers():
    """From the left and the right, whole or not, and in derivatives."""
    w = gg.tensor([1.0, 2.0], requires_grad=True)

    def step():
        w.grad = None
        loss = ((2 - w) * 1.5 / 4 - (-0.0)).sum()
        loss.backward()
        return loss

    lines = str(graph_of(step)).splitlines()
    for ending in (
        "sub(2, %0)",
        "mul(%1, 1.5)",
        "div(%2, 4)",
        "sub(%3, -0.0)",
        "mul(g, x1)}(%8, 1.5)",
    ):
        assert any(line.endswith(ending) for line in lines), ending
    assert sum("<-" in line for line in lines) == 1
