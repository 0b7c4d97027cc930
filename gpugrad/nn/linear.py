"""Linear and Identity."""

from __future__ import annotations

import math
from typing import Any

import gpugrad as gg
from gpugrad import functional as F

from . import init
from .module import Module
from .parameter import Parameter


class Identity(Module):
    """Returns its input; arguments of the constructor are ignored, so it can replace a layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return input


class Linear(Module):
    """``y = x @ weight.T + bias``: input (..., in_features), output (..., out_features).

    Weight and bias start uniform in +-1/sqrt(in_features), as in torch.

    >>> from gpugrad import nn
    >>> nn.Linear(3, 2)(gg.ones(5, 3)).shape
    (5, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(gg.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(gg.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        # kaiming_uniform_ with a = sqrt(5) is U(-1/sqrt(fan_in), 1/sqrt(fan_in))
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        init_bias(self.bias, self.weight)

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


def init_bias(bias: gg.Tensor | None, weight: gg.Tensor) -> None:
    """Uniform in +-1/sqrt(fan_in of the weight): torch's start for linear and convolution."""
    if bias is None:
        return
    fan_in, _ = init.fan_in_and_fan_out(weight)
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    init.uniform_(bias, -bound, bound)
