"""Identities of real numbers that floats do not keep, for ``compile(algebra="real")``: those of
elements and of rows, as a table.

Each is applied where it makes a program cheaper: ``x * y + x * z`` becomes ``x * (y + z)`` unless
``x * y`` is needed anyway. Identities of sums and of products of matrices are in ``linear.py``.

Left out, since they are no identities or do harm: ``(x ** c) ** d`` (-2 squared has the root 2),
``log(x) + log(y)`` and ``sqrt(x) * sqrt(y)`` (whose products overflow where the sums do not).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...codegen.arrays import BOOLEAN, REDUCTIONS
from ...codegen.expr import (
    PRIMITIVES,
    Expr,
    as_expr,
    const,
    evaluate,
    exactly,
    literally,
    topological,
    variable,
)
from ...codegen.rows import row_mean, row_sum
from ...ops import elementwise as ops

# Variables of patterns stand for any expression; these for constants, or for what is the same for
# all elements of an array or a row.
_CONSTANTS, _UNIFORM = ("c", "d", "e"), ("s",)
_COMMUTATIVE = ("add", "mul")
# Constants beyond are not made: float32 would have no such number, or not to its full precision.
_SMALLEST, _LARGEST = 1e-30, 1e30
# What primitives cost beside 1 for an addition, as in codegen/rows.py, and what is computed once
# for a row.
_DIVISION, _FUNCTION, _ONCE = 4.0, 16.0, 0.1
_CHEAP = {
    "add", "sub", "mul", "neg", "positive", "abs", "square", "maximum", "minimum", "where", "sign",
    "floor", "ceil", "trunc", "round", *BOOLEAN, *REDUCTIONS,
}  # fmt: skip
_DIVISIONS = {"div", "sqrt", "rsqrt", "reciprocal"}


class Identity(NamedTuple):
    """A pattern, what replaces it, and where the two differ by more than rounding."""

    pattern: Expr
    replacement: Expr
    differs: str = ""

    def __str__(self) -> str:
        return f"{self.pattern!r} -> {self.replacement!r}"


def _table() -> tuple[Identity, ...]:
    b, x, y, z, c, d, e, s = map(variable, "bxyzcdes")
    exp, log, sqrt, square, power = ops.exp, ops.log, ops.sqrt, ops.square, ops.pow
    zero, one = const(0), const(1)
    infinite, ranges = "infinities and NaN", "what overflows or underflows in between"
    return (
        # ---- zero and one
        Identity(literally("mul", x, 0), zero, f"{infinite}, the sign of zero"),
        Identity(literally("add", x, 0), x, "-0.0"),
        Identity(x - x, zero, infinite),
        Identity(x / x, one, f"{infinite}, zero"),
        Identity(literally("div", 0, x), zero, "NaN, zero, the sign of zero"),
        Identity(literally("mul", x, ops.where(b, 1, 0)), ops.where(b, x, 0), infinite),
        # ---- constants
        Identity(x / s, x * (1 / s), "s so small that 1 / s is infinite"),
        Identity((x * c) * d, x * (c * d), ranges),
        Identity((c / x) * d, (c * d) / x, ranges),
        Identity(c / (x * d), (c / d) / x, ranges),
        Identity((x + c) + d, x + (c + d)),
        Identity((x - c) + d, x + (d - c)),
        Identity((c - x) + d, (c + d) - x),
        Identity((x + c) - d, x + (c - d)),
        Identity((x - c) - d, x - (c + d)),
        Identity((c - x) - d, (c - d) - x),
        Identity(d - (x + c), (d - c) - x),
        Identity(d - (x - c), (d + c) - x),
        Identity(d - (c - x), x + (d - c)),
        Identity((x * c + d) * e, x * (c * e) + d * e, ranges),
        Identity(literally("neg", x * c), literally("mul", x, literally("neg", c))),
        Identity(
            literally("mul", literally("neg", x), c), literally("mul", x, literally("neg", c))
        ),
        Identity(literally("neg", x - y), y - x, "the sign of zero"),
        # ---- what is added or multiplied and taken away again
        Identity(x + (y - x), y, f"{infinite}, {ranges}, x far larger than y"),
        Identity((x + y) - x, y, f"{infinite}, {ranges}, x far larger than y"),
        Identity(x - (x - y), y, f"{infinite}, {ranges}, x far larger than y"),
        Identity((x * y) / y, x, f"zero, {infinite}, {ranges}"),
        Identity((x / y) * y, x, f"zero, {infinite}, {ranges}"),
        # ---- factors
        Identity(x * y + x * z, x * (y + z), f"{infinite}, {ranges}"),
        Identity(x * y - x * z, x * (y - z), f"{infinite}, {ranges}"),
        Identity(x * c + x, x * (c + 1), infinite),
        Identity(x - x * c, x * (1 - c), infinite),
        Identity(x / z + y / z, (x + y) / z, ranges),
        Identity(x / z - y / z, (x - y) / z, ranges),
        # ---- quotients
        Identity((x / y) / z, x / (y * z), ranges),
        Identity(x / (y / z), (x * z) / y, ranges),
        Identity(x / sqrt(x), sqrt(x), f"zero, {infinite}"),
        # ---- powers and roots
        Identity(literally("pow", x, 2), x * x),
        Identity(literally("pow", x, 3), (x * x) * x),
        Identity(literally("pow", x, 4), square(x * x)),
        Identity(literally("pow", x, -1), 1 / x),
        Identity(literally("pow", x, -2), 1 / (x * x), ranges),
        Identity(literally("pow", x, 0.5), sqrt(x), "-infinity"),
        Identity(literally("pow", x, 1.5), x * sqrt(x), "-infinity"),
        Identity(literally("pow", x, -0.5), 1 / sqrt(x), "-infinity, -0.0"),
        Identity(literally("pow", x, -1.5), 1 / (x * sqrt(x)), "-infinity, -0.0"),
        Identity(power(x, c) * x, power(x, c + 1), "zero, negative numbers"),
        Identity(power(x, c) * power(x, d), power(x, c + d), "zero, negative numbers"),
        Identity(sqrt(x) * sqrt(x), x, "negative numbers"),
        Identity(square(sqrt(x)), x, "negative numbers"),
        Identity(sqrt(x * x), abs(x), ranges),
        Identity(sqrt(square(x)), abs(x), ranges),
        # ---- exponentials and logarithms
        Identity(exp(log(x)), x, "negative numbers"),
        Identity(log(exp(x)), x, ranges),
        Identity(exp(x) * exp(y), exp(x + y), ranges),
        Identity(exp(x) / exp(y), exp(x - y), ranges),
        Identity(1 / exp(x), exp(-x), ranges),
        Identity(log(exp(x) / y), x - log(y), ranges),
        Identity(log(exp(x) * y), x + log(y), ranges),
        Identity(log(1 / x), -log(x), ranges),
        Identity(log(sqrt(x)), log(x) * 0.5),
        Identity(log(power(x, c)), log(abs(x)) * c, "negative numbers, ranges"),
        Identity(log(ops.sigmoid(x)), ops.log_sigmoid(x), ranges),
        # ---- sums over a row
        Identity(row_sum(x * s), row_sum(x) * s, ranges),
        Identity(row_mean(x * s), row_mean(x) * s, ranges),
        Identity(row_sum(literally("neg", x)), literally("neg", row_sum(x))),
        Identity(row_mean(literally("neg", x)), literally("neg", row_mean(x))),
    )


IDENTITIES = _table()
_BY_OP: dict[str, list[Identity]] = defaultdict(list)
for _identity in IDENTITIES:
    _BY_OP[_identity.pattern.op].append(_identity)


# ------------------------------------------------------------------------------------------------
# applying them


class Simplified(NamedTuple):
    """Expressions, and the identities that made them what they are."""

    outputs: list[Expr]
    applied: list[Identity]


def simplified(outputs: Sequence[Expr], uniform: set[str]) -> Simplified:
    """Cheaper expressions that are equal as real numbers. ``uniform`` are the inputs that are the
    same for all elements of an array or a row."""
    found: list[Expr] = list(outputs)
    applied: list[Identity] = []
    while True:
        step = _step(found, uniform)
        if step is None:
            return Simplified(found, applied)
        found, identity = step
        applied.append(identity)


def _step(outputs: list[Expr], uniform: set[str]) -> tuple[list[Expr], Identity] | None:
    """The expressions after one more identity that makes them cheaper."""
    once = computed_once(outputs, uniform)
    before = cost(outputs, uniform)
    for e in topological(outputs):
        for identity in _BY_OP.get(e.op, ()):
            for found in _matches(identity.pattern, e, {}, once):
                new = _replacement(identity, found)
                if new is None:
                    continue
                changed = _substituted(outputs, e, new)
                if cost(changed, uniform) < before - _ONCE / 2:
                    return changed, identity
    return None


def cost(outputs: Sequence[Expr], uniform: set[str]) -> float:
    """Of computing an element of each, where additions cost 1."""
    once = computed_once(outputs, uniform)
    total = 0.0
    for e in topological(outputs):
        if e.op not in ("input", "const"):
            price = 1.0 if e.op in _CHEAP else _DIVISION if e.op in _DIVISIONS else _FUNCTION
            total += price * (_ONCE if e in once and e.op not in REDUCTIONS else 1.0)
    return total


def computed_once(outputs: Sequence[Expr], uniform: set[str]) -> set[Expr]:
    """The expressions that are the same for all elements."""
    once: set[Expr] = set()
    for e in topological(outputs):
        if e.op == "input":
            same = e.args[0] in uniform
        else:
            same = e.op in REDUCTIONS or e.op == "const" or all(a in once for a in e.args)
        if same:
            once.add(e)
    return once


def _matches(pattern: Expr, e: Expr, found: dict[str, Expr], once: set[Expr]) -> Iterator[dict]:
    """Every way in which an expression is an instance of a pattern: what its variables stand
    for."""
    if pattern.op == "input":
        name = pattern.args[0]
        if name in found:
            fits = found[name] is e
        elif name in _CONSTANTS:
            fits = e.op == "const"
        else:
            fits = name not in _UNIFORM or e in once
        if fits:
            yield {**found, name: e}
    elif pattern.op == "const":
        if e.op == "const" and e.args[0] == pattern.args[0]:
            yield found
    elif pattern.op == e.op:
        orders = [e.args, e.args[::-1]] if e.op in _COMMUTATIVE else [e.args]
        for args in orders:
            yield from _all_match(pattern.args, args, found, once)


def _all_match(patterns: tuple, args: tuple, found: dict, once: set[Expr]) -> Iterator[dict]:
    if not patterns:
        yield found
        return
    for more in _matches(patterns[0], args[0], found, once):
        yield from _all_match(patterns[1:], args[1:], more, once)


def _replacement(identity: Identity, found: dict[str, Expr]) -> Expr | None:
    """What takes the place of a match; None if a constant in it is out of range."""
    (new,) = evaluate([identity.replacement], found, folded)
    new = as_expr(new)
    given = set(found.values())
    for e in topological([new]):
        if e.op == "const":
            size = abs(e.args[0])
            if e not in given and size and not _SMALLEST <= size <= _LARGEST:
                return None
        elif e.op != "input" and all(a.op == "const" for a in e.args):
            return None  # 1 / 0
    return new


def _substituted(outputs: list[Expr], old: Expr, new: Expr) -> list[Expr]:
    """The expressions with another one in the place of one of theirs."""
    made: dict[Expr, Expr] = {old: new}
    for e in topological(outputs):
        if e not in made:
            plain = e.op in ("input", "const")
            made[e] = e if plain else folded(e.op, *[made[a] for a in e.args])
    return [made[e] for e in outputs]


def folded(op: str, *args) -> Expr:
    """The expression ``op(args...)``: a number if all arguments are, else simplified exactly."""
    args = tuple(as_expr(a) for a in args)
    fold = PRIMITIVES[op].fold
    if args and all(a.op == "const" for a in args):
        numbers = [a.args[0] for a in args]
        if op == "eq":
            return const(numbers[0] == numbers[1])
        if fold is not None:
            try:
                return const(fold(*numbers))
            except (ArithmeticError, ValueError):
                pass  # 1 / 0: left to the arrays, which give infinity
    if op == "positive" and args[0].op != "input":  # a copy of what has memory of its own
        return args[0]
    if op == "where" and args[0].op == "const":
        return args[1] if args[0].args[0] else args[2]
    return exactly(op, *args)
