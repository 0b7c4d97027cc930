"""``vmap``: a function of one example as a function of a batch, without a loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from . import tree
from .batching import Batch, Batched, batched
from .config import modes
from .functions import cat, movedim, narrow
from .lifted import new_level
from .ops.shape import alias, broadcast_to, reshape
from .random import get_rng_state, set_rng_state
from .tensor import Tensor


def vmap(
    func: Callable,
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable:
    """A function that maps ``func`` over a dimension of its arguments, in batched operations.

    ``in_dims`` says which dimension of each argument holds the examples: a number for all, or a
    tuple like the arguments with numbers, and None for what is the same in every example; nested as
    they are, or one number for a nested argument. Keyword arguments are the same in every example.
    ``out_dims`` says where the results get that dimension (None: nowhere, for results that do not
    depend on the example). ``randomness`` is what random functions do: "error", "same" numbers in
    every example or "different" ones. With ``chunk_size`` so many examples are computed at a time.

    Inside, a tensor looks like one example. Its values cannot be asked for (``item``, ``if``,
    ``nonzero``). It composes with itself and the other transformations in any order:
    ``vmap(grad(f))`` gives a gradient per example. An operation without a rule for batches runs
    example by example.

    Raises ValueError if the dimensions do not fit the arguments or results, or the sizes of the
    mapped dimensions differ.

    >>> import gpugrad as gg
    >>> x, y = gg.tensor([[1.0, 2.0], [3.0, 4.0]]), gg.tensor([10.0, 100.0])
    >>> gg.vmap(gg.dot, in_dims=(0, None))(x, y)
    tensor([210., 430.])
    >>> gg.vmap(gg.func.grad(lambda v, w: (v * w).sum() ** 2), in_dims=(0, None))(x, y)
    tensor([[ 4200., 42000.],
            [ 8600., 86000.]])
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(
            f"Only allowed values for randomness are 'error', 'different', or 'same'. Got "
            f"{randomness}"
        )
    if not (chunk_size is None or chunk_size > 0):
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")

    @wraps(func)
    def mapped(*args, **kwargs):
        _check_out_dims(func, out_dims)
        leaves, unflatten = tree.flatten(args)
        dims = _dims_of_arguments(func, in_dims, args, leaves)
        size = _batch_size(leaves, dims)

        def run(values, n):
            batch = partial(Batch, size=n, randomness=randomness)
            return _run(func, batch, values, dims, unflatten, kwargs, out_dims)

        if chunk_size is None:
            return run(leaves, size)
        return _in_chunks(run, leaves, dims, size, chunk_size, out_dims, randomness)

    return mapped


def _run(func, make_batch, values, dims, unflatten, kwargs, out_dims):
    """Call a function with the arguments that have a dimension as batches."""
    local = modes.local
    with new_level() as level:
        batch = make_batch(level)
        arguments = [
            v if dim is None else batched(movedim(v, dim, 0) if dim else v, level)
            for v, dim in zip(values, dims, strict=True)
        ]
        outer, local.batches = local.batches, (*local.batches, batch)
        try:
            result = func(*unflatten(arguments), **kwargs)
        finally:
            local.batches = outer
    outputs, rebuild = tree.flatten(result)
    places = _dims_of_results(func, out_dims, result)
    inside = {id(v) for v in values}
    return rebuild(
        [_leave(func, batch, o, dim, inside) for o, dim in zip(outputs, places, strict=True)]
    )


def _leave(func, batch: Batch, output, dim: int | None, arguments: set[int]):
    """A result with its examples along a dimension."""
    name = _name(func)
    if dim is None:
        if isinstance(output, Batched):
            raise ValueError(
                f"vmap({name}, ...): `{name}` can not return a BatchedTensor when out_dim is None"
            )
        return output
    if not isinstance(output, Tensor):
        raise ValueError(
            f"vmap({name}, ...): `{name}` must only return Tensors, got type {type(output)}. Did "
            f"you mean to set out_dims= to None for output?"
        )
    if batch.has(output):
        value = output.value
        value = alias(value) if id(value) in arguments else value
    else:
        value = broadcast_to(
            reshape(output, shape=(1, *output.shape)), shape=(batch.size, *output.shape)
        )
    return movedim(value, 0, dim) if dim else value


def _in_chunks(run, leaves, dims, size, chunk_size, out_dims, randomness):
    """The results for some examples at a time, joined."""
    state = get_rng_state() if randomness == "same" else None
    results = []
    for start in range(0, max(size, 1), chunk_size):
        n = min(chunk_size, size - start)
        if state is not None:
            set_rng_state(state)
        parts = [
            v if dim is None else narrow(v, dim, start, n)
            for v, dim in zip(leaves, dims, strict=True)
        ]
        results.append(run(parts, n))
    flat = [tree.flatten(r)[0] for r in results]
    _, rebuild = tree.flatten(results[0])
    places = _dims_of_results(None, out_dims, results[0])
    return rebuild(
        [
            cat(list(chunks), dim) if dim is not None else chunks[0]
            for chunks, dim in zip(zip(*flat, strict=True), places, strict=True)
        ]
    )


