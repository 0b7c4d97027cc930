"""LLVM IR as text: a function body is written one instruction at a time, in SSA form, over explicit
vectors.

``Code`` collects the lines; ``Value`` is a register with Python's arithmetic. Vectors are written
out (``<8 x float>``) instead of left to LLVM's loop vectoriser: the text then needs no optimisation
passes, which would be two thirds of the compile time, and is what runs. LLVM splits a vector that
the CPU does not have. No instruction carries a fast-math flag, so every +, -, *, / rounds as in
NumPy; ``Code.fma`` is the only place where LLVM may fuse.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache


class Value:
    """A register or constant, and its type."""

    __slots__ = ("code", "name", "type")

    def __init__(self, code: Code, name: str, type: str):
        self.code, self.name, self.type = code, name, type

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    def _with(self, other, operation: str, swapped: bool = False) -> Value:
        other = self.code.like(self, other)
        a, b = (other, self) if swapped else (self, other)
        real = "f" if is_real(self.type) else ""
        return self.code.emit(f"{real}{operation} {a}, {b.name}", self.type)

    def __add__(self, other):
        return self._with(other, "add")

    def __radd__(self, other):
        return self._with(other, "add", True)

    def __sub__(self, other):
        return self._with(other, "sub")

    def __rsub__(self, other):
        return self._with(other, "sub", True)

    def __mul__(self, other):
        return self._with(other, "mul")

    def __rmul__(self, other):
        return self._with(other, "mul", True)

    def __truediv__(self, other):
        return self._with(other, "div")

    def __rtruediv__(self, other):
        return self._with(other, "div", True)

    def __neg__(self):
        return self.code.emit(f"fneg {self}", self.type)

    def __and__(self, other):
        return self.bitwise("and", other)

    def __or__(self, other):
        return self.bitwise("or", other)

    def __xor__(self, other):
        return self.bitwise("xor", other)

    def __lt__(self, other):
        return self.compare("olt", other)

    def __le__(self, other):
        return self.compare("ole", other)

    def __gt__(self, other):
        return self.compare("ogt", other)

    def __ge__(self, other):
        return self.compare("oge", other)

    def equals(self, other) -> Value:
        return self.compare("oeq", other)

    def is_nan(self) -> Value:
        return self.compare("uno", self)

    def compare(self, predicate: str, other) -> Value:
        """``fcmp`` of real numbers or ``icmp`` of integers."""
        other = self.code.like(self, other)
        kind = "fcmp" if is_real(self.type) else "icmp"
        result = with_element(self.type, "i1")
        return self.code.emit(f"{kind} {predicate} {self}, {other.name}", result)

    def bitwise(self, operation: str, other) -> Value:
        """Integer operations that have no sign: and, or, xor, shl, ashr, lshr."""
        other = self.code.like(self, other)
        return self.code.emit(f"{operation} {self}, {other.name}", self.type)

    def convert(self, operation: str, type: str) -> Value:
        """A cast: bitcast, sitofp, zext, ..."""
        return self.code.emit(f"{operation} {self} to {type}", type)

    @property
    def bits(self) -> Value:
        """The same bits as an integer."""
        element = "i64" if "double" in self.type else "i32"
        return self.convert("bitcast", with_element(self.type, element))

    @property
    def real(self) -> Value:
        """The same bits as a real number."""
        element = "double" if "i64" in self.type else "float"
        return self.convert("bitcast", with_element(self.type, element))


@lru_cache(256)
def is_real(type: str) -> bool:
    return "float" in type or "double" in type


@lru_cache(256)
def with_element(type: str, element: str) -> str:
    """``<8 x float>`` with element ``i32`` is ``<8 x i32>``."""
    return f"{type.split(' x ')[0]} x {element}>" if type[0] == "<" else element


@lru_cache(256)
def element_of(type: str) -> str:
    """``float`` of ``<8 x float>`` and of ``float``."""
    return type.split(" x ")[-1].rstrip(">")


def real_constant(value: float, element: str) -> str:
    """A number as LLVM wants it: the bits of the double that equals it exactly."""
    if element == "float":
        value = round_to_float32(value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def round_to_float32(value: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:  # struct refuses what NumPy rounds to infinity
        return float("inf") if value > 0 else float("-inf")


class Code:
    """The body of one function over vectors of ``lanes`` elements of ``element`` (float, double or
    an integer type)."""

    def __init__(self, element: str = "float", lanes: int = 1):
        self.element, self.lanes = element, lanes
        self.vector = f"<{lanes} x {element}>"
        self.lines: list[str] = []
        self.declarations: set[str] = set()
        self._registers = 0
        self._block = "entry"

    # ---- values

    def emit(self, text: str, type: str) -> Value:
        """One instruction with a result."""
        self._registers += 1
        name = f"%r{self._registers}"
        self.lines.append(f"  {name} = {text}")
        return Value(self, name, type)

    def do(self, text: str) -> None:
        """One instruction without a result."""
        self.lines.append(f"  {text}")

    def parameter(self, name: str, type: str) -> Value:
        return Value(self, f"%{name}", type)

    def integer(self, value: int) -> Value:
        return Value(self, str(value), "i64")

    def constant(self, value: float) -> Value:
        """A vector of one number, a real one rounded once to the element type."""
        return self.like(Value(self, "", self.vector), value)

    def like(self, model: Value, value) -> Value:
        """A Python number as a constant of the type of ``model``; values stay."""
        if isinstance(value, Value):
            return value
        element = element_of(model.type)
        text = real_constant(float(value), element) if is_real(element) else str(int(value))
        return Value(
            self, f"splat ({element} {text})" if model.type[0] == "<" else text, model.type
        )

    def splat(self, scalar: Value) -> Value:
        """A vector of one value that is known when the program runs."""
        type = f"<{self.lanes} x {scalar.type}>"
        first = self.emit(f"insertelement {type} poison, {scalar}, i64 0", type)
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.emit(f"shufflevector {first}, {type} poison, {zeros}", type)

    def call(self, intrinsic: str, *args: Value, result: str | None = None) -> Value:
        """``llvm.<intrinsic>.<type of the first argument>``, with a result of that type if not
        told."""
        type = result or args[0].type
        symbol = f"@llvm.{intrinsic}.{mangled(args[0].type)}"
        self.declarations.add(f"declare {type} {symbol}({', '.join(a.type for a in args)})")
        return self.emit(f"call {type} {symbol}({', '.join(map(str, args))})", type)

    def fma(self, a, b, c) -> Value:
        """``a * b + c``, rounded once where the CPU does that as fast, else twice."""
        model = next(v for v in (a, b, c) if isinstance(v, Value))
        return self.call("fmuladd", *[self.like(model, v) for v in (a, b, c)])

    def select(self, condition: Value, yes, no) -> Value:
        model = yes if isinstance(yes, Value) else no if isinstance(no, Value) else None
        if model is None:
            model = self.constant(0.0)
        yes, no = self.like(model, yes), self.like(model, no)
        return self.emit(f"select {condition}, {yes}, {no}", yes.type)

    # ---- memory

    def at(self, pointer: Value, index: Value | int, type: str = "i64") -> Value:
        """The address of an element."""
        index = index if isinstance(index, Value) else self.integer(index)
        return self.emit(f"getelementptr {type}, {pointer}, {index}", "ptr")

    def load(self, pointer: Value, type: str, mask: Value | None = None) -> Value:
        """Elements from memory that is aligned to one element; lanes outside of the mask are 0."""
        align = alignment(type)
        if mask is None:
            return self.emit(f"load {type}, {pointer}, align {align}", type)
        symbol = f"@llvm.masked.load.{mangled(type)}.p0"
        self.declarations.add(f"declare {type} {symbol}(ptr, i32, {mask.type}, {type})")
        arguments = f"{pointer}, i32 {align}, {mask}, {type} zeroinitializer"
        return self.emit(f"call {type} {symbol}({arguments})", type)

    def store(self, value: Value, pointer: Value, mask: Value | None = None) -> None:
        align = alignment(value.type)
        if mask is None:
            self.do(f"store {value}, {pointer}, align {align}")
            return
        symbol = f"@llvm.masked.store.{mangled(value.type)}.p0"
        self.declarations.add(f"declare void {symbol}({value.type}, ptr, i32, {mask.type})")
        self.do(f"call void {symbol}({value}, {pointer}, i32 {align}, {mask})")

    def first_lanes(self, count: Value) -> Value:
        """A mask of the first ``count`` lanes."""
        element = "i64" if self.element in ("double", "i64") else "i32"
        numbers = ", ".join(f"{element} {i}" for i in range(self.lanes))
        if element == "i32":
            count = count.convert("trunc", "i32")
        limit = self.splat(count)
        type = with_element(self.vector, "i1")
        return self.emit(f"icmp slt {limit.type} <{numbers}>, {limit.name}", type)

    # ---- control flow

    def _begin(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self._block = label

    def _label(self) -> str:
        self._registers += 1
        return f"block{self._registers}"

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int = 1) -> Iterator[Value]:
        """``for i in start, start + step, ...`` while a whole step fits below ``stop``.

        After the loop, the yielded value is where it ended: the start of the remainder.
        """
        head, body, after = self._label(), self._label(), self._label()
        before = self._block
        self.do(f"br label %{head}")
        self._begin(head)
        place = len(self.lines)
        i = self.emit("phi", "i64")  # completed below: where it comes from is not known yet
        following = i + step
        fits = following.compare("sle", stop)
        self.do(f"br {fits}, label %{body}, label %{after}")
        self._begin(body)
        yield i
        self.lines[place] = (
            f"  {i.name} = phi i64 [{start.name}, %{before}], [{following.name}, %{self._block}]"
        )
        self.do(f"br label %{head}")
        self._begin(after)

    def fold(self, count: Value, values: list[Value], body: Callable) -> list[Value]:
        """Values that ``body(values)`` replaces ``count`` times; they stay in registers.

        At least once: the test is at the end, so that a short body is one block.
        """
        head, after = self._label(), self._label()
        before = self._block
        self.do(f"br label %{head}")
        self._begin(head)
        place = len(self.lines)
        carried = [self.emit("phi", v.type) for v in (self.integer(0), *values)]
        following = [carried[0] + 1, *body(carried[1:])]
        again = following[0].compare("slt", count)
        for k, (old, start, new) in enumerate(
            zip(carried, (self.integer(0), *values), following, strict=True)
        ):
            sources = f"[{start.name}, %{before}], [{new.name}, %{self._block}]"
            self.lines[place + k] = f"  {old.name} = phi {old.type} {sources}"
        self.do(f"br {again}, label %{head}, label %{after}")
        self._begin(after)
        return following[1:]

    def choose(self, condition: Value, yes: Callable, no: Callable) -> list[Value]:
        """What ``yes()`` gives if the condition holds, else what ``no()`` gives: lists of
        values."""
        then, otherwise, after = self._label(), self._label(), self._label()
        self.do(f"br {condition}, label %{then}, label %{otherwise}")
        branches = []
        for label, make in ((then, yes), (otherwise, no)):
            self._begin(label)
            branches.append((make(), self._block))
            self.do(f"br label %{after}")
        self._begin(after)
        (first, first_end), (second, second_end) = branches
        return [
            self.emit(f"phi {a.type} [{a.name}, %{first_end}], [{b.name}, %{second_end}]", a.type)
            for a, b in zip(first, second, strict=True)
        ]

    def leave_unless(self, condition: Value, result: str) -> None:
        """Return from the function at once if the condition does not hold."""
        leave, after = self._label(), self._label()
        self.do(f"br {condition}, label %{after}, label %{leave}")
        self._begin(leave)
        self.do(f"ret {result}")
        self._begin(after)

    def function(self, name: str, parameters: list[Value], result: str = "void") -> str:
        """The text of the whole function; ``result`` ends it."""
        head = f"define {result.split()[0]} @{name}({', '.join(map(str, parameters))}) nounwind {{"
        return "\n".join([head, *self._body(result), *sorted(self.declarations), ""])

    def rarely_called(self, name: str, parameters: list[Value], result: Value) -> list[str]:
        """The declarations that another function needs to call this one. LLVM takes branches that
        do for unlikely."""
        head = f"define internal {result.type} @{name}({', '.join(map(str, parameters))}) nounwind"
        text = "\n".join([f"{head} noinline cold {{", *self._body(str(result))])
        return [text, *self.declarations]

    def _body(self, result: str) -> list[str]:
        return ["entry:", *self.lines, f"  ret {result}", "}"]


@lru_cache(256)
def mangled(type: str) -> str:
    """A type in the name of an intrinsic: ``v8f32``."""
    short = {"float": "f32", "double": "f64"}
    if type[0] != "<":
        return short.get(type, type)
    lanes, element = type.strip("<>").split(" x ")
    return f"v{lanes}{short.get(element, element)}"


_SIZES = {"float": 4, "double": 8, "ptr": 8, "i64": 8, "i32": 4, "i16": 2, "i8": 1}


@lru_cache(256)
def alignment(type: str) -> int:
    """Bytes of one element: NumPy promises no more."""
    return _SIZES[element_of(type)]
