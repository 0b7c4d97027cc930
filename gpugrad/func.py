"""Transformations of functions: ``grad``, ``value_and_grad``, ``vjp``, ``jvp``, ``jacrev``,
``jacfwd``, ``hessian``, ``vmap``, and ``functional_call``.

Arguments and results are tensors or nested tuples, lists and dicts of them. The transformations
compose with each other in any order and with the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from . import tree
from .autograd.engine import Leaf, _count_users
from .autograd.engine import grad as tape_grad
from .backend.arrays import there
from .compiler import module_writes
from .config import grad_mode, modes
from .creation import as_tensor
from .dtypes import is_differentiable
from .eager import run_arrays
from .functions import cat, reshape, stack, to
from .functions import sum as sum_all
from .lifted import Lifted, new_level, nodes_of
from .mapping import vmap as vmap
from .ops.core import Op, apply, zeros_like
from .ops.shape import alias
from .tensor import Tensor, constant, share_memory, version_of, wrap

# ------------------------------------------------------------------------------------------------
# forward mode


class Dual(Lifted):
    """A tensor with its tangent: the interpreter of forward mode."""

    __slots__ = ("primal", "tangent")

    if TYPE_CHECKING:
        primal: Tensor
        tangent: Tensor

    def interpret(self, op: Op, args, params):
        """The operation on the primals, its jvp on the tangents of this level."""
        mine = [isinstance(a, Dual) and a._level == self._level for a in args]
        primals = [a.primal if m else a for a, m in zip(args, mine, strict=True)]
        out = apply(op, primals, params)
        if not is_differentiable(out.dtype):
            return out
        tangents = [
            a.tangent if m and op.differentiable(i) else None
            for i, (a, m) in enumerate(zip(args, mine, strict=True))
        ]
        if any(t is not None for t in tangents):
            t = op.jvp(tangents, out, primals, params)
            if t is None and op.kind == "opaque":
                t = _transpose_of_vjp(op, tangents, out, primals, params)
        else:
            t = None
        if t is None:
            t = _zeros(out)
        elif t.shape != out.shape:  # a tangent that was not broadcast by its partial, as in x + row
            t = t + _zeros(out)
        return _dual(out, t, self._level)

    def run_arrays(self, function, args, params) -> Tensor:
        mine = [a.primal if isinstance(a, Dual) and a._level == self._level else a for a in args]
        return run_arrays(function, *mine, **params)

    def carried(self) -> tuple[Tensor, ...]:
        return self.primal, self.tangent

    def unrecorded(self) -> Dual:
        return _dual(self.primal, self.tangent, self._level)

    def detach(self) -> Tensor:
        return self.primal.detach()

    def overwrite(self, value: Tensor) -> None:
        self.refuse_to_be_written()

    def refuse_to_be_written(self) -> None:
        raise RuntimeError(
            "in-place writes are not supported in forward mode (jvp, jacfwd, hessian, hvp): the "
            "tangent would be lost. Write it with where, cat or scatter, or use jacrev"
        )


def _zeros(x) -> Tensor:
    """Zeros with the shape, dtype and device of an array or tensor."""
    return constant(zeros_like(x))


def _dual(primal: Tensor, tangent: Tensor, level: int) -> Dual:
    d = Dual.__new__(Dual)
    d.array = primal.array
    d.grad = d._node = d._view = None
    d._version = version_of(primal)
    d.primal, d.tangent, d._level = primal, tangent, level
    return d


def _transpose_of_vjp(op: Op, tangents, out, primals, params):
    """jvp of an operation that states only its vjp: the vjp is linear in the cotangent, and its
    transpose is the jvp."""
    needs = tuple(t is not None for t in tangents)
    tensors = [p if isinstance(p, Tensor) or not hasattr(p, "dtype") else wrap(p) for p in primals]
    with there(getattr(out, "array", out)), grad_mode(True):
        u = _zeros(out).requires_grad_()
        parts = op.vjp(u, out, tensors, params, needs)
        pairs = [(part, t) for part, t in zip(parts, tangents, strict=True) if t is not None]
        (jvp,) = tape_grad(
            [p for p, _ in pairs], u, [t for _, t in pairs], create_graph=modes.local.grad
        )
    return jvp


def jvp(func: Callable, primals: tuple, tangents: tuple, *, has_aux: bool = False):
    """Value and directional derivative: ``(func(*primals), J @ tangents)``, in one pass without a
    tape.

    Raises ValueError if primals and tangents differ in structure, RuntimeError if a pair differs in
    shape.

    >>> import gpugrad as gg
    >>> gg.func.jvp(gg.sin, (gg.tensor(0.0),), (gg.tensor(2.0),))
    (tensor(0.), tensor(2.))
    """
    flat, unflatten = tree.flatten(tuple(primals))
    flat_tangents, _ = tree.flatten(tuple(tangents))
    if len(flat) != len(flat_tangents):
        raise ValueError(f"jvp got {len(flat)} primal tensors but {len(flat_tangents)} tangents")
    for x, t in zip(flat, flat_tangents, strict=True):
        if tuple(x.shape) != tuple(t.shape):
            raise RuntimeError(
                f"jvp: a tangent has shape {tuple(t.shape)} but its primal {tuple(x.shape)}"
            )
    with new_level() as level:
        duals = [
            _dual(x, to(t, dtype=x.dtype), level) for x, t in zip(flat, flat_tangents, strict=True)
        ]
        result = func(*unflatten(duals))
    result, aux = result if has_aux else (result, None)
    outputs, rebuild = tree.flatten(result)
    values = [_primal(o, level) for o in outputs]
    derivatives = [
        o.tangent if isinstance(o, Dual) and o._level == level else _zeros(o) for o in outputs
    ]
    aux = tree.tree_map(lambda a: _primal(a, level), aux)
    pair = rebuild(values), rebuild(derivatives)
    return (*pair, aux) if has_aux else pair


def _primal(value, level: int):
    """What leaves forward mode of a value."""
    return value.primal if isinstance(value, Dual) and value._level == level else value


# ------------------------------------------------------------------------------------------------
# reverse mode


def _watch(x) -> Tensor:
    """A new variable with the value of ``x``, connected to the history of ``x`` if it has one."""
    x = as_tensor(x)
    with grad_mode(True):
        y = alias(x)
    y._view = None
    if y._node is None:
        y._node = Leaf(y)
    return y


def _unwatch(t):
    """The value without the tape of a finished transformation (what it carries stays)."""
    if not isinstance(t, Tensor) or t._node is None:
        return t
    if isinstance(t, Lifted):
        return t.unrecorded()
    plain = wrap(t.array)
    share_memory(plain, t)
    return plain


def _tracked_outside(outputs, variables) -> bool:
    """Whether the outputs, or what they carry, also depend on something else that requires a
    gradient, so that the result must be recorded."""
    inner = {node for v in variables for node in nodes_of(v)}
    return any(
        isinstance(n, Leaf) and n not in inner
        for n in _count_users([node for o in outputs for node in nodes_of(o)])
    )


def _outside(value, variables):
    """What leaves a transformation: without its tape, unless it depends on an outer one too."""
    return tree.tree_map(
        lambda v: v if isinstance(v, Tensor) and _tracked_outside([v], variables) else _unwatch(v),
        value,
    )


def _run(func, args, argnums):
    """Call ``func`` with some arguments watched; returns the result and the flat variables with
    their structure."""
    selected = [args[i] for i in argnums]
    flat, unflatten = tree.flatten(selected)
    variables = [_watch(x) for x in flat]
    watched = dict(zip(argnums, unflatten(variables), strict=True))
    with grad_mode(True):
        result = func(*[watched.get(i, a) for i, a in enumerate(args)])
    return result, variables, unflatten


def _gradients(outputs, variables, cotangents, *, retain=False):
    outputs_live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o._node is not None]
    if not outputs_live:
        return [_zeros(v) for v in variables]
    outer = _tracked_outside([o for o, _ in outputs_live], variables)
    return tape_grad(
        [o for o, _ in outputs_live],
        variables,
        [c for _, c in outputs_live],
        retain_graph=retain or outer,
        create_graph=outer,
        materialize_grads=True,
    )


def value_and_grad(func: Callable, argnums: int | tuple = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns ``(func(*args), gradient)``; the result of ``func`` must be a scalar
    tensor.

    ``argnums`` chooses the arguments to differentiate. With ``has_aux`` the function returns
    (scalar, anything).

    >>> import gpugrad as gg
    >>> gg.func.value_and_grad(lambda x: (x * x).sum())(gg.tensor([1.0, 2.0]))
    (tensor(5.), tensor([2., 4.]))
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def transformed(*args, **kwargs):
        chosen = tuple(n % len(args) for n in numbers)
        result, variables, unflatten = _run(lambda *a: func(*a, **kwargs), args, chosen)
        value, aux = result if has_aux else (result, None)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RuntimeError(
                f"grad needs a function that returns a scalar tensor, got {got}; use jacrev, or "
                f"reduce with .sum()"
            )
        seed = _zeros(value) + 1
        tracked = _tracked_outside([value], variables)
        gradients = unflatten(_gradients([value], variables, [seed]))
        gradient = gradients[0] if isinstance(argnums, int) else tuple(gradients)
        value = value if tracked else _unwatch(value)
        aux = _outside(aux, variables)
        return ((value, aux), gradient) if has_aux else (value, gradient)

    return transformed


def grad(func: Callable, argnums: int | tuple = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns the gradient of a scalar function.

    >>> import gpugrad as gg
    >>> gg.func.grad(gg.func.grad(lambda x: x**3))(gg.tensor(2.0))
    tensor(12.)
    """
    both = value_and_grad(func, argnums, has_aux=has_aux)

    def transformed(*args, **kwargs):
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return transformed


