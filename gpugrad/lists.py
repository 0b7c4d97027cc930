"""Functions of whole lists of tensors: on CUDA a few launches for all of them, and no waiting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from . import creation, dtypes, functions
from .backend.arrays import _ndarray
from .codegen import cuda_lists
from .config import modes
from .foreach import foreach
from .tensor import Tensor, bump_versions, wrap


def foreach_norm(tensors: Iterable[Tensor], ord: float = 2.0) -> Tensor:
    """The norm of all elements of all tensors together, as a zero-dimensional tensor without
    history. 16-bit tensors are summed, and their norm returned, in float32.

    >>> import gpugrad as gg
    >>> gg.foreach_norm([gg.tensor([3.0]), gg.tensor([4.0])])
    tensor(5.)
    """
    tensors, ord = list(tensors), float(ord)
    if not tensors:
        return creation.tensor(0.0)
    if all(t.array.__class__ is not _ndarray for t in tensors):
        found = _norm_of_arrays(*[t.array for t in tensors], ord=ord)
        if found is not None:
            if modes.special and modes.local.recording is not None:
                found = modes.local.recording.function(_norm_of_arrays, tensors, {"ord": ord})
            return wrap(found)
    wide = [_wide(t) for t in tensors]
    device = wide[0].device
    if ord == 2.0:  # a fifth of the time of norms of norms: one BLAS call per tensor
        flat = [t.reshape(-1) for t in wide]
        return sum(functions.dot(v, v).to(device) for v in flat).sqrt()
    return functions.norm(functions.stack([t.norm(ord).to(device) for t in wide]), ord)


def _norm_of_arrays(*arrays, ord: float):
    return cuda_lists.norm(arrays, ord)


def _wide(tensor: Tensor) -> Tensor:
    """Without history, and in float32 at least: squares of float16 overflow above 256."""
    tensor = tensor.detach()
    return tensor.float() if dtypes.is_half(tensor.dtype) else tensor


def unscale(grads: Iterable[Tensor], inverse: Tensor, found_inf: Tensor) -> None:
    """Multiply gradients in place by ``inverse``, and make ``found_inf`` 1 if one of their elements
    is infinite or NaN. Both are float32 tensors of one element on the gradients' device."""
    grads = list(grads)
    arrays = [g.array for g in grads]
    on_cuda = all(a.__class__ is not _ndarray for a in arrays)
    if on_cuda and modes.special and modes.local.recording is not None:
        _unscale_recorded(grads, inverse, found_inf)
        return
    if on_cuda and cuda_lists.unscale(arrays, inverse.array, found_inf.array):
        bump_versions([grads, [found_inf]])
        return
    for g in grads:
        finite = functions.all(functions.isfinite(g.detach()))
        found_inf.copy_(functions.where(finite, found_inf, 1.0))
    _multiply()(grads, by=inverse)


def _unscale_recorded(grads: list[Tensor], inverse: Tensor, found_inf: Tensor) -> None:
    """``unscale`` in operations that a compiled program can repeat: the largest magnitude is
    infinite or NaN if an element is."""
    finite = functions.isfinite(foreach_norm(grads, math.inf))
    found_inf.copy_(functions.where(finite, found_inf, 1.0))
    _multiply()(grads, by=inverse)


@cache
def _multiply() -> Any:
    @foreach
    def multiply(x, *, by):
        return x * by

    return multiply