# ------------------------------------------------------------------------------------------------
# dimensions of arguments and results


def _dims_of_arguments(func, in_dims, args, leaves) -> list:
    """The batch dimension of every leaf of the arguments, not negative, or None."""
    call = f"vmap({_name(func)}, in_dims={in_dims}, ...)(<inputs>): "
    if not isinstance(in_dims, (int, tuple)):
        raise ValueError(
            f"{call}expected `in_dims` to be int or a (potentially nested) tuple matching the "
            f"structure of inputs, got: {type(in_dims)}."
        )
    if not args:
        raise ValueError(
            f"vmap({_name(func)})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you "
            f"are trying to vmap over a function with no inputs. The latter is unsupported."
        )
    dims = _spread(in_dims, args)
    if dims is None:
        raise ValueError(
            f"{call}in_dims is not compatible with the structure of `inputs`. in_dims has "
            f"structure {_structure(in_dims)} but inputs has structure {_structure(args)}."
        )
    return [_checked_dim(call, dim, leaf) for dim, leaf in zip(dims, leaves, strict=True)]


def _checked_dim(call: str, dim, leaf) -> int | None:
    if dim is None:
        return None
    if not isinstance(dim, int):
        raise ValueError(
            f"{call}Got in_dim={dim} for an input but in_dim must be either an integer dimension "
            f"or None."
        )
    if not isinstance(leaf, Tensor):
        raise ValueError(
            f"{call}Got in_dim={dim} for an input but the input is of type {type(leaf)}. We cannot "
            f"vmap over non-Tensor arguments, please use None as the respective in_dim"
        )
    if not -leaf.ndim <= dim < leaf.ndim:
        raise ValueError(
            f"{call}Got in_dim={dim} for some input, but that input is a Tensor of dimensionality "
            f"{leaf.ndim} so expected in_dim to satisfy -{leaf.ndim} <= in_dim < {leaf.ndim}."
        )
    return dim % leaf.ndim


def _batch_size(leaves, dims) -> int:
    sizes = [v.shape[dim] for v, dim in zip(leaves, dims, strict=True) if dim is not None]
    if not sizes:
        raise ValueError("vmap: Expected at least one Tensor to vmap over")
    if len(set(sizes)) > 1:
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes "
            f"{sizes} for the mapped dimension"
        )
    return sizes[0]


def _check_out_dims(func, out_dims) -> None:
    for dim in tree.flatten(out_dims)[0]:
        if not (dim is None or isinstance(dim, int)):
            raise ValueError(
                f"vmap({_name(func)}, ..., out_dims={out_dims}): `out_dims` must be an int, None "
                f"or a python collection of ints representing where in the outputs the vmapped "
                f"dimension should appear."
            )


def _dims_of_results(func, out_dims, result) -> list:
    """The batch dimension of every leaf of a result, or None."""
    single = isinstance(result, Tensor) and isinstance(out_dims, tuple) and len(out_dims) == 1
    dims = list(out_dims) if single else _spread(out_dims, result)
    if dims is None:
        raise ValueError(
            f"vmap({_name(func)}, ..., out_dims={out_dims})(<inputs>): out_dims is not compatible "
            f"with the structure of `outputs`. out_dims has structure {_structure(out_dims)} but "
            f"outputs has structure {_structure(result)}."
        )
    return dims


def _spread(dims, value) -> list | None:
    """A dimension for every leaf of a nested value: one stands for all leaves below it. None if the
    structures differ."""
    children = _children(dims)
    if children is None:
        return [dims] * len(tree.flatten(value)[0])
    below = _children(value)
    if below is None or type(dims) is not type(value) or list(children) != list(below):
        return None
    parts = [_spread(children[key], below[key]) for key in below]
    if any(part is None for part in parts):
        return None
    return [dim for part in parts for dim in part or ()]


def _children(value) -> dict | None:
    """The parts of a nested value by key or position; None for a leaf."""
    if isinstance(value, dict):
        return value
    return dict(enumerate(value)) if isinstance(value, (tuple, list)) else None


def _structure(value) -> str:
    """A nested value with stars for its leaves."""

    class Star:
        def __repr__(self):
            return "*"

    return repr(tree.tree_map(lambda _: Star(), value))


def _name(func) -> str:
    if hasattr(func, "__name__"):
        return func.__name__
    if isinstance(func, partial):
        return f"functools.partial({_name(func.func)}, ...)"
    return repr(func)
