"""Runs a graph on a CPU as one list of native tasks, in memory that is planned beforehand.

Every value has an array of its own for the life of the program: live tensors their own memory,
views are views of those, and what is computed lies in one arena, where values that are not needed
at the same time share memory. A node becomes tasks (``lower.py``); where there is no kernel, Python
calls NumPy between two runs of the list.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from ..backend.arrays import _ndarray
from ..backend.numpy import xp as np
from ..codegen.rows import INDEX
from ..codegen.tasks import TaskList
from . import lower
from .graph import Graph, Node, OpCall, RowsCall, Value, expression_of
from .sources import Live, LiveArray

_ALIGN = 64  # a cache line, and the widest vector


class Fallback(Exception):
    """The graph is left to another runner; the message says why."""


def compile_graph(graph: Graph) -> Callable[..., Sequence | None]:
    """The runner of a graph (see ``run_python.compile_graph`` for what it does and gives)."""
    return NativeProgram(graph)


class NativeProgram:
    """A graph as tasks over planned memory."""

    def __init__(self, graph: Graph):
        if any(v.device is not None for v in graph.inputs):
            raise Fallback("it has CUDA arrays")
        self.graph = graph
        self._kept: list = []
        self._arrays: dict[Value, _ndarray] = dict(graph.constants)
        self._numbers: dict[Value, list[tuple[array, int]]] = {}
        self._status: list[tuple[array, str]] = []
        self._bound: list = []
        self.steps: list = []
        self.fallbacks: list[str] = []
        self._built = False

    # ---- making it

    def _build(self, inputs: Sequence) -> None:
        """Plan memory and make tasks for inputs like these; live ones are bound to their memory."""
        graph = self.graph
        self._arrays = {v: np.array(a) for v, a in graph.constants.items()}
        self._numbers, self._status, self.steps, self._kept = {}, [], [], []
        self._copied: list[tuple[int, _ndarray]] = []
        self._fixed: list[tuple[int, _ndarray]] = []
        self._given: list[tuple[int, Value]] = []
        for place, (v, source, a) in enumerate(
            zip(graph.inputs, graph.sources, inputs, strict=True)
        ):
            if v.dtype is None:
                self._given.append((place, v))
            elif not isinstance(source, (Live, LiveArray)):
                own = np.empty(v.shape, v.dtype)
                self._arrays[v] = own
                self._copied.append((place, own))
            else:
                self._arrays[v] = a
                self._fixed.append((place, a))
        self._plan()
        self.tasks = TaskList()
        for number, node in enumerate(graph.nodes):
            self._lower(number, node)
        self._finish()
        self._built = True

    def _plan(self) -> None:
        _Planner(self.graph, self._arrays).run()

    def _of(self, i):
        return self._arrays[i] if i.__class__ is Value else i

    def _lower(self, number: int, node: Node) -> None:
        if node.call.__class__ is OpCall and node.call.op.is_view:
            out, x = self._arrays[node.outputs[0]], self._arrays[node.inputs[0]]
            if np.may_share_memory(out, x):
                return
        lowered = None
        if not any(v.dtype is not None and self._arrays[v].size == 0 for v in node.outputs):
            lowered = lower.lower(node, self._of)
        if lowered is None:
            self._call_python(node)
            return
        for task in lowered.tasks:
            self._append(task)
        for v, table, place in lowered.numbers:
            self._numbers.setdefault(v, []).append((table, place))
        for table, message in lowered.status:
            self.steps.append(_check(table, message))

    def _append(self, task) -> None:
        k = self.tasks.append(task)
        last = self.steps[-1] if self.steps else None
        if last.__class__ is list and last[1] == k:
            last[1] = k + 1
        else:
            self.steps.append([k, k + 1])

    def _call_python(self, node: Node) -> None:
        numbers = [i for i in node.inputs if i.__class__ is Value and i.dtype is None]
        arguments = [self._of(i) if i not in numbers else i for i in node.inputs]
        outputs = [self._arrays[v] for v in node.outputs]
        evaluate, given = node.call.evaluate, self._values
        self.fallbacks.append(node.call.text.split(" ")[0])

        def step() -> None:
            args = [given[a] if a.__class__ is Value else a for a in arguments]
            for out, r in zip(outputs, evaluate(args), strict=True):
                out[...] = r

        self.steps.append(step)

    def _finish(self) -> None:
        """The copies of what is stored, where it was not computed in place."""
        graph = self.graph
        self._stores = []
        inputs = set(graph.inputs)
        for target, v in graph.stores:
            to, source = self._arrays[target], self._arrays[v]
            if source is to:
                continue
            if v in inputs or np.may_share_memory(source, to):  # another store may overwrite it
                copy = np.empty_like(source)
                self.steps.append(_copy(source, copy))
                source = copy
            self._stores.append((source, to))
        if not graph.guards:
            for source, to in self._stores:
                task = lower.copy_task(source, to)
                if task is None:
                    self.steps.append(_copy(source, to))
                else:
                    self._append(task)
            self._stores = []
        self._outputs = [self._arrays[v] for v in graph.outputs]
        self._guards = [(self._arrays[v], outcome) for v, outcome in graph.guards]

    @property
    def num_kernels(self) -> int:
        """Native tasks, and calls of Python between them."""
        return len(self.tasks) + len(self.fallbacks) if self._built else len(self.graph.nodes)

    @property
    def num_runs(self) -> int:
        """Native calls of one replay."""
        return sum(step.__class__ is list for step in self.steps)

    # ---- running it

    _values: dict

    def __call__(self, *inputs) -> list | None:
        if not self._built or any(inputs[place] is not a for place, a in self._fixed):
            self._values = {}
            self._build(inputs)
        for place, own in self._copied:
            own[...] = inputs[place]
        for place, v in self._given:
            number = inputs[place]
            self._values[v] = number
            for table, k in self._numbers.get(v, ()):
                table[k] = number
        run = self.tasks.run
        for step in self.steps:
            if step.__class__ is list:
                run(*step)
            else:
                step()
        for a, outcome in self._guards:
            if bool(a.item()) is not outcome:
                return None
        for source, to in self._stores:
            to[...] = source
        return [a.copy() for a in self._outputs]


def _copy(source, to) -> Callable[[], None]:
    def step() -> None:
        to[...] = source

    return step


def _check(table: array, message: str) -> Callable[[], None]:
    def step() -> None:
        if table[0]:
            table[0] = 0
            raise IndexError(message)

    return step


# ------------------------------------------------------------------------------------------------
# memory


class _Planner:
    """Gives every value an array.

    Views are views of their argument's array. A value that is stored at the end is computed in the
    memory it is stored to, if nothing reads the old value afterwards. The result of an elementwise
    node may take the memory of an argument that dies with it. Everything else gets a place in the
    arena for the time between its first and last use.
    """

    def __init__(self, graph: Graph, arrays: dict[Value, _ndarray]):
        self.graph, self.arrays = graph, arrays
        self.roots: dict[Value, Value] = {v: v for v in arrays}  # whose memory a value lies in
        self.made: dict[Value, int] = {}
        self.last: dict[Value, int] = {}

    def run(self) -> None:
        graph = self.graph
        self._find_views()
        end = len(graph.nodes)
        for k, node in enumerate(graph.nodes):
            for v in node.outputs:
                self.made[v] = k
                self._use(v, k)
            for v in node.values:
                self._use(v, k)
        for v in graph.results():
            self._use(v, end)
        self._stored_in_place()
        self._place()
        for node in graph.nodes:
            self._make_views(node)

    def _use(self, v: Value, k: int) -> None:
        root = self.roots.get(v, v)
        self.last[root] = max(self.last.get(root, 0), k)

    def _find_views(self) -> None:
        """Whose memory a view lies in: asked of views of arrays without memory of their own."""
        stand_ins = dict(self.arrays)
        for node in self.graph.nodes:
            view = node.call.__class__ is OpCall and node.call.op.is_view
            for v in node.outputs:
                stand_ins[v] = None if v.dtype is None else _Lazy(v)
            if view:
                (x,) = node.inputs
                source = _array_of(stand_ins[x])
                out = node.call.op.eval(source, **node.call.params)
                if np.may_share_memory(out, source) or not out.size:
                    stand_ins[node.outputs[0]] = out
                    self.roots[node.outputs[0]] = self.roots.get(x, x)

    def _stored_in_place(self) -> None:
        if self.graph.guards:
            return  # nothing may be written before they are asked
        for target, v in self.graph.stores:
            k, to = self.made.get(v), self.arrays[target]
            if k is None or v in self.roots or v in self.arrays or not to.flags.c_contiguous:
                continue
            node = self.graph.nodes[k]
            reads = [w for w in node.values if self.roots.get(w, w) is target]
            elementwise = expression_of(node) is not None and all(w is target for w in reads)
            if self.last.get(target, -1) > k or (reads and not elementwise):
                continue
            if any(np.may_share_memory(to, a) for w, a in self.arrays.items() if w is not target):
                continue
            if not all(_cannot_fail(n) for n in self.graph.nodes[k:]):
                continue
            self.arrays[v] = to
            self.roots[v] = target

    def _place(self) -> None:
        arena = _Arena()
        places: dict[Value, int] = {}  # of values that are alive
        chosen: dict[Value, int] = {}
        dying: dict[int, list[Value]] = {}
        for v, k in self.last.items():
            if v in self.made and v not in self.arrays and v not in self.roots:
                dying.setdefault(k, []).append(v)
        for k, node in enumerate(self.graph.nodes):
            elementwise = expression_of(node) is not None
            new = [v for v in node.outputs if v not in self.arrays and v not in self.roots]
            dead = dying.get(k, [])
            for v in new:
                partner = next((w for w in dead if elementwise and w in places and w not in new
                                and _same(v, w) and self._read_as_it_is(node, w)), None)  # fmt: skip
                if partner is not None:
                    places[v] = places.pop(partner)
                    dead.remove(partner)
                else:
                    places[v] = arena.take(_bytes(v))
                chosen[v] = places[v]
            for w in dead:
                if w in places:
                    arena.give(places.pop(w), _bytes(w))
        memory = np.empty(arena.size + _ALIGN, np.uint8)
        start = -memory.ctypes.data % _ALIGN
        for v, place in chosen.items():
            begin = start + place
            part = memory[begin : begin + _bytes(v)]
            self.arrays[v] = (
                part.view(v.dtype).reshape(v.shape) if _bytes(v) else np.empty(v.shape, v.dtype)
            )

    def _read_as_it_is(self, node: Node, w: Value) -> bool:
        """Whether a node reads this memory through the value itself alone, not through views."""
        return all(v is w for v in node.values if self.roots.get(v, v) is w)

    def _make_views(self, node: Node) -> None:
        for v in node.outputs:
            if v not in self.arrays:
                assert isinstance(node.call, OpCall)
                self.arrays[v] = node.call.op.eval(self.arrays[node.inputs[0]], **node.call.params)


class _Lazy:
    """An array that is made only if somebody looks at its strides."""

    def __init__(self, v: Value):
        self.value, self.array = v, None


def _array_of(a):
    if a.__class__ is not _Lazy:
        return a
    if a.array is None:
        a.array = np.empty(a.value.shape, a.value.dtype)
    return a.array


def _cannot_fail(node: Node) -> bool:
    """Whether a node never raises an error for values it does not like."""
    if node.call.__class__ is RowsCall:
        return INDEX not in node.call.program.inputs.values()
    if node.call.__class__ is OpCall:
        return node.call.op.is_view or lower.knows(node.call.op) or expression_of(node) is not None
    return expression_of(node) is not None


def _same(v: Value, w: Value) -> bool:
    return v.shape == w.shape and v.dtype == w.dtype


def _bytes(v: Value) -> int:
    n = v.dtype.itemsize
    for size in v.shape or ():
        n *= size
    return n


class _Arena:
    """Places in one piece of memory: the first gap that is large enough, else the end."""

    def __init__(self):
        self.size = 0
        self._free: list[tuple[int, int]] = []  # (place, bytes), in order

    def take(self, n: int) -> int:
        n = max(_ALIGN, -(-n // _ALIGN) * _ALIGN)
        fitting = [(size, k) for k, (_, size) in enumerate(self._free) if size >= n]
        if fitting:
            _, k = min(fitting)
            place, size = self._free[k]
            if size == n:
                del self._free[k]
            else:
                self._free[k] = (place + n, size - n)
            return place
        if self._free and sum(self._free[-1]) == self.size:
            place, size = self._free.pop()
            self.size += n - size
            return place
        self.size += n
        return self.size - n

    def give(self, place: int, n: int) -> None:
        n = max(_ALIGN, -(-n // _ALIGN) * _ALIGN)
        self._free.append((place, n))
        self._free.sort()
        merged: list[tuple[int, int]] = []
        for start, size in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self._free = merged
