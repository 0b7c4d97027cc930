"""Compiled functions on the tape of their caller.

Where outputs of a recorded function depend on tensors that require gradients, the recorder goes on
for one backward pass from these outputs, with cotangents as inputs. The graph is cut in two: the
first half also gives the values that the second reads. A call of the compiled function replays the
first half and puts one record on the tape; its backward replays the second.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..autograd import engine
from ..backend.arrays import array_module, there
from ..config import grad_mode, modes
from ..dtypes import is_differentiable
from ..tensor import Tensor, clock
from .graph import Graph, Node, Value
from .record import Recorder
from .rerun import Before, Rerun
from .sources import HostResult


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


def halves(graph: Graph, derivative: Derivative, forward: set[Node]) -> tuple[Graph, Graph, int]:
    """The graph of the function, which ends with the values to save; that of its backward pass,
    whose sources are ``Saved``, inputs of the former, and at the end ``Cotangent``; and how many
    values are saved. What is drawn or counted before a call is saved, too."""
    count = len(graph.outputs) - len(derivative.gradients)
    first = graph.with_nodes([n for n in graph.nodes if n in forward])
    second = graph.with_nodes([n for n in graph.nodes if n not in forward])
    second.outputs, second.stores, second.guards = list(derivative.gradients), [], []
    inputs = list(zip(graph.inputs, graph.sources, strict=True))
    cotangents = set(derivative.cotangents)
    used = {v for node in second.nodes for v in node.values} | set(second.outputs)
    drawn = [v for v, s in inputs if s.__class__ is HostResult and v.dtype is not None]
    saved = [v for v in drawn if v in used]
    saved += [v for node in first.nodes for v in node.outputs if v in used]
    first.outputs = [*graph.outputs[:count], *saved]
    first.inputs = [v for v, _ in inputs if v not in cotangents]
    first.sources = [s for v, s in inputs if v not in cotangents]
    read = [(v, s) for v, s in inputs if v in used and v not in cotangents | set(saved)]
    read += [(v, Saved(place)) for place, v in enumerate(saved)]
    read += [(v, s) for v, s in inputs if v in used & cotangents]
    second.inputs, second.sources = [v for v, _ in read], [s for _, s in read]
    return first, second, len(saved)


def with_inputs_of(second: Graph, first: Graph, optimized: Graph) -> Graph:
    """The first half, optimised, with the inputs that only the second reads."""
    kept = {*optimized.inputs, *second.inputs}
    pairs = [(v, s) for v, s in zip(first.inputs, first.sources, strict=True) if v in kept]
    new = optimized.with_nodes(optimized.nodes)
    new.inputs, new.sources = [v for v, _ in pairs], [s for _, s in pairs]
    return new


class SecondHalf:
    """What replays the backward pass of a compiled function, and makes its records.

    A program has its memory once: ``lock`` is held while either half runs. The values that a call
    saved are in that memory, if the program is ``native``, until the next call; the record of the
    call before takes copies of them then, if its backward may still come (``begin``).
    """

    def __init__(
        self, graph: Graph, first: Graph, derivative: Derivative, run: Callable, rerun: Rerun
    ):
        """``first`` is the first half as it runs, ``run`` runs the second."""
        self.derivative, self.run, self.rerun = derivative, run, rerun
        self.lock = threading.RLock()
        self.native = False  # the first half lends what it saves, this one gives copies
        self._last: Callable[[], Replay | None] = lambda: None
        self._before: Before | None = None  # what the call in progress began with
        outputs = [first.outputs[k] for k in derivative.differentiable]
        self.shapes = [v.shape for v in outputs]
        self.dtypes = [v.dtype for v in outputs]
        self.single = len(outputs) == 1
        places = {id(s): k for k, s in enumerate(first.sources)}
        self.cotangents = [s.place for s in graph.sources if s.__class__ is Cotangent]
        # where the other inputs come from: (True, place among the saved) or (False, input of first)
        self.reads = [
            (True, s.place) if s.__class__ is Saved else (False, places[id(s)])
            for s in graph.sources
            if s.__class__ is not Cotangent
        ]
        # whose memory is read: that it is unchanged is checked
        self.watched = [first.sources[place] for saved, place in self.reads if not saved]

    def record(self, edges: tuple, saved: tuple, values: tuple, leaves: Sequence) -> Replay:
        """The record of a call that has just run the first half."""
        n = _new(Replay)
        n.half, n.edges, n.saved, n.values, n.leaves = self, edges, saved, values, leaves
        n.before = self._before
        n.out, n.shape, n.time, n.run = None, self.shapes[0] if self.single else (), clock.now, _run
        self._last = weakref.ref(n)
        return n

    def attach(self, node: Replay, outputs: Sequence[Tensor]) -> None:
        """Let the outputs of a call know where they come from."""
        places = self.derivative.differentiable
        if self.single:
            outputs[places[0]]._node = node
            return
        for index, place in enumerate(places):
            outputs[place]._node = engine.Part(node, index, self.shapes[index])

    def begin(self, leaves: Sequence) -> None:
        """Save what a call is about to overwrite."""
        if self.rerun.needs_before:
            self._before = self.rerun.before(leaves)
        node = self._last()
        if node is not None and self.native:
            pairs = zip(node.values, self.reads, strict=False)  # empty after its backward
            node.values = tuple([v.copy() if saved else v for v, (saved, _) in pairs])

    def targets(self, leaves: Sequence) -> list[Tensor]:
        """The tensors that get a gradient."""
        targets = self.derivative.targets
        return [t if isinstance(t, Tensor) else leaves[t] for t in targets]

    def arrays(self, g) -> list:
        """The cotangents as the second half takes them."""
        parts = {0: g} if self.single else g
        some = next(iter(parts.values()))
        found = []
        for k in self.cotangents:
            shape, dtype, d = self.shapes[k], self.dtypes[k], parts.get(k)
            if d is None:
                with there(some):
                    d = array_module(some).zeros(shape, dtype)
            elif d.shape != shape:
                raise RuntimeError(
                    f"the gradient of an output of a compiled function has shape "
                    f"{tuple(d.shape)} but the output {tuple(shape)}"
                )
            found.append(d if d.dtype == dtype else d.astype(dtype))
        return found

    def again(self, node: Replay, g) -> Sequence:
        """The gradients as tensors, by an eager run: with a history if that is on, or of what an
        open transformation carries."""
        parts = {0: g} if self.single else g
        create_graph = modes.local.grad
        with self.rerun.as_before(node.before, node.leaves, node.time):
            with grad_mode(True):
                outputs = self.rerun(node.leaves)
            wanted = [outputs[self.derivative.differentiable[k]] for k in parts]
            targets = self.targets(node.leaves)
            return engine.grad(
                wanted, targets, list(parts.values()), create_graph=create_graph, allow_unused=True
            )


class Replay(engine.Node):
    """The record of one call of a compiled function; ``run`` replays the second half.

    ``values`` is what that reads beside the cotangents, ``saved`` the tensors over some of it.
    For derivatives of the derivative, ``leaves`` are the arguments of the call and ``before`` is
    what it began with.
    """

    __slots__ = ("before", "half", "leaves", "values")
    before: Before | None
    half: SecondHalf
    edges: tuple
    saved: tuple
    values: tuple
    leaves: Sequence
    shape: tuple[int, ...]
    run: Callable

    @property
    def name(self) -> str:
        return "CompiledFunctionBackward"

    def release(self) -> None:
        if self.saved or self.values:
            self.saved = self.values = self.leaves = ()
            self.before = None
            self.time = -1

    def tensors(self, g) -> Sequence:
        self.check()
        return self.half.again(self, g)


_new = object.__new__


def _run(node: Replay, g, keep: bool) -> Sequence:
    half = node.half
    with half.lock:
        if node.time != clock.now:
            node.check()
        if half.single and g.shape == node.shape and g.dtype is half.dtypes[0] and half.cotangents:
            parts = half.run(*node.values, g)
        else:
            parts = half.run(*node.values, *half.arrays(g))
    if not keep:
        node.release()
    return engine.Fresh(parts) if half.native else parts
