"""How operations run on tensors: evaluate on arrays, wrap the result, and record it if a gradient
may be asked for.

``interpret`` and ``elementwise`` are the general way, complete for every operation, dtype and
device. ``unary`` and ``binary`` make the short path of one operation: float32 or float64 NumPy
arrays of equal dtype, no special mode but a recorder, which it tells what it did. A short path does
the same as the general way with the questions answered beforehand; anything else it hands on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .autocasting import policy_of
from .autograd.engine import (
    ElementwiseNode,
    lines,
    make_elementwise_node,
    make_op_node,
    run_bfloat16_op,
    run_elementwise,
)
from .backend import arrays as backend_arrays
from .backend import cupy as cuda_backend
from .backend.device import CPU, device, mixed_devices
from .backend.memory import LARGE
from .backend.numpy import xp as np
from .codegen import cuda
from .codegen.arrays import compile_program, straight_line
from .codegen.expr import Expr
from .codegen.functions import functions_for
from .config import lone_recorder, modes, settings
from .dtypes import category, is_differentiable, is_floating, of_scalar, result_type_of
from .errors import no_complex_gradients, user_line
from .ops import core
from .ops import shape as shape_ops
from .ops.core import Elementwise, Meta, Op, Rule, apply
from .tensor import (
    Tensor,
    bump_version,
    clock,
    constant,
    highest,
    over,
    share_memory,
    version_of,
    views_of,
    wrap,
)

_ndarray = np.ndarray
_float32, _float64 = np.dtype("float32"), np.dtype("float64")
_new_tensor = Tensor.__new__
asarray = np.asarray
_SCALARS = (bool, int, float, complex)
_HOST = (_ndarray, np.generic, *_SCALARS)


def recording() -> bool:
    """Whether operations on tensors that require gradients are recorded in this thread."""
    return not modes.unusual or modes.local.grad


# ------------------------------------------------------------------------------------------------
# the general way


def interpret(op: Op, args, params) -> Tensor:
    """Run an operation on tensors (and arrays and numbers among them) and record it."""
    if len(args) == 1:
        return _interpret_one(op, args[0], params)
    values, history = [], False
    for a in args:
        if isinstance(a, Tensor):
            values.append(a.array)
            if a._node is not None:
                history = True
        else:
            values.append(a)
    recorder = modes.local.recording if modes.special else None
    try:
        if recorder is None:
            z = op.eval(*values, **params)
        else:
            params = recorder.plain(params)
            z = recorder.operation(op, args, params)
    except (TypeError, ValueError):
        same_device(op.name, values)  # which explains it if CPU and CUDA arrays are mixed
        raise
    result = wrap(asarray(z) if isinstance(z, np.generic) else z)
    if recorder is not None:
        recorder.made(result)
    if op.is_view:
        _note_view(op, args[0], params, result)
    if history and (not modes.unusual or modes.local.grad):
        record(op, args, params, result)
    return result


def _interpret_one(op: Op, x: Tensor, params) -> Tensor:
    """``interpret`` for one tensor, which most operations but products have: 1.5 us less."""
    recorder = modes.local.recording if modes.special else None
    if recorder is None:
        z = op.eval(x.array, **params)
    else:
        params = recorder.plain(params)
        z = recorder.operation(op, (x,), params)
    result = wrap(asarray(z) if isinstance(z, np.generic) else z)
    if recorder is not None:
        recorder.made(result)
    if op.is_view:
        _note_view(op, x, params, result)
    edge = x._node
    if edge is None or (modes.unusual and not modes.local.grad):
        return result
    plan = op.plan_of_one
    noted = modes.special and modes.local.anomaly
    if plan is None or noted or z.dtype.kind in "Vc":
        record(op, (x,), params, result)
    elif z.dtype.kind in "fc":
        out = version = None
        if plan.reads_output:
            out, version = z, version_of(result)
        saved = (x,) if plan.reads[0] else (Meta(x.array),)
        result._node = make_op_node(op, (edge,), saved, out, version, z.shape, params, plan)
    return result


def record(op: Op, args, params, result: Tensor) -> None:
    """Put an operation on the tape if an argument requires a gradient that it can give."""
    edges = [a._node if isinstance(a, Tensor) else None for a in args]
    plan = op.save_plan(tuple([e is not None for e in edges]))
    array = result.array
    if not plan.wanted or not is_differentiable(array.dtype):
        return
    if array.dtype.kind == "c":
        raise no_complex_gradients(f"{op.name} of a tensor with a history is complex")
    if len(args) == 1 and not isinstance(op, Elementwise):
        op.plan_of_one = plan
    out = version = None
    if plan.reads_output:
        out, version = array, version_of(result)
    if isinstance(op, Elementwise):
        node = make_elementwise_node(op.rule(plan.needs), edges, args, out, version, array.shape)
    else:
        saved = [a if read else _without_values(a) for a, read in zip(args, plan.reads)]
        if plan.drops_edges:
            edges = [e if need else None for e, need in zip(edges, plan.needs)]
        node = make_op_node(op, edges, saved, out, version, array.shape, params, plan)
        if array.dtype.kind == "V":
            node.run = run_bfloat16_op
    if modes.unusual and modes.local.anomaly:
        lines[node] = user_line()
    result._node = node


def _without_values(a):
    """What is saved of an argument whose values no derivative reads."""
    if isinstance(a, Tensor):
        return Meta(a.array)
    return a if isinstance(a, _SCALARS) else Meta(a)


# ---- machines with several CUDA devices


def interpret_there(op: Op, args, params) -> Tensor:
    """``interpret`` with the device of the arguments as the current one, forward and backward."""
    values = [a.array if isinstance(a, Tensor) else a for a in args]
    on_gpu = [v for v in values if v.__class__ is not _ndarray and backend_arrays.is_array(v)]
    if not on_gpu:
        return interpret(op, args, params)
    if len({v.data.device_id for v in on_gpu}) > 1:
        same_device(op.name, values)
    with cuda_backend.on_device_of(on_gpu[0]):
        result = interpret(op, args, params)
    _run_there(result._node)
    return result


def _run_there(node) -> None:
    """Let a record (if it is one) run on the device of its cotangent."""
    if node is not None and node.edges:
        node.run = _running_there(node.run)


@cache
def _running_there(run: Callable) -> Callable:
    """The backward function of a record, on the device of the cotangent."""
    if hasattr(run, "here"):  # it is that already
        return run

    def run_there(node, g, keep):
        if g.__class__ is _ndarray or not backend_arrays.is_array(g):
            return run(node, g, keep)
        with cuda_backend.on_device_of(g):
            return run(node, g, keep)

    run_there.here = run
    return run_there


_interpret = interpret


def register_tensor_type(cls: type) -> None:
    """Let tensors of a class interpret operations (called for every subclass)."""
    core.register_interpreter(cls, 1, _interpret)


def _runs_here(cls: type) -> bool:
    """Whether operations on objects of a class are run by this module; the duals of forward mode
    are tensors too, and have an interpreter of their own."""
    return core.interpreter_of(cls) is _interpret


def _look_at_devices() -> None:
    """From now on, see to the current device: there are several."""
    global _interpret
    classes = [cls for cls in core.interpreted_classes() if _runs_here(cls)]
    _interpret = interpret_there
    for cls in classes:
        core.register_interpreter(cls, 1, interpret_there)


register_tensor_type(Tensor)
cuda_backend.when_several(_look_at_devices)


def elementwise(op: Elementwise, args) -> Tensor:
    """Run an elementwise operation on tensors, arrays and Python numbers with torch's type
    promotion."""
    if cuda_backend.in_use() and not modes.special:
        result = _on_gpu(op, args)
        if result is not None:
            return result
    if any(isinstance(a, Expr) for a in args):  # inside foreach: build the expression
        return apply(op, args, {})
    args = _promoted(op, args)
    try:
        return apply(op, args, {})
    except ValueError as error:
        raise _shape_error(op.name, _values(args)) or error from None
    except TypeError as error:  # NumPy has no such function of these dtypes
        dtypes = [v.dtype for v in _values(args) if hasattr(v, "dtype")]
        raise RuntimeError(f"{op.name} is not supported for dtype {dtypes[-1]}: {error}") from None


def _values(args) -> list:
    return [a.array if isinstance(a, Tensor) else a for a in args]


def _promoted(op: Elementwise, args) -> list:
    """The arguments in the dtype and on the device in which the operation is computed."""
    followed = [k for k, a in enumerate(args) if hasattr(a, "recorded")] if modes.special else ()
    weak = {k: args[k].value for k in followed}
    args = [_operand(op, a) for a in args]
    if modes.special and (policy := policy_of(op.name, *args)):
        args = list(policy.arguments(tuple(args)))
    values = [a.array if isinstance(a, Tensor) else a for a in args]
    first = 1 if op.name == "where" else 0  # the condition takes no part in promotion
    asked = [weak.get(k, v) for k, v in enumerate(values)] if weak else values
    target = _compute_dtype(op, asked[first:])
    gpu = same_device(op.name, values)
    for i in range(first, len(args)):
        v = values[i]
        if not isinstance(v, _SCALARS) and v.dtype != target:
            args[i] = shape_ops.cast(args[i], dtype=target)
    if gpu is not None:
        args = [_with_number(a, gpu) for a in args]
    if all(isinstance(v, _SCALARS) for v in values[first:]):
        like = values[0] if first else None
        args[first] = _scalar_tensor(values[first], target, like)
    return args


def _on_gpu(op: Elementwise, args) -> Tensor | None:
    """The short way of CUDA tensors of one floating dtype, and numbers: a kernel that was prepared
    for such arguments. None where the general way must be taken."""
    values, signature = [], []
    here = cuda_backend.current_device() if cuda_backend.several() else None
    for a in args:
        if a.__class__ is Tensor or _runs_here(a.__class__):
            x = a.array
            if x.__class__ is _ndarray or (here is not None and x.data.device_id != here):
                return None
            values.append(x)
            signature += (x.shape, x.strides, x.dtype)
        elif a.__class__ is float or a.__class__ is int:
            values.append(a)
            signature.append(a.__class__)
        else:
            return None
    signature = tuple(signature)
    plan = op.gpu_plans.get(signature, op)
    if plan is op:  # not asked before
        if len(op.gpu_plans) >= 256:
            op.gpu_plans.clear()
        plan = op.gpu_plans[signature] = _plan_on_gpu(op, values)
    results = None if plan is None else plan(values)
    if results is None:
        return None
    result = wrap(results[0])
    if not modes.unusual or modes.local.grad:
        for a in args:
            if isinstance(a, Tensor) and a._node is not None:
                _record_elementwise(op, args, result)
                if here is not None:
                    _run_there(result._node)
                break
    return result


def _record_elementwise(op: Elementwise, args, result: Tensor) -> None:
    """``record`` of tensors and numbers, with the questions about the rule asked once (2 us
    less)."""
    history = tuple([a.__class__ not in _SCALARS and a._node is not None for a in args])
    found = op.records.get(history)
    if found is None:
        plan = op.save_plan(history)
        rule = op.rule(plan.needs) if plan.wanted else None
        found = op.records[history] = (rule, [i for i, need in enumerate(plan.needs) if need])
    rule, wanted = found
    if rule is None:
        return
    n = ElementwiseNode()
    n.rule, n.run, n.time = rule, run_elementwise, clock.now
    n.edges = tuple([args[i]._node for i in wanted])
    n.saved = tuple([args[i] for i in rule.read])
    n.out = None
    if rule.reads_output:
        n.out, n.out_version = result.array, version_of(result)
    n.shape = result.array.shape
    if modes.unusual and modes.local.anomaly:
        lines[n] = user_line()
    result._node = n


def _plan_on_gpu(op: Elementwise, values):
    """A prepared kernel, if nothing must be promoted or moved for it."""
    arrays = [v for v in values if v.__class__ not in _SCALARS]
    floats = {a.dtype for a in arrays if is_floating(a.dtype)}
    first = 1 if op.name == "where" else 0
    if len(floats) != 1 or _compute_dtype(op, values[first:]) not in floats:
        return None
    return cuda.plan(op.forward, values)


def _with_number(a, gpu):
    """A zero-dimensional CPU tensor among CUDA tensors as one of theirs."""
    if isinstance(a, Tensor) and isinstance(a.array, _ndarray):
        return core.REGISTRY["to_device"](a, device=gpu, source=CPU)
    return a


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
        return constant(backend_arrays.scalar_array(value, dtype, like))
    return constant(np.array(value, dtype))


def _operand(op, a):
    if isinstance(a, np.generic):  # first, because numpy.float64 is a float
        return a.item()
    if modes.special and hasattr(a, "recorded"):  # a number that a recorder follows
        return a.recorded
    if isinstance(a, (Tensor, *_SCALARS)):
        return a
    if backend_arrays.is_array(a):
        return over(a)
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


def same_device(name, values):
    """The CUDA device of the arrays among some values, None for the CPU.

    Raises DeviceError if they are on different devices; a zero-dimensional CPU array goes with any.
    """
    if not cuda_backend.in_use():
        return None
    index, mixed, on_cpu = None, False, False
    for v in values:
        if isinstance(v, _HOST):
            on_cpu = on_cpu or (isinstance(v, _ndarray) and v.ndim > 0)
        elif cuda_backend.is_array(v):
            here = v.data.device_id
            mixed = mixed or (index is not None and here != index)
            index = here
    if index is None:
        return None
    if mixed or on_cpu:
        arrays = [v for v in values if backend_arrays.is_array(v)]
        raise mixed_devices(name, [(tuple(a.shape), backend_arrays.device_of(a)) for a in arrays])
    return cuda_backend.require(device("cuda", index))


# ------------------------------------------------------------------------------------------------
# functions of arrays that are no operations of the table. A compiled program calls them again: what
# is computed from arrays in any other way, it cannot see.


def run_arrays(function: Callable, *args, **params) -> Tensor:
    """A tensor without history of ``function(*arrays, **params)``: a pure function of arrays (given
    as tensors, arrays or numbers) with one result, whose metadata is keyword."""
    if modes.special and (top := highest(args)) is not None:
        return top.run_arrays(function, args, params)
    values = [a.array if isinstance(a, Tensor) else a for a in args]
    with backend_arrays.there(values[0]):
        if modes.special and (recorder := modes.local.recording) is not None:
            z = recorder.function(function, args, params)
        else:
            z = function(*values, **params)
    return wrap(asarray(z) if isinstance(z, np.generic) else z)


def decide(function: Callable, *args, **params) -> bool:
    """The truth of ``function(*arrays, **params)``, by which the program goes on; a compiled one
    asks again at every call."""
    if modes.special and (modes.local.recording is not None or highest(args) is not None):
        return bool(run_arrays(function, *args, **params))
    values = [a.array if isinstance(a, Tensor) else a for a in args]
    with backend_arrays.there(values[0]):
        z = function(*values, **params)
    return bool(backend_arrays.item(z) if backend_arrays.is_array(z) else z)


def verify(function: Callable, *args, **params) -> None:
    """Call ``function(*arrays, **params)``, which raises an error if the values are wrong; so does
    a compiled program at every call. Lifted tensors are verified with all they stand for."""
    if modes.special:
        args = [_all_values(a) for a in args]
    if modes.special and (recorder := modes.local.recording) is not None:
        recorder.verify(function, args, params)
    else:
        function(*[a.array if isinstance(a, Tensor) else a for a in args], **params)


def _all_values(a):
    """The ordinary tensor at the end of what a lifted one carries."""
    while isinstance(a, Tensor) and a._level:
        a = a.carried()[0]
    return a


def shape_of_values(what: str) -> None:
    """Tell the recorder, if there is one, that a shape depends on values."""
    if modes.special and (recorder := modes.local.recording) is not None:
        recorder.fail(f"the shape of {what} depends on values")


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
    value = fitting(value, x)
    if not backend_arrays.is_writable(x.array):
        raise RuntimeError(
            "this tensor shares memory with a read-only or broadcast array, which cannot be "
            "written in place; "
            "use tensor.clone() first"
        )
    source = value.array
    if x.array.__class__ is _ndarray:
        x.array[...] = source
    else:
        with cuda_backend.on_device_of(x.array):
            x.array[...] = source
    if modes.special and (recorder := modes.local.recording) is not None:
        recorder.write(x, value)
    bump_version(x)
    _rebase(x, value)
    return x


def fitting(value: Tensor, x: Tensor) -> Tensor:
    """``value`` in the shape and dtype of ``x``, into which it is to be written."""
    if category(value.dtype) > category(x.dtype):
        raise RuntimeError(
            f"result type {value.dtype} can't be cast to the desired output type {x.dtype}"
        )
    if value.shape != x.shape:
        value = _expanded(value, x)
    return value if value.dtype == x.dtype else shape_ops.cast(value, dtype=x.dtype)


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
    link._node, link._version = base._node, version_of(base)
    for op, params in view._view[1]:
        outer = wrap(op.eval(link.array, **params))
        record(op, (link,), params, outer)
        link = outer
    view._node = link._node


# ------------------------------------------------------------------------------------------------
# short paths


def _forward(op: Elementwise, dtype) -> Callable:
    """Computes an operation on small arrays of a dtype: NumPy's own function, or a program."""
    functions = functions_for(np)
    if op.expression is None:
        return functions.table[op.name]
    return core.Program([op.body], op.names, ()).direct(functions, dtype, reuse=False)


