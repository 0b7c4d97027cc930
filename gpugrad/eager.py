"""How operations run on tensors: evaluate on arrays, wrap the result, and record it if a gradient
may be asked for.

``interpret`` and ``elementwise`` are the general way, complete for every operation, dtype and
device. ``unary`` and
``binary`` make the short path of one operation: float32 or float64 NumPy arrays of equal dtype, no
unusual mode. A short
path does the same as the general way with the questions answered beforehand; anything else it hands
on.
"""

from __future__ import annotations

from .autograd.engine import ElementwiseNode, lines, make_elementwise_node, make_op_node
from .backend import arrays as backend_arrays
from .backend.device import mixed_devices
from .backend.memory import LARGE
from .backend.numpy import xp as np
from .codegen.expr import Expr
from .codegen.functions import functions_for
from .config import modes, settings
from .dtypes import of_scalar, result_type_of
from .errors import user_line
from .ops import core
from .ops import shape as shape_ops
from .ops.core import Elementwise, Meta, Op, apply
from .tensor import Tensor, bump_version, clock, share_memory, views_of, wrap

_ndarray = np.ndarray
_float32, _float64 = np.dtype("float32"), np.dtype("float64")
_new_tensor = Tensor.__new__
_new_node = object.__new__
_SCALARS = (bool, int, float, complex)


def recording() -> bool:
    """Whether operations on tensors that require gradients are recorded in this thread."""
    return not modes.unusual or modes.local.grad


# ------------------------------------------------------------------------------------------------
# the general way


def interpret(op: Op, args, params) -> Tensor:
    """Run an operation on tensors (and arrays and numbers among them) and record it."""
    values = [a.array if isinstance(a, Tensor) else a for a in args]
    z = op.eval(*values, **params)
    result = wrap(np.asarray(z) if isinstance(z, np.generic) else z)
    if op.is_view:
        _note_view(op, args[0], params, result)
    if not modes.unusual or modes.local.grad:
        record(op, args, params, result)
    return result


def record(op: Op, args, params, result: Tensor) -> None:
    """Put an operation on the tape if an argument requires a gradient that it can give."""
    edges, wanted = [], False
    for i, a in enumerate(args):
        node = a._node if isinstance(a, Tensor) else None
        if node is not None and not op.differentiable(i):
            node = None
        if node is not None:
            wanted = True
        edges.append(node)
    if not wanted or result.array.dtype.kind not in "fc":
        return
    needs = tuple([e is not None for e in edges])
    reads, reads_output = op.save_plan(needs)
    out = result.array if reads_output else None
    shape = result.array.shape
    if isinstance(op, Elementwise):
        node = make_elementwise_node(op.rule(needs), edges, args, out, result._version, shape)
    else:
        saved = tuple([_to_save(a, read) for a, read in zip(args, reads, strict=True)])
        node = make_op_node(op, edges, saved, out, result._version, shape, params, needs)
    if modes.unusual and modes.local.anomaly:
        lines[node] = user_line()
    result._node = node


def _to_save(a, read: bool):
    if isinstance(a, Tensor):
        return a if read else Meta(a.array)
    return a if read or isinstance(a, _SCALARS) else Meta(a)


def register_tensor_type(cls: type) -> None:
    """Let tensors of a class interpret operations (called for every subclass)."""
    core.register_interpreter(cls, 1, interpret)


register_tensor_type(Tensor)


def elementwise(op: Elementwise, args) -> Tensor:
    """Run an elementwise operation on tensors, arrays and Python numbers with torch's type
    promotion."""
    if any(isinstance(a, Expr) for a in args):  # inside foreach: build the expression
        return apply(op, args, {})
    args = [_operand(op, a) for a in args]
    values = [a.array if isinstance(a, Tensor) else a for a in args]
    first = 1 if op.name == "where" else 0  # the condition takes no part in promotion
    target = _compute_dtype(op, values[first:])
    _same_device(op.name, values)
    for i in range(first, len(args)):
        v = values[i]
        if not isinstance(v, _SCALARS) and v.dtype != target:
            args[i] = shape_ops.cast(args[i], dtype=target)
    if all(isinstance(v, _SCALARS) for v in values[first:]):
        like = values[0] if first else None
        args[first] = _scalar_tensor(values[first], target, like)
    try:
        return apply(op, args, {})
    except ValueError as error:
        raise _shape_error(op.name, values) or error from None


