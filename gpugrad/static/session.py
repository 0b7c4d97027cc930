"""Explicit graphs, as in TensorFlow 1: placeholders, variables, ``Session.run``.

A thin view of the recordings that ``gpugrad.compile`` makes. A graph is built by ordinary functions
of gpugrad, which compute with ones (zeros for integers) in the shapes of the placeholders while
everything is recorded:

    with Graph() as graph:
        x = placeholder(gg.float32, (64, 784), "x")
        w = variable(gg.zeros(784, 10))
        loss = gg.logsumexp(x @ w, 1).mean()
        (dw,) = gradients(loss, [w])
        train = assign(w, w - 0.1 * dw)
    value, _ = Session(graph).run([loss, train], {x: images})

``Graph(build)`` takes a function instead that returns what can be fetched, by name. Its
placeholders may have ``None`` in their shapes: it is recorded once more for other shapes that are
fed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..autograd import engine
from ..backend.arrays import to_numpy
from ..backend.numpy import xp as np
from ..config import modes
from ..creation import tensor as new_tensor
from ..dtypes import as_dtype
from ..tensor import Tensor, bump_versions, wrap
from . import graph as ir
from . import passes
from .record import Recorder
from .runners import optimized, runner_for
from .sources import Argument, HostResult

_building = threading.local()


class Placeholder(NamedTuple):
    """A tensor that is fed: its name, its shape with ``None`` for any size, and what stands for it
    while the graph is built."""

    name: str
    shape: tuple[int | None, ...]
    tensor: Tensor


class Assign(NamedTuple):
    """A write to a variable, done when it is fetched; gives the value."""

    variable: Tensor
    value: Tensor


class Graph:
    """A program that is built before it is run; see the module.

    ``variables`` are the tensors that keep their values between runs, by name.
    """

    def __init__(self, build: Callable[[], Mapping[str, Any]] | None = None):
        self.build = build
        self.variables: dict[str, Tensor] = {}
        self._recordings: dict[tuple, _Recording] = {}
        if build is not None:
            self._record({})

    def __enter__(self) -> Graph:
        if self._recordings:
            raise RuntimeError("the graph has been built already")
        self._block = self._recorded({})
        self._block.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._block.__exit__(*error)

    @property
    def placeholders(self) -> list[Placeholder]:
        return self._first.placeholders

    def program(self, fetches, feed: Mapping[Any, Any] | None = None) -> ir.Graph:
        """The recorded program that computes some fetches, before any pass: to be printed, and
        given to the passes of ``gpugrad.static.passes``."""
        flat = fetches if isinstance(fetches, (list, tuple)) else [fetches]
        recording = self._for(self._by_name(feed or {}))
        return recording.program(recording.resolved(flat, self._first))

    # ---- recordings

    @property
    def _first(self) -> _Recording:
        if not self._recordings:
            raise RuntimeError("the graph is empty: build it in a with block, or give a function")
        return next(iter(self._recordings.values()))

    @contextmanager
    def _recorded(self, shapes: dict[str, tuple[int, ...]]) -> Iterator[_Recording]:
        """Record what is computed in the block."""
        recording = _Recording(self, shapes)
        outer = getattr(_building, "recording", None), modes.local.recording
        _building.recording, modes.local.recording = recording, recording.recorder
        modes.enter(special=True)
        try:
            yield recording
        finally:
            modes.leave(special=True)
            _building.recording, modes.local.recording = outer
        recording.check()
        self._recordings[tuple(sorted(shapes.items()))] = recording

    def _record(self, shapes: dict[str, tuple[int, ...]]) -> _Recording:
        assert self.build is not None
        with self._recorded(shapes) as recording:
            recording.fetches = dict(self.build())
        return recording

    def _for(self, feed: Mapping[str, Any]) -> _Recording:
        """The recording for values of these shapes."""
        shapes = {
            p.name: tuple(np.shape(feed[p.name]))
            for p in self.placeholders
            if p.name in feed and None in p.shape
        }
        found = self._recordings.get(tuple(sorted(shapes.items())))
        if found is None:
            found = self._record(shapes)
        return found

    def _by_name(self, feed: Mapping[Any, Any]) -> dict[str, Any]:
        names = {id(p.tensor): p.name for p in self.placeholders}
        known = set(names.values())
        found = {}
        for key, value in feed.items():
            name = key if isinstance(key, str) else names.get(id(key))
            if name not in known:
                raise ValueError(f"{key!r} is no placeholder of the graph, which has {known}")
            found[name] = to_numpy(value.array) if isinstance(value, Tensor) else value
        return found


class _Recording:
    """A graph recorded for placeholders of certain shapes."""

    def __init__(self, graph: Graph, shapes: dict[str, tuple[int, ...]]):
        self.graph, self.shapes, self.recorder = graph, shapes, Recorder()
        self.placeholders: list[Placeholder] = []
        self.fetches: dict[str, Any] = {}  # what the function returned
        self.runs: dict[tuple, _Run] = {}
        self.unnamed = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make tensors that are no part of the program."""
        modes.local.recording = None
        try:
            yield
        finally:
            modes.local.recording = self.recorder

    def check(self) -> None:
        """Raise RuntimeError if the program did what a graph cannot do."""
        if self.recorder.failure is not None:
            reason, line = self.recorder.failure
            raise RuntimeError(f"{reason}, but a graph has no values before it is run: {line}")
        if any(owner.input is not None for owner in self.recorder.written.values()):
            raise RuntimeError(
                "a variable or placeholder was written in place while the graph was built: use "
                "assign(variable, value), and fetch what it returns"
            )

    def resolved(self, fetches: Sequence, first: _Recording) -> list:
        """What fetches are in this recording: names, or objects of the first recording."""
        names = {id(f): name for name, f in first.fetches.items()}
        found = []
        for f in fetches:
            name = f if isinstance(f, str) else names.get(id(f))
            if name is None and self is first:
                found.append(f)
            elif name in self.fetches:
                found.append(self.fetches[name])
            else:
                raise ValueError(f"{f!r} cannot be fetched: build() did not return it")
        return found

    def program(self, fetches: Sequence) -> ir.Graph:
        """The part of the recording that some fetches need. Checks and decisions are a part of it
        if they read no placeholder that the fetches do not read."""
        recorder = self.recorder
        part = recorder.graph.with_nodes([])
        part.outputs = [self._value(f.value if isinstance(f, Assign) else f) for f in fetches]
        part.stores = [
            (recorder.value(f.variable.array, f.variable), v)
            for f, v in zip(fetches, part.outputs, strict=True)
            if isinstance(f, Assign)
        ]
        part.nodes = list(recorder.graph.nodes)
        part.inputs, part.sources = list(recorder.graph.inputs), list(recorder.graph.sources)
        reads = _inputs_read(part)
        needed = frozenset().union(*[reads[v] for v in part.outputs])
        part.nodes = [
            n for n in part.nodes if n.call.pure or all(reads[v] <= needed for v in n.values)
        ]
        part.guards = [(v, outcome) for v, outcome in part.guards if reads[v] <= needed]
        return passes.drop_dead(part)

    def _value(self, tensor) -> ir.Value:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{tensor!r} is no tensor of the graph")
        known = self.recorder._is_known(tensor.array)
        if not known and not any(tensor is v for v in self.graph.variables.values()):
            raise ValueError(f"{tensor!r} was not computed while the graph was built")
        return self.recorder.value(tensor.array, tensor)


