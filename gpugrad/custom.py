"""Elementwise operations of the user's own: one scalar expression, or CUDA C++ with a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import eager
from .autograd.engine import grad
from .autograd.gradcheck import gradcheck as _gradcheck
from .backend.arrays import is_cuda, to_numpy
from .codegen import cuda, expr
from .codegen.arrays import BOOLEAN, Program
from .ops.core import Elementwise, Rule
from .tensor import Tensor


class Kernel:
    """An elementwise operation made by ``kernel``."""

    def __init__(self, function: Callable, source: str | None, backward: str | None):
        code: Any = function.__code__  # inspect.signature would take 25 ms to import
        if code.co_kwonlyargcount or code.co_flags & 0xC:  # *args, **kwargs
            raise TypeError(f"{function.__name__}: a kernel takes positional arguments only")
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self.__wrapped__ = function
        self.arguments = code.co_varnames[: code.co_argcount]
        if not self.arguments:
            raise TypeError(f"{function.__name__}: a kernel needs an argument")
        if backward is not None and source is None:
            raise TypeError("backward= is CUDA source and needs cuda= beside it")
        self.op = _Operation(self.__name__, function, self.arguments, source, backward)

    def __call__(self, *args) -> Tensor:
        if len(args) != len(self.arguments):
            raise TypeError(
                f"{self.__name__}() takes {len(self.arguments)} arguments "
                f"({', '.join(self.arguments)}), got {len(args)}"
            )
        return eager.elementwise(self.op, args)

    def __repr__(self):
        return f"<gpugrad kernel {self.__name__}({', '.join(self.arguments)})>"

    def gradcheck(self, *args, **settings) -> bool:
        """Compare the gradient with finite differences, and CUDA source with the expression.

        Float64 tensors that require gradients are varied; ``settings`` are those of
        ``autograd.gradcheck``. Raises GradcheckError, or AssertionError where the source and the
        expression differ.
        """
        _gradcheck(self, args, **settings)
        on_cuda = any(isinstance(a, Tensor) and a.is_cuda for a in args)
        if on_cuda and self.op.source is not None and self.op.has_expression:
            self._compare(args)
        return True

    def _compare(self, args) -> None:
        """The source on the device and the expression on the CPU must agree."""
        import numpy as np

        results = []
        for move in (lambda t: t, lambda t: t.cpu()):
            values = [move(a.detach()) if isinstance(a, Tensor) else a for a in args]
            tensors = [v.requires_grad_() for v in values if isinstance(v, Tensor)]
            y = self(*values)
            gradients = grad(y.sum(), tensors)
            results.append([to_numpy(t.array) for t in (y, *gradients)])
        for name, found, expected in zip(("value", *self.arguments), *results, strict=False):
            np.testing.assert_allclose(
                found, expected, rtol=1e-6, atol=1e-9,
                err_msg=f"{self.__name__}: CUDA source and expression differ in "
                + ("the value" if name == "value" else f"the gradient of {name}"),
            )  # fmt: skip


class _Operation(Elementwise):
    """An elementwise operation outside the table."""

    def __init__(self, name, function, arguments, source, backward):
        self.arguments, self.source, self.backward = arguments, source, backward
        variables = [expr.variable(f"x{i}") for i in range(len(arguments))]
        found = function(*variables)
        self.has_expression = found is not None and found is not Ellipsis
        if not self.has_expression and source is None:
            raise TypeError(f"{name}: the function returns no expression, and there is no cuda=")
        body = expr.as_expr(found) if self.has_expression else None
        super().__init__(
            name,
            len(arguments),
            None,
            function,
            boolean=body is not None and body.op in BOOLEAN,
            no_grad=body is None and backward is None,
            int_to_float=True,
            register=False,
        )
        self._plain: _Operation | None = None
        if source is not None:
            body = expr.as_expr(function(*map(expr.variable, arguments)))
            value = [body] if self.has_expression else _stand_ins(arguments, 1)
            self._forward = Program(value, arguments, ())
            self._forward.cuda_source = (source, ("y",))

    def _evaluate(self, *args):
        if self.source is None or _any_cuda(args):
            return super()._evaluate(*args)
        return self.plain._evaluate(*args)

    @property
    def plain(self) -> _Operation:
        """The operation as its expression alone, for everything but CUDA arrays."""
        if not self.has_expression:
            raise RuntimeError(
                f"{self.name} has CUDA source only: it runs on CUDA tensors, and its gradient "
                f"cannot be differentiated. Return an expression from the function, and it does "
                f"all that."
            )
        if self._plain is None:
            self._plain = _Operation(self.name, self.expression, self.arguments, None, None)
        return self._plain

    def rule(self, needs):
        if self.backward is None or self.boolean:
            return super().rule(needs)
        found = self._backward.get(needs)
        if found is None:
            found = self._backward[needs] = _SourceRule(self, needs)
        return found


def _any_cuda(args) -> bool:
    return any(is_cuda(a) for a in args)


def _stand_ins(inputs, count: int) -> list[expr.Expr]:
    """Different expressions that read every input: they give source results their shapes."""
    total = expr.variable(inputs[0])
    for name in inputs[1:]:
        total = total + expr.variable(name)
    return [total * (k + 2) for k in range(count)]


class _SourceRule(Rule):
    """A derivative by CUDA source on the device, by the expression elsewhere."""

    __slots__ = ("operation", "source")

    def __init__(self, op: _Operation, needs: tuple[bool, ...]):
        self.operation, self.op, self.needs = op, op, needs
        self.read, self.reads_output = tuple(range(op.arity)), True
        wanted = [f"g{a}" for a, need in zip(op.arguments, needs, strict=True) if need]
        others = [f"g{a}" for a, need in zip(op.arguments, needs, strict=True) if not need]
        inputs = ["g", "y", *op.arguments]
        self.source = Program(_stand_ins(inputs, len(wanted)), inputs, ())
        self.source.cuda_source = (op.backward, (*wanted, *others))

    def run_arrays(self, g, out, read_args):
        if _any_cuda((g,)):
            found = cuda.run(self.source, (g, out, *read_args))
            if found is not None:
                return found
        return self._by_expression(g, out, read_args, "run_arrays")

    def run_ops(self, g, out, read_args):
        return self._by_expression(g, out, read_args, "run_ops")

    def _by_expression(self, g, out, read_args, run: str):
        plain = Rule(self.operation.plain, self.needs)
        return getattr(plain, run)(g, out, [read_args[i] for i in plain.read])


def kernel(
    function: Callable | None = None, *, cuda: str | None = None, backward: str | None = None
):
    """Make an elementwise operation from a scalar expression: one compiled loop on the CPU, one
    generated kernel on a GPU, with gradients of every order.

    The arguments of the function stand for one element of each tensor; numbers may be given for
    them too. Use operators, ``gg.exp``, ``gg.where`` and every other elementwise function. Tensors
    broadcast, and are promoted as in torch; float16 and bfloat16 are computed in float32 on a GPU.

    ``cuda`` replaces the expression on a GPU: C++ statements that compute ``y`` from the arguments,
    which are of type ``C`` (float, for float64 double). ``backward`` likewise computes ``gx`` for
    each argument ``x`` from ``g``, ``y`` and the arguments; without it the gradient is that of the
    expression. A function that returns ``...`` has the CUDA source alone.

    ``kernel.gradcheck(*tensors)`` compares the gradient with finite differences.

    >>> import gpugrad as gg
    >>> @gg.kernel
    ... def swish(x, beta):
    ...     return x * gg.sigmoid(beta * x)
    >>> x = gg.tensor([-1.0, 0.0, 2.0], dtype=gg.float64, requires_grad=True)
    >>> swish(x, 1.0).sum().backward()
    >>> x.grad
    tensor([0.0723, 0.5   , 1.0908], dtype=float64)
    >>> swish.gradcheck(x, 1.0)
    True
    """
    if function is None:
        return lambda f: Kernel(f, cuda, backward)
    return Kernel(function, cuda, backward)
