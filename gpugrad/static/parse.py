"""Reads a graph back from its text.

A small parser: names are looked up among operations, primitives, dtypes and functions of gpugrad;
nothing is evaluated.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from .. import dtypes
from ..backend.numpy import xp as np
from ..codegen.expr import PRIMITIVES, Expr, const, literally, variable
from ..codegen.rows import RowProgram
from ..foreach import Update
from ..ops.core import REGISTRY, Meta
from .graph import (
    Call,
    CheckCall,
    DeviceUpdateCall,
    EpilogueCall,
    FunctionCall,
    Graph,
    Node,
    OpCall,
    ProgramCall,
    PrologueCall,
    RowsCall,
    UpdateCall,
    Value,
    VjpCall,
)
from .passes.pointwise import interned_program

_TOKENS = re.compile(
    r"\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<value>%\d+)"
    r"|(?P<number>-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf\b|nan\b))"
    r"|(?P<name>[A-Za-z_][\w.]*)"
    r"|(?P<sign>->|<-|\.\.\.|[-=()\[\]{}:,;@]))"
)
_WORDS: dict[str, Any] = {"None": None, "True": True, "False": False}


class _Described:
    """Where an input came from, as text: such a graph is run with all inputs given."""

    def __init__(self, text: str):
        self.text = text

    def __eq__(self, other) -> bool:
        return other.__class__ is _Described and other.text == self.text

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.text


class _Shaped:
    """What ``Meta`` asks of an array."""

    def __init__(self, shape: tuple[int, ...], dtype):
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)


class _Line:
    """The tokens of a line, read one after the other."""

    def __init__(self, text: str):
        self.text, self.place = text, 0
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKENS.match(text, at)
            if found is None:
                raise self.wrong(f"{text[at:].strip()!r} cannot be read")
            self.tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            at = found.end()

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"{what}, in the line {self.text.strip()!r}")

    def peek(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.place += 1
        return token

    def skip(self, token: str) -> bool:
        """Go past a token, if it is the next."""
        if self.peek() != token:
            return False
        self.place += 1
        return True

    def expect(self, token: str) -> None:
        if not self.skip(token):
            raise self.wrong(f"{token!r} is expected before {self.peek()!r}")

    def several(self, end: str, one: Callable[[], Any]) -> list:
        """Parts between commas, up to a token."""
        found: list = []
        while not self.skip(end):
            if found:
                self.expect(",")
                if self.skip(end):
                    break
            found.append(one())
        return found


def parse(text: str, constants: Mapping[str, Any] | None = None) -> Graph:
    """The graph of a text that ``str(graph)`` gave.

    Inputs have descriptions for sources. Constants that are not written out are taken from
    ``constants``, by their names (``"%5"``). What a text cannot hold (functions that are not
    gpugrad's, random draws) raises ValueError.
    """
    return _Reader(constants or {}).graph(text)


class _Reader:
    def __init__(self, constants: Mapping[str, Any]):
        self.result, self.constants = Graph(), constants
        self.values: dict[str, Value] = {}

    def graph(self, text: str) -> Graph:
        lines = [line for line in text.strip().splitlines() if line.strip()]
        if not lines or lines[0].strip() != "graph:":
            raise ValueError("the text of a graph begins with the line 'graph:'")
        for line in lines[1:]:
            self._line(line)
        self.result._count = 1 + max([v.number for v in self.values.values()], default=-1)
        self.result.check()
        return self.result

    def _line(self, text: str) -> None:
        text, source, description = text.partition(" <- ")
        line = _Line(text)
        word = line.peek()
        if word == "store":
            line.next()
            target = self._value(line)
            self.result.stores.append((target, self._value(_Line(description))))
        elif source:
            (v,) = self._results(line)
            self.result.inputs.append(v)
            self.result.sources.append(_Described(description))
        elif word == "guard":
            line.next()
            v = self._value(line)
            line.expect("is")
            self.result.guards.append((v, self._literal(line)))
        elif word == "return":
            line.next()
            self.result.outputs = line.several("", lambda: self._value(line))
        else:
            self._node(line)

    # ---- values

    def _results(self, line: _Line) -> list[Value]:
        found = []
        while line.kind() == "value":
            name = line.next()
            line.expect(":")
            if name in self.values:
                raise line.wrong(f"{name} is made twice")
            shape, dtype, device = self._type(line)
            self.values[name] = Value(int(name[1:]), shape, dtype, device)
            found.append(self.values[name])
            if not line.skip(","):
                break
        return found

    def _type(self, line: _Line) -> tuple:
        """``float32[64, 10] on cuda:0``."""
        if line.skip("number"):
            return None, None, None
        dtype = self._dtype(line)
        line.expect("[")
        shape = tuple(line.several("]", lambda: int(line.next())))
        device = None
        if line.skip("on"):
            device = line.next()
            if line.skip(":"):
                device += f":{line.next()}"
        return shape, dtype, device

    def _dtype(self, line: _Line):
        name = line.next()
        try:
            return dtypes.as_dtype(getattr(dtypes, name, None) or np.dtype(name))
        except TypeError:
            raise line.wrong(f"{name!r} is no dtype") from None

    def _value(self, line: _Line) -> Value:
        name = line.next()
        if name not in self.values:
            raise line.wrong(f"{name!r} is no value made before")
        return self.values[name]

    # ---- nodes

    def _node(self, line: _Line) -> None:
        outputs = self._results(line)
        if outputs:
            line.expect("=")
        if line.skip("constant"):
            self.result.constants[outputs[0]] = self._constant(line, outputs[0])
            return
        call = self._call(line, outputs)
        line.expect("(")
        inputs = line.several(")", lambda: self._input(line))
        self.result.nodes.append(Node(call(inputs), inputs, outputs))

    def _constant(self, line: _Line, v: Value):
        if line.kind() == "value":
            name = line.next()
            if name not in self.constants:
                raise line.wrong(f"the constant {name} is needed: parse(text, {{'{name}': array}})")
            return self.constants[name]
        numbers = self._literal(line)
        if numbers.__class__ is list:
            return np.array(numbers, v.dtype).reshape(v.shape)
        return np.full(v.shape, numbers, v.dtype)

    def _input(self, line: _Line):
        if line.kind() == "value":
            return self._value(line)
        if line.skip("like"):
            shape, dtype, _ = self._type(line)
            return Meta(_Shaped(shape, dtype))
        return self._literal(line)

    def _call(self, line: _Line, outputs: list[Value]) -> Callable[[list], Call]:
        """What makes the call, once its inputs are known."""
        name = line.next()
        if name in ("program", "update"):
            names, results = self._program(line)
            if any(kind for _, kind in names):
                call = _device_update(names, [e for _, e in results])
                return lambda inputs: call
            transposed = line.skip("transposed")
            if line.skip("into"):
                consumer = self._call(line, outputs)
                return lambda inputs: _prologue(names, results, transposed, consumer, inputs)
            kind = ProgramCall if name == "program" else UpdateCall
            return lambda inputs: kind(_program(names, results, inputs, outputs))
        if name == "rows":
            kinds, pairs = self._program(line, rows=True)
            return lambda inputs: RowsCall(RowProgram(pairs, dict(kinds)))
        if name == "check":
            function = self._function(line, line.next())
            params = self._parameters(line)
            return lambda inputs: CheckCall(function, params)
        if name.endswith(".vjp"):
            op = self._operation(line, name.removesuffix(".vjp"))
            line.expect(":")
            needs = tuple(c == "1" for c in line.next())
            params = self._parameters(line)
            return lambda inputs: VjpCall(op, params, needs)
        if "." in name:
            function = self._function(line, name)
            params = self._parameters(line)
            return lambda inputs: FunctionCall(function, params)
        op = self._operation(line, name)
        params = self._parameters(line)
        if line.skip("then"):
            line.expect("program")
            after = self._program(line)
            return lambda inputs: EpilogueCall(
                OpCall(op, params), _program(*after, [outputs[0], *inputs[2:]], outputs)
            )
        return lambda inputs: OpCall(op, params)

    def _operation(self, line: _Line, name: str):
        if name not in REGISTRY:
            raise line.wrong(f"there is no operation {name!r}")
        return REGISTRY[name]

    def _function(self, line: _Line, full_name: str):
        """A function of gpugrad, by the name of its module and its own."""
        module, _, name = full_name.rpartition(".")
        if module.partition(".")[0] != "gpugrad":
            raise line.wrong("only functions of gpugrad can be read back")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise line.wrong(f"there is no function {module}.{name}") from None

    # ---- expressions

    def _program(self, line: _Line, rows: bool = False) -> tuple[list, list]:
        """``{x, y: column -> t0 = exp(x); element t0}``: inputs and outputs as pairs of a name or
        expression and its kind."""
        line.expect("{")
        inputs: list[tuple[str, str]] = []
        while not line.skip("->"):
            if inputs:
                line.expect(",")
            name = line.next()
            inputs.append((name, line.next() if line.skip(":") else ""))
        known = {name: variable(name) for name, _ in inputs} | {"position": variable("position")}
        while line.tokens[line.place + 1 : line.place + 2] == [("sign", "=")]:
            name = line.next()
            line.expect("=")
            known[name] = self._expression(line, known)
            line.expect(";")

        def output() -> tuple[str, Expr]:
            kind = line.next() if rows else ""
            return kind, self._expression(line, known)

        return inputs, line.several("}", output)

    def _expression(self, line: _Line, known: Mapping[str, Expr]) -> Expr:
        if line.kind() == "name" and line.peek() not in _WORDS:
            name = line.next()
            if line.skip("("):
                if name not in PRIMITIVES:
                    raise line.wrong(f"there is no scalar operation {name!r}")
                return literally(name, *line.several(")", lambda: self._expression(line, known)))
            if name not in known:
                raise line.wrong(f"{name!r} is no input of the expressions")
            return known[name]
        return const(self._literal(line))

    # ---- literals

    def _parameters(self, line: _Line) -> dict[str, Any]:
        if not line.skip("["):
            return {}

        def one() -> tuple[str, Any]:
            name = line.next()
            line.expect("=")
            return name, self._literal(line)

        return dict(line.several("]", one))

    def _literal(self, line: _Line) -> Any:
        kind, token = line.kind(), line.next()
        if kind == "number":
            return float(token) if re.search(r"[.einfa]", token) else int(token)
        if kind == "string":
            return ast.literal_eval(token)  # of one string
        if token in _WORDS:
            return _WORDS[token]
        if token == "...":
            return Ellipsis
        if token == "@":
            return self._operation(line, line.next())
        if token == "slice":
            line.expect("(")
            return slice(*line.several(")", lambda: self._literal(line)))
        if token == "(":
            return tuple(line.several(")", lambda: self._literal(line)))
        if token == "[":
            return line.several("]", lambda: self._literal(line))
        if token == "{":
            return dict(line.several("}", lambda: self._entry(line)))
        if kind == "name":
            line.place -= 1
            return self._dtype(line)
        raise line.wrong(f"{token!r} is no literal")

    def _entry(self, line: _Line) -> tuple[str, Any]:
        name = line.next()
        line.expect(":")
        return name, self._literal(line)


def _device_update(names: list[tuple[str, str]], outputs: list[Expr]) -> DeviceUpdateCall:
    """The call of an update whose inputs are tensors, scalars and perhaps a flag."""
    tensors = [name for name, kind in names if not kind]
    scalars = [name for name, kind in names if kind == "scalar"]

    def update(*args, **numbers):
        return tuple(outputs)

    update.parameters = tensors, scalars  # type: ignore[attr-defined]
    return DeviceUpdateCall(Update(update), names[-1][1] == "flag")


def _prologue(names: list, results: list, transposed: bool, consumer: Callable, inputs: list):
    """The call of a product whose second operand is computed by the last inputs."""
    count = len(inputs) - len(names)
    (a, *others), given = inputs[:count], inputs[count:]
    arrays = [v for v in given if v.__class__ is Value and v.dtype is not None]
    made = max(arrays, key=lambda v: (len(v.shape), prod(v.shape)))
    return PrologueCall(
        _program(names, results, given, [made]), transposed, consumer([a, None, *others])
    )


def _program(inputs: list, outputs: list, values: list, made: list[Value]):
    names = tuple(name for name, _ in inputs)
    shape = made[0].shape
    full = frozenset(
        name for name, v in zip(names, values, strict=True)
        if v.__class__ is Value and v.dtype is not None and v.shape == shape
    )  # fmt: skip
    return interned_program(tuple(e for _, e in outputs), names, full)
