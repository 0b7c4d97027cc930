"""Explicit graphs, as in TensorFlow 1: placeholders, variables, ``Session.run``.

A thin view of the same recordings that ``gpugrad.compile`` makes. A graph is built by ordinary
functions of gpugrad; they compute with ones (zeros for integers) in the shapes of the placeholders,
and everything is recorded:

    with Graph() as graph:
        x = placeholder(gg.float32, (64, 784), "x")
        w = variable(gg.zeros(784, 10))
        loss = gg.logsumexp(x @ w, 1).mean()
        (dw,) = gradients(loss, [w])
        train = assign(w, w - 0.1 * dw)
    session = Session(graph)
    value, _ = session.run([loss, train], {x: images})

``Graph(build)`` takes a function instead, ``build() -> {name: fetch}``, and its placeholders may
have ``None`` in their shapes: it is recorded again for every combination of shapes that is fed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gpugrad as gg

from ..autograd import engine
from ..backend import arrays as backend_arrays
from ..backend.numpy import xp as np
from ..config import modes
from ..tensor import Tensor, bump_versions, wrap
from . import graph as ir
from . import passes
from .record import Recorder
from .runners import runner_for, with_draws
from .sources import Argument, HostResult, Live

_current = threading.local()


class Placeholder(Tensor):
    """A tensor whose values are fed."""

    __slots__ = ("name", "pattern", "place")

    name: str
    pattern: tuple[int | None, ...]
    place: int


class Assign:
    """The write of a value to a variable: done when it is fetched, and gives the value."""

    def __init__(self, variable: Tensor, value: Tensor):
        self.variable, self.value = variable, value


class Graph:
    """A program that is built before it is run; see the module."""

    def __init__(self, build: Callable[[], Mapping[str, Any]] | None = None):
        self._build = build
        self._variants: dict[tuple, _Built] = {}
        self.variables: dict[str, Tensor] = {}
        self._built: _Built | None = None
        if build is not None:
            self._built = self._record({})

    def __enter__(self) -> Graph:
        if self._build is not None or self._built is not None:
            raise RuntimeError("the graph has been built already")
        self._block = _recording(self, {})
        self._built = self._block.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._block.__exit__(*error)

    def _record(self, shapes: dict[str, tuple[int, ...]]) -> _Built:
        assert self._build is not None
        with _recording(self, shapes) as built:
            built.fetches = dict(self._build())
        return built

    @property
    def placeholders(self) -> list[Placeholder]:
        return self._first().placeholders

    def _first(self) -> _Built:
        if self._built is None:
            raise RuntimeError("the graph is empty: build it in a with block, or give a function")
        return self._built

    def _for(self, feed: Mapping[str, Any]) -> _Built:
        """What was built for values of these shapes."""
        first = self._first()
        shapes = {p.name: tuple(np.shape(feed[p.name])) for p in first.placeholders
                  if p.name in feed and None in p.pattern}  # fmt: skip
        if not shapes:
            return first
        key = tuple(sorted(shapes.items()))
        found = self._variants.get(key)
        if found is None:
            found = self._variants[key] = self._record(shapes)
        return found

    def program(self, fetches, feed: Mapping | None = None) -> ir.Graph:
        """The recorded program that computes some fetches, as it was written.

        Print it, or give it to a pass of ``gpugrad.static.passes`` and print that.
        """
        named = self._named(feed or {})
        built = self._for(named)
        return built.program(built.resolved(_listed(fetches), self._first()))

    def _named(self, feed: Mapping) -> dict[str, Any]:
        named = {}
        for key, value in feed.items():
            name = key if isinstance(key, str) else getattr(key, "name", None)
            if name not in {p.name for p in self._first().placeholders}:
                raise ValueError(f"{key!r} is no placeholder of the graph")
            named[name] = getattr(value, "array", value)
        return named


class _Built:
    """One recording of a graph: for placeholders of certain shapes."""

    def __init__(self, graph: Graph, shapes: dict[str, tuple[int, ...]]):
        self.owner, self.shapes = graph, shapes
        self.recorder = Recorder()
        self.placeholders: list[Placeholder] = []
        self.fetches: dict[str, Any] = {}
        self.runners: dict[tuple, Any] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make tensors that are no part of the program."""
        modes.local.recording = None
        try:
            yield
        finally:
            modes.local.recording = self.recorder

    def resolved(self, fetches: Sequence, first: _Built) -> list:
        """Fetches by name, or by the tensor of the first recording that has the name."""
        names = {id(f): name for name, f in first.fetches.items()}
        found = []
        for f in fetches:
            name = f if isinstance(f, str) else names.get(id(f))
            if name is not None and name not in self.fetches:
                raise ValueError(f"there is nothing named {name!r} in the graph")
            if name is None and self is not first:
                raise ValueError("only what the function returns can be fetched")
            found.append(f if name is None else self.fetches[name])
        return found

    def program(self, fetches: Sequence) -> ir.Graph:
        """The part of the recording that some fetches need."""
        recorded = self.recorder.graph
        part = recorded.with_nodes(list(recorded.nodes))
        part.stores = []
        for f in fetches:
            tensor = f.value if isinstance(f, Assign) else f
            if not isinstance(tensor, Tensor) or not self.recorder._is_known(tensor.array):
                raise ValueError(f"{f!r} is not part of the graph")
            value = self.recorder.value(tensor.array)
            part.outputs.append(value)
            if isinstance(f, Assign):
                target = self.recorder.value(f.variable.array, f.variable)
                part.stores.append((target, value))
        part.inputs, part.sources = recorded.inputs, recorded.sources
        part.nodes, part.constants = list(recorded.nodes), dict(recorded.constants)
        needed = set(_ancestors(part))
        part.guards = [(v, outcome) for v, outcome in part.guards if v in needed]
        return passes.drop_dead(part)


