"""Loops over images: what the kernels of convolution and pooling are written with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .ir import Code, Value
from .machine import Machine


def rounded(count: int, lanes: int) -> int:
    """The multiple of ``lanes`` that is not below ``count``."""
    return -(-count // lanes) * lanes


class Writer:
    """A ``Code`` with what loops over images need."""

    def __init__(
        self,
        compiler: Machine,
        element: str,
        lanes: int,
        arrays: str,
        integers: str,
        numbers: Sequence[str] = (),
    ):
        """``arrays``, ``numbers`` and ``integers`` name the parameters: NumPy arrays, doubles,
        whole numbers."""
        self.code = Code(element, lanes)
        self.element, self.lanes = element, lanes
        objects = [self.code.parameter(name, "ptr") for name in arrays.split()]
        doubles = [self.code.parameter(name, "double") for name in numbers]
        self.integers = [self.code.parameter(name, "i64") for name in integers.split()]
        self.parameters = [*objects, *doubles, *self.integers]
        self.numbers = [self._rounded(double) for double in doubles]
        offset = compiler.offsets["data"]
        self.data = [self.code.load(self.code.at(o, offset, "i8"), "ptr") for o in objects]

    def _rounded(self, double: Value) -> Value:
        """A vector of a number, rounded once to the element type."""
        short = double if self.element == "double" else double.convert("fptrunc", self.element)
        return self.code.splat(short)

    def at(self, pointer: Value, index: Value | int) -> Value:
        return self.code.at(pointer, index, self.element)

    def vector(self, pointer: Value, index: Value | int = 0, count: int | None = None) -> Value:
        """``count`` elements, as many as there are lanes if not told."""
        return self.code.load(self.at(pointer, index), self.type(count))

    def some(self, pointer: Value, index: int, count: int) -> Value:
        """A vector of ``count`` elements and zeros."""
        lanes = ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(self.lanes))
        mask = Value(self.code, f"<{lanes}>", f"<{self.lanes} x i1>")
        return self.code.load(self.at(pointer, index), self.type(), mask)

    def store(self, value: Value, pointer: Value, index: Value | int = 0) -> None:
        self.code.store(value, self.at(pointer, index))

    def type(self, count: int | None = None) -> str:
        count = self.lanes if count is None else count
        return self.element if count == 1 else f"<{count} x {self.element}>"

    def broadcast(self, pointer: Value, index: Value | int = 0) -> Value:
        """A vector of one element of memory."""
        value = self.vector(pointer, index, 1)
        return self.code.splat(value) if self.lanes > 1 else value

    def number(self, value: float) -> Value:
        """A vector of one number."""
        return self.code.like(Value(self.code, "", self.type()), value)

    def first_of(self, value: Value, count: int) -> Value:
        """The first ``count`` lanes of a vector."""
        if count == self.lanes:
            return value
        if count == 1:
            return self.code.emit(f"extractelement {value}, i64 0", self.element)
        return self.shuffle(value, value, range(count))

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Lanes of ``a`` and ``b`` by number; -1 is anything."""
        numbers = ", ".join(f"i32 {'poison' if n < 0 else n}" for n in lanes)
        text = f"shufflevector {a}, {b}, <{len(lanes)} x i32> <{numbers}>"
        return self.code.emit(text, f"<{len(lanes)} x {self.element}>")

    def lane_sums(self, vectors: list[Value]) -> Value:
        """A vector whose lane i is the sum of the lanes of vector i."""
        values = vectors + [self.number(0.0)] * (self.lanes - len(vectors))
        even, odd = (range(k, 2 * self.lanes, 2) for k in range(2))
        while len(values) > 1:  # every round adds neighbours and halves the vectors
            pairs = zip(values[0::2], values[1::2], strict=True)
            values = [self.shuffle(a, b, even) + self.shuffle(a, b, odd) for a, b in pairs]
        return values[0]

    @contextmanager
    def repeat(self, count: int | Value) -> Iterator[Value]:
        """A loop; a count of one costs nothing."""
        if count == 1:
            yield self.code.integer(0)
            return
        count = count if isinstance(count, Value) else self.code.integer(count)
        with self.code.loop(self.code.integer(0), count) as i:
            yield i

    @contextmanager
    def starts(self, size: int, step: int) -> Iterator[Value]:
        """Multiples of ``step``; the last lies so that it ends at ``size``, over the one before."""
        with self.repeat(-(-size // step)) as i:
            yield self.smaller(i * step, size - step) if size > step else self.code.integer(0)

    def smaller(self, a: Value, b: Value | int) -> Value:
        b = self.code.like(a, b)
        return self.code.select(a.compare("slt", b), a, b)

    def larger(self, a: Value, b: Value | int) -> Value:
        b = self.code.like(a, b)
        return self.code.select(a.compare("sgt", b), a, b)

    def fold(self, count: int | Value, values: list[Value], body: Callable) -> list[Value]:
        if count == 1:
            return body(values)
        count = count if isinstance(count, Value) else self.code.integer(count)
        return self.code.fold(count, values, body)

    def products(
        self, a: list[Callable[[], Value]], b: list[Callable[[], Value]], sums: list[Value]
    ) -> list[Value]:
        """``sums[i, j] + a[i]() * b[j]()``.

        The fewer factors stay in registers, of the others one at a time: a register too many costs
        a store and a load per product.
        """
        sums, rows = list(sums), len(a) > len(b)
        streamed, held = (a, b) if rows else (b, a)
        factors = [load() for load in held]
        for k, load in enumerate(streamed):
            value = load()
            for m, factor in enumerate(factors):
                at = k * len(b) + m if rows else m * len(b) + k
                sums[at] = self.code.fma(value, factor, sums[at])
        return sums

    def copy(self, source: Value, target: Value, count: int) -> None:
        """Neighbouring elements; the last vector may overlap the one before."""
        if count < self.lanes:
            self.store(self.vector(source, 0, count), target)
            return
        with self.starts(count, self.lanes) as i:
            self.store(self.vector(source, i), target, i)

    def clear(self, target: Value, count: int) -> None:
        """Zeros; ``count`` is a multiple of the lanes."""
        zero = self.number(0.0)
        with self.repeat(count // self.lanes) as i:
            self.store(zero, target, i * self.lanes)

    def text(self) -> str:
        return self.code.function("kernel", self.parameters)
