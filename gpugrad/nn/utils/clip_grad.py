"""Gradient clipping. Works on tensors only: no value is read back, so a GPU is not waited for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterable

import gpugrad as gg

Tensors = gg.Tensor | Iterable[gg.Tensor]


def get_total_norm(
    tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> gg.Tensor:
    """Norm of all elements of all tensors together, as a zero-dimensional tensor.

    Half-precision tensors are summed, and their norm returned, in float32.

    >>> from gpugrad import nn
    >>> nn.utils.get_total_norm([gg.tensor([3.0]), gg.tensor([4.0])])
    tensor(5.)
    """
    norm_type = float(norm_type)
    arrays = [_wide(t) for t in _as_list(tensors)]
    if not arrays:
        return gg.tensor(0.0)
    device = arrays[0].device
    if norm_type == 2.0:  # a fifth of the time of norms of norms: one BLAS call per tensor
        flat = [t.reshape(-1) for t in arrays]
        total = sum(gg.dot(v, v).to(device) for v in flat).sqrt()
    else:
        total = gg.stack([t.norm(norm_type).to(device) for t in arrays]).norm(norm_type)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return total


def clip_grads_with_norm_(parameters: Tensors, max_norm: float, total_norm: gg.Tensor) -> None:
    """Scale gradients in place by ``max_norm / (total_norm + 1e-6)`` where that is less than 1."""
    scale = (float(max_norm) / (total_norm + 1e-6)).clamp(max=1.0)
    for grad in _grads(_as_list(parameters)):
        # multiplied even where the scale is 1: a branch would have to read the norm
        grad.mul_(scale.to(device=grad.device, dtype=grad.dtype))


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> gg.Tensor:
    """Scale gradients in place to a joint norm of at most ``max_norm``; returns the old norm.

    >>> from gpugrad import nn
    >>> x = gg.tensor([3.0, 4.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> nn.utils.clip_grad_norm_([x], 1.0)
    tensor(10.)
    """
    params = _as_list(parameters)
    if not params and isinstance(parameters, Generator):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    total_norm = get_total_norm(_grads(params), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(params, max_norm, total_norm)
    return total_norm


def clip_grad_value_(parameters: Tensors, clip_value: float) -> None:
    """Limit every element of the gradients to [-clip_value, clip_value], in place."""
    clip_value = float(clip_value)
    for grad in _grads(_as_list(parameters)):
        grad.clamp_(min=-clip_value, max=clip_value)


def _as_list(tensors: Tensors) -> list[gg.Tensor]:
    return [tensors] if isinstance(tensors, gg.Tensor) else list(tensors)


def _grads(parameters: list[gg.Tensor]) -> list[gg.Tensor]:
    """Gradients without their history: clipping is not recorded."""
    return [p.grad.detach() for p in parameters if p.grad is not None]


def _wide(tensor: gg.Tensor) -> gg.Tensor:
    """Without history, and in float32 at least: squares of float16 overflow above 256."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype == gg.float16 else tensor
