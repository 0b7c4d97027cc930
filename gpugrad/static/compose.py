"""Compiled functions on the tape of their caller.

Where outputs of a recorded function depend on tensors that require gradients, the recorder goes on
for one backward pass from these outputs, with cotangents as inputs. The graph is cut in two: the
first half also gives the values that the second reads. A call of the compiled function replays the
first half and puts one record on the tape; its backward replays the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..autograd import engine
from ..autograd.function import Function
from ..config import grad_mode, modes
from ..dtypes import is_differentiable
from ..tensor import Tensor, wrap
from .graph import Graph, Node, Value
from .record import Recorder


class Cotangent(NamedTuple):
    """The cotangent of an output, by its place among those that have one."""

    place: int

    def __str__(self) -> str:
        return f"cotangent {self.place}"


class Saved(NamedTuple):
    """A value of the first half that the second reads."""

    place: int

    def __str__(self) -> str:
        return f"saved {self.place}"


class Derivative(NamedTuple):
    """The recorded backward pass of a function."""

    cotangents: list[Value]
    differentiable: list[int]  # places of the outputs that have a cotangent
    targets: list[Any]  # tensors, or places of arguments, that get a gradient
    gradients: list[Value]


def differentiate(recorder: Recorder, outputs: Sequence[Tensor], leaves) -> Derivative | None:
    """Record the backward pass from the outputs to arguments and other leaves; None if no output
    has a history that is still there: the function may have gone backward through it itself, or
    have overwritten what was saved."""
    arguments = {
        leaf._node: place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf._node is not None
    }
    places = [k for k, t in enumerate(outputs) if _can_go_back(t, arguments)]
    if not places:
        return None
    roots = [outputs[k]._node for k in places]
    users, reached = engine.count_users_until(roots, arguments)
    seeds: list = []
    for k, place in enumerate(places):
        seed = engine.ones_for(outputs[place])
        recorder.argument(seed, Cotangent(k))
        seeds.append(seed)
    with grad_mode(False):
        found = engine.run_recorded_backward(roots, seeds, users, reached)
    targets, gradients = [], []
    for node in reached:
        g = found.get(node)
        target = arguments.get(node, getattr(node, "variable", None))
        if g is not None and target is not None:
            targets.append(target)
            gradients.append(recorder.value(g))
    if not targets:
        return None
    cotangents = [recorder.value(seed) for seed in seeds]
    return Derivative(cotangents, places, targets, gradients)


def _can_go_back(output: Tensor, ends) -> bool:
    """Whether an output has a history, and all values saved in it are there and as they were."""
    if output._node is None or not is_differentiable(output.dtype):
        return False
    nodes, _ = engine.count_users_until([output._node], ends)
    try:
        for node in nodes:
            if node not in ends:
                node.check()
    except RuntimeError:
        return False
    return True


def halves(graph: Graph, derivative: Derivative, forward: set[Node]) -> tuple[Graph, Graph, list]:
    """The graph of the function, which ends with the values to save; that of its backward pass; and
    for each input of the latter its source: ``Saved``, ``Cotangent``, or an input of the former."""
    count = len(graph.outputs) - len(derivative.gradients)
    first = graph.with_nodes([n for n in graph.nodes if n in forward])
    second = graph.with_nodes([n for n in graph.nodes if n not in forward])
    second.outputs, second.stores, second.guards = list(derivative.gradients), [], []
    first.outputs = graph.outputs[:count]
    cotangents = set(derivative.cotangents)
    made = {v for node in first.nodes for v in node.outputs}
    used = {v for node in second.nodes for v in node.values} | set(second.outputs)
    saved = [v for node in first.nodes for v in node.outputs if v in used & made]
    first.outputs += saved
    inputs = [(v, s) for v, s in zip(graph.inputs, graph.sources, strict=True)]
    first.inputs = [v for v, _ in inputs if v not in cotangents]
    first.sources = [s for v, s in inputs if v not in cotangents]
    second.inputs, second.sources = [], []
    for v, s in inputs:
        if v in used:
            second.inputs.append(v)
            second.sources.append(s)
    for place, v in enumerate(saved):
        second.inputs.append(v)
        second.sources.append(Saved(place))
    return first, second, saved


class _Replay(Function):
    """One call of a compiled function, with its two halves."""

    @staticmethod
    def forward(ctx, call: Call, *targets):
        outputs, saved = call.run()
        wanted = set(call.derivative.differentiable)
        ctx.mark_non_differentiable(*[t for k, t in enumerate(outputs) if k not in wanted])
        ctx.call, ctx.count = call, len(saved)
        ctx.save_for_backward(*saved, *call.read)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *cotangents):
        call: Call = ctx.call
        tensors = ctx.saved_tensors
        if modes.local.grad:
            return (None, *call.again(cotangents))
        given = [g.array for g in cotangents]
        arrays = [t.array for t in tensors[: ctx.count]]
        return (None, *[wrap(g) for g in call.backward(given, arrays)])


class Call:
    """A call of a compiled function that goes on the tape.

    ``run()`` gives outputs and saved values as tensors; ``backward(cotangents, saved)`` arrays of
    the targets; ``read`` are the tensors whose values backward reads, ``targets`` those that get a
    gradient; ``function()`` runs the function eagerly, for derivatives of the derivative.
    """

    def __init__(
        self, derivative: Derivative, run: Callable, backward: Callable, read, targets, function
    ):
        self.derivative, self.run, self.backward = derivative, run, backward
        self.read, self.targets, self.function = read, targets, function

    def apply(self) -> tuple:
        """The outputs, on the tape."""
        return _Replay.apply(self, *self.targets)

    def again(self, cotangents) -> Sequence:
        """The gradients with a history, from an eager run."""
        outputs = self.function()
        wanted = [outputs[k] for k in self.derivative.differentiable]
        return engine.grad(wanted, self.targets, cotangents, create_graph=True, allow_unused=True)
