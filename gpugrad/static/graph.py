"""The graph of a recorded program: values, the nodes that compute them, and what they are for.

A graph is pure: every value is computed once and never changes. What the program wrote in place is
a later value, and ``stores`` say which tensors outside take a value at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend.arrays import to_numpy
from ..backend.numpy import xp as np
from ..codegen.arrays import Program
from ..codegen.expr import build, variable
from ..codegen.rows import RowProgram
from ..dtypes import float32, is_half
from ..foreach import Update
from ..ops.core import REGISTRY, Elementwise, Meta, Op, run_program
from . import text


class Value:
    """What a node computes, or an input: an array of a known shape and dtype, or a Python number
    (``dtype`` None)."""

    __slots__ = ("device", "dtype", "number", "shape")

    def __init__(self, number: int, shape: tuple[int, ...] | None, dtype, device=None):
        self.number, self.dtype, self.device = number, dtype, device
        self.shape: Any = shape

    def __repr__(self) -> str:
        return f"%{self.number}"

    def is_like(self, other: Value) -> bool:
        """Whether another value has the same shape, dtype and device."""
        same = self.shape == other.shape and self.dtype == other.dtype
        return same and self.device == other.device

    @property
    def type(self) -> str:
        """``float32[64, 10]``; ``number`` for a Python number."""
        if self.dtype is None:
            return "number"
        place = "" if self.device is None else f" on {self.device}"
        return f"{self.dtype}{list(self.shape or ())}{place}"


# ------------------------------------------------------------------------------------------------
# what a node calls


class Call:
    """What a node computes: ``evaluate(args)`` gives a sequence of arrays."""

    __slots__ = ()
    kind = "call"
    # equal calls of equal values give equal results, and nobody notices if they are left out
    pure = True

    def evaluate(self, args: Sequence) -> Sequence:
        raise NotImplementedError

    def key(self) -> tuple:
        """Equal for calls that compute the same."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        raise NotImplementedError


class OpCall(Call):
    """An operation of the registry."""

    __slots__ = ("op", "params")
    kind = "op"

    def __init__(self, op: Op, params: dict):
        self.op, self.params = op, params

    def evaluate(self, args):
        return (self.op.eval(*args, **self.params),)

    def key(self):
        return ("op", self.op.name, id(self.op), frozen(self.params))

    @property
    def text(self) -> str:
        return f"{self.op.name}{text.parameters(self.params)}"


class VjpCall(Call):
    """The cotangents of the arguments of an operation, as its row states them.

    The arguments are the cotangent, the output (or None), and the arguments of the operation, of
    which those that are not read are ``Meta``. Results are those that are needed.
    """

    __slots__ = ("needs", "op", "params")
    kind = "vjp"

    def __init__(self, op: Op, params: dict, needs: tuple[bool, ...]):
        self.op, self.params, self.needs = op, params, needs

    def evaluate(self, args):
        g, out, *saved = args
        parts = self.op.vjp(g, out, saved, self.params, self.needs)
        return [d for d, need in zip(parts, self.needs, strict=True) if need]

    def key(self):
        return ("vjp", self.op.name, id(self.op), frozen(self.params), self.needs)

    @property
    def text(self) -> str:
        needs = "".join("1" if need else "0" for need in self.needs)
        return f"{self.op.name}.vjp:{needs}{text.parameters(self.params)}"


class ProgramCall(Call):
    """Elementwise expressions over arrays and numbers, computed in one pass."""

    __slots__ = ("program",)
    kind = "program"

    def __init__(self, program: Program):
        self.program = program

    def evaluate(self, args):
        results = run_program(self.program, args)
        return (results,) if len(self.program.outputs) == 1 else results

    def key(self):
        # expressions are interned: the same expression is the same object
        return ("program", tuple(map(id, self.program.outputs)), tuple(self.program.inputs))

    @property
    def text(self) -> str:
        outputs = [("", e) for e in self.program.outputs]
        return f"{self.kind} {text.program(self.program.inputs, outputs)}"


