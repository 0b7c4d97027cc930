"""Parameters as one vector and back."""

from __future__ import annotations

from collections.abc import Iterable

import gpugrad as gg


def parameters_to_vector(parameters: Iterable[gg.Tensor]) -> gg.Tensor:
    """Concatenate the parameters, flattened; differentiable.

    >>> from gpugrad import nn
    >>> nn.utils.parameters_to_vector(nn.Linear(3, 2).parameters()).shape
    (8,)
    """
    flat = [param.reshape(-1) for param in parameters]
    _check_one_device(flat)
    return gg.cat(flat)


def vector_to_parameters(vec: gg.Tensor, parameters: Iterable[gg.Tensor]) -> None:
    """Copy slices of a vector into the parameters, in order.

    Raises:
        TypeError: ``vec`` is not a tensor.
        RuntimeError: the sizes do not add up to the length of ``vec``.
    """
    if not isinstance(vec, gg.Tensor):
        raise TypeError(f"expected a Tensor, but got: {type(vec).__name__}")
    params = list(parameters)
    total = sum(param.numel() for param in params)
    if vec.dim() != 1 or vec.numel() != total:
        raise RuntimeError(
            f"the parameters have {total} elements, the vector has shape {tuple(vec.shape)}"
        )
    _check_one_device([vec, *params])
    start = 0
    for param in params:
        stop = start + param.numel()
        param.data = vec[start:stop].detach().reshape(param.shape).to(param.dtype).clone()
        start = stop


def _check_one_device(tensors: list[gg.Tensor]) -> None:
    devices = {str(t.device) for t in tensors}
    if len(devices) > 1:
        raise TypeError(
            f"Found parameters on different devices, this is currently not supported: {devices}"
        )