def _inputs_read(graph: ir.Graph) -> dict[ir.Value, frozenset[ir.Value]]:
    """The inputs that every value depends on."""
    reads = {v: frozenset([v]) for v in graph.inputs}
    reads |= dict.fromkeys(graph.constants, frozenset())
    for node in graph.nodes:
        below = frozenset().union(*[reads[v] for v in node.values])
        reads |= dict.fromkeys(node.outputs, below)
    return reads


class _Run:
    """A program that computes some fetches, compiled."""

    def __init__(self, recording: _Recording, fetches: Sequence):
        self.recording = recording
        self.fetches = fetches  # keeps what the key of the run names alive
        self.graph = optimized(recording.program(fetches))
        self._compute = runner_for(self.graph)
        self._written = [f.variable for f in fetches if isinstance(f, Assign)]

    def __call__(self, feed: Mapping[str, Any]) -> list:
        drawn = {id(h): h.call() for h in self.recording.recorder.hosts}
        inputs = []
        for v, source in zip(self.graph.inputs, self.graph.sources, strict=True):
            if isinstance(source, Argument):
                inputs.append(self._fed(self.recording.placeholders[source.place], v, feed))
            elif isinstance(source, HostResult):
                inputs.append(drawn[id(source.host)][source.place])
            else:
                inputs.append(source.read())
        results = self._compute(*inputs)
        if results is None:
            raise RuntimeError(
                "a value decided otherwise than when the graph was built, or is not what an "
                "operation allows (class numbers below the number of classes, for example)"
            )
        bump_versions([self._written])
        return [np.array(to_numpy(r)) for r in results]

    @staticmethod
    def _fed(p: Placeholder, v: ir.Value, feed: Mapping[str, Any]):
        if p.name not in feed:
            raise ValueError(f"the placeholder {p.name!r} is needed: feed it")
        array = np.asarray(feed[p.name], v.dtype)
        if array.shape != v.shape:
            raise ValueError(f"the placeholder {p.name!r} has shape {p.shape}, got {array.shape}")
        return array