def _ancestors(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that outputs and stores need."""
    needed = {*graph.outputs, *[v for _, v in graph.stores]}
    for node in reversed(graph.nodes):
        if any(v in needed for v in node.outputs):
            needed.update(node.values)
            needed.update(node.outputs)
    # what only decides or checks is needed as soon as all that it reads is
    for node in graph.nodes:
        if all(v in needed or v in graph.constants for v in node.values):
            needed.update(node.outputs)
    return iter(needed)


@contextmanager
def _recording(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> Iterator[_Built]:
    """Record what is computed in the block."""
    built = _Built(graph, shapes)
    outer = getattr(_current, "built", None), modes.local.recording
    _current.built, modes.local.recording = built, built.recorder
    modes.enter(special=True)
    try:
        yield built
    finally:
        modes.leave(special=True)
        _current.built, modes.local.recording = outer
    recorder = built.recorder
    if recorder.failure is not None:
        reason, line = recorder.failure
        raise RuntimeError(f"{reason}: a graph has no values before it is run ({line})")
    if any(memory.input is not None for memory in recorder._written.values()):
        raise RuntimeError(
            "a tensor from outside was written in place while the graph was built: use "
            "assign(variable, value), and fetch what it returns"
        )


def _open() -> _Built:
    built = getattr(_current, "built", None)
    if built is None:
        raise RuntimeError("no graph is being built: use `with Graph() as graph:`")
    return built


def placeholder(dtype, shape: Sequence[int | None], name: str | None = None) -> Placeholder:
    """A tensor that is fed when the graph is run. ``None`` in its shape, any size, needs a graph
    built by a function."""
    built = _open()
    place = len(built.placeholders)
    name = name or f"placeholder_{place}"
    if any(p.name == name for p in built.placeholders):
        raise ValueError(f"there is a placeholder {name!r} already")
    pattern = tuple(shape)
    if None in pattern and built.owner._build is None:
        raise ValueError(
            f"the placeholder {name!r} has None in its shape {pattern}: give Graph a function, "
            f"which is recorded again for every shape that is fed"
        )
    sizes = built.shapes.get(name, tuple(1 if n is None else n for n in pattern))
    if len(sizes) != len(pattern) or any(
        n is not None and n != size for n, size in zip(pattern, sizes, strict=True)
    ):
        raise ValueError(f"the placeholder {name!r} has shape {pattern}, got {sizes}")
    with built.paused():
        floating = gg.dtypes.is_floating(np.dtype(dtype))
        values = (np.ones if floating else np.zeros)(sizes, dtype)
        tensor = wrap(values)
    tensor.__class__ = Placeholder
    tensor.name, tensor.pattern, tensor.place = name, pattern, place
    built.recorder.argument(tensor, Argument(place))
    built.placeholders.append(tensor)
    return tensor


def variable(value, name: str | None = None, *, dtype=None, trainable: bool = True) -> Tensor:
    """A tensor that keeps its values from one run to the next. In a graph built by a function the
    variable of a name is made once."""
    built = _open()
    variables = built.owner.variables
    name = name or f"variable_{sum(k.startswith('variable_') for k in built.known)}"
    tensor = variables.get(name)
    if tensor is None:
        with built.paused():
            source = value.array if isinstance(value, Tensor) else value
            tensor = gg.tensor(np.array(source), dtype=dtype, requires_grad=trainable)
        variables[name] = tensor
    return tensor


def gradients(ys, xs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a sum of scalars with respect to tensors; zeros where there is none."""
    ys = list(ys) if isinstance(ys, (list, tuple)) else [ys]
    found = engine.grad(ys, list(xs), retain_graph=True, allow_unused=True)
    return [x * 0 if g is None else g for g, x in zip(found, xs, strict=True)]


def assign(variable: Tensor, value: Tensor) -> Assign:
    """A write to a variable, to be fetched."""
    if tuple(variable.shape) != tuple(value.shape) or variable.dtype != value.dtype:
        raise ValueError(
            f"a variable of {variable.dtype}{list(variable.shape)} cannot take a value of "
            f"{value.dtype}{list(value.shape)}"
        )
    return Assign(variable, value)
