"""Runs a graph on a CPU as one list of native tasks, in memory that is planned beforehand.

Every value has an array of its own for the life of the program: live tensors their own memory,
views are views of those, and what is computed lies in one arena, where values that are not needed
at the same time share memory. A node becomes tasks (``lower.py``); where there is no kernel, Python
calls NumPy between two runs of the list.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import is_not
from typing import Any

from ..backend.arrays import _ndarray
from ..backend.memory import references
from ..backend.numpy import xp as np
from ..codegen import chains, workers
from ..codegen.rows import INDEX
from ..codegen.tasks import Task, TaskList
from . import lower
from .graph import (
    EpilogueCall,
    Graph,
    Node,
    OpCall,
    PrologueCall,
    RowsCall,
    Value,
    expression_of,
)
from .passes.epilogues import join_epilogues
from .passes.fusion import viewed
from .passes.joining import join_rows
from .passes.pools import mask_before_pools
from .passes.prologues import join_prologues
from .passes.totals import sum_in_passing
from .record import bounds
from .sources import Live, LiveArray, LiveGrad

_ALIGN = 64  # a cache line, and the widest vector
# Bytes that may rest before other values take their place: a quarter of an L2 cache of 512 KiB.
_RESTING = 1 << 17
_READABLE = 0x101  # NumPy's flags for C-contiguous and aligned
_ANEW = object()  # the answer of a program whose memory is not the one it was built for


def _pool_address() -> int | None:
    pool = workers.current()
    return None if pool is None else pool.address


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
        graph = join_rows(mask_before_pools(graph))
        self.graph = graph = join_prologues(join_epilogues(sum_in_passing(graph)))
        self.bytes = 0
        self.seconds = 0.0  # of planning and of making tasks, kernels among it
        # outputs that a call gives as they are, to be overwritten by the next: the first so many,
        # and the last so many where no memory outside is seen through them
        self.lent = self.saved = 0
        # outputs that get memory of their own, and are given as they are; how many references the
        # program itself has to each of them
        self.apart: set[int] = set()
        self.references: dict[int, int] = {}
        self._arrays: dict[Value, _ndarray] = {}
        self._numbers: dict[Value, list[tuple[array, int]]] = {}
        self.steps: list = []
        self._waiting: list[Task] = []  # for the native call that has them all
        self.fallbacks: list[str] = []
        self.built = False
        self._call: Callable[..., Any] | None = None

    # ---- making it

    def _build(self, inputs: Sequence) -> None:
        """Plan memory and make tasks for inputs like these; live ones are bound to their memory."""
        graph = self.graph
        self._arrays = {v: np.array(a) for v, a in graph.constants.items()}
        self._numbers, self.steps, self.fallbacks = {}, [], []
        self._values: dict[Value, float] = {}
        self._used_by_python: set[Value] = set()
        self._copied: dict[Value, _ndarray] = {}
        self._fixed: list[tuple[int, _ndarray]] = []
        self.given: list[tuple[int, Value]] = []
        stored = {target for target, _ in graph.stores}
        for place, (v, source, a) in enumerate(
            zip(graph.inputs, graph.sources, inputs, strict=True)
        ):
            live = isinstance(source, (Live, LiveArray))
            if source.__class__ is LiveGrad and v not in stored:
                live = False  # every backward pass leaves another array
            if v.dtype is None:
                self.given.append((place, v))
            elif not live:
                self._arrays[v] = own = np.empty(v.shape, v.dtype)
                self.given.append((place, v))
                self._copied[v] = own
            else:
                self._arrays[v] = a
                self._fixed.append((place, a))
        self._plan()
        self.tasks, self._waiting = TaskList(), []
        for number, node in enumerate(graph.nodes):
            self._lower(number, node)
        self._finish()
        self._write_out()
        self.built = True

    def renounce(self) -> None:
        """Leave the outputs that are apart to those who have them: copies are given from now on."""
        self.apart, self._call, self.built = set(), None, False

    def _plan(self) -> None:
        planner = _Planner(self.graph, self._arrays, {self.graph.outputs[k] for k in self.apart})
        planner.run()
        self.apart = {k for k in self.apart if self.graph.outputs[k] in planner.apart}
        self.bytes = planner.bytes  # of memory for values in between, reused among them

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
            self._then(_check(table, message))

    def _append(self, task: Task) -> None:
        """Add a task that is run natively with those before it."""
        self._waiting.append(task)

    def _then(self, step: Callable[[], None]) -> None:
        """Add something that Python does."""
        self._end_run()
        self.steps.append(step)

    def _end_run(self) -> None:
        """Make one native call of the tasks that wait for one."""
        start = len(self.tasks)
        for task in chains.joined(self._waiting):
            self.tasks.append(task)
        if len(self.tasks) > start:
            self.steps.append([start, len(self.tasks)])
        self._waiting = []

    def _call_python(self, node: Node) -> None:
        numbers = [i for i in node.inputs if i.__class__ is Value and i.dtype is None]
        arguments = [self._of(i) if i not in numbers else i for i in node.inputs]
        outputs = [self._arrays[v] for v in node.outputs]
        evaluate, given = node.call.evaluate, self._values
        self._used_by_python.update(v for v in node.values if v.dtype is not None)
        self.fallbacks.append(node.call.text.split(" ")[0])

        def step() -> None:
            args = [given[a] if a.__class__ is Value else a for a in arguments]
            for out, r in zip(outputs, evaluate(args), strict=True):
                out[...] = r

        self._then(step)

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
                self._then(_copy(source, copy))
                source = copy
            self._stores.append((source, to))
        if not graph.guards:
            for source, to in self._stores:
                task = lower.copy_task(source, to)
                if task is None:
                    self._then(_copy(source, to))
                else:
                    self._append(task)
            self._stores = []
        self._end_run()
        self.outputs = outputs = [self._arrays[v] for v in graph.outputs]
        outside = [a for _, a in self._fixed]
        saved = range(len(outputs) - self.saved, len(outputs))
        self.copied = [
            k >= self.lent
            and k not in self.apart
            and (k not in saved or any(np.may_share_memory(a, other) for other in outside))
            for k, a in enumerate(outputs)
        ]
        self._guards = [(self._arrays[v], outcome) for v, outcome in graph.guards]

    @property
    def num_kernels(self) -> int:
        """Native tasks, and calls of Python between them."""
        if not self.built:
            return len(self.graph.nodes)
        return sum(1 for _ in self.tasks.calls()) + len(self.fallbacks)

    @property
    def chains(self) -> list[int]:
        """Native tasks in each chain (``codegen/chains.py``)."""
        return [len(task.members) for task in self.tasks.tasks if task.members]

    @property
    def prologues(self) -> int:
        """Products whose second operand is computed while they read it."""
        return sum(node.call.__class__ is PrologueCall for node in self.graph.nodes)

    @property
    def num_runs(self) -> int:
        """Native calls of one replay."""
        return sum(step.__class__ is list for step in self.steps)

    # ---- running it

    def __call__(self, *inputs) -> list | None:
        if self._call is not None:
            outputs = self._call(*inputs)
            if outputs is not _ANEW:
                return outputs
        start = time.perf_counter()
        self._build(inputs)
        self.references = {k: references(self.outputs, k) for k in self.apart}
        self.seconds += time.perf_counter() - start
        assert self._call is not None
        return self._call(*inputs)

    def _write_out(self) -> None:
        """The functions that run everything, written out: one of the inputs that change from call
        to call, to the arrays of the outputs, which the next call overwrites; and one of all
        inputs, to outputs that are the caller's own, or ``_ANEW`` where inputs that are bound to
        their memory are others. For a step with a parameter, an argument and a learning rate:

            def entry(v0, v7):
                b0(v0)
                for t in t0: t[2] = v7
                run(address, 0, 18, pool())
                return (o0,)

            def call(v0, v1, v7):
                if any(map(is_not, (v1, ), fixed)): return ANEW
                ...
                return [o0.copy()]
        """
        fixed = [a for _, a in self._fixed]
        namespace: dict = {"ANEW": _ANEW, "is_not": is_not, "fixed": fixed}
        body = self._body(namespace)
        inputs = self.graph.inputs
        outputs = [_name(namespace, "o", a) for a in self.outputs]
        own = [f"{o}.copy()" if copy else o for o, copy in zip(outputs, self.copied, strict=True)]
        bound = "".join([f"v{inputs[place].number}, " for place, _ in self._fixed])
        lines = [
            f"def entry({', '.join(f'v{v.number}' for _, v in self.given)}):",
            *body,
            f"    return ({''.join(f'{o}, ' for o in outputs)})",
            f"def call({', '.join(f'v{v.number}' for v in inputs)}):",
            f"    if any(map(is_not, ({bound}), fixed)): return ANEW",
            *body,
            f"    return [{', '.join(own)}]",
        ]
        exec(compile("\n".join(lines), "<gpugrad native program>", "exec"), namespace)
        self.entry: Callable[..., tuple | None] = namespace["entry"]
        self._call = namespace["call"]

    def _body(self, namespace: dict) -> list[str]:
        """The lines between, and what they refer to."""
        shared = any(task.parts > 1 for task in self.tasks.tasks)
        namespace.update(run=self.tasks._call, address=self.tasks._address, pool=_pool_address)
        name = partial(_name, namespace)
        lines = []
        for _, v in self.given:
            if v in self._copied:
                lines.append(f"    {name('b', self._binding(v))}(v{v.number})")
            places: dict[int, list[array]] = {}
            for table, k in self._numbers.get(v, ()):
                places.setdefault(k, []).append(table)
            for k, tables in places.items():  # a loop, as a line for each takes 15 us to compile
                lines.append(f"    for t in {name('t', tables)}: t[{k}] = v{v.number}")
            if v.dtype is None:
                lines.append(f"    {name('n', self._values)}[{name('k', v)}] = v{v.number}")
        for step in self.steps:
            if step.__class__ is list:
                pool = "pool()" if shared else "None"
                lines.append(f"    run(address, {step[0]}, {step[1]}, {pool})")
            else:
                lines.append(f"    {name('s', step)}()")
        for a, outcome in self._guards:
            lines.append(f"    if bool({name('g', a)}.item()) is not {outcome}: return None")
        for source, to in self._stores:
            lines.append(f"    {name('to', to)}[...] = {name('from', source)}")
        for v, _ in self.graph.stores:
            if v in self._copied:
                lines.append(f"    v{v.number}[...] = {name('own', self._copied[v])}")
        return lines

    def _binding(self, v: Value) -> Callable[[_ndarray], None]:
        """A function that lets the program read an array given with a call: where it is, if the
        tasks can read it there, else from a copy."""
        own = self._copied[v]
        words = [
            (task.table, k)
            for task in self.tasks.calls()
            for k, word in enumerate(task.table)
            if word == id(own)
        ]
        seen_by_tasks = (a for task in self.tasks.calls() for a in _arrays_in(task.keep))
        viewed = any(
            a is not own and np.may_share_memory(a, own)
            for a in (*self._arrays.values(), *seen_by_tasks)
        )
        read_here = v in self.graph.results() or any(t is v for t, _ in self.graph.stores)
        if read_here or viewed or v in self._used_by_python or not own.size or not v.shape:

            def copy(a) -> None:
                own[...] = a

            return copy
        written = [self._arrays[target] for target, _ in self.graph.stores]
        apart = not written
        low = min([a.ctypes.data for a in written], default=0)
        high = max([a.ctypes.data + a.nbytes for a in written], default=0)
        seen: Any = own

        def bind(a) -> None:
            nonlocal seen
            if a is seen:
                return
            readable = a.flags.num & _READABLE == _READABLE
            if readable and (apart or not low <= a.ctypes.data < high):
                here = seen = a
            else:  # strided, or maybe overwritten while it is read
                own[...] = a
                here, seen = own, None
            for table, k in words:
                table[k] = id(here)

        return bind


def _name(namespace: dict, prefix: str, value) -> str:
    """A name for a value in lines that are written out."""
    key = f"{prefix}{len(namespace)}"
    namespace[key] = value
    return key


def _arrays_in(kept) -> Iterator[_ndarray]:
    if kept.__class__ is _ndarray:
        yield kept
    elif isinstance(kept, (tuple, list)):
        for k in kept:
            yield from _arrays_in(k)


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
    memory it is stored to, if nothing reads the old value afterwards. A part of a ``cat`` along the
    first axis is computed in its place there. The result of an elementwise
    node may take the memory of an argument that dies with it. Everything else gets a place in the
    arena for the time between its first and last use.
    """

    def __init__(self, graph: Graph, arrays: dict[Value, _ndarray], apart: set[Value]):
        """``apart`` are the values that shall have memory of their own."""
        self.graph, self.arrays, self.apart = graph, arrays, apart
        self.roots: dict[Value, Value] = {v: v for v in arrays}  # whose memory a value lies in
        self.parts: dict[Value, tuple[Value, int]] = {}  # of a cat: it, and the first row
        self.made: dict[Value, int] = {}
        self.last: dict[Value, int] = {}

    def run(self) -> None:
        graph = self.graph
        self._find_views()
        self._find_parts()
        end = len(graph.nodes)
        for k, node in enumerate(graph.nodes):
            for v in node.outputs:
                self.made[v] = k
                self._use(v, k)
            for v in node.values:
                self._use(v, k)
        for v in graph.results():
            self._use(v, end)
        fallible = [k for k, node in enumerate(graph.nodes) if not _cannot_fail(node)]
        fails = max(fallible, default=-1)  # before it nothing may be written
        self._stored_in_place(fails)
        self._place_apart(fails)
        self._place()
        for node in graph.nodes:
            self._make_views(node)

    def _use(self, v: Value, k: int) -> None:
        """Note that a value is used at a time, none before the times that are known."""
        self.last[self.roots.get(v, v)] = k

    def _find_views(self) -> None:
        """Whose memory a view lies in: asked of views of arrays without memory of their own."""
        stand_ins: dict[Value, Any] = dict(self.arrays)
        for node in self.graph.nodes:
            view = node.call.__class__ is OpCall and node.call.op.is_view
            for v in node.outputs:
                stand_ins[v] = None if v.dtype is None else _Lazy(v)
            if view:
                (x,) = node.inputs
                source = _array_of(stand_ins[x])
                out = viewed(source, node.call)
                if out is not None and (np.may_share_memory(out, source) or not out.size):
                    stand_ins[node.outputs[0]] = out
                    self.roots[node.outputs[0]] = self.roots.get(x, x)

    def _find_parts(self) -> None:
        """Values that are computed where a ``cat`` along the first axis wants them."""
        stored = {v for _, v in self.graph.stores}
        made = {v for node in self.graph.nodes for v in node.outputs}
        for node in self.graph.nodes:
            if node.call.__class__ is not OpCall or node.call.op.name != "cat":
                continue
            (whole,), start = node.outputs, 0
            if node.call.params["axis"] % len(whole.shape) or whole in stored:
                continue
            for v in node.inputs:
                taken = v in self.roots or v in self.parts or v in stored
                if v in made and not taken and v.dtype == whole.dtype:
                    self.parts[v] = (whole, start)
                start += v.shape[0]
        for v in self.parts:
            self.roots[v] = self._whole(v)
        for v, root in self.roots.items():
            self.roots[v] = self._whole(root)

    def _whole(self, v: Value) -> Value:
        """The outermost ``cat`` that a value lies in, or itself."""
        while v in self.parts:
            v = self.parts[v][0]
        return v

    def _part(self, v: Value) -> _ndarray:
        """The place of a part in the memory of the whole."""
        if v not in self.parts:
            return self.arrays[v]
        whole, start = self.parts[v]
        return self._part(whole)[start : start + v.shape[0]]

    def _place_apart(self, fails: int) -> None:
        """Values that are seen outside until they are overwritten, if nothing fails after that."""
        self.apart = {
            v
            for v in self.apart
            if v in self.made and self.made[v] > fails
            if v not in self.roots and v not in self.arrays
        }
        for v in self.apart:
            self.arrays[v], self.roots[v] = np.empty(v.shape, v.dtype), v

    def _stored_in_place(self, fails: int) -> None:
        if self.graph.guards:
            return  # nothing may be written before they are asked
        overlapping = _overlapping(self.arrays.values())
        for target, v in self.graph.stores:
            k, to = self.made.get(v), self.arrays[target]
            if k is None or v in self.roots or v in self.arrays or not to.flags.c_contiguous:
                continue
            node = self.graph.nodes[k]
            if self.last.get(target, -1) > k or not self._may_overwrite(node, target):
                continue
            if k <= fails or id(to) in overlapping:
                continue
            self.arrays[v] = to
            self.roots[v] = target

    def _may_overwrite(self, node: Node, target: Value) -> bool:
        """Whether a node may write where it reads a value: it reads each element of it, as it is,
        before it writes that element; or it does not read the memory at all."""
        reads = [w for w in node.values if self.roots.get(w, w) is target]
        if not reads:
            return True
        if node.call.__class__ is EpilogueCall:
            operands = [w for w in node.inputs[:2] if self.roots.get(w, w) is target]
            twice = node.call.producer.op.name in lower.COMPUTE_TWICE
            return not operands and not twice and all(w is target for w in reads)
        return expression_of(node) is not None and all(w is target for w in reads)

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
            new = [v for v in new if v not in chosen]  # a cat is placed with its first part
            for whole in {self._whole(v) for v in node.outputs if v in self.parts}:
                if whole not in chosen:
                    places[whole] = chosen[whole] = arena.take(_bytes(whole))
            dead = dying.get(k, [])
            for v in new:
                fitting = (w for w in dead if w in places and w not in new and _same(v, w))
                fitting = (w for w in fitting if elementwise and self._read_as_it_is(node, w))
                partner = next(fitting, None)
                if partner is not None:
                    places[v] = places.pop(partner)
                    dead.remove(partner)
                else:
                    places[v] = arena.take(_bytes(v))
                chosen[v] = places[v]
            for w in dead:
                if w in places:
                    arena.give(places.pop(w), _bytes(w))
        self.bytes = arena.size
        memory = np.empty(arena.size + _ALIGN, np.uint8)
        start = -memory.ctypes.data % _ALIGN
        for v, place in chosen.items():
            begin = start + place
            part = memory[begin : begin + _bytes(v)]
            self.arrays[v] = (
                part.view(v.dtype).reshape(v.shape) if _bytes(v) else np.empty(v.shape, v.dtype)
            )
        for v in self.parts:
            self.arrays[v] = self._part(v)

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
        self.value = v
        self.array: _ndarray | None = None


