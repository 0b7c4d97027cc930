"""Runs a graph whose arrays lie on one CUDA device as a captured CUDA graph.

The first call runs the nodes one by one, on the stream and in the memory of the capture to come:
kernels are compiled, libraries get their workspaces. The second call captures the nodes, writes of
live tensors included. From then on a call is

1. one launch that writes the numbers which change (learning rates, places in the streams of random
   numbers) to the device, where kernels read them;
2. for each argument a copy on the device into its buffer;
3. the launch of the CUDA graph. If the program went by values, it is several, and the host looks at
   the values between them: nothing is written before all of them have been seen;
4. a copy of each result that the caller keeps.

Nothing is allocated but the results. Live tensors are read and written in their own memory; if they
get other memory the nodes are captured again. What cannot be captured runs as lines of Python
(``run_python``), and ``reason`` says why.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from ..backend import cupy as backend
from ..backend.cuda_memory import PrivatePool
from ..codegen import cuda_module, cuda_updates
from ..codegen.cuda import Number
from ..codegen.cuda_words import Words
from ..codegen.expr import Expr, variable
from ..cuda.graphs import Recording
from ..cuda.streams import Stream
from ..cuda.streams import stream as using_stream
from ..random import GraphDraws
from . import run_python
from .draws import generators
from .graph import DeviceUpdateCall, Graph, Node, UpdateCall, Value
from .sources import Live, LiveArray

# A live tensor whose memory was another one so often gets a buffer: captures take milliseconds.
_MOVES = 3
_ALIGN = 512  # bytes: what CuPy's pool gives, and kernels count on
# Bytes from which copies are made one by one: below, a launch for all of them takes less time.
_LARGE = 1 << 20


def device_of(graph: Graph) -> int | None:
    """The number of the one CUDA device that all arrays of a graph lie on; None if they do not, or
    where there are no kernels to capture."""
    values = [*graph.inputs, *graph.constants, *[v for n in graph.nodes for v in n.outputs]]
    places = {v.device for v in values if v.dtype is not None}
    if len(places) != 1 or None in places or not cuda_module.enabled():
        return None
    return int(places.pop().split(":")[1])


def compile_graph(graph: Graph) -> CapturedProgram:
    """The runner of a graph (see ``run_python.compile_graph`` for what it does and gives).

    Raises ValueError for graphs that ``device_of`` knows no device for.
    """
    device = device_of(graph)
    if device is None:
        raise ValueError("the arrays of the graph do not all lie on one CUDA device with kernels")
    return CapturedProgram(graph, device)


# ------------------------------------------------------------------------------------------------
# the lane


class Lane:
    """The stream on which the programs of a device are captured, and their memory.

    The programs share the pool and the workspaces of libraries, and therefore run one after the
    other, whatever streams they are called on.
    """

    def __init__(self, device: int):
        self.stream, self.pool = Stream(device), PrivatePool()
        self.pool.kept.append(self.stream)
        self.lock = threading.RLock()
        self._last: Any = None  # the stream of the program launched last, and its end
        self._end: Any = None

    def begin(self, stream) -> None:
        """A stream is about to run a program: it waits for that of another one."""
        if self._last is None or self._last.ptr == stream.ptr:
            return
        if self._end is None:  # the default stream, which records no graph: no event was needed
            self._end = self._last.record()
        stream.wait_event(self._end)

    def end(self, stream) -> None:
        """A stream has queued a program."""
        self._last, self._end = stream, stream.record() if stream.ptr else None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work goes to the stream of the lane, between that before and after on the current one,
        and takes its memory."""
        current = backend.current_stream()
        self.begin(current)
        self.stream.cupy.wait_event(current.record())
        try:
            with self.used():
                yield
        finally:
            current.wait_event(self.stream.cupy.record())
            self.end(current)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The stream of the lane is the current one, and memory comes from its pool."""
        with using_stream(self.stream), backend.cupy().cuda.using_allocator(self.pool.malloc):
            yield


@cache
def lane(device: int) -> Lane:
    """The lane of a device."""
    with backend.at(device):
        return Lane(device)


# ------------------------------------------------------------------------------------------------
# inputs


class Inputs:
    """Where the kernels of a program find what changes from call to call.

    Live tensors are read in their memory, arguments in buffers, numbers in words.
    """

    def __init__(self, graph: Graph, inputs: Sequence):
        self.graph = graph
        self.live: dict[int, Any] = {}  # by the place among the inputs
        self.buffers: dict[int, Any] = {}
        self.numbers: list[int] = []
        self._moves: dict[int, int] = {}
        drawing = generators(graph)
        for k, (v, source) in enumerate(zip(graph.inputs, graph.sources, strict=True)):
            if v.dtype is None:
                self.numbers.append(k)
            elif isinstance(source, (Live, LiveArray)):
                self.live[k] = inputs[k]
            else:
                self.buffers[k] = backend.empty(v.shape, v.dtype)
        count = len(self.numbers)
        self.words = Words(count + 2 * len(drawing))
        self.draws = [
            GraphDraws(g, self.words.on_device(count + 2 * i, 2)) for i, g in enumerate(drawing)
        ]
        self._bind()

    def _bind(self) -> None:
        """Make lists of what is done at every call."""
        targets = {target for target, _ in self.graph.stores}
        self._live, self._copied = list(self.live.items()), list(self.buffers.items())
        self._given_back = [(k, b) for k, b in self._copied if self.graph.inputs[k] in targets]

    def values(self) -> dict[Value, Any]:
        """What the nodes read: arrays, and numbers in the device's memory."""
        found: dict[Value, Any] = dict(self.graph.constants)
        for k, a in (*self._live, *self._copied):
            found[self.graph.inputs[k]] = a
        for place, k in enumerate(self.numbers):
            found[self.graph.inputs[k]] = self.words.number(place)
        return found

    def are(self, inputs: Sequence) -> bool:
        """Whether the live arrays are those of the call before."""
        return all(inputs[k] is a for k, a in self._live)

    def moved(self, inputs: Sequence) -> bool:
        """Whether live arrays lie in other memory than before; it is theirs from now on."""
        found = False
        for k, a in self._live:
            b = inputs[k]
            if b is not a and (b.data.ptr, b.strides) != (a.data.ptr, a.strides):
                found = True
                self.live[k] = b
                self._moves[k] = self._moves.get(k, 0) + 1
                if self._moves[k] > _MOVES:
                    self.buffers[k] = backend.empty(b.shape, b.dtype)
                    del self.live[k]
        if found:
            self._bind()
        return found

    def fill(self, inputs: Sequence, stream) -> None:
        """Queue what brings the inputs of a call to the device's memory."""
        words = self.words
        if words.floats.size:
            for place, k in enumerate(self.numbers):
                words.floats[place] = inputs[k]
            place = len(self.numbers)
            for d in self.draws:
                words.integers[place : place + 2] = d.take()
                place += 2
            words.write()
        for k, buffer in self._copied:
            copy(inputs[k], buffer, stream)

    def give_back(self, inputs: Sequence, stream) -> None:
        """Queue the copies of buffers that the program has written to the arrays they stand for."""
        for k, buffer in self._given_back:
            copy(buffer, inputs[k], stream)