class Session:
    """Runs a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def run(self, fetches, feed_dict: Mapping[Any, Any] | None = None):
        """NumPy arrays for tensors, names or assignments: for one, or in a list for several.

        ``feed_dict`` has the values of placeholders, by the placeholder or by its name. Assignments
        are done after everything has been computed.
        """
        several = isinstance(fetches, (list, tuple))
        feed = self.graph._by_name(feed_dict or {})
        results = self._prepared(fetches if several else [fetches], feed)(feed)
        return results if several else results[0]

    def optimized(self, fetches, feed_dict: Mapping[Any, Any] | None = None) -> ir.Graph:
        """The program that ``run`` runs: ``graph.program`` after the passes."""
        several = isinstance(fetches, (list, tuple))
        feed = self.graph._by_name(feed_dict or {})
        return self._prepared(fetches if several else [fetches], feed).graph

    def _prepared(self, fetches: Sequence, feed: Mapping[str, Any]) -> _Run:
        recording = self.graph._for(feed)
        resolved = recording.resolved(fetches, self.graph._first)
        key = tuple(map(id, resolved))
        if key not in recording.runs:
            recording.runs[key] = _Run(recording, resolved)
        return recording.runs[key]


# ------------------------------------------------------------------------------------------------
# what a graph is built of


def _open() -> _Recording:
    recording = getattr(_building, "recording", None)
    if recording is None:
        raise RuntimeError("no graph is being built: use `with Graph() as graph:`")
    return recording


def placeholder(dtype, shape: Sequence[int | None], name: str | None = None) -> Tensor:
    """A tensor that is fed at every run. ``None`` in its shape, for any size, needs a graph that is
    built by a function."""
    recording = _open()
    place, pattern, dtype = len(recording.placeholders), tuple(shape), as_dtype(dtype)
    name = name or f"placeholder_{place}"
    if any(p.name == name for p in recording.placeholders):
        raise ValueError(f"there is a placeholder {name!r} already")
    if None in pattern and recording.graph.build is None:
        raise ValueError(
            f"the placeholder {name!r} has None in its shape {pattern}: give Graph a function, "
            f"which can be recorded again for the shapes that are fed"
        )
    sizes = recording.shapes.get(name, tuple(1 if n is None else n for n in pattern))
    fits = [n in (None, size) for n, size in zip(pattern, sizes, strict=False)]
    if len(sizes) != len(pattern) or not all(fits):
        raise ValueError(f"the placeholder {name!r} has shape {pattern}, got {sizes}")
    ones = dtype.kind not in "biu"  # zeros are indices of whatever they index
    stand_in = wrap((np.ones if ones else np.zeros)(sizes, dtype))
    recording.recorder.argument(stand_in, Argument(place))
    recording.placeholders.append(Placeholder(name, pattern, stand_in))
    return stand_in


def variable(value, name: str | None = None, *, dtype=None, trainable: bool = True) -> Tensor:
    """A tensor that keeps its values from one run to the next, made once: a graph that is recorded
    again goes on with its variables, known by their names or their order."""
    recording = _open()
    if name is None:
        name = f"variable_{recording.unnamed}"
        recording.unnamed += 1
    variables = recording.graph.variables
    if name not in variables:
        with recording.paused():
            data = to_numpy(value.array) if isinstance(value, Tensor) else value
            variables[name] = new_tensor(data, dtype=dtype, requires_grad=trainable)
    return variables[name]


def gradients(ys, xs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a scalar, or of the sum of several, with respect to tensors; zeros where it
    does not depend on them."""
    ys = list(ys) if isinstance(ys, (list, tuple)) else [ys]
    return list(
        engine.grad(ys, list(xs), retain_graph=True, allow_unused=True, materialize_grads=True)
    )


def assign(variable: Tensor, value: Tensor) -> Assign:
    """A write to a variable, to be fetched: ``session.run([loss, assign(w, w - lr * dw)])``."""
    if (tuple(variable.shape), variable.dtype) != (tuple(value.shape), value.dtype):
        raise ValueError(
            f"a variable of {variable.dtype}{list(variable.shape)} cannot take a value of "
            f"{value.dtype}{list(value.shape)}"
        )
    return Assign(variable, value)


__all__ = [
    "Assign",
    "Graph",
    "Placeholder",
    "Session",
    "assign",
    "gradients",
    "placeholder",
    "variable",
]
