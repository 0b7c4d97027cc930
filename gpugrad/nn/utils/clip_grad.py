"""Gradient clipping. Works on tensors only: no value is read back, so a GPU is not waited for."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from functools import cache
from typing import Any

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
    total = gg.foreach_norm(_as_list(tensors), norm_type)
    if error_if_nonfinite and not gg.isfinite(total):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return total


def clip_grads_with_norm_(parameters: Tensors, max_norm: float, total_norm: gg.Tensor) -> None:
    """Scale gradients in place by ``max_norm / (total_norm + 1e-6)`` where that is less than 1."""
    scale = (float(max_norm) / (total_norm + 1e-6)).clamp(max=1.0)
    # multiplied even where the scale is 1: a branch would have to read the norm
    for device, grads in _by_device(_grads(_as_list(parameters))).items():
        if device.type == "cuda":
            _scale()(grads, by=scale.to(device))
        else:
            for grad in grads:
                grad.mul_(scale.to(device=device, dtype=grad.dtype))


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
    for device, grads in _by_device(_grads(_as_list(parameters))).items():
        if device.type == "cuda":
            _limit()(grads, low=-clip_value, high=clip_value)
        else:
            for grad in grads:
                grad.clamp_(min=-clip_value, max=clip_value)


def _as_list(tensors: Tensors) -> list[gg.Tensor]:
    return [tensors] if isinstance(tensors, gg.Tensor) else list(tensors)


def _grads(parameters: list[gg.Tensor]) -> list[gg.Tensor]:
    """Gradients without their history: clipping is not recorded."""
    grads = [gg.compiler.gradient(p) for p in parameters]
    return [g.detach() for g in grads if g is not None]


def _by_device(tensors: list[gg.Tensor]) -> dict[gg.device, list[gg.Tensor]]:
    found: dict[gg.device, list[gg.Tensor]] = {}
    for t in tensors:
        found.setdefault(t.device, []).append(t)
    return found


@cache
def _scale() -> Any:
    @gg.foreach
    def scale(g, *, by):
        return g * by

    return scale


@cache
def _limit() -> Any:
    @gg.foreach
    def limit(g, *, low, high):
        return gg.clamp(g, low, high)

    return limit