def _shape_error(name, values) -> RuntimeError | None:
    """torch's words for shapes that do not broadcast; None if they do."""
    shapes = [tuple(v.shape) for v in values if not isinstance(v, _SCALARS)]
    for k in range(1, len(shapes)):
        a, b = shapes[0], shapes[k]
        for d in range(1, min(len(a), len(b)) + 1):
            if a[-d] != b[-d] and 1 not in (a[-d], b[-d]):
                return RuntimeError(
                    f"The size of tensor a ({a[-d]}) must match the size of tensor b ({b[-d]}) at "
                    f"non-singleton "
                    f"dimension {max(len(a), len(b)) - d} ({name} of shapes {a} and {b})"
                )
    return None


def _scalar_tensor(value, dtype, like) -> Tensor:
    if like is not None and not isinstance(like, _SCALARS):
        return wrap(backend_arrays.scalar_array(value, dtype, like))
    return wrap(np.array(value, dtype))


def _operand(op, a):
    if isinstance(a, (Tensor, *_SCALARS)):
        return a
    if backend_arrays.is_array(a):
        return wrap(a)
    if isinstance(a, np.generic):
        return a.item() if a.dtype != np.dtype("float64") else float(a)
    raise TypeError(
        f"{op.name}(): argument must be a Tensor, an array or a number, not {type(a).__name__}"
    )


def _compute_dtype(op: Elementwise, values):
    """The dtype the operation is computed in."""
    pairs = []
    for v in values:
        if isinstance(v, _SCALARS):
            pairs.append((of_scalar(v), 0))
        else:
            pairs.append((v.dtype, 2 if v.ndim else 1))
    target = result_type_of(pairs)
    if op.int_to_float and target.kind in "iub":
        return settings.default_dtype
    return target


def _same_device(name, values) -> None:
    arrays = [v for v in values if not isinstance(v, _SCALARS)]
    if all(isinstance(a, _ndarray) for a in arrays):
        return
    with_dimensions = [a for a in arrays if a.ndim] or arrays
    devices = {backend_arrays.device_of(a) for a in with_dimensions}
    if len(devices) > 1:
        raise mixed_devices(name, [(tuple(a.shape), backend_arrays.device_of(a)) for a in arrays])


# ------------------------------------------------------------------------------------------------
# views


def _note_view(op: Op, source, params, result: Tensor) -> None:
    """Remember how a view was made, if the result shares memory with the argument."""
    if not isinstance(source, Tensor):
        return
    z, x = result.array, source.array
    owner = x if x.base is None else x.base
    if z is not x and z.base is not owner and z.base is not x:
        return  # a copy: reshape of a non-contiguous array, for example
    share_memory(result, source)
    base, chain = source._view or (source, ())
    result._view = (base, (*chain, (op, params)))


def replay_view(chain, x):
    """Apply the operations that lead from a base to a view."""
    for op, params in chain:
        x = op(x, **params)
    return x


# ------------------------------------------------------------------------------------------------
# in-place writes


def _put_view_transpose(g, base, value, *, chain):
    """A write into a view: the base's cotangent with a hole, and what was in the hole."""
    array = g.array if isinstance(g, Tensor) else g
    keep = backend_arrays.array_module(array).ones(base.shape, bool)
    replay_view(chain, keep)[...] = False
    from .ops.elementwise import where

    return where(keep, g, 0.0), replay_view(chain, g)


def _put_view(base, value, *, chain):
    out = base.copy()
    replay_view(chain, out)[...] = value
    return out


