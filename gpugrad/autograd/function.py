"""Operations with a derivative written by the user: ``Function`` with ``forward`` and
``backward``."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from ..backend.arrays import array_module
from ..config import grad_mode, modes
from ..dtypes import is_differentiable
from ..errors import user_line
from ..ops.shape import cast, sum_to
from ..tensor import Tensor, clock, version_of, wrap
from .engine import _TWICE, Node, Part, Parts, lines


class Context:
    """What ``forward`` leaves for ``backward``: saved tensors, and any attributes."""

    def __init__(self, needs_input_grad):
        self.needs_input_grad = needs_input_grad
        self._saved: tuple = ()
        self._non_differentiable: set[int] = set()
        self._dirty: set[int] = set()
        self._materialize = True
        self._node: Callable[[], FunctionNode | None] | None = None  # weak: the record owns us

    def save_for_backward(self, *tensors) -> None:
        """Keep inputs or outputs for ``backward``; writes to them in place are noticed."""
        self._saved = tensors

    @property
    def saved_tensors(self) -> tuple:
        """What ``save_for_backward`` kept. Raises RuntimeError after the graph was freed."""
        if self._node is None:
            return self._saved
        node = self._node()
        if node is None:
            raise RuntimeError(_TWICE)
        return node.unpack()

    def mark_non_differentiable(self, *tensors) -> None:
        """Outputs without gradient."""
        self._non_differentiable.update(id(t) for t in tensors)

    def mark_dirty(self, *tensors) -> None:
        """Inputs that ``forward`` changed in place and returns."""
        self._dirty.update(id(t) for t in tensors)

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing gradients of outputs reach ``backward`` as zeros (the default) or as
        None."""
        self._materialize = value


class FunctionNode(Node):
    """The record of one call of a ``Function``."""

    __slots__ = ("context", "dtypes", "function", "outputs")

    @property
    def name(self) -> str:
        return f"{self.function.__name__}Backward"

    def check(self) -> None:
        """Raise if saved values are gone or were written in place."""
        if self.time < 0:
            raise RuntimeError(_TWICE)
        for position, (t, _) in enumerate(self.saved):
            if t is not None and t._version is not None and t._version[0] > self.time:
                raise self.stale(position, t._version)

    def unpack(self) -> tuple:
        self.check()
        tensors = []
        for t, own_output in self.saved:
            # an output was saved without its record, to avoid a cycle: attach it
            if own_output is not None:
                attached = wrap(t.array)
                attached._version = t._version
                attached._node = self if len(self.outputs) == 1 else Part(self, own_output, t.shape)
                t = attached
            tensors.append(t)
        return tuple(tensors)

    def _cotangents(self, g) -> list:
        parts = g if isinstance(g, Parts) else Parts({0: g})
        result = []
        for index, (shape, dtype, xp) in enumerate(self.outputs):
            d = parts.get(index)
            if d is None and self.context._materialize:
                d = xp.zeros(shape, dtype)
            result.append(d if d is None or isinstance(d, Tensor) else wrap(d))
        return result

    def _check(self, results):
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(self.edges):
            raise RuntimeError(
                f"function {self.name} returned an incorrect number of gradients (expected "
                f"{len(self.edges)}, got {len(results)})"
            )
        return [
            None if edge is None or r is None else self._fit(position, r, edge.shape)
            for position, (edge, r) in enumerate(zip(self.edges, results, strict=True))
        ]

    def _fit(self, position: int, g, shape):
        """A gradient as its argument needs it: summed where it was broadcast, of its dtype."""
        if not isinstance(g, Tensor):
            raise TypeError(
                f"function {self.name} returned a {type(g).__name__} as gradient {position}; "
                f"expected a Tensor or None"
            )
        if g.shape != shape:
            lead = g.ndim - len(shape)
            if lead < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[lead:], strict=True)):
                raise RuntimeError(
                    f"Function {self.name} returned an invalid gradient at index {position} - got "
                    f"shape {tuple(g.shape)} but expected shape compatible with {tuple(shape)}"
                )
            g = sum_to(g, shape=shape)
        dtype = self.dtypes[position]
        return g if g.dtype == dtype else cast(g, dtype=dtype)

    def arrays(self, g, keep: bool):
        """What ``tensors`` does, without recording."""
        with grad_mode(False):
            results = self.tensors(g)
        if not keep:
            self.release()
        return [r if r is None else r.array for r in results]

    def tensors(self, g):
        return self._check(self.function.backward(self.context, *self._cotangents(g)))