def vjp(func: Callable, *primals, has_aux: bool = False):
    """``(func(*primals), vjp_fn)``; ``vjp_fn(cotangents)`` gives one gradient per primal and may be
    called repeatedly."""
    result, variables, unflatten = _run(func, primals, tuple(range(len(primals))))
    result, aux = result if has_aux else (result, None)
    outputs, rebuild = tree.flatten(result)
    values, aux = rebuild([_outside(o, variables) for o in outputs]), _outside(aux, variables)

    def vjp_fn(*cotangents):
        flat, _ = tree.flatten(
            cotangents[0] if len(cotangents) == 1 and len(outputs) == 1 else cotangents
        )
        if len(flat) != len(outputs):
            raise RuntimeError(f"vjp got {len(flat)} cotangents for {len(outputs)} outputs")
        return tuple(unflatten(_gradients(outputs, variables, flat, retain=True)))

    return (values, vjp_fn, aux) if has_aux else (values, vjp_fn)


# ------------------------------------------------------------------------------------------------
# Jacobians


def _unit(like: Tensor, i: int) -> Tensor:
    """Zeros like a tensor with a one at flat position ``i``."""
    array = zeros_like(like)
    array.reshape(-1)[i] = 1
    return constant(array)


def jacrev(func: Callable, argnums: int = 0) -> Callable:
    """The Jacobian by one reverse pass per output element: shape (*output.shape, *input.shape)."""

    def transformed(*args):
        result, variables, _ = _run(func, args, (argnums % len(args),))
        if len(variables) != 1 or not isinstance(result, Tensor):
            raise RuntimeError("jacrev takes a function of one tensor (argnums) to one tensor")
        (x,) = variables
        rows = [
            _gradients([result], [x], [_unit(result, i)], retain=True)[0]
            for i in range(result.numel())
        ]
        if not rows:
            return _zeros(result).new_zeros(*result.shape, *x.shape)
        return reshape(stack(rows), *result.shape, *x.shape)

    return transformed