def copy(source, to, stream) -> None:
    """Queue a copy of an array to one of the same shape and dtype."""
    if source.flags.c_contiguous and to.flags.c_contiguous:
        if source.size:
            to.data.copy_from_device_async(source.data, source.nbytes, stream)
    else:
        to[...] = source


# ------------------------------------------------------------------------------------------------
# running nodes


class Updates(NamedTuple):
    """How the updates of a step become one kernel over lists of tensors (``cuda_updates``).

    Numbers are places among the inputs: of the ``tensors``, which have the shape of the results, of
    the ``scalars``, of the ``partners``: for each result the tensor that it is stored to in the
    end, or None; of the tensors that are only ``read``; and of the array that forbids the update,
    if there is one.
    """

    tensors: tuple[int, ...]
    scalars: tuple[int, ...]
    partners: tuple[int | None, ...]
    read: tuple[int, ...]
    flag: int | None = None


def updates_of(node: Node, stored: dict[Value, Value]) -> Updates | None:
    """How a node becomes one kernel with others; None if it is no update, or one with inputs of
    other shapes. ``stored`` says where values are stored to."""
    if node.call.__class__ is DeviceUpdateCall:
        return _of_the_device(node, stored)
    if node.call.__class__ is not UpdateCall or not node.outputs:
        return None
    shape = node.outputs[0].shape
    tensors, scalars = [], []
    for k, i in enumerate(node.inputs):
        if i.__class__ is Value and i.dtype is not None and i.shape == shape:
            tensors.append(k)
        elif not i.shape if i.__class__ is Value else isinstance(i, (int, float)):
            scalars.append(k)
        else:
            return None
    if any(v.shape != shape for v in node.outputs):
        return None
    partners = [_place_of(stored.get(v), node.inputs) for v in node.outputs]
    read = tuple(k for k in tensors if k not in partners)
    return Updates(tuple(tensors), tuple(scalars), tuple(partners), read)


