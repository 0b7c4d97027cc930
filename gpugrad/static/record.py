"""From one real run of a program to its graph.

While a recorder is on (``modes.local.recording``), the engine reports to it everything it evaluates
on arrays: operations, derivatives, updates, writes, random draws. The recorder computes as asked,
and notes a node. An array is known by its identity; every array seen is kept until the recording is
over, so that no identity comes twice.

What is computed past the engine (NumPy on ``tensor.array``) cannot be seen. Its results are arrays
that nobody reported, and such an array is taken for one that existed before. A second recording
tells the two apart: what existed before is the same object again, what was made is another one, and
then the program is not replayed (``recording.py``).

Most arrays are computed once, and known by their value alone. An array from outside, or one that is
written or has views, is an ``_Owner`` of memory, whose version counts the writes; a ``_View`` whose
version is behind is derived anew from its parent, so that the graph stays pure.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..backend import arrays as backend_arrays
from ..backend.arrays import _ndarray
from ..codegen.arrays import Program
from ..codegen.rows import RowProgram
from ..config import modes
from ..errors import Line, user_line
from ..foreach import on_device
from ..ops.core import REGISTRY, Elementwise, Meta, Op, Rule
from ..tensor import Tensor, bump_version, wrap
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


class _Owner:
    """A known array with memory of its own, as far as the program sees: its value, how often the
    memory was written, and the input it is, if it existed before."""

    __slots__ = ("array", "input", "shared", "value", "version")

    def __init__(self, array, value: Value, input: Value | None = None):
        self.array, self.value, self.input = array, value, input
        self.version = 0
        self.shared = False  # with another argument


class _View:
    """A known array over the memory of another: its value at a version of that memory, and how it
    is made of ``parent``."""

    __slots__ = ("array", "owner", "parent", "step", "value", "version")

    def __init__(self, array, value: Value, parent: _Owner | _View, step: tuple[Op, dict]):
        self.array, self.value, self.parent, self.step = array, value, parent, step
        self.owner = _owner(parent)
        self.version = self.owner.version


def _owner(entry: _Owner | _View) -> _Owner:
    return entry.owner if isinstance(entry, _View) else entry


class _Memories:
    """The memory that is known, by who owns it and by where it lies.

    Arrays of different owners lie apart, which answers most questions. Addresses are read where it
    does not, as each takes 2 us.
    """

    def __init__(self):
        self._new: list[Any] = []
        self.add = self._new.append
        self._owners: set[int] = set()  # of them all, by identity
        self._foreign = False  # whether memory of some is not NumPy's
        self._unread: list[Any] = []
        self._spans: list[tuple[int, int, int, Any]] = []  # sorted by their first addresses
        self._longest = 0

    def overlapping(self, array) -> list:
        """The arrays that share memory with one, as far as bounds tell."""
        for known in self._new:
            owner = _numpy_owner(known)
            self._foreign = self._foreign or owner is None
            self._owners.add(id(owner))
        self._unread += self._new
        self._new.clear()
        owner = _numpy_owner(array)
        if owner is not None and id(owner) not in self._owners and not self._foreign:
            return []
        self._read_addresses()
        low, high = bounds(array)
        first = bisect_left(self._spans, (low - self._longest,))
        last = bisect_left(self._spans, (high,))
        return [known for _, end, _, known in self._spans[first:last] if low < end]

    def _read_addresses(self) -> None:
        for known in self._unread:
            low, high = bounds(known)
            self._spans.append((low, high, id(known), known))
            self._longest = max(self._longest, high - low)
        self._unread = []
        self._spans.sort()


def _numpy_owner(array):
    """The array whose memory NumPy allocated, for an array that lies in it; None for memory of
    anybody else."""
    while array.__class__ is _ndarray:
        if array.base is None:
            return array if array.flags.owndata else None
        array = array.base
    return None


class _Calls(dict):
    """The calls of operations without parameters, and of elementwise programs: each once."""

    def __missing__(self, what: Op | Program) -> Call:
        call = ProgramCall(what) if isinstance(what, Program) else OpCall(what, {})
        self[what] = call
        return call


class Recorder:
    """Notes a graph while a program runs; ``record`` in recording.py puts it in place."""

    def __init__(self):
        self.graph = Graph()
        self._states: dict[int, list] = {}  # of random generators, by the tensors that hold them
        # tensors whose .grad was touched, and whether it was None; those that the program has made
        # itself and forgotten need nothing
        self._leaves: dict[int, tuple[weakref.ref[Tensor], bool]] = {}
        self._arguments: dict[int, Argument] = {}  # of tensors that are arguments
        self.hosts: list[Host] = []
        # what arrays stand for, by their identities: values and numbers are what they are
        self._known: dict[int, Value | float | _Owner | _View] = {}
        self._memories = _Memories()
        self.written: dict[int, _Owner] = {}
        self._calls = _Calls()
        self._kept: list = []  # tensors, so that no identity comes twice
        self.owners: list = []  # objects that count in Python, as a part of the program
        # why the program cannot be recorded, and the line; the program runs on, unrecorded
        self.failure: tuple[str, Iterable] | None = None
        self._asking: _Asking | None = None
        self._drawing = False
        self._made: list[weakref.ref[Tensor]] = []
        self._depth = 0  # calls that are being computed
        self._clean = True  # whether the inner calls of the current one were all explained
        self.path: list[int] = []  # outcomes of branches, and whole numbers that became Python's
        self.numbers: list[weakref.ref[Number]] = []  # that item() gave
        self.shown: list[Shown] | None = None  # values that were formatted, where output is watched
        # of the program, where no code but gpugrad's runs: to look for it takes 1 to 3 us
        self.line: Line | None = None

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
            overlapping = [
                _owner(self._entry(x))
                for x in self._memories.overlapping(array)
                if self._is_known(x)
            ]
            new = self._input(array, source)
            for owner in overlapping:
                owner.shared = new.shared = True
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
        self._own(array, value)

    def see(self, tensor_or_array) -> None:
        """An array that existed before the program, or a tensor that may have: an input, if it is
        not known."""
        array = getattr(tensor_or_array, "array", tensor_or_array)
        if not self._depth and not self._is_known(array):
            self._outside(array, tensor_or_array if isinstance(tensor_or_array, Tensor) else None)

    def same(self, array, other) -> None:
        """``array`` is a copy of ``other``."""
        self._own(array, self.value(other))

    def value(self, array, tensor: Tensor | None = None) -> Any:
        """The value of an array as it is now (a number, if it stands for one); an array never seen
        is an input."""
        entry = self._known.get(id(array))
        if entry is None:
            entry = self._outside(array, tensor)
        return self._current(entry)

    def _entry(self, array, tensor: Tensor | None = None) -> _Owner | _View:
        """Whose memory an array is."""
        entry = self._known.get(id(array))
        if isinstance(entry, Value):
            entry = self._known[id(array)] = _Owner(array, entry)
        elif entry is None:
            entry = self._outside(array, tensor)
        assert isinstance(entry, (_Owner, _View))
        return entry

    def _current(self, entry: Value | float | _Owner | _View) -> Any:
        if isinstance(entry, _View):
            if entry.version != entry.owner.version:
                op, params = entry.step
                source = self._current(entry.parent)
                entry.value = self._value_of(entry.array)
                self._node(OpCall(op, params), (source,), (entry.value,))
                entry.version = entry.owner.version
            return entry.value
        return entry.value if isinstance(entry, _Owner) else entry

    def _outside(self, array, tensor: Tensor | None) -> _Owner:
        self._refuse_overlap(array)
        return self._input(array, LiveArray(array) if tensor is None else Live(tensor))

    def _input(self, array, source) -> _Owner:
        value = self._value_of(array)
        self.graph.inputs.append(value)
        self.graph.sources.append(source)
        entry = self._known[id(array)] = _Owner(array, value, value)
        self._memories.add(array)
        return entry

    def _refuse_overlap(self, array) -> None:
        """An unknown array over memory that is known: a view that nobody reported."""
        if self._memories.overlapping(array):
            self.fail(
                f"an array of shape {tuple(array.shape)} shares memory with a tensor of the "
                f"program, but was not made by an operation of gpugrad"
            )

    def _own(self, array, value: Value) -> None:
        """Know an array that was computed, and is no view of a known one."""
        self._known[id(array)] = value
        self._memories.add(array)

    def stands_for(self, array, number: float) -> None:
        """Take an array for a number wherever it is an argument."""
        self._known[id(array)] = number
        self._kept.append(array)

    def _value_of(self, array) -> Value:
        if array.__class__ is _ndarray:
            return self.graph.value(array.shape, array.dtype)
        device = None if not backend_arrays.is_cuda(array) else str(backend_arrays.device_of(array))
        return self.graph.value(tuple(array.shape), array.dtype, device)

    def _node(self, call: Call, inputs: Sequence, outputs: Sequence[Value]) -> None:
        self.graph.nodes.append(Node(call, inputs, outputs, self.line or user_line(3)))

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
        for leaf, _ in self.touched():
            alive.pop(id(leaf.grad), None)
        kept = remembered(outputs) if alive else ()
        return [t for t in alive.values() if id(t) not in kept]

    def has_written(self, array) -> bool:
        """Whether the program has written memory that an array lies in."""
        shares = backend_arrays.array_module(array).may_share_memory
        return any(shares(array, owner.array) for owner in self.written.values())

    # ---- calls

    def operation(self, op: Op, args: Sequence, params: dict):
        """``op.eval(*args, **params)``; arguments may be tensors."""
        arrays = _arrays(args)
        if isinstance(op, Elementwise):
            return self._computed(self._calls[op], args, [op.eval(*arrays)])[0]
        call = OpCall(op, params) if params else self._calls[op]
        if op.shaped_by_values is not None and op.shaped_by_values(*arrays):
            self._refuse(f"the shape of {op.name} depends on values")
        if op.is_view and not (self._depth and self._is_unexplained(arrays)):
            return self._view(call, args, arrays)
        return self._call(call, args, op.transparent)[0]

    def elementwise(self, op: Elementwise, args: Sequence, result) -> None:
        """An elementwise operation was computed: ``result`` is an array of its own."""
        self._computed(self._calls[op], args, [result])

    def _view(self, call: Any, args: Sequence, arrays: Sequence):
        (x,) = arrays
        source = self.value(x, args[0] if isinstance(args[0], Tensor) else None)
        z = call.op.eval(x, **call.params)
        if z is x:
            return z
        value = self._value_of(z)
        self._node(call, (source,), (value,))
        if z.size and backend_arrays.array_module(z).may_share_memory(z, x):
            self._known[id(z)] = _View(z, value, self._entry(x), (call.op, call.params))
        else:
            self._own(z, value)
        return z

    def cotangents(self, op: Op, g, out, saved: Sequence, params: dict, needs) -> Sequence:
        """``op.vjp(...)`` on arrays; None where nothing is needed."""
        args = (g, out, *saved)
        call = VjpCall(op, params, tuple(needs))
        found = self._call(call, args, op.transparent)
        if len(found) == len(needs):
            return found
        parts = iter(found)
        return [next(parts) if need else None for need in needs]

    def rule(self, rule: Rule, g, out, saved: Sequence) -> list:
        """``rule.run_arrays``: the derivative of an elementwise operation."""
        found = []
        if rule.computed:
            args = (g, out, *saved) if rule.reads_output else (g, *saved)
            found = self.program(rule.program, args)
            if len(found) == len(rule.outputs):
                return found
        parts = []
        for e in rule.outputs:
            if e.op == "input":
                parts.append(g)
            elif e.op == "const":
                parts.append(backend_arrays.array_module(g).full_like(g, e.args[0]))
                self.constant(parts[-1])
            else:
                parts.append(found.pop(0))
        return parts

    def program(self, program: Program, args: Sequence) -> list:
        """The results of an elementwise program."""
        call = self._calls[program]
        return self._computed(call, args, list(call.evaluate(_arrays(args))))

    def rows(self, program: RowProgram, args: Sequence) -> Sequence:
        """The results of a program over rows."""
        return self._call(RowsCall(program), args)

    def function(self, function: Callable, args: Sequence, params: dict):
        """``function(*args, **params)``: pure, of arrays, with one result."""
        return self._call(FunctionCall(function, params), args)[0]

    def verify(self, function: Callable, args: Sequence, params: dict) -> None:
        """``function(*args, **params)``, which raises an error or does nothing; arguments may be
        tensors."""
        params = self.plain(params)
        function(*_arrays(args), **params)
        if not self._depth:
            self._node(CheckCall(function, params), [self._reference(a) for a in args], ())

    def _call(self, call: Call, args: Sequence, transparent: bool = False) -> list:
        """Compute, and note either one node, or what the computation itself reported."""
        arrays = _arrays(args)
        if self._depth and self._is_unexplained(arrays):
            return list(call.evaluate(arrays))
        inputs = self._inputs(args)
        mark, before, clean = len(self.graph.nodes), len(self._known), self._clean
        self._depth, self._clean = self._depth + 1, transparent
        try:
            results = list(call.evaluate(arrays))
        finally:
            self._depth -= 1
        inner, self._clean = self._clean, clean
        if transparent:
            if inner and self._explains(results, arrays, mark):
                return results
            del self.graph.nodes[mark:]
            while len(self._known) > before:  # what the call has made known within
                self._kept.append(self._known.popitem()[1])
        return self._note(call, inputs, args, results)

    def _computed(self, call: Call, args: Sequence, results: list) -> list:
        """What ``_call`` does, for a call that is computed already and reports nothing itself."""
        if self._depth and self._is_unexplained(_arrays(args)):
            return results
        return self._note(call, self._inputs(args), args, results)

    def _is_unexplained(self, arrays: Sequence) -> bool:
        """Whether arguments were computed, within a call, by what did not report it: then that call
        is one node."""
        self._clean = self._clean and self._all_known(arrays)
        return not self._clean

    def _note(self, call: Call, inputs: Sequence, args: Sequence, results: list) -> list:
        """Put a call on the graph; its results, as arrays that are their own."""
        graph, outputs = self.graph, []
        for k, r in enumerate(results):
            if r.__class__ is not _ndarray:
                results[k] = r = _as_array(r, args)
            if id(r) in self._known:  # an argument as it is: a value of its own
                results[k] = r = r.copy()
            if r.__class__ is _ndarray:
                value = graph.value(r.shape, r.dtype)
            else:
                value = self._value_of(r)
            self._known[id(r)] = value
            self._memories.add(r)
            outputs.append(value)
        graph.nodes.append(Node(call, inputs, outputs, self.line or user_line(3)))
        return results

    def _inputs(self, args: Sequence) -> list:
        """Arguments as the inputs of a node."""
        found, known = [], self._known.get
        for a in args:
            entry = known(id(a.array if isinstance(a, Tensor) else a))
            if entry.__class__ is Value:
                found.append(entry)
            elif entry.__class__ is _Owner:
                found.append(entry.value)
            else:
                found.append(self._reference(a))
        return found

    def _explains(self, results: list, arrays: Sequence, mark: int) -> bool:
        """Whether the nodes from ``mark`` on compute the results of a call."""
        if not all(map(self._is_known, results)):
            return False
        given = all(any(r is x for x in arrays) for r in results)
        return given or len(self.graph.nodes) > mark

    def _is_known(self, array) -> bool:
        return id(array) in self._known

    def _all_known(self, arrays: Sequence) -> bool:
        # by class: numpy.float64 is a float, but one that was computed
        known = self._known
        for x in arrays:
            if not (id(x) in known or x is None or x.__class__ in _SCALARS or isinstance(x, Meta)):
                return False
        return True

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
        array = value if tensor is None else tensor.array
        self.write_value(target.array, self.value(array, tensor), target)

    def write_value(self, array, value: Value, tensor: Tensor | None = None) -> None:
        entry = self._entry(array, tensor)
        owner = _owner(entry)
        if owner.shared:
            self.fail("an argument is written that shares memory with another")
        if entry is not owner:
            base, part, chain = owner.value, value, {"chain": _steps(entry)}
            value = self._value_of(owner.array)
            self._node(OpCall(REGISTRY["put_view"], chain), (base, part), (value,))
        owner.version += 1
        owner.value = value
        self.written[id(owner)] = owner

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
        if not self._is_known(tensor.array):
            return False
        owner = _owner(self._entry(tensor.array))
        return owner.input is None or owner.version > 0

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
        known = self._leaves.get(id(tensor))
        if known is None or known[0]() is not tensor:
            self._leaves[id(tensor)] = (weakref.ref(tensor), tensor.grad is None)

    def touched(self) -> list[tuple[Tensor, bool]]:
        """The tensors whose ``.grad`` the program touched, and whether it was None before."""
        return [
            (t, was_none) for ref, was_none in self._leaves.values() if (t := ref()) is not None
        ]

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
        self._own(copy, value)
        self.shown.append(Shown(text, value, copy, render, user_line()))

    def plain(self, params: dict) -> dict:
        """Parameters of an operation, with Python's numbers for those that are followed."""
        return plain(params) if params and self.numbers else params

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

    def _source(self, tensor: Tensor) -> Any:
        """Where the memory that a tensor lies in came from; None if the program made it."""
        if not self._is_known(tensor.array):
            return None
        input = _owner(self._entry(tensor.array)).input
        return None if input is None else self.graph.sources[self.graph.inputs.index(input)]

    def is_live(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that existed before: it is returned as it is."""
        return getattr(self._source(tensor), "tensor", None) is tensor

    def view_outside(self, tensor: Tensor) -> tuple[Any, tuple] | None:
        """Whose memory a tensor without history is a view of, if that existed before: its source,
        and the operations that lead to the view."""
        source = None if tensor.requires_grad else self._source(tensor)
        if source.__class__ not in (Argument, Live):
            return None
        return source, _steps(self._entry(tensor.array))

    def finish(self, outputs: Sequence[Tensor]) -> Graph:
        """The graph, with tensors as its outputs and everything written as its stores."""
        graph = self.graph
        graph.outputs = [self.value(t.array, t) for t in outputs]
        for owner in self.written.values():
            if owner.input is not None and owner.value is not owner.input:
                graph.stores.append((owner.input, owner.value))
        return graph

    def grads(self) -> list[tuple[Tensor | Argument, Value | None]]:
        """The tensors whose ``.grad`` the program replaced, with what it is at the end."""
        found: list = []
        for tensor, _ in self.touched():
            owner, grad = self._arguments.get(id(tensor), tensor), tensor.grad
            if grad is None:
                found.append((owner, None))
                continue
            if self._is_known(grad.array) and self._source(grad) is None:
                found.append((owner, self.value(grad.array)))
        return found


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


def _steps(entry: _Owner | _View) -> tuple[tuple[Op, dict], ...]:
    """The operations that lead from the owner of memory to a view."""
    steps = []
    while isinstance(entry, _View):
        steps.append(entry.step)
        entry = entry.parent
    return tuple(steps[::-1])


def _arrays(args: Sequence) -> list:
    """Arguments, with arrays for tensors."""
    return [a.array if isinstance(a, Tensor) else a for a in args]


def _as_array(r, args: Sequence):
    """NumPy's functions return scalars for zero-dimensional arrays."""
    if backend_arrays.is_array(r):
        return r
    like = next((x for x in _arrays(args) if hasattr(x, "dtype")), 1.0)
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