def jacfwd(func: Callable, argnums: int = 0) -> Callable:
    """The Jacobian by one forward pass per input element: shape (*output.shape, *input.shape)."""

    def transformed(*args):
        k = argnums % len(args)
        x = as_tensor(args[k])
        columns = []
        shape: tuple = ()
        for i in range(x.numel()):
            _, column = jvp(lambda v: func(*args[:k], v, *args[k + 1 :]), (x,), (_unit(x, i),))
            shape = tuple(column.shape)
            columns.append(reshape(column, -1, 1))
        if not columns:
            return x.new_zeros(*tuple(func(*args).shape), *x.shape)
        return reshape(cat(columns, 1), *shape, *x.shape)

    return transformed


jacobian = jacrev


def hessian(func: Callable, argnums: int = 0) -> Callable:
    """Second derivatives of a scalar function, forward over reverse.

    >>> import gpugrad as gg
    >>> gg.func.hessian(lambda x: (x**3).sum())(gg.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    return jacfwd(jacrev(func, argnums), argnums)


def hvp(func: Callable, primals: tuple, tangents: tuple):
    """``(value, H @ tangents)`` of a scalar function of one tensor, forward over reverse: twice the
    cost of a gradient."""
    both = value_and_grad(lambda x: sum_all(func(x)))
    (value, _), (_, product) = jvp(both, tuple(primals), tuple(tangents))
    return value, product


def functional_call(
    module,
    parameters: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    args=(),
    kwargs: Mapping | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
):
    """``module(*args, **kwargs)`` with other parameters and buffers, by their paths.

    The module is as before afterwards, but for what it wrote into given buffers in place.
    ``parameters`` may be several dictionaries. A parameter that the module has under several names
    is replaced under all of them, unless ``tie_weights`` is off. With ``strict`` none may be
    missing. Raises RuntimeError for paths that the module does not have, and missing ones; then
    nothing was called. Other threads must not use the module meanwhile.

    >>> import gpugrad as gg
    >>> layer = gg.nn.Linear(2, 1)
    >>> weights = {"weight": gg.ones(1, 2), "bias": gg.zeros(1)}
    >>> loss = lambda weights, x: gg.func.functional_call(layer, weights, (x,)).sum()
    >>> gg.func.grad(loss)(weights, gg.tensor([[3.0, 4.0]]))["weight"]
    tensor([[3., 4.]])
    """
    given: dict[str, Tensor] = {}
    for part in [parameters] if isinstance(parameters, Mapping) else parameters:
        twice = given.keys() & part.keys()
        if twice:
            raise ValueError(f"functional_call: {sorted(twice)} are in two of the dictionaries")
        given.update(part)
    own = dict(module.named_parameters(remove_duplicate=False))
    own.update(module.named_buffers(remove_duplicate=False))
    if unknown := given.keys() - own.keys():
        raise RuntimeError(
            f"functional_call: {type(module).__name__} has no {sorted(unknown)}, but {list(own)}"
        )
    if tie_weights:
        new = {id(own[path]): tensor for path, tensor in given.items()}
        given = {p: given.get(p, new[id(t)]) for p, t in own.items() if id(t) in new}
    if strict and (missing := own.keys() - given.keys()):
        raise RuntimeError(
            f"functional_call: {sorted(missing)} of {type(module).__name__} are missing"
        )
    places = []
    for path, tensor in given.items():
        owner, _, name = path.rpartition(".")
        places.append((vars(module.get_submodule(owner)), name, tensor, own[path]))
    args = args if isinstance(args, tuple) else (args,)
    try:
        for attributes, name, tensor, _ in places:
            attributes[name] = tensor
        module_writes.count += 1  # compiled functions look again
        return module(*args, **(kwargs or {}))
    finally:
        for attributes, name, _, before in places:
            attributes[name] = before
        module_writes.count += 1