def _backward(rule: Rule, dtype) -> Callable:
    """``run`` of a record made by a short path: the whole way from cotangent to cotangents as
    straight-line code.

    It may rely on what the short path checked: NumPy arrays of one dtype, a result with dimensions,
    every saved value a tensor. For ``mul`` it reads

        def program(node, g, keep):
            if node.time != clock.now: node.check()
            x0, x1, = node.saved
            x0 = x0.array
            x1 = x1.array
            if not keep: node.saved, node.out, node.time = (), None, -1
            t3 = mul(g, x1)
            t4 = mul(g, x0)
            shape = node.shape
            e0, e1, = node.edges
            if e0.shape != shape: t3 = sum_to(t3, shape=e0.shape)
            if e1.shape != shape: t4 = sum_to(t4, shape=e1.shape)
            return t3, t4
    """
    body, results, constants = straight_line(rule.outputs)
    lines = ["def program(node, g, keep):", "    if node.time != clock.now: node.check()"]
    saved = [rule.op.names[i] for i in rule.read]
    if saved:
        lines.append(f"    {', '.join(saved)}, = node.saved")
        lines += [f"    {name} = {name}.array" for name in saved]
    if rule.reads_output:
        lines.append("    y = node.out")
    if saved or rule.reads_output:
        forget = "node.saved, node.out, node.time = (), None, -1"
        lines.append(f"    if not keep: {forget}")
    lines += body
    for k, e in enumerate(rule.outputs):
        if e.op == "const":
            results[k] = f"full_like(g, {results[k]})"
    if rule.op.arity > 1:
        edges = [f"e{k}" for k in range(len(results))]
        lines += ["    shape = node.shape", f"    {', '.join(edges)}, = node.edges"]
        for k, edge in enumerate(edges):
            lines.append(f"    d{k} = {results[k]}")
            lines.append(f"    if {edge}.shape != shape: d{k} = sum_to(d{k}, shape={edge}.shape)")
            results[k] = f"d{k}"
    lines.append(f"    return {', '.join(results)},")
    names = {"clock": clock, "sum_to": shape_ops.sum_to.eval}
    names.update(full_like=np.full_like)
    return compile_program("\n".join(lines), functions_for(np), constants, dtype, **names)


