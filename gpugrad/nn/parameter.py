"""Tensors that a module owns: parameters and buffers."""

from __future__ import annotations

from typing import Any

import gpugrad as gg


class Parameter(gg.Tensor):
    """A leaf tensor that is registered when it is assigned to an attribute of a module.

    Shares the memory of ``data`` (a tensor or an array). ``requires_grad=False`` freezes it.

    >>> from gpugrad import nn
    >>> nn.Parameter(gg.zeros(2))
    Parameter containing:
    tensor([0., 0.], requires_grad=True)
    """

    def __init__(self, data: Any = None, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class Buffer(gg.Tensor):
    """A tensor that is registered as a buffer when it is assigned to an attribute of a module.

    ``persistent=False`` keeps it out of ``state_dict``.
    """

    def __init__(self, data: Any = None, *, persistent: bool = True) -> None:
        super().__init__(data)
        self.persistent = persistent