def _of_the_device(node: Node, stored: dict[Value, Value]) -> Updates:
    """The places among the inputs of a ``DeviceUpdateCall``. Its kernel overwrites the first
    tensors; where a result is not stored to that tensor, the kernel gets a copy."""
    update = node.call.update
    first, last = len(update.tensors), len(update.tensors) + len(update.scalars)
    partners = [k if stored.get(v) is node.inputs[k] else None for k, v in enumerate(node.outputs)]
    read = tuple(range(len(partners), first))
    flag = last if node.call.unless else None
    return Updates(tuple(range(first)), tuple(range(first, last)), tuple(partners), read, flag)


def _place_of(target: Value | None, inputs: Sequence) -> int | None:
    """The first place of a value among inputs."""
    return next((k for k, i in enumerate(inputs) if i is target), None) if target else None


def formula_of(call, updates: Updates) -> cuda_updates.Formula:
    """The kernel of an update."""
    if call.__class__ is DeviceUpdateCall:
        return call.update.formula
    return _formula_of(tuple(call.program.outputs), tuple(call.program.inputs), updates)


@cache
def _formula_of(outputs: tuple[Expr, ...], inputs: tuple[str, ...], updates: Updates):
    """An update as a kernel of lists of tensors. Results that are stored nowhere have lists of
    their own, which the kernel overwrites without reading them."""
    written = [f"new{k}" if p is None else inputs[p] for k, p in enumerate(updates.partners)]
    tensors = [*written, *[inputs[k] for k in updates.read]]
    scalars = [inputs[k] for k in updates.scalars]
    return cuda_updates.Formula("update", tensors, scalars, outputs, {}, scalars)


def _loop_numbers(call, scalars: dict) -> list[float]:
    """What the loop of a kernel needs where all scalars are Python numbers."""
    if call.__class__ is DeviceUpdateCall:
        return call.update.values(scalars)
    return list(map(float, scalars.values()))


class Step:
    """A node, or updates of several tensors that run as one."""

    def __init__(self, node: Node, updates: Updates | None):
        self.nodes, self.updates = [node], updates

    def joins(self, node: Node, updates: Updates | None) -> bool:
        """Whether a node is the same update of other tensors."""
        first = self.nodes[0]
        if updates is None or updates != self.updates or first.call.key() != node.call.key():
            return False
        if updates.flag is not None and first.inputs[-1] is not node.inputs[-1]:
            return False
        if not all(_go_together(first.inputs[k], node.inputs[k]) for k in updates.scalars):
            return False
        made = {v for n in self.nodes for v in n.outputs}
        return not any(v in made for v in node.values)


def _go_together(a, b) -> bool:
    """Whether two inputs are the same value or the same number, or of arrays of one dtype, of
    which a kernel takes one for each tensor."""
    if a.__class__ is Value and b.__class__ is Value:
        return a is b or (a.dtype is not None and a.dtype == b.dtype)
    return a.__class__ is b.__class__ and repr(a) == repr(b)


