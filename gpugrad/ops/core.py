"""Operations by kind. A row states one fact; reverse mode, forward mode and double backward follow
from it.

===========  =======================================  =============================================
kind         the one fact                             derived
===========  =======================================  =============================================
elementwise  scalar expression or its partials        vjp = jvp = multiply by the partial; what to
                                                      save
linear       its transpose                            jvp is the operation itself
bilinear     one transpose per argument               jvp is a sum of the operation itself
opaque       its vjp                                  jvp is the transpose of the vjp
composite    a Python function of other operations    everything, by running it
===========  =======================================  =============================================

Arrays are positional, metadata is keyword. Every call goes through ``Op.__call__``, which lets the
argument of the highest level interpret it: arrays are evaluated, tensors are recorded on the tape,
duals carry tangents, scalar expressions build a larger expression. Rules are written in operations,
so all of that holds for derivatives too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ..backend.arrays import _ndarray, array_module, backend_of, is_array, there
from ..backend.memory import LARGE
from ..codegen import cuda, expr, llvm
from ..codegen.arrays import BOOLEAN, Program
from ..codegen.expr import Expr
from ..codegen.functions import functions_for
from ..config import modes
from ..dtypes import when_bfloat16
from . import wide

REGISTRY: dict[str, Op] = {}
_INTERPRETERS: dict[type, tuple[int, Callable]] = {}


def register_interpreter(cls: type, level: int, interpret: Callable) -> None:
    """Let values of ``cls`` interpret calls: ``interpret(op, args, params)``. The highest level
    among the arguments wins."""
    _INTERPRETERS[cls] = (level, interpret)


def interpreter_of(cls: type) -> Callable | None:
    """What interprets the calls with values of a class; None for arrays and numbers."""
    found = _INTERPRETERS.get(cls)
    return None if found is None else found[1]


def interpreted_classes() -> list[type]:
    """The classes whose values interpret calls."""
    return list(_INTERPRETERS)


def apply(op: Op, args: Sequence, params: dict) -> Any:
    """Call an operation with positional arguments and metadata as a sequence and a dict."""
    return op(*args, **params)


class Meta:
    """Shape, dtype and array module of an argument whose values a rule does not read (and which is
    not saved)."""

    __slots__ = ("dtype", "ndim", "shape")

    def __init__(self, array):
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim


class SavePlan:
    """What a record of an operation keeps for one set of arguments that have a history.

    ``needs`` are those of them that get a gradient, ``reads`` those whose values are saved; the
    others are saved as ``Meta``.
    """

    __slots__ = ("drops_edges", "holds_values", "needs", "reads", "reads_output", "wanted")

    def __init__(self, op: Op, history: tuple[bool, ...]):
        self.needs = tuple(h and op.differentiable(i) for i, h in enumerate(history))
        self.wanted, self.drops_edges = any(self.needs), self.needs != history
        self.reads = tuple(op.reads(i, self.needs) for i in range(len(history)))
        self.reads_output = op.reads_output(self.needs)
        self.holds_values = self.reads_output or any(self.reads)


class Op:
    """One operation: its name, how arrays are computed, and the rules its kind derives."""

    kind = "op"
    is_view = False  # whether the result may share memory with the first argument
    moves = False  # whether values are only moved (or converted): they are never widened
    # whether evaluation and rule only call other operations, whatever the values: a recorder may
    # then note those instead
    transparent = False
    # of arguments: whether the shape of the result depends on their values (None: never)
    shaped_by_values: Callable[..., bool] | None = None
    # whether gradients come back in the broadcast shape and must be summed to the input's
    broadcasts = False

    def __init__(
        self, name: str, eval: Callable, samples: Callable | None, cuda=None, register=True
    ):
        if register and name in REGISTRY:
            raise ValueError(f"operation {name!r} is stated twice")
        self.name, self.samples = name, samples
        # the kernel that may replace the array functions on CUDA arrays, and these alone
        self.cuda, self.reference = cuda, eval
        self.eval = eval if cuda is None else _by_device(eval, cuda)
        if wide.known.dtype is not None:
            self.take_bfloat16()
        self._save_plans: dict[tuple, SavePlan] = {}
        # the plan of an operation that is not elementwise for one argument with a history
        self.plan_of_one: SavePlan | None = None
        if register:
            REGISTRY[name] = self

    def __call__(self, *args, **params):
        """The one interception point: every operation, whoever calls it, passes here or takes a
        short cut equal to it."""
        best = None
        for a in args:
            found = _INTERPRETERS.get(a.__class__)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
        if best is not None:
            return best[1](self, args, params)
        if modes.special and modes.local.recording is not None:
            return modes.local.recording.operation(self, args, params)
        return self.eval(*args, **params)

    def take_bfloat16(self) -> None:
        """Evaluate bfloat16 through float32 from now on; kernels take it as it is."""
        if not (self.is_view or self.moves):
            self.reference = wide.widened(self.reference)
            self.eval = _by_device(self.reference, self.cuda) if self.cuda else self.reference

    def __repr__(self):
        return f"<{self.kind} op {self.name}>"

    def differentiable(self, position: int) -> bool:
        """Whether a gradient may flow to this argument."""
        raise NotImplementedError

    def reads(self, position: int, needs: Sequence[bool]) -> bool:
        """Whether the vjp for ``needs`` reads the values of this argument, so that they must be
        saved."""
        raise NotImplementedError

    def reads_output(self, needs: Sequence[bool]) -> bool:
        raise NotImplementedError

    def save_plan(self, history: tuple[bool, ...]) -> SavePlan:
        """What to save when these arguments have a history; decided once."""
        plan = self._save_plans.get(history)
        if plan is None:
            plan = self._save_plans[history] = SavePlan(self, history)
        return plan

    def vjp(self, g, out, args, params, needs) -> Sequence:
        """Cotangents of the arguments for which ``needs`` is true (None for the others)."""
        raise NotImplementedError

    def jvp(self, tangents, out, args, params):
        """Tangent of the output; ``tangents[i]`` is None where the argument has none. None: the
        kind has no direct rule."""
        return


@when_bfloat16
def _take_bfloat16(dtype) -> None:
    for op in REGISTRY.values():
        op.take_bfloat16()


def _by_device(reference: Callable, kernel: Callable) -> Callable:
    """``reference`` for CPU arrays; for CUDA arrays ``kernel``, or the reference where that
    returns None."""

    def evaluate(*args, **params):
        if args[0].__class__ is not _ndarray and is_array(args[0]):
            found = kernel(*args, **params)
            if found is not None:
                return found
        return reference(*args, **params)

    return evaluate


# ------------------------------------------------------------------------------------------------
# elementwise


class Elementwise(Op):
    """A scalar function applied to every element, with NumPy broadcasting."""

    kind = "elementwise"
    broadcasts = True

    def __init__(
        self, name, arity, partials, expression, *, domain=(-2.0, 2.0), int_to_float=False,
        boolean=False, no_grad=False, register=True
    ):  # fmt: skip
        super().__init__(name, self._evaluate, None, register=register)
        self.arity, self.domain = arity, domain
        self.int_to_float, self.boolean, self.no_grad = int_to_float, boolean, no_grad
        self.variables = [expr.variable(f"x{i}") for i in range(arity)]
        self.names = [f"x{i}" for i in range(arity)]
        self.partials, self.expression = partials, expression
        self._body: Expr | None = None
        self._derivatives: list[Expr] | None = None
        self._forward: Program | None = None
        self._small: Callable | None = None
        self.short: Callable | None = None  # the function with a short path for tensors (eager.py)
        self._backward: dict[tuple, Rule] = {}
        self.gpu_plans: dict = {}  # prepared kernels of CUDA tensors (eager.py)
        self.records: dict = {}  # what to put on the tape, by the arguments that have a history

    # ---- the expression and its derivatives

    @property
    def body(self) -> Expr:
        """The forward computation in scalar primitives."""
        if self._body is None:
            if self.expression is None:
                self._body = expr.build(self.name, *self.variables)
            else:
                self._body = expr.as_expr(self.expression(*self.variables))
        return self._body

    @property
    def derivatives(self) -> list[Expr]:
        """``g * partial`` for each argument, over the inputs ``g``, ``y`` (the output) and ``x0``,
        ``x1`` ..."""
        if self._derivatives is None:
            g, y = expr.variable("g"), expr.variable("y")
            if self.no_grad or self.boolean:
                raws = [expr.const(0)] * self.arity
            elif self.partials is None:
                raws = expr.gradients(self.body, self.variables, g)
            else:
                raws = [
                    expr.const(0)
                    if p is None
                    else expr.build("mul", g, expr.as_expr(p(y, *self.variables)))
                    for p in self.partials
                ]
            self._derivatives = expr.substitute(raws, {self.body: y})
        return self._derivatives

    def rule(self, needs: tuple[bool, ...]) -> Rule:
        """What to save and what to run in backward when these arguments need a gradient; made
        once."""
        found = self._backward.get(needs)
        if found is None:
            found = self._backward[needs] = Rule(self, needs)
        return found

    # ---- the kind's interface

    def differentiable(self, position):
        return not (self.no_grad or self.boolean) and not (
            self.partials is not None and self.partials[position] is None
        )

    def reads(self, position, needs):
        return position in self.rule(tuple(needs)).read

    def reads_output(self, needs):
        return self.rule(tuple(needs)).reads_output

    def take_bfloat16(self):
        """Nothing to do: ``run_program`` asks."""

    def _evaluate(self, *args):
        """Arrays in, array out; Python numbers stay weakly typed."""
        for a in args:
            if a.__class__ is not _ndarray or a.nbytes >= LARGE or not a.ndim:
                return self.compute(args)
            if a.dtype.kind == "V":
                return self.compute(args)
        if self._small is None:  # NumPy's own function where there is one, else a program
            functions = functions_for(array_module(args[0]))
            self._small = functions.table.get(self.name) if self.expression is None else None
            self._small = self._small or Program([self.body], self.names, ()).direct(functions)
        return self._small(*args)

    def compute(self, args):
        """Run on arrays and Python numbers: one array-module function, or the expression as one
        program."""
        return run_program(self.forward, args)

    @property
    def forward(self) -> Program:
        """The forward computation as a program of arrays."""
        if self._forward is None:
            full = self.names if self.arity == 1 else ()
            self._forward = Program([self.body], self.names, full)
        return self._forward

    def vjp(self, g, out, args, params, needs):
        rule = self.rule(tuple(needs))
        read = [args[i] for i in rule.read]
        plain = all(v.__class__ not in _INTERPRETERS for v in (g, out, *read))
        results = iter((rule.run_arrays if plain else rule.run_ops)(g, out, read))
        return [next(results) if need else None for need in needs]

    def jvp(self, tangents, out, args, params):
        env = {"y": out, **{f"x{i}": a for i, a in enumerate(args)}}
        total = None
        for i, t in enumerate(tangents):
            if t is None:
                continue
            (term,) = expr.evaluate([self.derivatives[i]], {**env, "g": t}, _call_by_name)
            if isinstance(term, (int, float)):
                continue
            total = term if total is None else _call_by_name("add", total, term)
        return total


class Rule:
    """The derivative of an elementwise operation for one set of arguments that need it.

    ``read`` are the arguments the derivative reads, in order: these, and ``y`` if ``reads_output``,
    are what must be saved. Cotangents come back for the arguments that need one only. ``program``
    computes those at the positions ``computed``; the others are ``g`` itself or constants.
    """

    # run32, run64: what the short paths put into their records, see eager.py.
    __slots__ = (
        "computed",
        "needs",
        "op",
        "outputs",
        "program",
        "read",
        "reads_output",
        "run32",
        "run64",
        "save",
    )

    def __init__(self, op: Elementwise, needs: tuple[bool, ...]):
        self.op, self.needs = op, needs
        self.outputs = [d for d, need in zip(op.derivatives, needs, strict=True) if need]
        used = expr.inputs_of(self.outputs)
        self.read = tuple(i for i, name in enumerate(op.names) if name in used)
        self.reads_output = "y" in used
        # For the short paths of two arguments: 0 saves none, 1 the first, 2 the second, 3 both.
        self.save = sum(1 << i for i in self.read)
        names = ["g", *(["y"] if self.reads_output else []), *[op.names[i] for i in self.read]]
        self.computed = [k for k, e in enumerate(self.outputs) if e.op not in ("input", "const")]
        full = ["g", "y", *(op.names if op.arity == 1 else [])]
        self.program = Program([self.outputs[k] for k in self.computed], names, full)
        self.run32 = self.run64 = None

    def run_arrays(self, g, out, read_args) -> list:
        """Cotangents as arrays: fresh ones, or ``g`` itself where the partial is 1."""
        results = [g if e.op == "input" else e.args[0] for e in self.outputs]
        if self.computed:
            args = (g, out, *read_args) if self.reads_output else (g, *read_args)
            values = run_program(self.program, args)
            for k, value in zip(self.computed, [values] if len(self.computed) == 1 else values):
                results[k] = value
        return [_materialise(r, g) for r in results]

    def run_ops(self, g, out, read_args) -> list:
        """The same in operations: for double backward and other interpreters."""
        results = [g if e.op == "input" else g * 0.0 for e in self.outputs]
        if self.computed:
            args = (g, out, *read_args) if self.reads_output else (g, *read_args)
            values = self.program.direct(tensor_functions(), None, False)(*args)
            for k, value in zip(self.computed, [values] if len(self.computed) == 1 else values):
                results[k] = value
        return results


class _TensorFunctions:
    """What a program over tensors calls: the short path of an operation if it has one."""

    name = "tensors"

    def __init__(self):
        self.table = {
            name: op.short or op for name, op in REGISTRY.items() if isinstance(op, Elementwise)
        }


@cache
def tensor_functions() -> _TensorFunctions:
    return _TensorFunctions()


def _materialise(value, g):
    """A constant derivative (0) as an array like ``g``."""
    return array_module(g).full_like(g, value) if isinstance(value, (int, float)) else value


def _call_by_name(name: str, *args):
    return REGISTRY[name](*args)


def run_program(program: Program, args):
    """Run an array program: large ones natively, else in cache-sized pieces over several threads if
    the arrays are flat, else directly."""
    if not program.chooses_constants and _are_small(args):
        return (program.small or program.for_small(functions_for(array_module(1.0))))(*args)
    xp = array_module(next((a for a in args if hasattr(a, "dtype")), 1.0))
    if xp.__name__ == "cupy":
        outputs = cuda.run(program, args)
        if outputs is not None:
            return outputs[0] if len(outputs) == 1 else outputs
    functions = functions_for(xp)
    if wide.has_bfloat16(args):
        results = run_program(program, wide.widen(args))
        if len(program.outputs) == 1:
            return wide.rounded(results, args)
        return [wide.rounded(r, args) for r in results]
    if program.computed and xp.__name__ == "numpy":
        arrays = [a for a in args if a.__class__ is xp.ndarray and a.ndim]
        if arrays and max([a.nbytes for a in arrays]) >= LARGE:
            outputs = llvm.run(program, args) or _run_blocked(program, args, arrays, functions)
            if outputs is not None:
                return outputs[0] if len(outputs) == 1 else outputs
    reuse = any(getattr(a, "ndim", 0) for a in args)
    results = program.direct(functions, _dtype_of_constants(program, args), reuse)(*args)
    if reuse:
        return results
    if len(program.outputs) == 1:
        return _as_array(results, xp)
    return [_as_array(r, xp) for r in results]


def _are_small(args) -> bool:
    """Whether arguments are small NumPy arrays, not all of them zero-dimensional: a program of them
    is run directly, without the questions of ``run_program`` (3 us)."""
    dimensions = 0
    for a in args:
        if a.__class__ is not _ndarray or a.nbytes >= LARGE:
            return False
        dimensions += a.ndim
    return dimensions > 0 and not wide.has_bfloat16(args)


def _dtype_of_constants(program: Program, args):
    """The dtype of the arrays of floating-point numbers, where constants must have it: a choice
    between constants and, of numbers, ``1 / 3.0`` are float64 to NumPy, which the arrays would
    follow. None where they need none."""
    numbers = any(a.__class__ in (int, float) for a in args)
    if not (numbers or program.chooses_constants):
        return None
    dtypes = [a.dtype for a in args if hasattr(a, "dtype") and a.dtype.kind == "f"]
    if len(set(dtypes)) > 1 and not program.chooses_constants:
        return None
    return dtypes[0] if dtypes else None


def _as_array(value, xp):
    """NumPy's functions return scalars for zero-dimensional arrays: make them arrays again
    (constants stay numbers)."""
    return (
        value
        if isinstance(value, (int, float)) and not isinstance(value, xp.floating)
        else xp.asarray(value)
    )


def _run_blocked(program: Program, args, arrays, functions):
    """Results of a program over same-shaped contiguous arrays, in a list, or None if the arrays do
    not allow it. One function of any arrays is computed whole, into recycled memory."""
    backend = backend_of(arrays[0])
    flat = backend.blockable(arrays)
    if not flat and len(program.steps) > 1:
        return None
    shape = arrays[0].shape if flat else functions.xp.broadcast_shapes(*[a.shape for a in arrays])
    dtype = arrays[0].dtype
    if any(a.dtype is not dtype and a.dtype != dtype and a.dtype.kind != "b" for a in arrays):
        return None
    if dtype.kind == "b":
        dtype = next((a.dtype for a in arrays if a.dtype.kind != "b"), dtype)
    block, floats, bools = program.block(functions, [None] * len(program.outputs), dtype)
    booleans = functions.xp.dtype("bool")
    outputs = [
        backend.empty(shape, booleans if e.op in BOOLEAN else dtype) for e in program.outputs
    ]
    if not flat and (floats or bools):
        return None
    if not flat or not (floats or bools or backend.is_parallel(outputs[0].size)):
        block(*args, *outputs)  # no temporaries, nothing to keep in the cache
    else:
        backend.launch(block, args, outputs, [dtype] * floats + [booleans] * bools)
    return outputs


def elementwise(
    name: str,
    *partials: Callable | None,
    expression: Callable | None = None,
    array: str | None = None,
    fold: Callable | None = None,
    domain: tuple = (-2.0, 2.0),
    int_to_float: bool = False,
    boolean: bool = False,
    no_grad: bool = False,
    arity: int | None = None,
) -> Elementwise:
    """State an elementwise operation.

    A scalar primitive gives its ``partials``, one per argument as ``lambda y, *xs`` of output and
    inputs (None: no gradient), the NumPy function behind it (``array``, default: the same name).
    Anything else gives an ``expression`` in terms of primitives; its partials are found by
    differentiating it, unless given because a form in terms of the output is cheaper. ``domain`` is
    where tests draw the arguments from: one (low, high) for all or one per argument.
    """
    if arity is None:
        counted = expression if expression is not None else partials[0]
        arity = len(partials) if partials else counted.__code__.co_argcount
    given = partials or None
    op = Elementwise(
        name,
        arity,
        given,
        expression,
        domain=domain,
        int_to_float=int_to_float,
        boolean=boolean,
        no_grad=no_grad,
    )
    if expression is None:
        expr.declare(name, None if (no_grad or boolean) else given, array or name, fold)
    return op


register_interpreter(Expr, 100, lambda op, args, params: _build_expression(op, args))


def _build_expression(op: Op, args) -> Expr:
    if not isinstance(op, Elementwise):
        raise TypeError(f"{op.name} is not elementwise and cannot be part of a scalar expression")
    if op.expression is None:
        return expr.build(op.name, *args)
    return expr.as_expr(op.expression(*[expr.as_expr(a) for a in args]))


# ------------------------------------------------------------------------------------------------
# linear


class Linear(Op):
    """A function that is linear in its first ``linear_args`` arguments together (None: in all of
    them)."""

    kind = "linear"
    transparent = True

    def __init__(self, name, eval, transpose, linear_args, samples, cuda=None):
        super().__init__(name, eval, samples, cuda)
        self.transpose, self.linear_args = transpose, linear_args

    def differentiable(self, position):
        return self.linear_args is None or position < self.linear_args

    def reads(self, position, needs):
        return not self.differentiable(position)

    def reads_output(self, needs):
        return False

    def vjp(self, g, out, args, params, needs):
        if self.linear_args == 1:
            cotangent = self.transpose(g, *args, **params)
            return (cotangent,) if len(args) == 1 else (cotangent, *([None] * (len(args) - 1)))
        cotangents = self.transpose(g, *args, **params)
        return (*cotangents, *([None] * (len(args) - len(cotangents))))

    def jvp(self, tangents, out, args, params):
        parts = [
            (zeros_like(args[i]) if t is None else t) if self.differentiable(i) else args[i]
            for i, t in enumerate(tangents)
        ]
        return self(*parts, **params)


def linear(
    name: str,
    eval: Callable,
    transpose: Callable,
    *,
    linear_args: int | None = 1,
    samples=None,
    cuda: Callable | None = None,
) -> Linear:
    """State a linear operation by its ``transpose(g, *args, **params)``.

    ``cuda(*args, **params)``, here and for the other kinds, is a kernel for CUDA arrays that equals
    ``eval``; where it returns None, ``eval`` computes.

    Arguments it is linear in reach the transpose as ``Meta`` (shape and dtype only); others, such
    as indices, with their values. With one linear argument the transpose returns its cotangent,
    else a sequence of them.
    """
    return Linear(name, eval, transpose, linear_args, samples, cuda)


# ------------------------------------------------------------------------------------------------
# bilinear


class Bilinear(Op):
    """A function linear in each of its first two arguments."""

    kind = "bilinear"
    transparent = True

    def __init__(self, name, eval, transposes, samples, cuda=None):
        super().__init__(name, eval, samples, cuda)
        self.transposes = transposes

    def differentiable(self, position):
        return position < 2

    def reads(self, position, needs):
        return position > 1 or bool(needs[1 - position])

    def reads_output(self, needs):
        return False

    def vjp(self, g, out, args, params, needs):
        return [
            self.transposes[i](g, *args, **params) if i < 2 and need else None
            for i, need in enumerate(needs)
        ]

    def jvp(self, tangents, out, args, params):
        total = None
        for i, t in enumerate(tangents[:2]):
            if t is None:
                continue
            term = self(*[t if k == i else a for k, a in enumerate(args)], **params)
            total = term if total is None else _call_by_name("add", total, term)
        return total


def bilinear(
    name: str, eval: Callable, *transposes: Callable, samples=None, cuda: Callable | None = None
) -> Bilinear:
    """State a bilinear operation by one ``transpose(g, a, b, **params)`` per argument (its own
    argument as ``Meta``)."""
    return Bilinear(name, eval, transposes, samples, cuda)


# ------------------------------------------------------------------------------------------------
# opaque


class Opaque(Op):
    """A function of which only the vjp is stated."""

    kind = "opaque"

    def __init__(self, name, eval, vjps, reads, samples, cuda=None):
        super().__init__(name, eval, samples, cuda)
        self.vjps = vjps
        each = reads if reads and isinstance(reads[0], tuple) else [reads] * len(vjps)
        self._reads = [frozenset(r) for r in each]

    def differentiable(self, position):
        return position < len(self.vjps) and self.vjps[position] is not None

    def reads(self, position, needs):
        if position >= len(self.vjps) or self.vjps[position] is None:
            return True
        return self._look_at(position, needs)

    def reads_output(self, needs):
        return self._look_at("out", needs)

    def _look_at(self, what, needs) -> bool:
        return any(need and what in reads for need, reads in zip(needs, self._reads))

    def vjp(self, g, out, args, params, needs):
        return [
            self.vjps[i](g, out, *args, **params) if need else None for i, need in enumerate(needs)
        ]


def opaque(
    name: str,
    eval: Callable,
    *vjps: Callable | None,
    reads: Sequence = (0,),
    samples=None,
    cuda: Callable | None = None,
) -> Opaque:
    """State an operation by its vjps, ``vjp(g, out, *args, **params)`` per differentiable argument.

    ``reads`` lists what the vjps look at: argument positions and ``"out"``; or one such tuple per
    vjp. Anything else reaches them as ``Meta``, so that a value that was forgotten is an error and
    never a stale number.
    """
    return Opaque(name, eval, vjps, reads, samples, cuda)


class Joint(Opaque):
    """An opaque function of which one rule gives the cotangents of all arguments at once."""

    def __init__(self, name, eval, rule, arguments, reads, samples, cuda=None):
        super().__init__(name, eval, (rule,) * arguments, reads, samples, cuda)
        self.rule = rule

    def vjp(self, g, out, args, params, needs):
        return self.rule(tuple(needs), g, out, *args, **params)


def joint(
    name: str,
    eval: Callable,
    rule: Callable,
    *,
    arguments: int,
    reads: Sequence = (),
    samples=None,
    cuda: Callable | None = None,
) -> Joint:
    """State an operation by ``rule(needs, g, out, *args, **params)``, which gives the cotangents of
    its arguments for which ``needs`` is true, and None for the others.

    For cotangents that share their work; ``reads`` as for ``opaque``.
    """
    return Joint(name, eval, rule, arguments, reads, samples, cuda)


# ------------------------------------------------------------------------------------------------
# composite


class Composite(Op):
    """A Python function of other operations, known to the registry so that it is tested like a
    row."""

    kind = "composite"


def composite(samples: Callable) -> Callable:
    """Register a function of operations together with its test samples; the function itself is
    returned unchanged."""

    def decorate(function):
        Composite(function.__name__, function, samples)
        return function

    return decorate


# ------------------------------------------------------------------------------------------------
# helpers of rules


def zeros_like(x):
    """An array of zeros with the shape, dtype and device of an array or of a tensor over one."""
    array = getattr(x, "array", x)
    with there(array):
        return array_module(array).zeros_like(array)


def not_differentiable(
    name: str, eval: Callable, samples=None, cuda: Callable | None = None
) -> Opaque:
    """State an operation through which no gradient passes (its results are integers or
    booleans)."""
    return Opaque(name, eval, (), (), samples, cuda)
