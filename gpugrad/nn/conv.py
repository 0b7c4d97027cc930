"""Convolutions."""

from __future__ import annotations

import math
from typing import ClassVar

import gpugrad as gg
from gpugrad import functional as F

from . import init
from .linear import init_bias
from .module import Module
from .parameter import Parameter


def as_tuple(value: int | tuple[int, ...], n: int, name: str) -> tuple[int, ...]:
    """``n`` copies of an int, or a sequence of n ints checked."""
    if isinstance(value, int):
        return (value,) * n
    values = tuple(value)
    if len(values) != n:
        raise ValueError(f"{name} must be one int or {n} ints, got {value!r}")
    return values


class _ConvNd(Module):
    """What convolutions share: settings, checks, initial values and repr."""

    _n_spatial: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        n = self._n_spatial
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_tuple(kernel_size, n, "kernel_size")
        self.stride = as_tuple(stride, n, "stride")
        self.padding = padding if isinstance(padding, str) else as_tuple(padding, n, "padding")
        self.dilation = as_tuple(dilation, n, "dilation")
        self.groups = groups
        self.padding_mode = padding_mode
        self._check_settings()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(gg.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(gg.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _check_settings(self) -> None:
        if self.groups <= 0:
            raise ValueError(f"groups must be a positive integer, got {self.groups}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups != 0:
                raise ValueError(
                    f"{name} must be divisible by groups: {getattr(self, name)} and {self.groups}"
                )
        if self.padding_mode != "zeros":
            raise ValueError(
                f"padding_mode must be 'zeros', but got padding_mode='{self.padding_mode}'. "
                "For other modes pad the input before the layer."
            )
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid"):
                raise ValueError(
                    f"Invalid padding string {self.padding!r}, should be one of 'same', 'valid'"
                )
            if self.padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError("padding='same' is not supported for strided convolutions")

    def reset_parameters(self) -> None:
        """Draw new initial values: uniform in +-1/sqrt(fan_in), as in torch."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        init_bias(self.bias, self.weight)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, stride={self.stride}",
        ]
        if self.padding != (0,) * self._n_spatial:
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * self._n_spatial:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class Conv1d(_ConvNd):
    """1-D cross-correlation: input (N, C_in, L) or (C_in, L), weight (C_out, C_in/groups, K).

    >>> from gpugrad import nn
    >>> nn.Conv1d(2, 4, 3)(gg.zeros(8, 2, 10)).shape
    (8, 4, 8)
    """

    _n_spatial = 1

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.conv1d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Conv2d(_ConvNd):
    """2-D cross-correlation of (N, C_in, H, W) with a weight (C_out, C_in/groups, KH, KW).

    ``padding`` is a size, a pair, 'valid' (none) or 'same' (output as large as the input).

    >>> from gpugrad import nn
    >>> nn.Conv2d(1, 6, 5)(gg.zeros(8, 1, 28, 28)).shape
    (8, 6, 24, 24)
    """

    _n_spatial = 2

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
