"""``compile(dynamic=True)``: one recording for every batch size.

A batch size is the first dimension of arguments. Calls that differ in it alone form a ``Family``.
Two sizes are recorded as usual. Where their recordings are alike but for numbers, and each number
is a simple function of the size (a shape ``n`` or ``2 * n``, the ``1 / n`` of a mean), they make a
``Template``: words, which are the same at every size, and a law for every number.

Another size is recorded once, and if that is what a template says of this size, to the last bit of
every number, it is compiled at once. Python may do anything with a size (``if len(x) > 20``), which
no recording of other sizes shows; so every size is looked at, but never twice.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from ..backend.arrays import is_array, to_numpy
from ..backend.numpy import xp as np
from ..codegen.expr import Expr, topological
from ..ops.core import Meta
from ..tensor import Tensor
from .graph import Call, DeviceUpdateCall, OpCall, ProgramCall, RowsCall, Value, VjpCall, frozen
from .recording import Place, Recording
from .sources import HostResult
from .surroundings import Identity

# Sizes that a function keeps programs for.
SIZES = 256
# Recordings of other sizes that a new one is compared with, templates that are kept, and reasons
# why sizes did not follow.
_KNOWN = 4
_TEMPLATES = 8
_REASONS = 8
# The word where a number is.
_NUMBER = object()

Dims = tuple[int | None, ...]  # the first dimension of every array among the arguments


class Unlike(Exception):
    """Two recordings, or one and a template, do not belong together; the message says why."""


# ------------------------------------------------------------------------------------------------
# laws


Law = Callable[[int], Any]


def laws_of(n: int, a, m: int, b, dtype=None) -> list[Law]:
    """Simple functions of the size that are ``a`` at ``n`` and ``b`` at ``m``, to the last bit;
    with a dtype their values are those of an array. Raises ``Unlike`` if there is none.

    There may be several, such as ``c / n`` and ``c * (1 / n)``, which a third size tells apart.
    """
    if _same(a, b):
        return [lambda size: a]
    laws: list[Law] = [partial(_cast, dtype, law) for law in _laws(n, a, m, b)]
    found = [law for law in laws if _same(law(n), a) and _same(law(m), b)]
    if not found:
        raise Unlike(f"a number is {a} for the size {n}, and {b} for {m}")
    return found


def _same(a, b) -> bool:
    return a.__class__ is b.__class__ and (a == b or a != a) and repr(a) == repr(b)


def _cast(dtype, law: Law, size: int):
    """The number of a law, as an array of the dtype holds it; None stays None."""
    value = law(size)
    return value if dtype is None or value is None else dtype.type(value).item()


class _Whole(NamedTuple):
    """``(square * n + slope) * n + start``, where that is a whole number, else None."""

    square: Fraction
    slope: Fraction
    start: Fraction

    def at(self, n: int) -> int | None:
        value = (self.square * n + self.slope) * n + self.start
        return int(value) if value.denominator == 1 else None


def _whole(n: int, a: int, m: int, b: int) -> _Whole:
    """The law of two whole numbers: a multiple of the square if it can be, else a line."""
    none, square = Fraction(0), Fraction(a, n * n)
    if square == Fraction(b, m * m):
        return _Whole(square, none, none)
    slope = Fraction(b - a, m - n)
    return _Whole(none, slope, a - slope * n)


# Functions of a whole number that eager mode computes with sizes, and their inverses: themselves,
# the scale of means, the correction of variances.
_FORMS: tuple[tuple[Callable, Callable], ...] = (
    (float, float),
    (lambda k: 1 / k, lambda v: 1 / v),
    (lambda k: -1 / k, lambda v: -1 / v),
    (lambda k: k / (k - 1), lambda v: v / (v - 1)),
)
# Functions of a constant and the size, and what the constant is, up to rounding.
_SCALED: tuple[tuple[Callable, Callable], ...] = (
    (lambda c, n: c / n, lambda v, n: v * n),
    (lambda c, n: c * (1 / n), lambda v, n: v * n),
    (lambda c, n: c * n, lambda v, n: v / n),
)


def _laws(n: int, a, m: int, b) -> Iterator[Law]:
    """Candidates for a law."""
    if a.__class__ is int:
        yield _whole(n, a, m, b).at
        return
    for compute, invert in _FORMS:
        j, k = _rounded(invert, a), _rounded(invert, b)
        if j is not None and k is not None:
            yield partial(_of_whole, compute, _whole(n, j, m, k))
    for scale, constant in _SCALED:
        for c in _near(constant(a, n)):
            yield partial(scale, c)


def _of_whole(compute: Callable, law: _Whole, n: int):
    k = law.at(n)
    try:
        return None if k is None else compute(k)
    except ZeroDivisionError:
        return None


def _rounded(invert: Callable, value: float) -> int | None:
    try:
        return round(invert(value))
    except (ZeroDivisionError, OverflowError, ValueError):
        return None


def _near(c: float) -> tuple[float, ...]:
    """What a constant may have been before a rounded product or quotient."""
    short = (float(f"{c:.15g}"), float(f"{c:.6g}"))
    return (*short, c, math.nextafter(c, math.inf), math.nextafter(c, -math.inf))


# ------------------------------------------------------------------------------------------------
# a recording as words and numbers


class Description:
    """A recording, taken apart: ``words`` have to be the same at every size, ``numbers`` (with the
    dtype of the array they fill, or None) follow the size, and of ``tables`` (constant arrays of
    several values) a smaller one is the beginning of a larger one, as with ``arange(n)``."""

    def __init__(self, recording: Recording):
        self.words: list[Any] = []
        self.numbers: list[tuple[Any, Any]] = []
        self.tables: list[Any] = []
        self._marks: list[tuple[int, Any]] = []  # from which word on, what is described
        self._places: dict[Value, int] = {}
        self._hosts = recording.hosts
        self.way = recording.way
        self._graph(recording.graph)
        self._results(recording)

    def at(self, word: int) -> str:
        """What a word is about."""
        k = bisect_right([start for start, _ in self._marks], word) - 1
        return repr(self._marks[k][1])

    def _mark(self, what) -> None:
        self._marks.append((len(self.words), what))

    # ---- parts of a recording

    def _graph(self, graph) -> None:
        for v, source in zip(graph.inputs, graph.sources, strict=True):
            self._mark(v)
            self._define(v)
            if source.__class__ is HostResult:
                self.words.append(("host", self._hosts.index(source.host), source.place))
            else:
                self.words.append((source.__class__, source))
        for v, array in graph.constants.items():
            self._mark(v)
            self._define(v)
            self._constant(array)
        for node in graph.nodes:
            self._mark(node)
            self._call(node.call)
            self._add(node.inputs)
            for v in node.outputs:
                self._define(v)
        self._mark("the results")
        self._add((graph.outputs, graph.stores, graph.guards))

    def _results(self, recording: Recording) -> None:
        self._mark("random numbers and counts")
        for host in recording.hosts:
            self._add((host.name, host.key), in_text=True)
        self._mark("what is returned")
        for place in recording.places:
            if place.__class__ is Place:
                flags = (place.result, place.argument, place.bare, place.number)
                self.words.append((flags, Identity(place.tensor)))
            elif isinstance(place, (bool, int, float, complex, str)):
                self._add(place)
            else:
                self.words.append(Identity(place))
        self.words.append((recording.single, tuple(recording.with_history), recording.count))
        self.words.append(tuple(recording.output))
        self._mark("gradients")
        for owner, v in recording.grads:
            self.words.append((_owner(owner), v is None))
        derivative = recording.derivative
        if derivative is not None:
            self._add((derivative.cotangents, derivative.gradients))
            self.words += [tuple(derivative.differentiable), *map(_owner, derivative.targets)]

    def _define(self, v: Value) -> None:
        self._places[v] = len(self._places)
        self._add((v.shape, None if v.dtype is None else str(v.dtype), v.device))

    def _constant(self, array) -> None:
        a = to_numpy(array)
        flat = a.reshape(-1)
        if a.size and a.dtype.kind in "iuf" and flat.tobytes() == flat[:1].tobytes() * a.size:
            self.words.append("uniform")
            self.numbers.append((flat[0].item(), a.dtype))
            self.words.append(_NUMBER)
        else:
            self.words.append("table")
            self.tables.append(a)

    def _call(self, call: Call) -> None:
        self.words.append(call.__class__)
        if isinstance(call, ProgramCall):
            self._add(call.program.inputs)
            self._expressions(call.program.outputs)
        elif isinstance(call, RowsCall):
            self._add((call.program.inputs, [kind for kind, _ in call.program.outputs]))
            self._expressions([e for _, e in call.program.outputs])
        elif isinstance(call, DeviceUpdateCall):
            self._add((call.update.tensors, call.update.scalars, call.unless))
            self._expressions(call.update.whole)
        elif isinstance(call, (OpCall, VjpCall)):
            self._add((call.op, call.params, getattr(call, "needs", ())))
        else:  # functions and checks
            self._add((call.function, call.params))  # type: ignore[attr-defined]

    # ---- values of any kind

    def _expressions(self, outputs: Sequence[Expr]) -> None:
        order = topological(outputs)
        places = {id(e): k for k, e in enumerate(order)}
        for e in order:
            self.words.append(e.op)
            if e.op in ("input", "const"):
                self._add(e.args[0])
            else:
                self.words.append(tuple(places[id(a)] for a in e.args))
        self.words.append(tuple(places[id(e)] for e in outputs))

    def _add(self, value, in_text: bool = False) -> None:
        kind = value.__class__
        if kind is int or kind is float:
            self.numbers.append((value, None))
            self.words.append(_NUMBER)
        elif isinstance(value, (tuple, list)):
            self.words.append((kind, len(value)))
            for part in value:
                self._add(part, in_text)
        elif kind is dict:
            self.words.append((kind, *value))
            for part in value.values():
                self._add(part)
        elif kind is slice:
            self._add(("slice", value.start, value.stop, value.step))
        elif kind is Value:
            self.words.append(("value", self._places[value]))
        elif kind is Meta:
            self._add(("like", value.shape, str(value.dtype)))
        elif kind is str and in_text:
            for k, part in enumerate(re.split(r"(\d+)", value)):
                self._add(int(part) if k % 2 else part)
        else:
            self.words.append(frozen(value))


def _owner(t) -> Any:
    return Identity(t) if isinstance(t, Tensor) else t


# ------------------------------------------------------------------------------------------------
# templates


class Template:
    """What the recordings of all sizes have in common, from two of them: where the size is
    ``varying``, the other dimensions as they are in ``dims``."""

    def __init__(self, known: tuple[Dims, Description], other: tuple[Dims, Description]):
        (dims, a), (others, b) = sorted(
            (known, other), key=lambda pair: sum(d or 0 for d in pair[0])
        )
        pairs = list(zip(dims, others, strict=True))
        self.dims, self.way = dims, a.way
        self.varying = [k for k, (x, y) in enumerate(pairs) if x != y]
        n, m = self._size(dims), self._size(others)
        if n is None or m is None:
            raise Unlike(f"the first dimensions of arrays are {dims}, then {others}")
        self.described = b
        _compare_words(a, b)
        self.laws: list[list[Law]] = []  # of each number
        for (x, dtype), (y, _), word in zip(a.numbers, b.numbers, _number_words(b), strict=True):
            try:
                self.laws.append(laws_of(n, x, m, y, dtype))
            except Unlike as unlike:
                raise Unlike(f"{unlike}, in {b.at(word)}") from None
        _compare_tables(a, b)

    def size(self, dims: Dims) -> int | None:
        """The size, if these dimensions are of this template."""
        fixed = all(
            x == y
            for k, (x, y) in enumerate(zip(dims, self.dims, strict=True))
            if k not in self.varying
        )
        return self._size(dims) if fixed else None

    def _size(self, dims: Dims) -> int | None:
        found = {dims[k] for k in self.varying}
        size = found.pop() if len(found) == 1 else None
        # one row, or none, is broadcast and reduced in ways of its own
        return size if size is not None and size > 1 else None

    def check(self, description: Description, size: int) -> None:
        """Raise ``Unlike`` unless this is the recording of that size."""
        _compare_words(self.described, description)
        left = []
        for k, (laws, (value, _)) in enumerate(zip(self.laws, description.numbers, strict=True)):
            left.append([law for law in laws if _same(law(size), value)])
            if not left[-1]:
                word = _number_words(description)[k]
                raise Unlike(
                    f"a number is {value} for the size {size} instead of {laws[0](size)}, "
                    f"in {description.at(word)}"
                )
        _compare_tables(self.described, description)
        self.laws = left

    def __str__(self) -> str:
        arguments = [str(k) for k in self.varying]
        several = len(arguments) > 1
        return (
            f"the size is the first dimension of array{'s' if several else ''} "
            f"{', '.join(arguments)} of the arguments"
        )


def _number_words(d: Description) -> list[int]:
    return [k for k, word in enumerate(d.words) if word is _NUMBER]


def _compare_words(a: Description, b: Description) -> None:
    for k, (x, y) in enumerate(zip(a.words, b.words, strict=False)):
        if x.__class__ is not y.__class__ or x != y:
            raise Unlike(f"{a.at(k)}, for another size {b.at(k)}")
    if len(a.words) != len(b.words):
        raise Unlike(f"there are {len(a.words)} parts, for another size {len(b.words)}")


def _compare_tables(a: Description, b: Description) -> None:
    for x, y in zip(a.tables, b.tables, strict=True):
        block = tuple(slice(min(n, m)) for n, m in zip(x.shape, y.shape, strict=True))
        if np.ascontiguousarray(x[block]).tobytes() != np.ascontiguousarray(y[block]).tobytes():
            raise Unlike(f"a constant of shape {x.shape} is not the beginning of one of {y.shape}")


# ------------------------------------------------------------------------------------------------
# families


class Family:
    """Variants of a function whose arguments differ in their first dimensions alone."""

    def __init__(self):
        self.templates: list[Template] = []
        self.known: list[tuple[Dims, Description]] = []
        self.recording: Recording | None = None  # one of any size
        self.predicted: list[Dims] = []
        self.reasons: list[str] = []  # why sizes were recorded on their own

    def expects(self, recording: Recording, dims: Dims) -> bool:
        """Whether a recording is the one that a template says of these dimensions."""
        description = Description(recording)
        for template in self.templates:
            size = template.size(dims)
            if size is not None and template.way == description.way:
                try:
                    template.check(description, size)
                except Unlike as unlike:
                    self._note(str(unlike))
                else:
                    self.predicted.append(dims)
                    return True
        return False

    def learn(self, recording: Recording, dims: Dims) -> None:
        """A recording that was made twice the same: with one of another size it may make a
        template."""
        new = (dims, Description(recording))
        self.recording = recording
        for known in self.known[::-1]:
            if known[0] != dims and known[1].way == new[1].way:
                try:
                    self.templates = [*self.templates[1 - _TEMPLATES :], Template(known, new)]
                    break
                except Unlike as unlike:
                    self._note(str(unlike))
        self.known = [*self.known[1 - _KNOWN :], new]

    def _note(self, reason: str) -> None:
        if reason not in self.reasons and len(self.reasons) < _REASONS:
            self.reasons.append(reason)

    def report(self) -> list[str]:
        """Lines for ``explain()``."""
        lines = [f"template: {template}" for template in self.templates]
        if self.predicted:
            lines.append(f"{len(self.predicted)} other programs were as the template said")
        return lines + [f"recorded on its own: {reason}" for reason in self.reasons]


class Member(NamedTuple):
    """One variant's place in its family."""

    family: Family
    dims: Dims


class Families:
    """All families of a compiled function."""

    def __init__(self):
        self._found: dict[Any, Family] = {}

    def member(self, key: tuple, first: int, leaves: Sequence) -> Member:
        """The place of the variant of a key, in which the leaves begin at ``first``, each array
        with its shape."""
        parts, dims = list(key), []
        for k, leaf in enumerate(leaves, first):
            if isinstance(leaf, Tensor) or is_array(leaf):
                shape, *rest = parts[k]
                parts[k] = (len(shape), shape[1:], *rest)
                dims.append(shape[0] if shape else None)
        family = self._found.setdefault(tuple(parts), Family())
        return Member(family, tuple(dims))

    def __iter__(self):
        return iter(self._found.values())