put_view = core.linear("put_view", _put_view, _put_view_transpose, linear_args=2)


def check_writable(x: Tensor) -> None:
    """Refuse what torch refuses: recording a write to a leaf that requires a gradient."""
    if not recording():
        return
    base = x._view[0] if x._view else x
    if x._node is not None and x.is_leaf:
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation."
        )
    if base is not x and base._node is not None and base.is_leaf:
        raise RuntimeError(
            "a view of a leaf Variable that requires grad is being used in an in-place operation."
        )


def write(x: Tensor, value: Tensor) -> Tensor:
    """Make ``value`` (of x's shape or broadcast to it) the new content of ``x``, in memory and on
    the tape."""
    check_writable(x)
    if not np.can_cast(value.dtype, x.dtype, "same_kind") and not (value.dtype.kind == "b"):
        raise RuntimeError(
            f"result type {value.dtype} can't be cast to the desired output type {x.dtype}"
        )
    if value.shape != x.shape:
        value = _expanded(value, x)
    if value.dtype != x.dtype:
        value = shape_ops.cast(value, dtype=x.dtype)
    if not x.array.flags.writeable:
        raise RuntimeError(
            "this tensor shares memory with a read-only or broadcast array, which cannot be "
            "written in place; "
            "use tensor.clone() first"
        )
    source = value.array
    x.array[...] = source
    bump_version(x)
    _rebase(x, value)
    return x


def _expanded(value: Tensor, x: Tensor) -> Tensor:
    try:
        return shape_ops.broadcast_to(value, shape=x.shape)
    except ValueError:
        raise RuntimeError(
            f"output with shape {list(x.shape)} doesn't match the broadcast shape "
            f"{list(value.shape)}: an in-place "
            "operation cannot enlarge its tensor"
        ) from None


def _rebase(x: Tensor, value: Tensor) -> None:
    """Put a write on the tape: x, its base and the other views of the base get new records."""
    if not recording():
        return
    base, chain = x._view or (x, ())
    if base is x:
        if value._node is None and x._node is None:
            return
        x._node = value._node
    else:
        if value._node is None and base._node is None:
            return
        before = wrap(base.array)
        before._node = base._node
        after = wrap(base.array)
        record(put_view, (before, value), {"chain": chain}, after)
        base._node = after._node
    for view in views_of(x):
        if view is not base and view._view is not None and view._view[0] is base:
            _renew(view, base)


def _renew(view: Tensor, base: Tensor) -> None:
    """Derive the record of a view anew from its base, whose history has changed."""
    if base._node is None:
        view._node = None
        return
    link = wrap(base.array)
    link._node, link._version = base._node, base._version
    for op, params in view._view[1]:
        outer = wrap(op.eval(link.array, **params))
        record(op, (link,), params, outer)
        link = outer
    view._node = link._node


# ------------------------------------------------------------------------------------------------
# short paths


def _compute_small(op: Elementwise, dtype):
    """The function that computes an operation on small arrays of a dtype: NumPy's own, or a
    program."""
    functions = functions_for(np)
    if op.expression is None:
        return functions.table[op.name]
    return core.Program([op.body], op.names, op.names if op.arity == 1 else ()).direct(
        functions, dtype
    )