class UpdateCall(ProgramCall):
    """An update of tensors by a program; half precision computes in float32."""

    __slots__ = ()
    kind = "update"

    def evaluate(self, args):
        halves = [hasattr(a, "dtype") and is_half(a.dtype) for a in args]
        if not any(halves):
            return super().evaluate(args)
        wide = [a.astype(float32) if half else a for a, half in zip(args, halves, strict=True)]
        results = super().evaluate(wide)
        return [r.astype(a.dtype, copy=False) for r, a in zip(results, args, strict=False)]

    def key(self):
        return ("update", *super().key())


class EpilogueCall(Call):
    """A product of two matrices or a convolution, and an elementwise program of its result (the
    program's first input) and further inputs."""

    __slots__ = ("producer", "program", "updates")
    kind = "epilogue"

    def __init__(self, producer: OpCall, program: Program, updates: bool = False):
        self.producer, self.program, self.updates = producer, program, updates

    def evaluate(self, args):
        a, b, *others = args
        if self.producer.op.name == "affine":  # its bias is added by the program
            result = REGISTRY["linear"].eval(a, b)
        else:
            result = self.producer.op.eval(a, b, **self.producer.params)
        return ProgramCall(self.program).evaluate((result, *others))

    def key(self):
        return ("epilogue", self.producer.key(), ProgramCall(self.program).key())

    @property
    def text(self) -> str:
        return f"{self.producer.text} then {ProgramCall(self.program).text}"


class PrologueCall(Call):
    """A product, maybe with an epilogue, whose second operand is the result of an elementwise
    program, maybe transposed. The arguments are those of the product without this operand, then
    those of the program."""

    __slots__ = ("consumer", "program", "transposed")
    kind = "prologue"

    def __init__(self, program: Program, transposed: bool, consumer: OpCall | EpilogueCall):
        self.program, self.transposed, self.consumer = program, transposed, consumer

    def evaluate(self, args):
        (a, *others), given = self.split(args)
        (b,) = ProgramCall(self.program).evaluate(given)
        return self.consumer.evaluate((a, b.swapaxes(-1, -2) if self.transposed else b, *others))

    def split(self, args: Sequence) -> tuple[Sequence, Sequence]:
        """The arguments of the product and those of the program."""
        count = len(args) - len(self.program.inputs)
        return args[:count], args[count:]

    def key(self):
        program = ProgramCall(self.program).key()
        return ("prologue", program, self.transposed, self.consumer.key())

    @property
    def text(self) -> str:
        turned = " transposed" if self.transposed else ""
        return f"{ProgramCall(self.program).text}{turned} into {self.consumer.text}"


class DeviceUpdateCall(Call):
    """An update (``foreach.py``) that the device decides about: scalars may be arrays of its memory
    (counts of steps, learning rates), from which it computes the numbers of the loop in float64,
    and it may be forbidden.

    The arguments are tensors, scalars and, with ``unless``, an array of one element: if that is not
    zero, the results are the first arguments as they are.
    """

    __slots__ = ("unless", "update")
    kind = "update"

    def __init__(self, update: Update, unless: bool):
        self.update, self.unless = update, unless

    def evaluate(self, args):
        update, count = self.update, len(self.update.tensors)
        flag = args[-1] if self.unless else None
        scalars = dict(zip(update.scalars, args[count:], strict=False))
        return update.results(args[:count], scalars, flag)

    def key(self):
        update = self.update
        names = (tuple(update.tensors), tuple(update.scalars))
        return ("update on the device", tuple(map(id, update.whole)), names, self.unless)

    @property
    def text(self) -> str:
        update = self.update
        inputs = [*update.tensors, *[f"{name}: scalar" for name in update.scalars]]
        inputs += ["unless: flag"] * self.unless
        return f"update {text.program(inputs, [('', e) for e in update.whole])}"