class Function:
    """Base class of operations with their own gradient.

    Subclasses define static methods ``forward(ctx, *args)`` and ``backward(ctx, *grad_outputs)``;
    ``backward`` returns one gradient per argument of ``forward`` (None where there is none). Calls
    go through ``apply``. A ``backward`` written in tensor operations is differentiable again.

    >>> import gpugrad as gg
    >>> class Cube(gg.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x * x
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         (x,) = ctx.saved_tensors
    ...         return g * 3 * x * x
    >>> x = gg.tensor([2.0], requires_grad=True)
    >>> Cube.apply(x).sum().backward()
    >>> x.grad
    tensor([12.])
    """

    @staticmethod
    def forward(ctx, *args, **kwargs):
        raise NotImplementedError(
            "You must implement the forward function for custom autograd.Function."
        )

    @staticmethod
    def backward(ctx, *grad_outputs):
        raise NotImplementedError(
            "You must implement the backward function to use it with your custom autograd.Function."
        )

    @classmethod
    def apply(cls, *args, **kwargs):
        """Run ``forward`` without recording, and record the call as one operation."""
        if modes.unusual and modes.local.levels:
            raise RuntimeError(
                f"{cls.__name__} is an autograd.Function, which states only its reverse "
                f"derivative; it cannot be used inside forward mode (jvp) or vmap. Write it in "
                f"tensor operations instead."
            )
        recording = not modes.unusual or modes.local.grad
        edges = tuple(a._node if isinstance(a, Tensor) else None for a in args)
        recording = recording and any(e is not None for e in edges)
        ctx = Context(tuple(e is not None for e in edges))
        with grad_mode(False):
            outputs = cls.forward(ctx, *args, **kwargs)
        single = not isinstance(outputs, tuple)
        results = (outputs,) if single else outputs
        if recording:
            results = tuple(_record(cls, ctx, edges, args, results))
        return results[0] if single else tuple(results)


def _record(function, ctx, edges, args, results):
    node = object.__new__(FunctionNode)
    node.edges, node.function, node.context = edges, function, ctx
    node.dtypes = [a.dtype if isinstance(a, Tensor) else None for a in args]
    node.out, node.time, node.run = None, clock.now, FunctionNode.arrays
    if modes.unusual and modes.local.anomaly:
        lines[node] = user_line()
    inputs = {id(a) for a in args if isinstance(a, Tensor)}
    differentiable = [
        isinstance(r, Tensor)
        and is_differentiable(r.dtype)
        and id(r) not in ctx._non_differentiable
        for r in results
    ]
    tensors = [r for r, ok in zip(results, differentiable, strict=True) if ok]
    node.outputs = [(tuple(r.shape), r.dtype, array_module(r.array)) for r in tensors]
    node.shape = node.outputs[0][0] if len(node.outputs) == 1 else ()
    position = {id(r): k for k, r in enumerate(tensors)}
    node.saved = tuple(
        (t, None) if id(t) in inputs or id(t) not in position else (_plain(t), position[id(t)])
        for t in ctx._saved
    )
    ctx._saved, ctx._node = (), weakref.ref(node)
    for r, ok in zip(results, differentiable, strict=True):
        if not ok:
            yield r
            continue
        # an input returned as it is: the result is a tensor of its own
        if id(r) in inputs and id(r) not in ctx._dirty:
            alias = wrap(r.array)
            alias._version = version_of(r)
            r_out = alias
        else:
            r_out = r
        r_out._node = (
            node if len(node.outputs) == 1 else Part(node, position[id(r)], tuple(r.shape))
        )
        yield r_out


def _plain(t: Tensor) -> Tensor:
    """A tensor over the same memory and version, which will not learn where it came from."""
    plain = wrap(t.array)
    plain._version = version_of(t)
    return plain


def once_differentiable(backward):
    """Mark a ``backward`` that is not written in tensor operations: differentiating it again raises
    an error."""

    def run(ctx, *grads):
        wanted = (not modes.unusual or modes.local.grad) and any(
            g is not None and g.requires_grad for g in grads
        )
        with grad_mode(False):
            results = backward(ctx, *grads)
        if wanted:
            raise RuntimeError(
                "trying to differentiate twice a function that was marked with @once_differentiable"
            )
        return results

    return run