class Segment:
    """Steps between two looks at values of the program, and what these must be."""

    def __init__(self):
        self.steps: list[Step] = []
        self.guards: list[tuple[Value, bool]] = []


def segments_of(graph: Graph) -> list[Segment]:
    """The segments of a graph. What is stored is stored at the end of the last."""
    outcomes: dict[Value, list[bool]] = {}
    for v, outcome in graph.guards:
        outcomes.setdefault(v, []).append(outcome)
    found = [Segment()]
    stored = {v: target for target, v in graph.stores}

    def look_at(values: Iterable[Value]) -> None:
        found[-1].guards += [(v, o) for v in values for o in outcomes.get(v, ())]
        if found[-1].guards:
            found.append(Segment())

    look_at([*graph.inputs, *graph.constants])
    for node in graph.nodes:
        steps, updates = found[-1].steps, updates_of(node, stored)
        if steps and steps[-1].joins(node, updates):
            steps[-1].nodes.append(node)
        else:
            steps.append(Step(node, updates))
        look_at(node.outputs)
    return found


class Run:
    """One run of the nodes of a graph, or the capture of one.

    ``in_place`` holds the inputs whose updates are computed in their memory.
    """

    def __init__(self, graph: Graph, values: dict[Value, Any], in_place: frozenset[Value]):
        self.graph, self.values, self.in_place = graph, values, in_place
        self._last = _last_steps(graph)
        self._stored = {target for target, _ in graph.stores}
        # values that share memory with an input that is stored to, by that input
        self.aliases: dict[Value, set[Value]] = {target: set() for target in self._stored}
        self._blocks: dict[int, list[Value]] = {}
        for target in self._stored:
            self._blocks.setdefault(id(values[target].data.mem), []).append(target)

    def nodes(self, segment: Segment) -> None:
        """Queue the nodes of a segment."""
        for step in segment.steps:
            if step.updates is not None:
                self._update(step.nodes, step.updates)
            else:
                self._evaluate(step.nodes[0])
            for node in step.nodes:
                for v in (*node.values, *node.outputs):
                    if self._last.get(v) in step.nodes:
                        self.values.pop(v, None)

    def _of(self, i):
        return self.values[i] if i.__class__ is Value else i

    def _evaluate(self, node: Node) -> None:
        results = node.call.evaluate([self._of(i) for i in node.inputs])
        for v, r in zip(node.outputs, results):
            self._set(v, r if hasattr(r, "data") else run_python._array(r))

    def _set(self, v: Value, array) -> None:
        self.values[v] = array
        for target in self._blocks.get(id(array.data.mem), ()):
            if backend.cupy().may_share_memory(array, self.values[target]):
                self.aliases[target].add(v)

    # ---- updates

    def _update(self, nodes: list[Node], updates: Updates) -> None:
        """An update of several tensors in one launch, of copies where the old values are needed."""
        first = nodes[0]
        formula = formula_of(first.call, updates)
        written = [
            [self._written(node, k, p) for node in nodes] for k, p in enumerate(updates.partners)
        ]
        read = [[self._of(node.inputs[k]) for node in nodes] for k in updates.read]
        numbers = [self._scalar([node.inputs[k] for node in nodes]) for k in updates.scalars]
        scalars = dict(zip(formula.scalars, numbers, strict=True))
        flag = None if updates.flag is None else self._of(first.inputs[updates.flag])
        numbers_of_loop = lambda: _loop_numbers(first.call, scalars)  # noqa: E731
        left = cuda_updates.run(formula, [*written, *read], scalars, numbers_of_loop, flag)
        for place in left:
            node = nodes[place]
            given = [self._of(i) for i in node.inputs]
            if node.call.__class__ is DeviceUpdateCall:
                given = [i.array if i.__class__ is Number else i for i in given]
            results = node.call.evaluate(given)
            for arrays, r in zip(written, results, strict=True):
                arrays[place][...] = r
        for arrays, values in zip(written, zip(*[n.outputs for n in nodes]), strict=True):
            for array, v in zip(arrays, values, strict=True):
                self._set(v, array)

    def _scalar(self, inputs: Sequence):
        """A scalar of updates as a kernel takes it: a number, an array, or a list of one array for
        each tensor."""
        found = [self._of(i) for i in inputs]
        found = [n.array if n.__class__ is Number else n for n in found]
        one = inputs[0].__class__ is not Value or all(i is inputs[0] for i in inputs)
        return found[0] if one else found

    def _written(self, node: Node, k: int, partner: int | None):
        """The memory for a result of an update, with the old values if it reads them."""
        if partner is None and node.call.__class__ is DeviceUpdateCall:
            return self._of(node.inputs[k]).copy()
        if partner is None:
            v = node.outputs[k]
            return backend.empty(v.shape, v.dtype)
        target = node.inputs[partner]
        array = self.values[target]
        return array if target in self.in_place else array.copy()

    # ---- the end

    def results(self) -> list:
        """The outputs, in memory that no store overwrites."""
        return [self._kept(v, v) for v in self.graph.outputs]

    def _kept(self, v: Value, target: Value):
        """The array of a value, a copy if it shares memory with an input that is stored to, other
        than ``target``."""
        array = self.values[v]
        shared = (t for t in self._stored if v is t or v in self.aliases[t])
        if any(t is not target and not self._updated(t, v) for t in shared):
            array = self.values[v] = array.copy()
        return array if array.flags.c_contiguous else backend.contiguous(array)

    def _updated(self, target: Value, v: Value) -> bool:
        """Whether a value is what was computed in the memory of an input."""
        return target in self.in_place and self.values[v] is self.values[target]

    def store(self) -> None:
        """Write the stored values to their memory. To be called after ``results``."""
        pairs = [(self.values[t], self._kept(v, t), t, v) for t, v in self.graph.stores]
        copy_all([(to, a) for to, a, t, v in pairs if a is not to])

    def truth(self, guards: list[tuple[Value, bool]]):
        """Whether the guarded values are true, as one array on the device."""
        found = backend.empty((len(guards),), bool)
        for k, (v, _) in enumerate(guards):
            found[k : k + 1] = self.values[v].reshape(1) != 0
        return found


