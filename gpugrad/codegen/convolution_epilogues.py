"""What a convolution's kernel does with its results: an elementwise program of them and of other
arrays, computed while they are in registers, and stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import BOOLEAN, Program
from .expr import build, variable
from .ir import Value, with_element
from .llvm import _NUMBERS, EXACT, Unsupported, _evaluate, _is_bool, rules_for, strides_in
from .loops import Writer
from .machine import Machine

_BOOL = np.dtype("bool")
# Instructions of an epilogue that one tile may have: LLVM takes 25 us for each. Functions (exp,
# tanh) are some twenty; they hide the time of a pass over memory, too.
INSTRUCTIONS, FUNCTION = 512, 20


class Operand(NamedTuple):
    """How an array is read beside (image, channel, row, column) of the results: the elements from
    one to the next of each, 0 where it is broadcast."""

    boolean: bool
    strides: tuple[int, ...]


class Epilogue(NamedTuple):
    """A program whose first input is what the kernel computes.

    ``operands`` are those of its other inputs: None for an input that is not read, a string for a
    number.
    """

    program: Program
    operands: tuple[Operand | str | None, ...] = ()

    def _pairs(self, kind: type) -> list[tuple[str, Any]]:
        pairs = zip(self.program.inputs[1:], self.operands, strict=True)
        return [(name, operand) for name, operand in pairs if operand.__class__ is kind]

    @property
    def arrays(self) -> list[tuple[str, Operand]]:
        """The inputs that are arrays, and how they are read."""
        return self._pairs(Operand)

    @property
    def numbers(self) -> list[str]:
        """The inputs that are numbers."""
        return [name for name, _ in self._pairs(str)]

    def demand(self, times: int) -> None:
        """Raise Unsupported if the program is too long to be written out so many times."""
        steps = [1 if step in EXACT else FUNCTION for step in self.program.steps]
        if times * sum(steps) > INSTRUCTIONS:
            raise Unsupported


PLAIN = Epilogue(Program([build("positive", variable("y"))], ["y"], ["y"]))


def describe(program: Program, inputs: Sequence, outputs: Sequence[np.ndarray]) -> Epilogue | None:
    """The epilogue of arrays and Python numbers beside the results; None where there is no kernel.

    Outputs are contiguous and share no memory with the inputs: a kernel may compute and store an
    element twice.
    """
    shape = outputs[0].shape
    dtypes = {o.dtype for o in outputs} - {_BOOL}
    if len(dtypes) != 1:
        return None
    (dtype,) = dtypes
    for out, e in zip(outputs, program.outputs, strict=True):
        wanted = _BOOL if e.op in BOOLEAN else dtype
        if out.shape != shape or out.dtype != wanted or not out.flags.carray:
            return None
    operands: list[Operand | str | None] = []
    for x, name in zip(inputs, program.inputs[1:], strict=True):
        if name not in program.used:
            operands.append(None)
        elif x.__class__ in _NUMBERS:
            operands.append("number")
        else:
            operand = _operand(x, dtype, shape)
            if operand is None or any(np.may_share_memory(x, out) for out in outputs):
                return None
            operands.append(operand)
    return Epilogue(program, tuple(operands))


def _operand(x, dtype, shape: tuple[int, ...]) -> Operand | None:
    if x.__class__ is not np.ndarray or x.dtype not in (dtype, _BOOL) or x.ndim > len(shape):
        return None
    strides = strides_in(x.shape, x.strides, len(shape))
    if any(s % x.itemsize for s in strides) or strides[-1] not in (0, x.itemsize):
        return None
    return Operand(x.dtype == _BOOL, tuple(s // x.itemsize for s in strides))


class Results:
    """Where a kernel's results go: images of a shape (channels, rows, columns)."""

    def __init__(
        self, compiler: Machine, w: Writer, epilogue: Epilogue, shape: tuple[int, int, int]
    ):
        """The last of the writer's arrays are the epilogue's inputs, its outputs and scratch."""
        self.w, self.program = w, epilogue.program
        self.rules = rules_for(compiler, w.element)
        self.inputs = dict(epilogue.arrays)
        channels, height, width = shape
        strides = (channels * height * width, height * width, width, 1)
        self.outputs = [Operand(e.op in BOOLEAN, strides) for e in self.program.outputs]
        count = len(self.inputs) + len(self.outputs)
        self.data = w.data[-1 - count : -1]
        self.numbers = dict(zip(epilogue.numbers, w.numbers, strict=True))

    def at(self, *index: Value) -> Place:
        """The place of an element: image, channel, row, column."""
        return Place(self, index)