class RowsCall(Call):
    """Expressions with reductions over rows, computed in one pass over each row."""

    __slots__ = ("program",)
    kind = "rows"

    def __init__(self, program: RowProgram):
        self.program = program

    def evaluate(self, args):
        results = self.program(*args)
        return (results,) if len(self.program.outputs) == 1 else results

    def key(self):
        outputs = tuple((kind, id(e)) for kind, e in self.program.outputs)
        return ("rows", outputs, tuple(self.program.inputs.items()))

    @property
    def text(self) -> str:
        inputs = [f"{name}: {kind}" for name, kind in self.program.inputs.items()]
        outputs = [(f"{kind} ", e) for kind, e in self.program.outputs]
        return f"rows {text.program(inputs, outputs)}"


class FunctionCall(Call):
    """A Python function of arrays that is no row of the registry: pure, of one result."""

    __slots__ = ("function", "params")
    kind = "function"

    def __init__(self, function, params: dict):
        self.function, self.params = function, params

    def evaluate(self, args):
        return (self.function(*args, **self.params),)

    def key(self):
        return ("function", self.function, frozen(self.params))

    @property
    def text(self) -> str:
        return f"{text.function_name(self.function)}{text.parameters(self.params)}"


class CheckCall(Call):
    """A function that raises an error if values are not what the program needs; no results."""

    __slots__ = ("function", "params")
    kind = "check"
    pure = False

    def __init__(self, function, params: dict):
        self.function, self.params = function, params

    def evaluate(self, args):
        self.function(*args, **self.params)
        return ()

    def key(self):
        return ("check", self.function, frozen(self.params))

    @property
    def text(self) -> str:
        return f"check {text.function_name(self.function)}{text.parameters(self.params)}"


def frozen(value) -> Any:
    """A hashable stand-in for metadata: equal if and only if the metadata are, types included."""
    if isinstance(value, dict):
        return ("dict", *[(k, frozen(v)) for k, v in value.items()])
    if isinstance(value, (tuple, list)):
        return (value.__class__, *map(frozen, value))
    if isinstance(value, slice):
        return (slice, value.start, value.stop, value.step)
    if isinstance(value, float):
        return (float, repr(value))  # tells -0.0 from 0.0; NaN equals itself
    if value.__class__ in (int, bool, str, type(None)):
        return (value.__class__, value)
    if isinstance(value, Op):
        return ("op", value.name, id(value))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return value


# ------------------------------------------------------------------------------------------------
# nodes and graphs

UNKNOWN = object()  # what nobody has asked for yet


class Node:
    """``outputs = call(inputs)``. Inputs are values, Python numbers, None, or ``Meta`` where only a
    shape is needed; ``values`` are the values among them. ``line`` is where the program asked for
    it."""

    __slots__ = ("call", "expression", "inputs", "line", "outputs", "pointwise", "values")

    def __init__(self, call: Call, inputs: Sequence, outputs: Sequence[Value], line=None):
        self.call: Any = call  # of the class that one has looked at
        self.expression: Any = UNKNOWN  # see ``expression_of``
        self.pointwise: Any = UNKNOWN  # what passes know of it as an elementwise node
        self.inputs = tuple(inputs)
        self.values: list[Value] = []
        for i in self.inputs:  # a comprehension would be a call more
            if i.__class__ is Value:
                self.values.append(i)
        self.outputs, self.line = tuple(outputs), line

    def __repr__(self) -> str:
        inputs = ", ".join(map(_text_of_input, self.inputs))
        results = ", ".join(f"{v!r}: {v.type}" for v in self.outputs)
        return f"{results}{' = ' if results else ''}{self.call.text}({inputs})"


def _text_of_input(i) -> str:
    return f"like {i.dtype}{list(i.shape)}" if i.__class__ is Meta else repr(i)