def _last_steps(graph: Graph) -> dict[Value, Node]:
    """The node after which a value is not read any more."""
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        for v in (*node.outputs, *node.values):
            last[v] = node
    for v in (*graph.results(), *graph.inputs, *graph.constants):
        last.pop(v, None)
    return last


@cache
def _copying() -> cuda_updates.Formula:
    return cuda_updates.Formula("copy", ("to", "source"), (), (variable("source"),), {}, ())


def copy_all(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Copy arrays, pairs ``(to, source)`` of one shape and dtype: small ones in one launch."""
    small = [(to, a) for to, a in pairs if a.nbytes < _LARGE]
    left: Sequence[int] = range(len(small))
    if len(small) > 1:
        left = cuda_updates.run(_copying(), list(zip(*small)), {}, list, None)
    stream = backend.current_stream()
    for to, a in [*[p for p in pairs if p[1].nbytes >= _LARGE], *[small[k] for k in left]]:
        copy(a, to, stream)


def updated_in_place(graph: Graph, aliases: dict[Value, set[Value]]) -> frozenset[Value]:
    """The inputs whose updates may be computed in their memory: what is stored to them is an update
    of them in the last segment, and nobody reads their old values during it or afterwards."""
    segments = segments_of(graph)
    steps = [step for segment in segments for step in segment.steps]
    used: dict[Value, list[tuple[int, Node]]] = {}  # steps and nodes that read a value
    for number, step in enumerate(steps):
        for node in step.nodes:
            for v in node.values:
                used.setdefault(v, []).append((number, node))
    seen = {*graph.outputs, *[v for _, v in graph.stores]}
    found = set()
    for number in range(len(steps) - len(segments[-1].steps), len(steps)):
        updates = steps[number].updates
        if updates is None:
            continue
        for node in steps[number].nodes:
            for v, partner in zip(node.outputs, updates.partners, strict=True):
                if partner is None:
                    continue
                target = node.inputs[partner]
                old = {target, *aliases[target]} - {v}
                late = [r for w in old for r in used.get(w, ()) if r[0] >= number]
                if late == [(number, node)] and not seen & old:
                    found.add(target)
    return frozenset(found)


# ------------------------------------------------------------------------------------------------
# the program


class Results:
    """What a CUDA graph computes for the world outside, and how that gets it: contiguous arrays,
    the first ``lent`` as they are, the others as copies. The first ``returned`` are copied one by
    one, because their lives are their caller's; the small ones after them go together.

    Made where the graph is captured, which then ends with joining those.
    """

    def __init__(self, arrays: Sequence, returned: int, lent: int):
        self.arrays, self.lent = arrays, lent
        joined = [k for k in range(returned, len(arrays)) if 0 < arrays[k].nbytes < _LARGE]
        self._joined: list[tuple[int, int, Any]] = []  # places, offsets
        if len(joined) > 2:
            size = 0
            for k in joined:
                self._joined.append((k, size, arrays[k]))
                size += -(-arrays[k].nbytes // _ALIGN) * _ALIGN
            self._block = backend.empty((size,), "uint8")
            copy_all([(self._part(self._block, n, a), a) for _, n, a in self._joined])
        together = {k for k, *_ in self._joined}
        self._alone = [k for k in range(lent, len(arrays)) if k not in together]

    @staticmethod
    def _part(block, offset: int, like):
        """An array like another in a block of memory."""
        return backend.cupy().ndarray(like.shape, like.dtype, block.data + offset)

    def given(self, stream) -> list:
        """Queue the copies; the arrays for the caller."""
        found = list(self.arrays)
        for k in self._alone:
            found[k] = fresh(found[k], stream)
        if self._joined:
            block = fresh(self._block, stream)
            for k, offset, array in self._joined:
                found[k] = self._part(block, offset, array)
        return found


class Captured:
    """The CUDA graphs of a program, with what they read and write."""

    def __init__(self):
        self.launches: list[tuple[Any, Any, list[bool]]] = []  # graph, truth of values, outcomes
        self.results: Results = Results((), 0, 0)


class CapturedProgram:
    """A graph that is captured; see the module."""

    def __init__(self, graph: Graph, device: int):
        self.graph, self.device = graph, device
        self.reason: str | None = None  # why it is not captured
        self.captures = 0
        self.seconds = 0.0  # of capturing
        # the first results go to the caller; so many of them are lent, to be overwritten by the
        # next call. The others are gradients, which replace those of the call before.
        self.returned, self.lent = len(graph.outputs), 0
        self._ndarray = backend.cupy().ndarray
        self._arrays = [k for k, v in enumerate(graph.inputs) if v.dtype is not None]
        self._lane = lane(device)
        self._python = run_python.compile_graph(graph)
        self._segments = segments_of(graph)
        self._generators = generators(graph)
        self._inputs: Inputs | None = None
        self._captured: Captured | None = None
        self._in_place: frozenset[Value] = frozenset()

    def __call__(self, *inputs) -> Sequence | None:
        if backend.current_device() != self.device:
            with backend.at(self.device):
                return self(*inputs)
        with self._lane.lock:
            return self._draw(inputs) if self._generators else self._run(inputs)

    def _draw(self, inputs: Sequence) -> Sequence | None:
        """Run, and take back what was drawn if nothing came of it."""
        positions, results = [g._position for g in self._generators], None
        try:
            results = self._run(inputs)
        finally:
            if results is None:
                self._draw_again(positions)
        return results

    def _draw_again(self, positions: Sequence[int]) -> None:
        """Let the generators go back to where they were."""
        for generator, position in zip(self._generators, positions, strict=True):
            generator._position = position

    def _run(self, inputs: Sequence) -> Sequence | None:
        stream, bound = backend.current_stream(), self._inputs
        if self.reason is not None or (stream.ptr and stream.is_capturing()):
            return self._python(*inputs)
        if not self._are_here(inputs):
            return None
        if bound is None:
            return self._first(inputs)
        if not bound.are(inputs):
            with self._lane.used():
                if bound.moved(inputs):
                    self._captured = None
        if self._captured is None:
            self._try_capture()
        return self._python(*inputs) if self.reason is not None else self._replay(inputs, stream)

    def _are_here(self, inputs: Sequence) -> bool:
        """Whether the arrays lie on the device, as those of the recording did."""
        ndarray, device = self._ndarray, self.device
        for k in self._arrays:
            a = inputs[k]
            if a.__class__ is not ndarray or a.data.device_id != device:
                return False
        return True

    def report(self) -> list[str]:
        """What became of the graph, in lines."""
        where = f"cuda:{self.device}"
        if self.reason is not None:
            return [f"runs as lines of Python on {where}, it could not be captured: {self.reason}"]
        if self._captured is None:
            return [f"to be captured on {where}"]
        count = len(self._captured.launches)
        text = f"captured into {count} CUDA graph{'s' * (count > 1)} on {where}"
        if self.captures > 1:
            text += f", {self.captures} times: the memory of tensors changed"
        return [text, f"{len(self._in_place)} tensors updated in their memory"]

    # ---- the first call

    def _first(self, inputs: Sequence) -> Sequence | None:
        """Run for real: what it computes is the answer to the call."""
        positions = [g._position for g in self._generators]
        with self._lane.entered():
            try:
                bound = Inputs(self.graph, inputs)
                run = self._warm(bound, inputs)
            except Exception as error:
                run, self.reason = None, _reason(error)
            if run is not None:
                results = run.results()
                run.store()
                bound.give_back(inputs, backend.current_stream())
                self._in_place = updated_in_place(self.graph, run.aliases)
                self._inputs = bound
        if self.reason is not None:
            self._draw_again(positions)
            return self._python(*inputs)  # which raises the error, if it is the program's own
        return None if run is None else [a.copy() for a in results]

    def _warm(self, bound: Inputs, inputs: Sequence) -> Run | None:
        """Compute everything, and write nothing outside; None if a guard has another outcome."""
        bound.fill(inputs, backend.current_stream())
        run = Run(self.graph, bound.values(), frozenset())
        for segment in self._segments:
            run.nodes(segment)
            if segment.guards:
                truth = backend.to_numpy(run.truth(segment.guards))
                if truth.tolist() != [o for _, o in segment.guards]:
                    return None
        return run

    # ---- the capture

    def _try_capture(self) -> None:
        start = time.perf_counter()
        gc.collect()  # what dies during the capture would call CUDA
        try:
            with self._lane.used():
                self._captured = self._capture()
        except Exception as error:
            self.reason = _reason(error)
        self.captures += 1
        self.seconds += time.perf_counter() - start

    def _capture(self) -> Captured:
        assert self._inputs is not None
        captured, run = Captured(), Run(self.graph, self._inputs.values(), self._in_place)
        draws = self._inputs.draws  # all random numbers are drawn by the first nodes
        for segment in self._segments:
            recording = Recording(self._lane.pool, "relaxed", draws)
            draws, truth = [], None
            try:
                run.nodes(segment)
                if segment.guards:
                    truth = run.truth(segment.guards)
                else:
                    captured.results = Results(run.results(), self.returned, self.lent)
                    run.store()
            except BaseException:
                recording.discard()
                raise
            outcomes = [o for _, o in segment.guards]
            captured.launches.append((recording.end(), truth, outcomes))
        return captured

    def _replay(self, inputs: Sequence, stream) -> Sequence | None:
        captured, bound = self._captured, self._inputs
        assert captured is not None and bound is not None
        self._lane.begin(stream)
        try:
            bound.fill(inputs, stream)
            for graph, truth, outcomes in captured.launches:
                graph.launch()
                if truth is not None and backend.to_numpy(truth).tolist() != outcomes:
                    return None
            bound.give_back(inputs, stream)
            return captured.results.given(stream)
        finally:
            self._lane.end(stream)


def fresh(array, stream):
    """A copy of a contiguous array for the caller."""
    out = backend.empty(array.shape, array.dtype)
    if array.size:
        out.data.copy_from_device_async(array.data, array.nbytes, stream)
    return out


def _reason(error: Exception) -> str:
    """Why something was not captured, in a line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