class Place:
    """An element of the results, and what lies there in the arrays of the epilogue. What is the
    same for a channel or a row is loaded once."""

    def __init__(self, results: Results, index: Sequence[Value]):
        self.results = results
        code = results.w.code
        operands = [*results.inputs.values(), *results.outputs]
        self._pointers = []
        for operand, data in zip(operands, results.data, strict=True):
            total = code.integer(0)
            for i, stride in zip(index, operand.strides, strict=True):
                total = total + i * stride if stride else total
            self._pointers.append(code.at(data, total, self._element(operand)))
        self._uniform: dict[tuple[str, int], Value] = {}

    def store(self, value: Value, count: int, offset: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Store the program's results for the first lanes of a vector that lies some channels, rows
        and columns further."""
        results = self.results
        code, program, inputs = results.w.code, results.program, results.inputs
        env = results.numbers | {program.inputs[0]: value}
        for (name, operand), pointer in zip(inputs.items(), self._pointers, strict=False):
            env[name] = self._load(name, operand, pointer, _distance(operand, offset), count)
        found = _evaluate(code, program.outputs, env, results.rules)
        pointers = self._pointers[len(inputs) :]
        for vector, operand, pointer in zip(found, results.outputs, pointers, strict=True):
            if _is_bool(vector) != operand.boolean:
                raise Unsupported
            self._store(vector, operand, pointer, _distance(operand, offset), count)

    def _element(self, operand: Operand) -> str:
        return "i8" if operand.boolean else self.results.w.element

    def _load(self, name: str, operand: Operand, pointer: Value, distance: int, count: int):
        code, element = self.results.w.code, self._element(operand)
        if not operand.strides[-1] and (name, distance) in self._uniform:
            return self._uniform[name, distance]
        place = code.at(pointer, distance, element)
        if not operand.strides[-1] or count == 1:
            vector = code.splat(code.load(place, element))
        else:
            vector = self._first(place, element, count)
        vector = vector.compare("ne", 0) if operand.boolean else vector
        if not operand.strides[-1]:
            self._uniform[name, distance] = vector
        return vector

    def _first(self, place: Value, element: str, count: int) -> Value:
        """A vector that begins with ``count`` elements from memory."""
        code = self.results.w.code
        whole = with_element(code.vector, element)
        if count == code.lanes:
            return code.load(place, whole)
        some = code.load(place, f"<{count} x {element}>")
        lanes = ", ".join(f"i32 {k if k < count else 'poison'}" for k in range(code.lanes))
        text = f"shufflevector {some}, {some}, <{code.lanes} x i32> <{lanes}>"
        return code.emit(text, whole)

    def _store(self, value: Value, operand: Operand, pointer: Value, distance: int, count: int):
        code, element = self.results.w.code, self._element(operand)
        if operand.boolean:
            value = value.convert("zext", with_element(code.vector, element))
        if count == 1:
            value = code.emit(f"extractelement {value}, i64 0", element)
        elif count < code.lanes:
            lanes = ", ".join(f"i32 {k}" for k in range(count))
            text = f"shufflevector {value}, {value}, <{count} x i32> <{lanes}>"
            value = code.emit(text, f"<{count} x {element}>")
        code.store(value, code.at(pointer, distance, element))


def _distance(operand: Operand, offset: tuple[int, int, int]) -> int:
    return sum(s * n for s, n in zip(operand.strides[1:], offset, strict=True))