def _rule(op: Elementwise, *needs: bool) -> Rule:
    """The rule for these needs, with the code of its short path."""
    rule = op.rule(needs)
    if rule.run32 is None:
        rule.run32, rule.run64 = _backward(rule, _float32), _backward(rule, _float64)
    return rule


def unary(op: Elementwise):
    """The function of a one-argument elementwise operation."""
    compute32 = compute64 = rule = None
    saves_x = saves_y = False

    def prepare():
        nonlocal compute32, compute64, rule, saves_x, saves_y
        if op.differentiable(0):
            rule = _rule(op, True)
            saves_x, saves_y = bool(rule.read), rule.reads_output
        compute64, compute32 = _forward(op, _float64), _forward(op, _float32)

    def call(input):
        try:
            x = input.array
        except AttributeError:
            return elementwise(op, (input,))
        if x.__class__ is not _ndarray:
            return elementwise(op, (input,))
        recorder = None
        if modes.special and (recorder := lone_recorder()) is None:
            return elementwise(op, (input,))
        if compute32 is None:
            prepare()
        dtype = x.dtype
        if dtype is not _float32 and dtype is not _float64:
            return elementwise(op, (input,))
        general = x.nbytes >= LARGE
        if general:
            z = op.compute((x,))
        else:
            z = compute32(x) if dtype is _float32 else compute64(x)
        if z.__class__ is not _ndarray:  # zero-dimensional: a NumPy scalar
            z, general = asarray(z), True
        r = _new_tensor(Tensor)
        r.array = z
        r.grad = r._view = r._version = None
        if recorder is not None:
            recorder.elementwise(op, (input,), z)
            recorder.made(r)
        node = input._node
        if node is None or rule is None or (modes.unusual and not modes.local.grad):
            r._node = None
            return r
        r._node = n = ElementwiseNode()
        n.rule = rule
        n.run = run_elementwise if general else rule.run32 if dtype is _float32 else rule.run64
        n.edges = (node,)
        n.saved = (input,) if saves_x else ()
        if saves_y:
            n.out = z
            n.out_version = r._version = [0, None]
        else:
            n.out = None
        n.shape = node.shape
        n.time = clock.now
        return r

    return call


