"""Scalar expressions: the form in which an elementwise operation is stated once and used
everywhere.

An expression is a hash-consed graph: building the same thing twice gives the same object, so common
subexpressions are shared by construction. ``build`` applies only identities that are exact in
floating point, with one exception: a product with the constant 0 is 0, as in every autodiff system,
also where the other factor is infinite.

The scalar primitives are declared by the rows of ``gpugrad.ops`` through ``declare``; this module
holds no formula.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence


class Expr:
    """``op`` applied to ``args``; an input is ``("input", name)`` and a constant ``("const",
    value)``."""

    __slots__ = ("__weakref__", "args", "op")

    op: str
    args: tuple

    def __repr__(self):
        if self.op in ("input", "const"):
            return str(self.args[0])
        return f"{self.op}({', '.join(map(repr, self.args))})"

    def __bool__(self):
        raise TypeError(
            "a scalar expression has no truth value: it stands for every element at once. Use "
            "where(condition, a, b)."
        )

    def __add__(self, other):
        return build("add", self, other)

    def __radd__(self, other):
        return build("add", other, self)

    def __sub__(self, other):
        return build("sub", self, other)

    def __rsub__(self, other):
        return build("sub", other, self)

    def __mul__(self, other):
        return build("mul", self, other)

    def __rmul__(self, other):
        return build("mul", other, self)

    def __truediv__(self, other):
        return build("div", self, other)

    def __rtruediv__(self, other):
        return build("div", other, self)

    def __pow__(self, other):
        return build("pow", self, other)

    def __rpow__(self, other):
        return build("pow", other, self)

    def __neg__(self):
        return build("neg", self)

    def __abs__(self):
        return build("abs", self)

    def __lt__(self, other):
        return build("lt", self, other)

    def __le__(self, other):
        return build("le", self, other)

    def __gt__(self, other):
        return build("gt", self, other)

    def __ge__(self, other):
        return build("ge", self, other)

    def __and__(self, other):
        return build("logical_and", self, other)

    def __or__(self, other):
        return build("logical_or", self, other)

    def __invert__(self):
        return build("logical_not", self)


_interned: weakref.WeakValueDictionary[tuple, Expr] = weakref.WeakValueDictionary()


def _intern(op: str, args: tuple) -> Expr:
    # repr tells 1 from 1.0 from True and -0.0 from 0.0, which compare equal.
    key: tuple
    if op == "input":
        key = (op, *args)
    elif op == "const":
        key = (op, repr(args))
    else:
        key = (op, *map(id, args))
    found = _interned.get(key)
    if found is None:
        found = object.__new__(Expr)
        found.op, found.args = op, args
        _interned[key] = found
    return found


def variable(name: str) -> Expr:
    """An input of the expression."""
    return _intern("input", (name,))


def const(value) -> Expr:
    """A constant; weakly typed, like a Python number in NumPy and torch."""
    return _intern("const", (value,))


def as_expr(value) -> Expr:
    return value if isinstance(value, Expr) else const(value)


def is_const(e: Expr, value) -> bool:
    return e.op == "const" and e.args[0] == value


class Primitive:
    """What the expression layer knows of a scalar operation: its partials and the array function
    behind it."""

    __slots__ = ("array_name", "fold", "name", "partials")

    def __init__(self, name, partials, array_name, fold):
        self.name, self.partials, self.array_name, self.fold = name, partials, array_name, fold


PRIMITIVES: dict[str, Primitive] = {}


def declare(name, partials, array_name, fold=None) -> None:
    """Make a scalar primitive known. ``fold`` computes it on Python numbers, for constant
    folding."""
    PRIMITIVES[name] = Primitive(name, partials, array_name, fold)


def _identity(op: str, args: tuple) -> Expr | None:
    """An equal, simpler expression, or None."""
    a = args[0]
    b = args[1] if len(args) > 1 else None
    if op == "mul":
        if is_const(a, 0) or is_const(b, 0):
            return const(0)
        if is_const(a, 1):
            return b
        if is_const(b, 1):
            return a
        if is_const(a, -1):
            return build("neg", b)
        if is_const(b, -1):
            return build("neg", a)
        # a masked factor masks the product: exact also for infinities
        for factor, choice in ((a, b), (b, a)):
            if choice.op == "where" and any(is_const(branch, 0) for branch in choice.args[1:]):
                condition, yes, no = choice.args
                return build(
                    "where", condition, build("mul", factor, yes), build("mul", factor, no)
                )
        if a.op == "neg" and b.op == "neg":
            return build("mul", a.args[0], b.args[0])
        if a.op == "neg":
            return build("neg", build("mul", a.args[0], b))
        if b.op == "neg":
            return build("neg", build("mul", a, b.args[0]))
    elif op == "add":
        if is_const(a, 0):
            return b
        if is_const(b, 0):
            return a
        if b.op == "neg":
            return build("sub", a, b.args[0])
        if a.op == "neg":
            return build("sub", b, a.args[0])
    elif op == "sub":
        if is_const(b, 0):
            return a
        if is_const(a, 0):
            return build("neg", b)
        if b.op == "neg":
            return build("add", a, b.args[0])
    elif op == "div":
        if is_const(b, 1):
            return a
        if a.op == "neg":
            return build("neg", build("div", a.args[0], b))
    elif op == "neg" and a.op == "neg":
        return a.args[0]
    elif op == "pow" and b.op == "const":
        if b.args[0] == 1:
            return a
        if b.args[0] == 2:
            return build("mul", a, a)
        if b.args[0] == 0:
            return const(1)
    return None


def build(op: str, *args) -> Expr:
    """The expression ``op(args...)``, simplified."""
    args = tuple(as_expr(a) for a in args)
    primitive = PRIMITIVES[op]
    if primitive.fold is not None and all(a.op == "const" for a in args):
        try:
            return const(primitive.fold(*[a.args[0] for a in args]))
        except (ArithmeticError, ValueError):
            pass  # e.g. 1 / 0: leave it to the arrays, which give inf
    simpler = _identity(op, args)
    return _intern(op, args) if simpler is None else simpler


# An operation may have to be left out only if there is one of these among its arguments.
_TO_LEAVE = ("const", "neg")


def exactly(op: str, *args) -> Expr:
    """The expression ``op(args...)``, simplified only where no bit of the result changes.

    ``build`` also takes ``x + 0`` for ``x``, which is 0 for -0.0, and ``x * 0`` for 0, which is NaN
    for an infinite x. An argument that is an expression of inputs stays one of the result, so that
    shapes cannot change either.
    """
    args = tuple([a if a.__class__ is Expr else const(a) for a in args])
    a, b = args[0], args[-1]
    if a.op not in _TO_LEAVE and b.op not in _TO_LEAVE:
        return _intern(op, args)
    if op == "mul":
        if is_const(b, 1):
            return a
        if is_const(a, 1):
            return b
        if a.op == b.op == "neg":
            return _intern("mul", (a.args[0], b.args[0]))
    elif op == "div" and is_const(b, 1):
        return a
    elif op == "sub":
        if is_const(b, 0) and not _is_negative(b):
            return a
        if b.op == "neg":
            return exactly("add", a, b.args[0])
    elif op == "add":
        if is_const(b, 0) and _is_negative(b):
            return a
        if is_const(a, 0) and _is_negative(a):
            return b
        if b.op == "neg":
            return exactly("sub", a, b.args[0])
        if a.op == "neg":
            return exactly("sub", b, a.args[0])
    elif op == "neg" and a.op == "neg":
        return a.args[0]
    return _intern(op, args)


def _is_negative(e: Expr) -> bool:
    return math.copysign(1.0, e.args[0]) < 0


def literally(op: str, *args) -> Expr:
    """The expression ``op(args...)``, not simplified."""
    return _intern(op, tuple(as_expr(a) for a in args))


def topological(roots: Sequence[Expr]) -> list[Expr]:
    """Every expression below the roots, arguments before users, without recursion."""
    order: list[Expr] = []
    done: set[Expr] = set()
    expanded: set[Expr] = set()
    stack = list(roots[::-1])
    while stack:
        e = stack.pop()
        if e in done:
            continue
        if e in expanded or e.op in ("input", "const"):
            done.add(e)
            order.append(e)
        else:
            expanded.add(e)
            stack.append(e)
            stack += e.args[::-1]
    return order


def described(roots: Sequence[Expr], order: Sequence[Expr], inputs: Sequence[str]) -> str:
    """A text that differs for different expressions, whatever the names of their inputs; ``order``
    are all below the roots."""
    places: dict[int, int] = {}
    parts = []
    for e in order:
        if e.op == "input":
            args = str(inputs.index(e.args[0]))
        elif e.op == "const":
            args = repr(e.args[0])
        else:
            args = ",".join([str(places[id(a)]) for a in e.args])
        places[id(e)] = len(places)
        parts.append(f"{e.op} {args}")
    return f"{'; '.join(parts)} -> {[places[id(e)] for e in roots]}"


def substitute(roots: Sequence[Expr], replacements: dict[Expr, Expr]) -> list[Expr]:
    """The roots with some subexpressions replaced (outermost match first)."""
    done: dict[int, Expr] = {id(k): v for k, v in replacements.items()}
    keep = list(replacements)  # keeps the ids alive
    for e in topological(roots):
        if id(e) in done:
            continue
        keep.append(e)
        done[id(e)] = (
            e if e.op in ("input", "const") else build(e.op, *[done[id(a)] for a in e.args])
        )
    return [done[id(r)] for r in roots]


def inputs_of(roots: Sequence[Expr]) -> set[str]:
    """Names of the inputs the roots read."""
    return {e.args[0] for e in topological(roots) if e.op == "input"}


def evaluate(
    roots: Sequence[Expr], env: dict, apply: Callable, order: Sequence[Expr] | None = None
) -> list:
    """Interpret expressions over any values: ``apply(name, *values)`` performs one primitive.
    ``order`` are the expressions below the roots, if they are known (``topological``)."""
    values: dict[Expr, object] = {}
    for e in topological(roots) if order is None else order:
        if e.op == "input":
            values[e] = env[e.args[0]]
        elif e.op == "const":
            values[e] = e.args[0]
        else:
            values[e] = apply(e.op, *[values[a] for a in e.args])
    return [values[r] for r in roots]


def gradients(root: Expr, wrt: Sequence[Expr], seed: Expr) -> list[Expr]:
    """``seed * d root / d w`` for each ``w``, by reverse accumulation over the graph with the
    primitives' partials."""
    adjoint: dict[int, Expr] = {id(root): seed}
    targets = {id(w) for w in wrt}
    for e in reversed(topological([root])):
        bar = adjoint.get(id(e))
        if bar is None or e.op in ("input", "const"):
            continue
        partials = PRIMITIVES[e.op].partials
        if partials is None:
            continue  # a comparison or rounding: no gradient passes
        for arg, partial in zip(e.args, partials, strict=True):
            if partial is None or arg.op == "const":
                continue
            term = build("mul", bar, as_expr(partial(e, *e.args)))
            if is_const(term, 0) and id(arg) not in targets:
                continue
            seen = adjoint.get(id(arg))
            adjoint[id(arg)] = term if seen is None else build("add", seen, term)
    return [adjoint.get(id(w), const(0)) for w in wrt]


def fold_safe(function: Callable) -> Callable:
    """A Python-number version of a math function that gives NaN outside its domain."""

    def fold(*args):
        try:
            return function(*args)
        except ValueError:
            return math.nan

    return fold