def unary(op: Elementwise):
    """The function of a one-argument elementwise operation."""
    compute32 = compute64 = rule = None
    saves_x = saves_y = False

    def prepare():
        nonlocal compute32, compute64, rule, saves_x, saves_y
        compute32, compute64 = _compute_small(op, _float32), _compute_small(op, _float64)
        if op.differentiable(0):
            rule = op.rule((True,))
            saves_x, saves_y = bool(rule.read), rule.reads_output

    def call(input):
        try:
            x = input.array
        except AttributeError:
            return elementwise(op, (input,))
        if modes.unusual or x.__class__ is not _ndarray or x.nbytes >= LARGE:
            return elementwise(op, (input,))
        if compute32 is None:
            prepare()
        dtype = x.dtype
        if dtype is _float32:
            z = compute32(x)
        elif dtype is _float64:
            z = compute64(x)
        else:
            return elementwise(op, (input,))
        if z.__class__ is not _ndarray:
            z = np.asarray(z)
        r = _new_tensor(Tensor)
        r.array = z
        r.grad = r._view = None
        r._version = version = [0, None]
        node = input._node
        if node is None or rule is None:
            r._node = None
            return r
        r._node = n = _new_node(ElementwiseNode)
        n.rule = rule
        n.edges = (node,)
        n.saved = (input,) if saves_x else ()
        if saves_y:
            n.out = z
            n.out_version = version
        else:
            n.out = None
        n.shape = z.shape
        n.time = clock.now
        return r

    return call


_scalar_arrays: dict = {}


def _scalar_array(value, dtype):
    """A number as a zero-dimensional array, remembered: NumPy takes it faster than a Python
    number."""
    key = (value, dtype is _float32)
    found = _scalar_arrays.get(key)
    # -0.0 == 0.0 and 1 == 1.0 == True share a key; only the sign of zero would change a result.
    if found is None or value == 0:
        found = np.array(value, dtype)
        if value != 0:
            # numbers that change every step, such as a learning rate
            if len(_scalar_arrays) > 1000:
                _scalar_arrays.clear()
            _scalar_arrays[key] = found
    return found


def binary(op: Elementwise):
    """The function of a two-argument elementwise operation; either argument may be a Python
    number."""
    compute32 = compute64 = left_rule = right_rule = both_rule = None

    def prepare():
        nonlocal compute32, compute64, left_rule, right_rule, both_rule
        compute32, compute64 = _compute_small(op, _float32), _compute_small(op, _float64)
        if not (op.boolean or op.no_grad):
            left_rule, right_rule = op.rule((True, False)), op.rule((False, True))
            both_rule = op.rule((True, True))

    def call(input, other):
        try:
            x = input.array
        except AttributeError:
            return elementwise(op, (input, other))
        if modes.unusual or x.__class__ is not _ndarray or x.nbytes >= LARGE:
            return elementwise(op, (input, other))
        if compute32 is None:
            prepare()
        dtype = x.dtype
        if dtype is _float32:
            compute = compute32
        elif dtype is _float64:
            compute = compute64
        else:
            return elementwise(op, (input, other))
        if other.__class__ is float or other.__class__ is int:
            try:
                saved_other = y = _scalar_array(other, dtype)
            except OverflowError:
                return elementwise(op, (input, other))
            right = None
        else:
            try:
                y = other.array
            except AttributeError:
                return elementwise(op, (input, other))
            if y.__class__ is not _ndarray or y.dtype is not dtype or y.nbytes >= LARGE:
                return elementwise(op, (input, other))
            right = other._node
            saved_other = other
        try:
            z = compute(x, y)
        except ValueError:
            return elementwise(op, (input, other))  # which explains the shapes
        if z.__class__ is not _ndarray:
            z = np.asarray(z)
        r = _new_tensor(Tensor)
        r.array = z
        r.grad = r._view = None
        r._version = version = [0, None]
        left = input._node
        if left is not None:
            if right is not None:
                rule, edges = both_rule, (left, right)
            else:
                rule, edges = left_rule, (left,)
        else:
            rule, edges = right_rule, (right,)
        if rule is None or edges[0] is None:
            r._node = None
            return r
        r._node = n = _new_node(ElementwiseNode)
        n.rule = rule
        n.edges = edges
        save = rule.save
        if save == 0:
            n.saved = ()
        elif save == 1:
            n.saved = (input,)
        elif save == 2:
            n.saved = (saved_other,)
        else:
            n.saved = (input, saved_other)
        if rule.reads_output:
            n.out = z
            n.out_version = version
        else:
            n.out = None
        n.shape = z.shape
        n.time = clock.now
        return r

    return call
