"""Tensors that carry a batch: the interpreter of ``func.vmap``.

A ``Batched`` looks like one example and carries all of them, along the first axis of its ``value``.
An operation on it is one operation on values: ``RULES`` has a row per operation (or one for a whole
kind) that moves the axes in its metadata along. An operation without a rule runs once per example,
so a new one needs none to be correct; a rule makes it one call instead of as many as examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from string import ascii_letters
from typing import TYPE_CHECKING, NamedTuple

from .backend.arrays import StandIn, array_module, every_value, there
from .config import modes
from .eager import check_writable, fitting, recording, run_arrays
from .lifted import Lifted, like, write
from .ops import REGISTRY
from .ops.core import Op, apply
from .ops.index import HOLE
from .tensor import Tensor, constant, version_of, views_of


class Batched(Lifted):
    """One example to look at, a batch of them along the first axis of ``value``."""

    __slots__ = ("value",)

    if TYPE_CHECKING:
        value: Tensor

    def interpret(self, op: Op, args, params) -> Tensor:
        """The operation on values by its rule, or example by example."""
        batch = Batch(self._level, self.value.shape[0])
        rule = RULES.get(op.name) or RULES_OF_KINDS.get(op.kind) or each_example
        return batched(rule(batch, op, args, params), self._level)

    def run_arrays(self, function, args, params) -> Tensor:
        batch = Batch(self._level, self.value.shape[0])
        call = partial(run_arrays, function)
        return batched(_joined(batch, function.__name__, call, args, params), self._level)

    def carried(self) -> tuple[Tensor, ...]:
        return (self.value,)

    def unrecorded(self) -> Batched:
        return batched(self.value, self._level)

    def detach(self) -> Tensor:
        return batched(self.value.detach(), self._level)

    def like_it(self, filled: Tensor) -> Tensor:
        n = self.value.shape[0]
        many = REGISTRY["clone"](REGISTRY["broadcast_to"](filled, shape=(n, *filled.shape)))
        return batched(like(self.value, many), self._level)

    def overwrite(self, value: Tensor) -> None:
        """``value`` becomes the content of the memory of all examples.

        Raises RuntimeError if a gradient inside of the vmap would have to know about views of it.
        """
        check_writable(self)
        value = fitting(value, self)
        if recording() and (value._node is not None or self._node is not None):
            if views_of(self):
                raise RuntimeError(
                    "vmap: a tensor with views, or a view, cannot be written in place where a "
                    "gradient is computed inside of vmap; write to a clone() instead"
                )
            self._node = value._node
        write(self.value, Batch(self._level, self.value.shape[0]).full(value))

    def refuse_to_be_written(self) -> None:
        raise RuntimeError(
            "vmap: inplace arithmetic(self, *extra_args) is not possible because there exists a "
            "Tensor `other` in extra_args that has more elements than `self`. This happened due to "
            "`other` being vmapped over but `self` not being vmapped over. Please try to use "
            "out-of-place operators instead of inplace arithmetic."
        )

    @property
    def requires_grad(self) -> bool:
        return self._node is not None or self.value.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        raise RuntimeError(
            "You are attempting to call Tensor.requires_grad_() inside of a function being "
            "transformed by vmap. Use func.grad, func.vjp or func.jacrev inside of it, or call "
            "requires_grad_() outside."
        )

    def backward(self, *args, **kwargs) -> None:
        raise RuntimeError(
            "backward() called inside a function being transformed by vmap. This is not supported, "
            "please use func.grad or func.vjp instead or call backward() outside of it."
        )

    def __repr__(self) -> str:
        return f"Batched(level={self._level}, value={self.value!r})"


def batched(value: Tensor, level: int) -> Batched:
    """A tensor of the vmap at ``level`` whose examples lie along the first axis of ``value``."""
    b = Batched.__new__(Batched)
    b.array = StandIn(value.array)
    b.grad = b._node = b._view = None
    b._version = version_of(value)
    b.value, b._level = value, level
    return b


class Batch(NamedTuple):
    """One open vmap: its level and the number of its examples."""

    level: int
    size: int
    randomness: str = "error"

    def has(self, a) -> bool:
        """Whether a value differs between the examples."""
        return a.__class__ is Batched and a._level == self.level

    def front(self, a, ndim: int):
        """A value to broadcast against others of ``ndim`` dimensions per example: the batch axis
        first, then ones. What is the same in all examples stays as it is."""
        if not self.has(a) or len(a.shape) >= ndim:
            return a.value if self.has(a) else a
        ones = (1,) * (ndim - len(a.shape))
        return _reshape(a.value, shape=(self.size, *ones, *a.shape))

    def full(self, a, shape: tuple | None = None):
        """All examples of a value (broadcast to ``shape``), also where they are the same."""
        shape = tuple(a.shape if shape is None else shape)
        if a.shape == shape and self.has(a):
            return a.value
        if len(a.shape) > len(shape):  # more ones in front, which NumPy ignores in assignments
            a = _reshape(a, shape=a.shape[len(a.shape) - len(shape) :])
        return _broadcast_to(self.front(a, len(shape)), shape=(self.size, *shape))

    def examples(self, a) -> list:
        """The value in every example."""
        if not self.has(a):
            return [a] * self.size
        return [_getslice(a.value, index=(i,)) for i in range(self.size)]


def draw(make: Callable[[tuple], Tensor]) -> Tensor:
    """Random numbers, ``make(())``: in a vmap the same for all examples, or others for each, or an
    error, as its ``randomness`` says. ``make(sizes)`` draws with leading batch axes."""
    different: list[Batch] = []
    for batch in modes.local.batches:
        if batch.randomness == "error":
            raise RuntimeError(
                "vmap: called random operation while in randomness error mode. Please either use "
                "the 'same' or 'different' randomness flags on vmap or perform the randomness "
                "operation out of vmap"
            )
        if batch.randomness == "different":
            different.append(batch)
    result = make(tuple(batch.size for batch in different))
    for batch in different:
        result = batched(result, batch.level)
    return result


# ------------------------------------------------------------------------------------------------
# no rule: one example after the other


def each_example(batch: Batch, op: Op, args, params) -> Tensor:
    """The operation on every example."""
    return _joined(batch, op.name, op, args, params)


def _joined(batch: Batch, name: str, function: Callable, args, params) -> Tensor:
    """The results of a function of every example, joined.

    Raises RuntimeError if their shapes differ. An empty batch has results like those of zeros.
    """
    if not batch.size:
        args = [_zeros_like(a) if batch.has(a) else a for a in args]
        result = function(*args, **params)
        return _broadcast_to(
            _getslice(_line(result), index=(slice(0, 0),)), shape=(0, *result.shape)
        )
    rows = zip(*[batch.examples(a) for a in args], strict=True)
    results = [_line(function(*row, **params)) for row in rows]
    if len({r.shape for r in results}) > 1:
        raise RuntimeError(f"vmap: {name} gives results of other shapes for other examples")
    return REGISTRY["cat"](*results, axis=0)


def _line(x):
    """A batch of one example."""
    return _reshape(x, shape=(1, *x.shape))


def _zeros_like(a):
    xp = array_module(a.array)
    with there(a.array):
        return constant(xp.zeros(a.shape, a.dtype))


# ------------------------------------------------------------------------------------------------
# rules: rule(batch, op, args, params) -> the value of the result


def _elementwise(batch, op, args, params):
    """Any elementwise operation: the batch axes meet, the others broadcast as they did."""
    ndim = max(len(a.shape) for a in args if hasattr(a, "shape"))
    return apply(op, [batch.front(a, ndim) for a in args], params)


def _of_examples(batch, op, args, params):
    """Operations of the last axes that take any leading ones, the same for all arguments."""
    return apply(op, [batch.full(a) for a in args], params)


def _first_only(otherwise: Callable) -> Callable:
    """An operation of rows of the first argument with parameters: as it is where these are the
    same in all examples."""

    def rule(batch, op, args, params):
        if any(batch.has(a) for a in args[1:]):
            return otherwise(batch, op, args, params)
        return apply(op, [args[0].value, *args[1:]], params)

    return rule


def _with(**changes: Callable) -> Callable:
    """An operation of one argument with other metadata: each as ``change(old, shape, size)`` of
    what it was, the shape of an example and the number of examples."""

    def rule(batch, op, args, params):
        (x,) = args
        changed = {
            name: change(params[name], x.shape, batch.size) for name, change in changes.items()
        }
        return apply(op, [x.value], {**params, **changed})

    return rule


def _next(axis, shape, size):
    return axis + 1


def _axes(axes, shape, size):
    axes = range(len(shape)) if axes is None else axes
    return tuple([axis + 1 for axis in axes])


def _shape(target, shape, size):
    return (size, *target)


def _index(index, shape, size):
    return (slice(None), *index)


def _permute(batch, op, args, params):
    return apply(op, [args[0].value], {"axes": (0, *[axis + 1 for axis in params["axes"]])})


def _broadcast(batch, op, args, params):
    shape = params["shape"]
    return apply(op, [batch.front(args[0], len(shape))], {"shape": (batch.size, *shape)})


def _sum_to(batch, op, args, params):
    (x,), target = args, params["shape"]
    ones = (1,) * (len(x.shape) - len(target))
    summed = apply(op, [x.value], {"shape": (batch.size, *ones, *target)})
    return _reshape(summed, shape=(batch.size, *target)) if ones else summed


def _place(batch, op, args, params):
    """argmax and argmin; without an axis, of the flattened example."""
    (x,), axis, keepdims = args, params["axis"], params["keepdims"]
    if axis is not None:
        return apply(op, [x.value], {"axis": axis + 1, "keepdims": keepdims})
    flat = _reshape(x.value, shape=(batch.size, prod(x.shape)))
    found = apply(op, [flat], {"axis": 1, "keepdims": False})
    return _reshape(found, shape=(batch.size, *(1,) * len(x.shape))) if keepdims else found


def _join(batch, op, args, params):
    return apply(op, [batch.full(a) for a in args], {"axis": params["axis"] + 1})


# ---- products


def _matmul(batch, op, args, params):
    """Vectors and matrices and batches of them. What is the same in all examples is not copied."""
    a, b = args
    na, nb = len(a.shape), len(b.shape)
    matmul = REGISTRY["matmul"]
    if not batch.has(b) and nb <= 2:
        return matmul(a.value, b)
    if not batch.has(a) and na == 1:
        return matmul(b.value, a) if nb == 1 else matmul(a, b.value)
    if not batch.has(a) and na == 2 and nb == 1:
        return matmul(b.value, REGISTRY["permute"](a, axes=(1, 0)))
    # as matrices, a vector on the left as a row, one on the right as a column
    rows = a if na > 1 else _reshape(a, shape=(1, *a.shape))
    columns = b if nb > 1 else _reshape(b, shape=(*b.shape, 1))
    ndim = max(len(rows.shape), len(columns.shape))
    product = matmul(batch.front(rows, ndim), batch.front(columns, ndim))
    shape = list(product.shape)
    if nb == 1:
        del shape[-1]
    if na == 1:
        del shape[-1 if nb == 1 else -2]
    return product if min(na, nb) > 1 else _reshape(product, shape=tuple(shape))


def _linear(batch, op, args, params):
    x, w = args
    return _matmul(batch, None, (x, REGISTRY["permute"](w, axes=(1, 0))), {})


def _affine(batch, op, args, params):
    x, w, b = args
    if batch.has(x) or batch.has(w):
        product = RULES["linear"](batch, REGISTRY["linear"], (x, w), {})
    else:
        product = REGISTRY["linear"](x, w)
    return REGISTRY["add"](product, batch.front(b, len(x.shape)))


def _linear_weight(batch, op, args, params):
    """``g.T @ x`` of the rows of an example; of one row, the product of its elements."""
    g, x = [_reshape(a, shape=(prod(a.shape[:-1]), a.shape[-1])) for a in args]
    if g.shape[0] == 1:
        g = _reshape(g, shape=(*g.shape[1:], 1))
        return REGISTRY["mul"](batch.front(g, 2), batch.front(x, 2))
    return _matmul(batch, None, (REGISTRY["permute"](g, axes=(1, 0)), x), {})


def _einsum(batch, op, args, params):
    of_a, of_b, of_out = params["subscripts"]
    new = next(c for c in ascii_letters if c not in of_a + of_b)
    values = [a.value if batch.has(a) else a for a in args]
    letters = [new + of if batch.has(a) else of for a, of in zip(args, (of_a, of_b), strict=True)]
    return apply(op, values, {"subscripts": (*letters, new + of_out)})


def _solve(batch, op, args, params):
    ndim = max(len(a.shape) for a in args)
    return apply(op, [batch.front(a, ndim) for a in args], params)


def _attention(batch, op, args, params):
    q, k, v, *mask = args
    arguments = [batch.full(x) for x in (q, k, v)]
    return apply(op, [*arguments, *[batch.front(m, len(q.shape)) for m in mask]], params)


# ---- indexing. A pattern of slices with holes for index arrays: see ops/index.py


class _Layout(NamedTuple):
    """Where the axes of index arrays are in ``x[index]``: after ``before`` others, ``width`` of
    them; first of all if something is ``between`` the arrays."""

    before: int
    width: int
    between: bool

    @property
    def start(self) -> int:
        return 0 if self.between else self.before


def _layout(ndim: int, pattern, indices) -> _Layout | None:
    """The layout of an index into ``ndim`` dimensions; None where numbers or masks make it
    another."""
    if any(part.__class__ is int for part in pattern) or any(i.dtype.kind == "b" for i in indices):
        return None
    holes = [k for k, part in enumerate(pattern) if part is HOLE]
    used = sum(part is HOLE or isinstance(part, slice) for part in pattern)
    wide = ndim - used  # the dimensions that an ellipsis stands for
    before = sum(wide if part is Ellipsis else 1 for part in pattern[: holes[0]])
    return _Layout(
        before, max(len(i.shape) for i in indices), holes[-1] - holes[0] + 1 > len(holes)
    )


def _moved(x, source: int, destination: int):
    """``x`` with one axis at another place."""
    if source == destination:
        return x
    order = [axis for axis in range(len(x.shape)) if axis != source]
    order.insert(destination, source)
    return REGISTRY["permute"](x, axes=tuple(order))


def _block_moved(x, source: int, count: int, destination: int):
    """``x`` with ``count`` neighbouring axes at another place."""
    if source == destination or not count:
        return x
    block = list(range(source, source + count))
    order = [axis for axis in range(len(x.shape)) if axis not in block]
    order[destination:destination] = block
    return REGISTRY["permute"](x, axes=tuple(order))


def _numbers(batch, like_index, count: int):
    """The number of each example, to broadcast against index arrays of ``count`` axes."""
    array = every_value(getattr(like_index, "array", like_index))
    with there(array):
        numbers = array_module(array).arange(batch.size)
        return constant(numbers.reshape((batch.size,) + (1,) * count))


class _Access:
    """One index into every example, as an index into their batch.

    ``pattern`` and ``indices`` address the examples' elements in the batch; ``inner`` arranges what
    is read there as a batch of results, ``outer`` the other way round.
    """

    def __init__(self, batch, layout: _Layout, pattern, indices):
        self.layout, self.separate = layout, any(batch.has(i) for i in indices)
        if self.separate:  # each example has its own index arrays: their number is one, too
            numbers = _numbers(batch, indices[0], layout.width)
            self.indices = [numbers, *[batch.front(i, layout.width) for i in indices]]
            self.pattern = (HOLE, *pattern)
        else:
            self.indices, self.pattern = list(indices), (slice(None), *pattern)

    def inner(self, x):
        start, count = self.layout.start, self.layout.width
        if self.separate:  # (batch, index axes, others)
            return _block_moved(x, 1, count, 1 + start)
        return _moved(x, count, 0) if self.layout.between else x

    def outer(self, x):
        start, count = self.layout.start, self.layout.width
        if self.separate:
            return _block_moved(x, 1 + start, count, 1)
        return _moved(x, 0, count) if self.layout.between else x


def _take(batch, op, args, params):
    x, *indices = args
    if any(batch.has(i) and i.dtype.kind == "b" for i in indices):
        bool(next(i for i in indices if batch.has(i)).any())  # which explains that it depends
    layout = _layout(len(x.shape), params["pattern"], indices)
    if layout is None:
        return each_example(batch, op, args, params)
    if not batch.has(x):  # of a table for all: one axis more of the index arrays
        values = [batch.front(i, layout.width) for i in indices]
        return _moved(apply(op, [x, *values], params), layout.start, 0)
    access = _Access(batch, layout, params["pattern"], indices)
    return access.inner(apply(op, [x.value, *access.indices], {"pattern": access.pattern}))


def _put_add(batch, op, args, params):
    g, *indices = args
    shape = params["shape"]
    layout = _layout(len(shape), params["pattern"], indices)
    if layout is None:
        return each_example(batch, op, args, params)
    access = _Access(batch, layout, params["pattern"], indices)
    shape = (batch.size, *shape)
    g = access.outer(batch.full(g))
    return apply(op, [g, *access.indices], {"pattern": access.pattern, "shape": shape})


def _put(batch, op, args, params):
    x, v, *indices = args
    layout = _layout(len(x.shape), params["pattern"], indices) if indices else None
    if layout is None and (indices or any(p.__class__ is int for p in params["pattern"])):
        return each_example(batch, op, args, params)
    if layout is None:
        pattern = (slice(None), *params["pattern"])
        target = REGISTRY["getslice"](x, index=params["pattern"])
        return apply(op, [batch.full(x), batch.full(v, target.shape)], {"pattern": pattern})
    access = _Access(batch, layout, params["pattern"], indices)
    chosen = REGISTRY["take"](x, *indices, pattern=params["pattern"])
    v = access.outer(batch.full(v, chosen.shape))
    return apply(op, [batch.full(x), v, *access.indices], {"pattern": access.pattern})


def _along_axis(batch, op, args, params):
    """gather and scatter_add, whose index arrays have an axis for every axis."""
    return apply(op, [batch.full(a) for a in args], _moved_axis(batch, params))


def _moved_axis(batch, params) -> dict:
    changed = {**params, "axis": params["axis"] + 1}
    return {**changed, "shape": (batch.size, *params["shape"])} if "shape" in params else changed


def _full_or_number(batch, a, shape):
    """A factor per position: a number stays one."""
    return batch.full(a, shape) if hasattr(a, "shape") else a


def _pick(batch, op, args, params):
    x, index, scale = args
    changed = {**_moved_axis(batch, params), "total": False}
    scale = _full_or_number(batch, scale, index.shape)
    picked = apply(op, [batch.full(x), batch.full(index), scale], changed)
    return _sum(picked, range(1, len(picked.shape))) if params["total"] else picked


def _unpick(batch, op, args, params):
    g, index, scale = args
    scale = _full_or_number(batch, scale, index.shape)
    params = {**_moved_axis(batch, params), "total": False}
    return apply(op, [batch.full(g, index.shape), batch.full(index), scale], params)


def _sum(x, axes):
    return REGISTRY["sum"](x, axes=tuple(axes), keepdims=False)


def _in_one_table(batch, index, rows: int):
    """Indices into one table of the rows of all examples."""
    offset = _numbers(batch, index, len(index.shape)) * rows
    return REGISTRY["add"](batch.full(index), offset)


def _embedding(batch, op, args, params):
    table, index = args
    if not batch.has(table):
        return apply(op, [table, index.value], params)
    if params["padding"] is not None:  # a row per example without a gradient
        return each_example(batch, op, args, params)
    rows, width = table.shape
    merged = _reshape(table.value, shape=(batch.size * rows, width))
    return apply(op, [merged, _in_one_table(batch, index, rows)], params)


def _embedding_add(batch, op, args, params):
    g, index = args
    rows, width = params["shape"]
    merged = {"shape": (batch.size * rows, width), "padding": None}
    out = apply(op, [batch.full(g), _in_one_table(batch, index, rows)], merged)
    out = _reshape(out, shape=(batch.size, rows, width))
    if params["padding"] is None:
        return out
    kept = _numbers(Batch(batch.level, rows), index, 1) != params["padding"]
    return REGISTRY["where"](kept, out, 0.0)


# ---- losses and norms


def _merged(batch, a):
    """All examples of a value, one after the other along its first axis."""
    return _reshape(batch.full(a), shape=(batch.size * a.shape[0], *a.shape[1:]))


def _of_rows(batch, op, args, params):
    """A loss of each row with its target, of the rows of all examples."""
    x, target, *count = args
    rows = [_merged(batch, a) for a in (x, target)]
    losses = _reshape(
        apply(op, rows, {**params, "total": False}), shape=(batch.size, *target.shape)
    )
    losses = _sum(losses, (1,)) if params["total"] else losses
    if not count:
        return losses
    ones = (1,) * (len(losses.shape) - 1)
    number = _reshape(batch.full(count[0]), shape=(batch.size, *ones))
    losses = REGISTRY["div"](losses, number)
    return REGISTRY["cast"](losses, dtype=x.dtype) if losses.dtype != x.dtype else losses


def _layer_norm(batch, op, args, params):
    x, weight, bias = args
    standard = REGISTRY["standardize"](batch.front(x, len(x.shape)), **params)
    ndim = len(x.shape)
    scaled = REGISTRY["mul"](standard, batch.front(weight, ndim))
    return REGISTRY["add"](scaled, batch.front(bias, ndim))


def _rms_norm(batch, op, args, params):
    x, weight = args
    array = every_value(weight.array if isinstance(weight, Tensor) else weight)
    with there(array):
        ones = constant(array_module(array).ones(weight.shape, array.dtype))
    ndim = len(x.shape)
    return REGISTRY["mul"](
        apply(op, [batch.front(x, ndim), ones], params), batch.front(weight, ndim)
    )


# ---- operations of channels, axis 1 of (N, C, ...): those of all examples side by side


def _side_by_side(batch, x):
    """(N, C, ...) of all examples as (N, batch * C, ...)."""
    n, c, *rest = x.shape
    return _reshape(_moved(batch.full(x), 0, 1), shape=(n, batch.size * c, *rest))


def _apart(batch, x):
    """(N, batch * C, ...) as (batch, N, C, ...)."""
    n, c, *rest = x.shape
    return _moved(_reshape(x, shape=(n, batch.size, c // batch.size, *rest)), 1, 0)


def _channel_moments(batch, op, args, params):
    if len(args) > 1:
        raise RuntimeError(
            "vmap: running averages that are the same in all examples cannot be updated with the "
            "moments of each; use a norm without them (track_running_stats=False)"
        )
    return _apart(batch, apply(op, [_side_by_side(batch, args[0])], params))


def _batch_norm(batch, op, args, params):
    x, *vectors = args
    return _apart(
        batch, apply(op, [_side_by_side(batch, x), *[_merged(batch, v) for v in vectors]], params)
    )


def _conv(batch, op, args, params):
    """Images of all examples with the same filters are more images; filters of their own make the
    examples groups of channels."""
    x, w = args
    if not batch.has(w):
        return _split(batch, apply(op, [_merged(batch, x), w], params))
    if not batch.has(x) and params["groups"] == 1:
        return _apart(batch, apply(op, [x, _merged(batch, w)], params))
    return _apart(
        batch, apply(op, [_side_by_side(batch, x), _merged(batch, w)], _groups(batch, params))
    )


def _split(batch, x):
    """The other way round of ``_merged``."""
    return _reshape(x, shape=(batch.size, x.shape[0] // batch.size, *x.shape[1:]))


def _groups(batch, params) -> dict:
    return {**params, "groups": params["groups"] * batch.size}


def _conv_input(batch, op, args, params):
    g, w = args
    n, c, *size = params["shape"]
    if not batch.has(w):
        params = {**params, "shape": (batch.size * n, c, *size)}
        return _split(batch, apply(op, [_merged(batch, g), w], params))
    params = {**_groups(batch, params), "shape": (n, batch.size * c, *size)}
    return _apart(batch, apply(op, [_side_by_side(batch, g), _merged(batch, w)], params))


def _conv_weight(batch, op, args, params):
    filters, *rest = params["shape"]
    params = {**_groups(batch, params), "shape": (batch.size * filters, *rest)}
    return _split(batch, apply(op, [_side_by_side(batch, a) for a in args], params))


def _no_shape(batch, op, args, params):
    """Results whose shape depends on values."""
    return bool(args[0])


_reshape, _broadcast_to = REGISTRY["reshape"], REGISTRY["broadcast_to"]
_getslice = REGISTRY["getslice"]


def _rows(names: str, rule: Callable) -> dict[str, Callable]:
    return dict.fromkeys(names.split(), rule)


RULES_OF_KINDS: dict[str, Callable] = {"elementwise": _elementwise}

RULES: dict[str, Callable] = {
    # views, joins, padding, casts
    **_rows("alias clone contiguous cast to_device triu tril", _of_examples),
    **_rows("broadcast_to spread", _broadcast),
    "reshape": _with(shape=_shape),
    "permute": _permute,
    "sum_to": _sum_to,
    **_rows("flip roll", _with(axes=_axes)),
    "diagonal": _with(axis1=_next, axis2=_next),
    "diagonal_scatter": _with(axis1=_next, axis2=_next, shape=_shape),
    "getslice": _with(index=_index),
    "putslice": _with(index=_index, shape=_shape),
    "pad": _with(widths=lambda widths, shape, size: ((0, 0), *widths)),
    "cat": _join,
    # reductions, scans and other operations along axes
    **_rows("sum mean amax amin logsumexp any all", _with(axes=_axes)),
    **_rows("cumsum argsort softmax log_softmax", _with(axis=_next)),
    **_rows("argmax argmin", _place),
    # products and matrices
    "matmul": _matmul,
    "linear": _first_only(_linear),
    "linear_input": _first_only(_matmul),
    "linear_weight": _linear_weight,
    "affine": _first_only(_affine),
    "einsum2": _einsum,
    "attention": _attention,
    "solve": _solve,
    **_rows("inv det logabsdet det_sign cholesky", _of_examples),
    # indices
    "take": _take,
    "put_add": _put_add,
    "put": _put,
    **_rows("gather scatter_add", _along_axis),
    "pick": _pick,
    "unpick": _unpick,
    "embedding": _embedding,
    "embedding_add": _embedding_add,
    "nonzero": _no_shape,
    # losses, norms, images
    **_rows("nll_of_logits cross_entropy_of_logits", _of_rows),
    "standardize": _of_examples,
    "layer_norm": _first_only(_layer_norm),
    "rms_norm": _first_only(_rms_norm),
    "channel_moments": _channel_moments,
    "batch_norm": _batch_norm,
    "conv": _conv,
    "conv_input": _conv_input,
    "conv_weight": _conv_weight,
    **_rows("max_pool sum_pool max_pool_scatter max_pool_gather", _of_examples),
    "sum_unpool": _with(shape=_shape),
}