class Graph:
    """A recorded program.

    ``inputs`` are values with a source each (``sources.py``): arguments, tensors that the program
    reaches by itself, numbers asked for at every call. ``constants`` are values with their arrays.
    ``outputs`` are returned; ``stores`` are pairs ``(input, value)``: the memory behind the input
    takes the value at the end. ``guards`` are pairs ``(value, outcome)``: the truth of the value
    must be the outcome, or the program would have gone another way.
    """

    def __init__(self):
        self.inputs: list[Value] = []
        self.sources: list[Any] = []
        self.constants: dict[Value, Any] = {}
        self.nodes: list[Node] = []
        self.outputs: list[Value] = []
        self.stores: list[tuple[Value, Value]] = []
        self.guards: list[tuple[Value, bool]] = []
        self.identities: list[str] = []  # of real numbers, by which it was rewritten
        self._count = 0

    def value(self, shape, dtype, device=None) -> Value:
        """A new value, which nothing computes yet."""
        self._count += 1
        return Value(self._count - 1, shape, dtype, device)

    def results(self) -> list[Value]:
        """The values that the world outside sees: outputs, stores, guards."""
        return [*self.outputs, *[v for _, v in self.stores], *[v for v, _ in self.guards]]

    def with_nodes(self, nodes: list[Node]) -> Graph:
        """The same graph with other nodes: what a pass returns."""
        new = Graph()
        new.inputs, new.sources, new.constants = self.inputs, self.sources, dict(self.constants)
        new.nodes, new.outputs = nodes, list(self.outputs)
        new.stores, new.guards, new._count = list(self.stores), list(self.guards), self._count
        new.identities = list(self.identities)
        return new

    @property
    def num_ops(self) -> int:
        """Nodes that compute something."""
        return len(self.nodes)

    def __str__(self) -> str:
        lines = ["graph:"]
        for v, source in zip(self.inputs, self.sources, strict=True):
            lines.append(f"  {v!r}: {v.type} <- {source}")
        for v, array in self.constants.items():
            lines.append(f"  {v!r}: {v.type} = {text.constant(v, array)}")
        lines += [f"  {node!r}" for node in self.nodes]
        lines += [f"  guard {v!r} is {outcome}" for v, outcome in self.guards]
        lines += [f"  store {i!r} <- {v!r}" for i, v in self.stores]
        lines.append(f"  return {', '.join(map(repr, self.outputs))}")
        return "\n".join(lines)

    @staticmethod
    def parse(text: str, constants: Mapping[str, Any] | None = None) -> Graph:
        """The graph of a text that ``str(graph)`` gave.

        Inputs have descriptions for sources. Constants that are not written out are taken from
        ``constants``, by their names (``"%5"``). What a text cannot hold (functions that are not
        gpugrad's, random draws) raises ValueError.
        """
        from .parse import parse

        return parse(text, constants)

    def to_dot(self) -> str:
        """The graph in the language of Graphviz."""
        from .dot import to_dot

        return to_dot(self)

    @property
    def svg(self) -> str:
        """A drawing; needs the package graphviz and the programs of Graphviz."""
        from .dot import to_svg

        return to_svg(self)

    def check(self, evaluate: bool = False) -> None:
        """Raise ValueError unless every value is made once, before it is used, and every input is
        stored to once at most, by a value of its type.

        ``evaluate`` also computes every node on zeros, to see that results are of the shapes and
        dtypes that the graph states.
        """
        made = {*self.inputs, *self.constants}
        for node in self.nodes:
            for v in node.values:
                if v not in made:
                    raise ValueError(f"{v!r} is used before it is computed, in {node!r}")
            for v in node.outputs:
                if v in made:
                    raise ValueError(f"{v!r} is computed twice, the second time by {node!r}")
                made.add(v)
            if evaluate:
                _check_types(node)
        for v in self.results():
            if v not in made:
                raise ValueError(f"{v!r} is a result, and nothing computes it")
        stored: set[Value] = set()
        for target, v in self.stores:
            if target not in self.inputs:
                raise ValueError(f"{v!r} is stored to {target!r}, which is no input")
            if target in stored:
                raise ValueError(f"{target!r} is stored to twice")
            stored.add(target)
            if (target.shape, target.dtype) != (v.shape, v.dtype):
                raise ValueError(
                    f"{v!r} of type {v.type} is stored to {target!r} of type {target.type}"
                )