_scalars: dict = {}


def _scalar(value, dtype) -> Tensor:
    """A number as a zero-dimensional tensor, remembered: NumPy takes an array of its dtype faster
    than a Python number (0.42 against 0.82 us for a small product)."""
    key = (value, dtype is _float32)
    found = _scalars.get(key)
    # -0.0 == 0.0 and 1 == 1.0 == True share a key; only the sign of zero would change a result.
    if found is None or value == 0:
        found = wrap(np.array(value, dtype))
        if value != 0:
            # numbers that change every step, such as a learning rate
            if len(_scalars) > 1000:
                _scalars.clear()
            _scalars[key] = found
    return found


def _scalar_like(value, other) -> Tensor | None:
    """A number before a floating-point tensor as a tensor of that dtype; None for anything else."""
    if value.__class__ is float or value.__class__ is int:
        y = getattr(other, "array", None)
        if y.__class__ is _ndarray and (y.dtype is _float32 or y.dtype is _float64):
            try:
                return _scalar(value, y.dtype)
            except OverflowError:
                pass
    return None


def binary(op: Elementwise):
    """The function of a two-argument elementwise operation; either argument may be a Python
    number."""
    compute32 = compute64 = left_rule = right_rule = both_rule = None

    def prepare():
        nonlocal compute32, compute64, left_rule, right_rule, both_rule
        if not (op.boolean or op.no_grad):
            left_rule, right_rule = _rule(op, True, False), _rule(op, False, True)
            both_rule = _rule(op, True, True)
        compute64, compute32 = _forward(op, _float64), _forward(op, _float32)

    def call(input, other):
        try:
            x = input.array
        except AttributeError:
            recorder = None
            if modes.special and (recorder := lone_recorder()) is None:
                return elementwise(op, (input, other))
            first = _scalar_like(input, other)
            if first is None:
                return elementwise(op, (input, other))
            if recorder is not None:
                recorder.stands_for(first.array, input)
            return call(first, other)
        if x.__class__ is not _ndarray:
            return elementwise(op, (input, other))
        recorder = None
        if modes.special and (recorder := lone_recorder()) is None:
            return elementwise(op, (input, other))
        if compute32 is None:
            prepare()
        general = x.nbytes >= LARGE
        dtype = x.dtype
        if dtype is _float32:
            compute = compute32
        elif dtype is _float64:
            compute = compute64
        else:
            return elementwise(op, (input, other))
        if other.__class__ is float or other.__class__ is int:
            try:
                second = _scalar(other, dtype)
            except OverflowError:
                return elementwise(op, (input, other))
            y = second.array
            if recorder is not None:
                recorder.stands_for(y, other)
        else:
            second = other
            try:
                y = other.array
            except AttributeError:
                return elementwise(op, (input, other))
            if y.__class__ is not _ndarray or y.dtype is not dtype:
                return elementwise(op, (input, other))
            if y.nbytes >= LARGE:
                general = True
        try:
            z = op.compute((x, y)) if general else compute(x, y)
        except ValueError:
            return elementwise(op, (input, other))  # which explains the shapes
        if z.__class__ is not _ndarray:  # zero-dimensional: a NumPy scalar
            z, general = asarray(z), True
        r = _new_tensor(Tensor)
        r.array = z
        r.grad = r._view = r._version = None
        if recorder is not None:
            recorder.elementwise(op, (input, second), z)
            recorder.made(r)
        left, right = input._node, second._node
        if left is None:
            rule, edges = right_rule, (right,)
        elif right is None:
            rule, edges = left_rule, (left,)
        else:
            rule, edges = both_rule, (left, right)
        if rule is None or edges[0] is None or (modes.unusual and not modes.local.grad):
            r._node = None
            return r
        r._node = n = ElementwiseNode()
        n.rule = rule
        n.run = run_elementwise if general else rule.run32 if dtype is _float32 else rule.run64
        n.edges = edges
        save = rule.save
        if save == 0:
            n.saved = ()
        elif save == 3:
            n.saved = (input, second)
        else:
            n.saved = (input,) if save == 1 else (second,)
        if rule.reads_output:
            n.out = z
            n.out_version = r._version = [0, None]
        else:
            n.out = None
        n.shape = z.shape
        n.time = clock.now
        return r

    return call