def _array_of(a):
    if a.__class__ is not _Lazy:
        return a
    if a.array is None:
        a.array = np.empty(a.value.shape, a.value.dtype)
    return a.array


def _overlapping(arrays: Iterable[_ndarray]) -> set[int]:
    """Identities of the arrays that share memory with another one (as far as bounds tell)."""
    spans = sorted((*bounds(a), id(a)) for a in arrays if a.size)
    found: set[int] = set()
    end, last = 0, 0
    for low, high, this in spans:
        if low < end and this != last:
            found |= {last, this}
        if high > end:
            end, last = high, this
    return found


def _cannot_fail(node: Node) -> bool:
    """Whether a node never raises an error for values it does not like."""
    if node.call.__class__ in (EpilogueCall, PrologueCall):
        return True
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
    """Places in one piece of memory: the first gap that is large enough, else the end.

    A small place that is given back rests: the next value of its size takes it, any other one only
    when much rests. Values whose rows lie otherwise would end a chain (``codegen/chains.py``).
    """

    def __init__(self):
        self.size = 0
        self._free: list[tuple[int, int]] = []  # (place, bytes), in order
        self._resting: list[tuple[int, int]] = []  # the latest last

    def take(self, n: int) -> int:
        n = max(_ALIGN, -(-n // _ALIGN) * _ALIGN)
        for k in reversed(range(len(self._resting))):
            if self._resting[k][1] == n:
                return self._resting.pop(k)[0]
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
        self._resting.append((place, max(_ALIGN, -(-n // _ALIGN) * _ALIGN)))
        while sum(size for _, size in self._resting) > _RESTING:
            self._release(*self._resting.pop(0))

    def _release(self, place: int, n: int) -> None:
        self._free.append((place, n))
        self._free.sort()
        merged: list[tuple[int, int]] = []
        for start, size in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self._free = merged