def _check_types(node: Node) -> None:
    """Compute a node on zeros of the CPU: its results must be of the types of its outputs."""
    if not node.call.pure:  # checks of zeros may fail, draws have no arguments
        return
    args = [_zeros(i) if i.__class__ is Value else i for i in node.inputs]
    with np.errstate(all="ignore"):
        results = list(node.call.evaluate(args))
    if len(results) != len(node.outputs):
        raise ValueError(f"there are {len(results)} results of {node!r}")
    for v, r in zip(node.outputs, results, strict=True):
        found = (tuple(np.shape(r)), np.asarray(r).dtype)
        if found != (v.shape, v.dtype):
            raise ValueError(f"{v!r} is {found[1]}{list(found[0])} in fact, in {node!r}")


def _zeros(v: Value) -> Any:
    return 1.0 if v.dtype is None else np.zeros(v.shape or (), v.dtype)


def expression_of(node: Node) -> Program | None:
    """What an elementwise node computes, as a program of its inputs; None for other nodes. A node
    is looked at once."""
    if node.expression is UNKNOWN:
        node.expression = _expression(node)
    return node.expression


def _expression(node: Node) -> Program | None:
    if isinstance(node.call, ProgramCall):
        # an update of 16-bit tensors, or by them, computes in float32
        return None if node.call.__class__ is UpdateCall and reads_half(node) else node.call.program
    if node.call.__class__ is OpCall:
        op = node.call.op
        if isinstance(op, Elementwise):
            return op.forward
        if (
            op.name == "cast"
            and node.inputs[0].dtype == "bool"
            and node.outputs[0].dtype.kind == "f"
        ):
            return TRUTH
    return None


def reads_half(node: Node) -> bool:
    """Whether float16 or bfloat16 arrays are among the inputs of a node."""
    return any(v.dtype is not None and is_half(v.dtype) for v in node.values)


# A mask as numbers.
TRUTH = Program([build("where", variable("x"), 1.0, 0.0)], ["x"], ["x"])


def difference(a: Graph, b: Graph, constants: bool = True) -> str | None:
    """What differs between two recordings of a program; None if they are the same.

    Values are compared by their places; sources by identity of what they refer to.
    """
    if len(a.inputs) != len(b.inputs) or len(a.nodes) != len(b.nodes):
        return (
            f"{len(a.nodes)} operations on {len(a.inputs)} inputs, then {len(b.nodes)} on "
            f"{len(b.inputs)}"
        )
    places = dict(zip(a.inputs, b.inputs, strict=True))
    for v, x, y in zip(a.inputs, a.sources, b.sources, strict=True):
        if x != y or not v.is_like(places[v]):
            before, now = (f"{s} ({u.type})" for s, u in ((x, v), (y, places[v])))
            return f"{v!r} was {before}, then {'another' if now == before else now}"
    if len(a.constants) != len(b.constants):
        return f"{len(a.constants)} constants, then {len(b.constants)}"
    for (v, x), (w, y) in zip(a.constants.items(), b.constants.items(), strict=True):
        places[v] = w
        if not v.is_like(w) or (constants and not _same_bytes(x, y)):
            return f"a constant of type {v.type} changed"

    def placed(i):
        return places.get(i) if i.__class__ is Value else frozen_input(i)

    for m, n in zip(a.nodes, b.nodes, strict=True):
        same = m.call.key() == n.call.key() and len(m.inputs) == len(n.inputs)
        if not same or any(
            placed(i) != (j if j.__class__ is Value else frozen_input(j))
            for i, j in zip(m.inputs, n.inputs, strict=True)
        ):
            return f"{m!r}, then {n!r}"
        for v, w in zip(m.outputs, n.outputs, strict=True):
            if not v.is_like(w):
                return f"{v!r} of type {v.type}, then {w.type}"
            places[v] = w
    ends = [[places.get(v) for v in a.outputs], [(places[t], places[v]) for t, v in a.stores]]
    ends.append([(places[v], outcome) for v, outcome in a.guards])
    if ends != [b.outputs, b.stores, b.guards]:
        return "other results"
    return None


def frozen_input(i) -> Any:
    return ("meta", i.shape, str(i.dtype)) if i.__class__ is Meta else frozen(i)


def _same_bytes(a, b) -> bool:
    return a is b or to_numpy(a).tobytes() == to_numpy(b).tobytes()
