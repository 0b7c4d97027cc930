"""One recorded call: its graph, what it returned, and what it left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..autocasting import autocasting
from ..backend import arrays as backend_arrays
from ..config import modes
from ..tensor import Tensor, wrap
from ..tree import flatten, tree_map
from . import compose, passes
from .floats import followed_values
from .graph import Graph, Node, Value, difference, frozen
from .numbers import FloatArgument, Number, end
from .output import Ambiguous, Lost, Output, Piece, Shown
from .record import Recorder
from .sources import Argument, Live, LiveArray


class Place:
    """Where a returned tensor is found: among the results of the graph, among the arguments, or
    the tensor itself; with a ``chain`` of operations, as a view of one of the last two."""

    __slots__ = ("argument", "bare", "chain", "number", "result", "tensor")

    def __init__(
        self, result=None, argument=None, tensor=None, bare: bool = False, number: bool = False,
        chain: tuple | None = None,
    ):  # fmt: skip
        self.result, self.argument, self.tensor = result, argument, tensor
        self.chain = chain
        self.bare = bare  # an array, not a tensor
        self.number = number  # its value, as item() gives it

    def __eq__(self, other) -> bool:
        same = self.tensor is other.tensor
        same = same and (self.bare, self.number) == (other.bare, other.number)
        same = same and frozen(self.chain) == frozen(other.chain)
        return same and (self.result, self.argument) == (other.result, other.argument)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"argument {self.argument}" if self.argument is not None else "a tensor"


class Recording:
    """A recorded call.

    ``graph`` has as outputs the ``count`` returned tensors, the gradients that were left behind
    (``grads``), and those of ``derivative``, if there is one. ``places`` say where the returned
    leaves are found, ``rebuild`` puts them together. ``with_history`` are the places of the
    outputs that require a gradient, if only one that the function has computed itself.
    """

    graph: Graph
    places: list
    rebuild: Callable
    numbers: tuple[float, ...] = ()  # floats among the arguments that are inputs
    single: bool  # one leaf is returned, in no structure
    function: Callable
    count: int
    with_history: list[int]
    grads: list
    pinned: dict[int, Tensor]
    switched: list[int]  # arguments whose requires_grad the function changes
    derivative: compose.Derivative | None
    forward: set[Node]
    output: list[Piece]  # what it wrote to the terminal

    def __init__(self, recorder: Recorder, escaped: str | None):
        self.hosts, self.failure, self.escaped = recorder.hosts, recorder.failure, escaped
        self.owners = recorder.owners
        self.way = tuple(recorder.path)
        # leaves that had no gradient when the call began and none when it was added to
        self.entered_without: set[int] = set()

    def arrays_outside(self) -> list:
        """The arrays that the program reaches by itself, and reads at every call."""
        return [s.read() for s in self.graph.sources if isinstance(s, (Live, LiveArray))]

    def keep_pinned(self, before: Recording) -> None:
        """Leave as ``pinned`` the arguments that require a gradient and were the same tensors
        before: the program may reach them otherwise, too."""
        pinned = {k: t for k, t in self.pinned.items() if before.pinned.get(k) is t}
        self.pinned = {k: t for k, t in pinned.items() if t.is_leaf}

    def differs(self, other: Recording) -> str | None:
        """What another recording did otherwise; None if it is the same."""
        return difference(self.graph, other.graph) or self._returns_otherwise(other)

    def _returns_otherwise(self, other: Recording) -> str | None:
        if len(self.places) != len(other.places):
            return "it returns more or fewer values"
        for a, b in zip(self.places, other.places, strict=True):
            if not _same_result(a, b):
                return f"it returned {a!r:.60}, then {b!r:.60}"
        if self.output != other.output:
            return "it writes other words to the terminal"
        if self.hosts != other.hosts:
            return "it counts, seeds or draws other things"
        grads = [[(_owner(t), v is None) for t, v in r.grads] for r in (self, other)]
        return None if grads[0] == grads[1] else "it changes the gradients of other tensors"


def _owner(t):
    return id(t) if isinstance(t, Tensor) else t


def _same_result(a, b) -> bool:
    """Whether two returned leaves are the same: numbers and strings by value, others by
    identity."""
    if a.__class__ is Place or isinstance(a, (bool, int, float, complex, str)):
        return a.__class__ is b.__class__ and (a == b or a != a)
    return a is b


def record(
    function: Callable, args, kwargs, leaves: Sequence, before: Recording | None
) -> tuple[Any, Recording]:
    """Call a function while a recorder looks: its result, and the recording."""
    without = set()
    if before is not None:
        grads = [t for t, _ in before.grads if isinstance(t, Tensor)]
        without = {id(t) for t in grads if t.grad is None}
    unwritten = [] if before is None else _unwritten(before.graph)
    required = [isinstance(t, Tensor) and t.requires_grad for t in leaves]
    recorder = Recorder()
    recorder.shown = []
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) or backend_arrays.is_array(leaf):
            recorder.argument(leaf, Argument(place))
        elif leaf.__class__ is FloatArgument:
            recorder.argument(leaf.tensor, Argument(place))
    outer, modes.local.recording = modes.local.recording, recorder
    modes.enter(special=True)
    try:
        # casts of parameters made outside do not count
        with autocasting(modes.local.autocast), Output() as output:
            result = function(*args, **kwargs)
        with autocasting(None):  # for the backward pass
            recording = _finish(recorder, result, leaves, output)
        recording.function = function
        recording.switched = [
            k
            for k, t in enumerate(leaves)
            if isinstance(t, Tensor) and t.requires_grad is not required[k]
        ]
        recording.pinned = {
            k: t for k, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad
        }
    except BaseException:
        end(recorder.numbers)
        raise
    finally:
        modes.leave(special=True)
        modes.local.recording = outer
    recording.entered_without = {
        id(t) for t, was_none in recorder.touched() if was_none and id(t) in without
    }
    changed = [a for a, content in unwritten if _bytes(a) != content]
    if recording.failure is None and not all(map(recorder.has_written, changed)):
        what = "the memory of a tensor is written by something else than gpugrad's operations"
        recording.failure = (what, _line_of(function))
    recording.numbers = followed_values(leaves)
    if recording.numbers or any(p.__class__ is Place and p.number for p in recording.places):
        followed = (Number, FloatArgument)
        result = tree_map(lambda x: x.value if isinstance(x, followed) else x, result)
    if end(recorder.numbers) and recording.failure is None:
        what = "a number that item() gave outlives the call without being returned"
        recording.failure = (what, _line_of(function))
    return result, recording


def _unwritten(graph: Graph) -> list[tuple[Any, bytes]]:
    """The arrays outside that a recorded program reads and does not write, and their content: the
    next call must leave them as they are unless it writes them itself, or it writes them past the
    engine."""
    written = {target for target, _ in graph.stores}
    arrays = [
        source.read()
        for v, source in zip(graph.inputs, graph.sources, strict=True)
        if isinstance(source, (Live, LiveArray)) and v not in written
    ]
    return [(a, _bytes(a)) for a in arrays if a is not None]


def _bytes(array) -> bytes:
    return backend_arrays.to_numpy(array).tobytes()


def _line_of(function: Callable) -> Iterable:
    code = getattr(function, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else (type(function).__name__, 0)


def _finish(recorder: Recorder, result, leaves: Sequence, output: Output) -> Recording:
    returned, rebuild = flatten(result)
    arguments = {id(leaf): place for place, leaf in enumerate(leaves)}
    computed: list[Tensor] = []
    places: list = []
    found: dict[int, Place] = {}
    views: list[Tensor] = []  # of tensors outside
    for leaf in returned:
        bare = backend_arrays.is_array(leaf)
        if id(leaf) in found:  # one tensor, returned twice
            places.append(found[id(leaf)])
            continue
        if isinstance(leaf, (Number, FloatArgument)) and id(leaf) not in arguments:
            places.append(Place(result=len(computed), number=True))
            computed.append(leaf.tensor)
            continue
        if id(leaf) in arguments and leaf.__class__ is FloatArgument:
            places.append(Place(argument=arguments[id(leaf)]))
        elif not isinstance(leaf, Tensor) and not bare:
            places.append(leaf)
        elif id(leaf) in arguments:
            places.append(Place(argument=arguments[id(leaf)]))
        elif not bare and recorder.is_live(leaf):
            places.append(Place(tensor=leaf))
        elif not bare and (view := recorder.view_outside(leaf)) is not None:
            source, chain = view
            whose = source.place if source.__class__ is Argument else None
            outside = None if whose is not None else source.tensor
            found[id(leaf)] = Place(argument=whose, tensor=outside, chain=chain)
            places.append(found[id(leaf)])
            views.append(leaf)
        else:
            found[id(leaf)] = Place(result=len(computed), bare=bare)
            places.append(found[id(leaf)])
            computed.append(wrap(leaf) if bare else leaf)
    shown = recorder.shown or []
    first = {id(s.value): s for s in reversed(shown)}  # one copy of a value is enough
    computed += [wrap(s.array) for s in first.values()]
    recording = Recording(recorder, _escaped(recorder, [*computed, *views]))
    recording.places, recording.rebuild, recording.count = places, rebuild, len(computed)
    recording.with_history = [k for k, t in enumerate(computed) if t.requires_grad]
    recording.single = not isinstance(result, (tuple, list, dict))
    graph = recorder.finish(computed)
    _take_output(recording, output, shown, graph.outputs)
    recording.grads = recorder.grads()
    graph.outputs += [v for _, v in recording.grads if v is not None]
    recording.forward = set(graph.nodes)
    derivative = compose.differentiate(recorder, computed, leaves)
    if derivative is not None:
        graph.outputs += derivative.gradients
    recording.derivative, recording.graph = derivative, passes.drop_dead(graph)
    return recording


def _take_output(
    recording: Recording, output: Output, shown: Sequence[Shown], results: Sequence[Value]
) -> None:
    """What the call wrote to the terminal, and where the values of the program are in it."""
    recording.output = []
    try:
        recording.output = output.pieces(shown, results)
    except Lost as lost:
        recording.failure = recording.failure or lost.args
    except Ambiguous as ambiguous:
        recording.escaped = recording.escaped or str(ambiguous)


def _escaped(recorder: Recorder, outputs: Sequence[Tensor]) -> str | None:
    """What is wrong if tensors that the call made are alive without being returned: it put them
    where a replay would not."""
    alive = recorder.survivors(outputs)
    if alive:
        gc.collect()  # some are parts of cycles
        alive = recorder.survivors(outputs)
    if not alive:
        return None
    t = alive[0]
    return (
        f"a tensor of shape {tuple(t.shape)} outlives the call without being returned: a replay "
        f"would not put it anywhere. Return it, or write it in place into a tensor that exists."
    )
