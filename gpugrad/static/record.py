"""From one real run of a program to its graph.

While a recorder is on (``modes.local.recording``), the engine reports to it everything it evaluates
on arrays: operations, derivatives, updates, writes, random draws. The recorder computes as asked,
and notes a node. An array is known by its identity; every array seen is kept until the recording is
over, so that no identity comes twice.

What is computed past the engine (NumPy on ``tensor.array``) cannot be seen. Its results are arrays
that nobody reported, and such an array is taken for one that existed before. A second recording
tells the two apart: what existed before is the same object again, what was made is another one, and
then the program is not replayed (``recording.py``).

Memory that is written: arrays share a ``_Memory`` with the array they are views of, and its version
counts the writes. An array whose version is behind is derived anew from its base, so that the graph
stays pure.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..backend import arrays as backend_arrays
from ..backend.arrays import _ndarray
from ..codegen.arrays import Program
from ..codegen.rows import RowProgram
from ..config import modes
from ..errors import user_line
from ..foreach import on_device
from ..ops.core import REGISTRY, Meta, Op, Rule
from ..tensor import Tensor
from .graph import (
    Call,
    CheckCall,
    DeviceUpdateCall,
    FunctionCall,
    Graph,
    Node,
    OpCall,
    ProgramCall,
    RowsCall,
    UpdateCall,
    Value,
    VjpCall,
)
from .numbers import Number, plain
from .output import Shown
from .sources import Argument, ArgumentGrad, Host, HostResult, Live, LiveArray, LiveGrad

_SCALARS = (bool, int, float, complex)


class _Memory:
    """What an array and its views share: who owns it, how often it was written, its value."""

    __slots__ = ("input", "owner", "shared", "value", "version")

    def __init__(self, owner, value: Value, input: Value | None = None):
        self.owner, self.value, self.input = owner, value, input
        self.version = 0
        self.shared = False  # with another argument


class _Memories:
    """The memory that is known, by where it lies.

    Addresses are read when somebody asks for the first time, as each takes 2 us: of most arrays
    that a program makes nobody does, as only those from outside can share memory with what is
    known.
    """

    def __init__(self):
        self._spans: list[tuple[int, int, int, _Memory]] = []  # sorted by their first addresses
        self._new: list[_Memory] = []
        self._longest = 0

    def add(self, memory: _Memory) -> None:
        self._new.append(memory)

    def overlapping(self, array) -> list[_Memory]:
        """What shares memory with an array, as far as bounds tell."""
        if self._new:
            for memory in self._new:
                low, high = bounds(memory.owner)
                self._spans.append((low, high, id(memory), memory))
                self._longest = max(self._longest, high - low)
            self._new = []
            self._spans.sort()
        low, high = bounds(array)
        first = bisect_left(self._spans, (low - self._longest,))
        last = bisect_left(self._spans, (high,))
        return [memory for _, end, _, memory in self._spans[first:last] if low < end]


class _Entry:
    """A known array: its value at a version of its memory, and how it is a view of another."""

    __slots__ = ("array", "memory", "parent", "step", "value", "version")

    def __init__(self, array, memory: _Memory, value: Value, parent=None, step=None):
        self.array, self.memory, self.value = array, memory, value
        self.version, self.parent, self.step = memory.version, parent, step


class Recorder:
    """Notes a graph while a program runs; ``record`` in recording.py puts it in place."""

    def __init__(self):
        self.graph = Graph()
        self._states: dict[int, list] = {}  # of random generators, by the tensors that hold them
        self.leaves: dict[int, tuple[Tensor, bool]] = {}  # tensors whose .grad was touched
        self._arguments: dict[int, Argument] = {}  # of tensors that are arguments
        self.hosts: list[Host] = []
        self._known: dict[int, _Entry] = {}
        self._memories = _Memories()
        self._written: dict[int, _Memory] = {}
        self._kept: list = []  # tensors, so that no identity comes twice
        self.owners: list = []  # objects that count in Python, as a part of the program
        # why the program cannot be recorded, and the line; the program runs on, unrecorded
        self.failure: tuple[str, tuple[str, int]] | None = None
        self._asking: _Asking | None = None
        self._drawing = False
        self._made: list[weakref.ref[Tensor]] = []
        self._depth = 0  # calls that are being computed
        self._clean = True  # whether the inner calls of the current one were all explained
        self.path: list[int] = []  # outcomes of branches, and whole numbers that became Python's
        self.numbers: list[weakref.ref[Number]] = []  # that item() gave
        self.shown: list[Shown] | None = None  # values that were formatted, where output is watched
        self._line: tuple[str, int] | None = None  # of the program, if it is known

    def fail(self, reason: str) -> None:
        """Note that the program does what a graph cannot do again."""
        if self.failure is None:
            self.failure = (reason, user_line())

    def _refuse(self, reason: str) -> None:
        """Fail, unless a call is being computed, which then is one node."""
        if self._depth:
            self._clean = False
        else:
            self.fail(reason)

    # ---- known arrays

    def argument(self, tensor_or_array, source) -> None:
        """Let an array be an input of the program."""
        array = getattr(tensor_or_array, "array", tensor_or_array)
        if id(array) not in self._known:
            overlapping = self._memories.overlapping(array)
            entry = self._input(array, source)
            for memory in overlapping:
                memory.shared = entry.memory.shared = True
        self._arguments.setdefault(id(tensor_or_array), source)
        self._kept.append(tensor_or_array)

    def constant(self, array) -> None:
        """An array that was made of numbers alone: the same at every call."""
        if self._depth:
            self._clean = False
            return
        if self._is_known(array):
            return
        value = self._value_of(array)
        self.graph.constants[value] = array.copy()
        self._add(array, value)

    def see(self, tensor_or_array) -> None:
        """An array that existed before the program, or a tensor that may have: an input, if it is
        not known."""
        array = getattr(tensor_or_array, "array", tensor_or_array)
        if not self._depth and not self._is_known(array):
            self._outside(array, tensor_or_array if isinstance(tensor_or_array, Tensor) else None)

    def same(self, array, other) -> None:
        """``array`` is a copy of ``other``."""
        self._add(array, self.value(other))

    def value(self, array, tensor: Tensor | None = None) -> Value:
        """The value of an array as it is now; an array never seen is an input."""
        entry = self._known.get(id(array))
        if entry is None or entry.array is not array:
            entry = self._outside(array, tensor)
        return self._current(entry)

    def _current(self, entry: _Entry) -> Value:
        memory = entry.memory
        if entry.version != memory.version:
            if entry.parent is None:
                entry.value = memory.value
            else:
                op, params = entry.step
                source = self._current(entry.parent)
                entry.value = self._value_of(entry.array)
                self._node(OpCall(op, params), (source,), (entry.value,))
            entry.version = memory.version
        return entry.value

    def _outside(self, array, tensor: Tensor | None) -> _Entry:
        self._refuse_overlap(array)
        return self._input(array, LiveArray(array) if tensor is None else Live(tensor))

    def _input(self, array, source) -> _Entry:
        value = self._value_of(array)
        self.graph.inputs.append(value)
        self.graph.sources.append(source)
        entry = self._add(array, value)
        entry.memory.input = value
        return entry

    def _refuse_overlap(self, array) -> None:
        """An unknown array over memory that is known: a view that nobody reported."""
        if self._memories.overlapping(array):
            self.fail(
                f"an array of shape {tuple(array.shape)} shares memory with a tensor of the "
                f"program, but was not made by an operation of gpugrad"
            )

    def _add(self, array, value: Value, parent=None, step=None) -> _Entry:
        memory = _Memory(array, value) if parent is None else parent.memory
        if parent is None:
            self._memories.add(memory)
        entry = self._known[id(array)] = _Entry(array, memory, value, parent, step)
        return entry

    def _value_of(self, array) -> Value:
        if array.__class__ is _ndarray:
            return self.graph.value(array.shape, array.dtype)
        device = None if not backend_arrays.is_cuda(array) else str(backend_arrays.device_of(array))
        return self.graph.value(tuple(array.shape), array.dtype, device)

    def _node(self, call: Call, inputs: Sequence, outputs: Sequence[Value]) -> None:
        self.graph.nodes.append(Node(call, inputs, outputs, self._line or user_line()))

    def at(self, line: tuple[str, int]) -> _At:
        """A context in which no code but gpugrad's runs, for a line of the program: to look for it
        at every operation takes 3 us."""
        return _At(self, line)

    def made(self, tensor: Tensor) -> None:
        """A tensor that the program made."""
        self._made.append(weakref.ref(tensor))

    def survivors(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors made by the program that somebody keeps, other than its outputs, what these
        are views of or remember for their derivative, and gradients."""
        alive = {id(t): t for ref in self._made if (t := ref()) is not None}
        for t in outputs:
            alive.pop(id(t), None)
            if t._view is not None:
                alive.pop(id(t._view[0]), None)
        for leaf, _ in self.leaves.values():
            alive.pop(id(leaf.grad), None)
        kept = remembered(outputs) if alive else ()
        return [t for t in alive.values() if id(t) not in kept]

    def has_written(self, array) -> bool:
        """Whether the program has written memory that an array lies in."""
        shares = backend_arrays.array_module(array).may_share_memory
        return any(shares(array, memory.owner) for memory in self._written.values())

    # ---- calls

    def operation(self, op: Op, args: Sequence, params: dict):
        """``op.eval(*args, **params)``; arguments may be tensors."""
        arrays = [_array(a) for a in args]
        call = OpCall(op, params)
        if op.shaped_by_values is not None and op.shaped_by_values(*arrays):
            self._refuse(f"the shape of {op.name} depends on values")
        if op.is_view and (not self._depth or (self._clean and self._all_known(args))):
            return self._view(call, args, arrays)
        compute = lambda: (op.eval(*arrays, **params),)  # noqa: E731
        return self._call(call, args, compute, op.transparent)[0]

    def _view(self, call: OpCall, args: Sequence, arrays: Sequence):
        (x,) = arrays
        source = self.value(x, args[0] if isinstance(args[0], Tensor) else None)
        z = call.op.eval(x, **call.params)
        if z is x:
            return z
        value = self._value_of(z)
        self._node(call, (source,), (value,))
        shares = z.size and backend_arrays.array_module(z).may_share_memory(z, x)
        if shares:
            self._add(z, value, self._known[id(x)], (call.op, call.params))
        else:
            self._add(z, value)
        return z

    def cotangents(self, op: Op, g, out, saved: Sequence, params: dict, needs) -> Sequence:
        """``op.vjp(...)`` on arrays; None where nothing is needed."""
        wanted = [k for k, need in enumerate(needs) if need]
        call = VjpCall(op, params, tuple(needs))
        arrays = [_array(s) for s in saved]

        def compute() -> list:
            parts = op.vjp(g, out, arrays, params, needs)
            return [d for d, need in zip(parts, needs, strict=True) if need]

        found = self._call(call, (g, out, *saved), compute, op.transparent)
        parts = [None] * len(needs)
        for k, d in zip(wanted, found, strict=True):
            parts[k] = d
        return parts

    def rule(self, rule: Rule, g, out, saved: Sequence) -> list:
        """``rule.run_arrays``: the derivative of an elementwise operation."""
        parts = [g if e.op == "input" else e.args[0] for e in rule.outputs]
        if rule.computed:
            args = (g, out, *saved) if rule.reads_output else (g, *saved)
            found = self.program(rule.program, args)
            for k, d in zip(rule.computed, found, strict=True):
                parts[k] = d
        for k, d in enumerate(parts):
            if isinstance(d, (int, float)):
                parts[k] = backend_arrays.array_module(g).full_like(g, d)
                self.constant(parts[k])
        return parts

    def program(self, program: Program, args: Sequence) -> Sequence:
        """The results of an elementwise program."""
        call = ProgramCall(program)
        arrays = [_array(a) for a in args]
        return self._call(call, args, lambda: call.evaluate(arrays), False)

    def rows(self, program: RowProgram, args: Sequence) -> Sequence:
        """The results of a program over rows."""
        call = RowsCall(program)
        return self._call(call, args, lambda: call.evaluate(args), False)

    def function(self, function: Callable, args: Sequence, params: dict):
        """``function(*args, **params)``: pure, of arrays, with one result."""
        call = FunctionCall(function, params)
        arrays = [_array(a) for a in args]
        return self._call(call, args, lambda: call.evaluate(arrays), False)[0]

    def verify(self, function: Callable, args: Sequence, params: dict) -> None:
        """``function(*args, **params)``, which raises an error or does nothing; arguments may be
        tensors."""
        params = self.plain(params)
        function(*[_array(a) for a in args], **params)
        if not self._depth:
            self._node(CheckCall(function, params), self._inputs(args), ())

    def _call(self, call: Call, args: Sequence, compute: Callable, transparent: bool) -> list:
        """Compute, and note either one node, or what the computation itself reported."""
        if self._depth and not (self._clean and self._all_known(args)):
            self._clean = False
            return list(compute())
        inputs = self._inputs(args)
        known = self._known
        mark, before, clean = len(self.graph.nodes), len(known), self._clean
        self._depth, self._clean = self._depth + 1, transparent
        try:
            results = list(compute())
        finally:
            self._depth -= 1
        for k, r in enumerate(results):
            if r.__class__ is not _ndarray:
                results[k] = _as_array(r, args)
        inner, self._clean = self._clean, clean
        if transparent and inner and all(self._is_known(r) for r in results):
            given = all(any(r is a for a in args) for r in results)
            if given or len(self.graph.nodes) > mark:
                return results
        del self.graph.nodes[mark:]
        while len(known) > before:  # what the call has made known within
            self._kept.append(known.popitem()[1])
        outputs = []
        for k, r in enumerate(results):
            if self._is_known(r):  # an argument as it is: a value of its own
                results[k] = r = r.copy()
            outputs.append(self._value_of(r))
            self._add(r, outputs[-1])
        self._node(call, inputs, outputs)
        return results

    def _is_known(self, array) -> bool:
        entry = self._known.get(id(array))
        return entry is not None and entry.array is array

    def _all_known(self, args: Sequence) -> bool:
        # by class: numpy.float64 is a float, but one that was computed
        for a in args:
            if a is None or a.__class__ in _SCALARS or isinstance(a, Meta):
                continue
            if not self._is_known(_array(a)):
                return False
        return True

    def _inputs(self, args: Sequence) -> list:
        """Arguments as the inputs of a node."""
        found, known = [], self._known.get
        for a in args:
            array = a if a.__class__ is _ndarray else getattr(a, "array", None)
            entry = known(id(array))
            if entry is None or entry.array is not array or entry.version != entry.memory.version:
                found.append(self._reference(a))
            else:  # most are known, and nobody has written them since
                found.append(entry.value)
        return found

    def _reference(self, a):
        """An argument as the input of a node."""
        if a is None or isinstance(a, Meta) or a.__class__ in _SCALARS:
            return a
        if isinstance(a, Tensor):
            return self.value(a.array, a)
        if a.__class__ is Value:
            return a
        if not backend_arrays.is_array(a):
            self.fail(f"a {type(a).__name__} is an argument of an operation")
            return None
        return self.value(a)

    # ---- effects

    def write(self, target: Tensor, value) -> None:
        """The memory of a tensor now holds the values of a tensor or array of its shape and
        dtype."""
        tensor = value if isinstance(value, Tensor) else None
        self.write_value(target.array, self.value(_array(value), tensor), target)

    def write_value(self, array, value: Value, tensor: Tensor | None = None) -> None:
        entry = self._known.get(id(array))
        if entry is None or entry.array is not array:
            entry = self._outside(array, tensor)
        memory = entry.memory
        if memory.shared:
            self.fail("an argument is written that shares memory with another")
        if entry.parent is None:
            after = value
        else:
            chain, root = [], entry
            while root.parent is not None:
                chain.append(root.step)
                root = root.parent
            base = self._current(root)
            after = self._value_of(root.array)
            put = REGISTRY["put_view"]
            self._node(OpCall(put, {"chain": tuple(chain[::-1])}), (base, value), (after,))
        memory.version += 1
        memory.value = after
        self._written[id(memory)] = memory
        if entry.parent is None:
            entry.value, entry.version = value, memory.version

    def update(self, update, lists: Sequence, scalars: dict, unless: Tensor | None) -> None:
        """An in-place update (``foreach.py``) of lists of tensors. It has been computed already."""
        call: Call = UpdateCall(update.program)
        if unless is not None or any(map(on_device, scalars.values())):
            if any(not backend_arrays.is_cuda(t.array) for t in lists[0]):
                self.fail(f"{update.__name__} of CPU tensors reads numbers on a CUDA device")
                return
            call = DeviceUpdateCall(update, unless is not None)
            numbers = self._scalars(update, scalars)
        else:
            numbers = self._numbers(update, scalars)
        flag = [] if unless is None else [self.value(unless.array, unless)]
        for place, group in enumerate(zip(*lists, strict=True)):
            inputs = [self.value(t.array, t) for t in group]
            written = group[: len(update.outputs)]
            outputs = [self._value_of(t.array) for t in written]
            given = [n[place] if n.__class__ is list else n for n in numbers]
            self._node(call, [*inputs, *given, *flag], outputs)
            for t, value in zip(written, outputs, strict=True):
                self.write_value(t.array, value, t)

    def _scalars(self, update, scalars: dict) -> list:
        """The scalars of an update on a device: those there as they are, the others as
        ``_numbers``; lists where there is one for each tensor."""
        host = update.host_numbers(scalars)
        asked = iter(host if self._asking is None else self._asking.numbers(len(host)))
        found: list = []
        for v in map(scalars.get, update.scalars):
            if not on_device(v):
                if self._asking is None and isinstance(v, Tensor):
                    self.fail(f"{update.__name__} computes with the value of a tensor on the host")
                found.append(next(asked))
            elif isinstance(v, list):
                found.append([self.value(t.array, t) for t in v])
            else:
                assert isinstance(v, Tensor)
                found.append(self.value(v.array, v))
        return found

    def _numbers(self, update, scalars: dict) -> list:
        """The numbers an update reads: those of an ``ask`` as inputs, tensors as they are."""
        tensors = {n: v for n, v in scalars.items() if isinstance(v, Tensor)}
        if self._asking is not None:
            if any(map(self._is_computed, tensors.values())):
                self.fail(f"{update.__name__} reads a tensor on the host that the program computes")
            return self._asking.numbers(len(update.numbers))
        if not tensors:
            return update.values(scalars)
        if not tensors.keys() <= set(update.numbers) or len(update.numbers) != len(scalars):
            self.fail(f"{update.__name__} computes with the value of a tensor on the host")
            return [0.0] * len(update.numbers)
        given = [scalars[n] for n in update.numbers]
        return [self.value(v.array, v) if isinstance(v, Tensor) else float(v) for v in given]

    def _is_computed(self, tensor: Tensor) -> bool:
        """Whether the program makes or changes the values of a tensor."""
        entry = self._known.get(id(tensor.array))
        return entry is not None and (entry.memory.input is None or entry.memory.version > 0)

    @contextmanager
    def ask(
        self, name: str, owner: Any, call: Callable[[], list[float]], undo: Callable[[], None]
    ) -> Iterator[None]:
        """The numbers of the updates in the ``with`` block are those that ``call`` gives: it is
        asked before every replay, and does what Python does beside them (counting steps)."""
        self._asking = _Asking(self.graph, Host(name, id(owner), call, undo))
        self.owners.append(owner)
        try:
            yield
        finally:
            self.hosts.append(self._asking.host)
            self._asking = None

    def accumulate(self, tensor: Tensor, g) -> None:
        """Add a cotangent to ``tensor.grad``, as the engine does."""
        from ..tensor import bump_version, wrap

        self.touch(tensor)
        if g.dtype != tensor.array.dtype:
            g = self.operation(REGISTRY["cast"], (g,), {"dtype": tensor.array.dtype})
        grad = tensor.grad
        if grad is None:
            with backend_arrays.there(g):
                own = g.copy()
            self.same(own, g)
            tensor.grad = wrap(own)
            return
        self.gradient(tensor)
        if grad._node is not None:
            tensor.grad = grad + wrap(g)
            return
        total = self.operation(REGISTRY["add"], (grad.array, g), {})
        with backend_arrays.there(g):
            grad.array[...] = total
        self.write(grad, total)
        bump_version(grad)

    def gradient(self, tensor: Tensor) -> None:
        """The program reads ``tensor.grad``, and whether it is None."""
        self.touch(tensor)
        if tensor.grad is not None and not self._is_known(tensor.grad.array):
            place = self._arguments.get(id(tensor))
            source = LiveGrad(tensor) if place is None else ArgumentGrad(place.place)
            self._input(tensor.grad.array, source)

    def touch(self, tensor: Tensor) -> None:
        """The program changes ``tensor.grad``: None now, or not?"""
        if id(tensor) not in self.leaves:
            self.leaves[id(tensor)] = (tensor, tensor.grad is None)
            self._kept.append(tensor)

    def draw(self, generator, key, draw: Callable[[], Tensor]) -> Tensor:
        """A tensor of random numbers, drawn anew before every replay."""
        position = generator._position
        self._drawing = True
        tensor = draw()
        self._drawing = False
        words = generator._position - position

        def undo() -> None:
            generator._position -= words

        self._kept.append(generator)
        call = lambda: [draw().array]  # noqa: E731
        host = Host("random numbers", (id(generator), key), call, undo, generator)
        self.host(host, [tensor.array])
        return tensor

    def state_read(self, generator, state: Tensor) -> None:
        """The program asks for the state of a generator, to return to it."""
        slot: list = []
        self._states[id(state)] = slot
        self._kept += [generator, state]

        def call() -> list:
            slot[:] = [generator.get_state()]
            return []

        self.hosts.append(Host("random state", id(generator), call))

    def state_set(self, generator, state: Tensor) -> None:
        """The program sets a generator to a state it asked for."""
        slot = self._states.get(id(state))
        if slot is None:
            self.fail("a random generator is set to a state that is not of this program")
        else:
            self._set(generator, "return", lambda: generator.set_state(slot[0]))

    def seeded(self, generator, seed: int) -> None:
        """The program seeds a generator."""
        self._set(generator, seed, lambda: generator.manual_seed(seed))

    def _set(self, generator, how, call: Callable) -> None:
        before: list = []

        def again() -> list:
            before[:] = [generator.get_state()]
            call()
            return []

        self._kept.append(generator)
        undo = lambda: generator.set_state(before.pop())  # noqa: E731
        self.hosts.append(Host("random state", (id(generator), how), again, undo))

    def drawn(self) -> None:
        """A generator was asked for numbers."""
        if not self._drawing:
            self.fail("random numbers are drawn in a way that cannot be repeated")

    def repeat(self, name: str, owner: Any, call: Callable[[], None], undo) -> None:
        """Python code without results that runs before every replay, too."""
        self.owners.append(owner)
        self.hosts.append(Host(name, id(owner), call, undo))

    def host(self, host: Host, results: Sequence) -> list:
        """Python code that runs before every replay, and what it gave now: numbers and arrays.
        Returns values for the numbers; the arrays are known from now on."""
        self.hosts.append(host)
        values = []
        for place, r in enumerate(results):
            source = HostResult(host, place)
            if hasattr(r, "shape"):
                values.append(self._input(r, source).value)
            else:
                value = self.graph.value(None, None)
                self.graph.inputs.append(value)
                self.graph.sources.append(source)
                values.append(value)
        return values

    def guard(self, tensor: Tensor, outcome: bool) -> None:
        """The program goes on by the truth of a tensor of one element."""
        if self._depth:
            self._clean = False
            return
        self.graph.guards.append((self.value(tensor.array, tensor), outcome))
        self.path.append(outcome)

    def whole(self, equal: Tensor, value: int) -> None:
        """The program goes on with a whole number that became Python's, if ``equal`` is true."""
        if self._depth:
            self._clean = False
            return
        self.graph.guards.append((self.value(equal.array, equal), True))
        self.path.append(value)

    def show(self, tensor: Tensor, text: str, render: Callable[[Any], str]) -> None:
        """A tensor was formatted; ``render(array)`` does it again."""
        if self.shown is None or self._depth:
            self.read("printing")
            return
        value = self.value(tensor.array, tensor)
        with backend_arrays.there(tensor.array):
            copy = tensor.array.copy()
        self._add(copy, value)
        self.shown.append(Shown(text, value, copy, render, user_line()))

    def plain(self, params: dict) -> dict:
        """Parameters of an operation, with Python's numbers for those that are followed."""
        return plain(params) if self.numbers else params

    def number(self, tensor: Tensor):
        """``tensor.item()``, as a number that the recorder goes on seeing."""
        if self._depth:
            self._clean = False
            return tensor.array.item()
        return Number.of(tensor)

    def read(self, what: str) -> None:
        """The program takes values out of tensors, to do with them what nobody sees."""
        self._refuse(f"{what} takes a value out of the program")

    # ---- the end

    def is_live(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that existed before: it is returned as it is."""
        entry = self._known.get(id(tensor.array))
        if entry is None or entry.memory.input is None:
            return False
        place = self.graph.inputs.index(entry.memory.input)
        return getattr(self.graph.sources[place], "tensor", None) is tensor

    def view_outside(self, tensor: Tensor) -> tuple[Any, tuple] | None:
        """Whose memory a tensor without history is a view of, if that existed before: its source,
        and the operations that lead to the view."""
        entry = self._known.get(id(tensor.array))
        if entry is None or entry.memory.input is None or tensor.requires_grad:
            return None
        chain = []
        while entry.parent is not None:
            chain.append(entry.step)
            entry = entry.parent
        root = entry.memory.input
        assert root is not None
        source = self.graph.sources[self.graph.inputs.index(root)]
        if source.__class__ not in (Argument, Live):
            return None
        return source, tuple(chain[::-1])

    def finish(self, outputs: Sequence[Tensor]) -> Graph:
        """The graph, with tensors as its outputs and everything written as its stores."""
        graph = self.graph
        graph.outputs = [self.value(t.array, t) for t in outputs]
        for memory in self._written.values():
            if memory.input is not None and memory.value is not memory.input:
                graph.stores.append((memory.input, memory.value))
        return graph

    def grads(self) -> list[tuple[Tensor | Argument, Value | None]]:
        """The tensors whose ``.grad`` the program replaced, with what it is at the end."""
        found: list = []
        for tensor, _ in self.leaves.values():
            owner, grad = self._arguments.get(id(tensor), tensor), tensor.grad
            if grad is None:
                found.append((owner, None))
                continue
            entry = self._known.get(id(grad.array))
            if entry is not None and entry.memory.input is None:
                found.append((owner, self._current(entry)))
        return found


class _At:
    """See ``Recorder.at``."""

    __slots__ = ("line", "outer", "recorder")

    def __init__(self, recorder: Recorder, line: tuple[str, int]):
        self.recorder, self.line = recorder, line

    def __enter__(self) -> None:
        self.outer, self.recorder._line = self.recorder._line, self.line

    def __exit__(self, *_: object) -> None:
        self.recorder._line = self.outer


class _Asking:
    """Numbers of one ``ask``, in order."""

    def __init__(self, graph: Graph, host: Host):
        self.graph, self.host, self.count = graph, host, 0

    def numbers(self, n: int) -> list[Value]:
        values = [self.graph.value(None, None) for _ in range(n)]
        for value in values:
            self.graph.inputs.append(value)
            self.graph.sources.append(HostResult(self.host, self.count))
            self.count += 1
        return values


def remembered(outputs: Sequence[Tensor]) -> set[int]:
    """Identities of the tensors that the tape behind some tensors keeps."""
    found: set[int] = set()
    seen, stack = set(), [t._node for t in outputs if t._node is not None]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(node.edges)
        for saved in node.saved:
            for t in saved if saved.__class__ is tuple else (saved,):
                if isinstance(t, Tensor):
                    found.add(id(t))
                    if t._view is not None:
                        found.add(id(t._view[0]))
    return found


def _array(a):
    return a.array if isinstance(a, Tensor) else a


def _as_array(r, args: Sequence):
    """NumPy's functions return scalars for zero-dimensional arrays."""
    if backend_arrays.is_array(r):
        return r
    like = next((_array(a) for a in args if hasattr(_array(a), "dtype")), 1.0)
    return backend_arrays.array_module(like).asarray(r)


def bounds(array) -> tuple[int, int]:
    """The addresses an array lies between."""
    start = array.ctypes.data if hasattr(array, "ctypes") else array.data.ptr
    if not array.size:
        return start, start
    if array.__class__ is _ndarray and array.flags.c_contiguous:
        return start, start + array.nbytes
    low = high = start
    for n, step in zip(array.shape, array.strides, strict=True):
        if step < 0:
            low += (n - 1) * step
        else:
            high += (n - 1) * step
    return low, high + array.itemsize


def active() -> Recorder | None:
    """The recorder of this thread, if one is on."""
    return modes.local.recording if modes.special else None
