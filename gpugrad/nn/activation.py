"""Activations as modules; the formulas are those of ``gpugrad.functional``.

``inplace=True`` overwrites the input. Where the derivative reads the input, it reads a copy.
"""

from __future__ import annotations

import warnings

import gpugrad as gg
from gpugrad import functional as F

from .module import Module


class ReLU(Module):
    """``max(x, 0)``; the gradient at 0 is 0.

    >>> from gpugrad import nn
    >>> nn.ReLU()(gg.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.relu(input, inplace=True) if self.inplace else gg.relu(input)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class LeakyReLU(Module):
    """``x`` where positive, ``negative_slope * x`` elsewhere."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}{_inplace_text(self.inplace)}"


class ELU(Module):
    """``x`` where positive, ``alpha * (exp(x) - 1)`` elsewhere."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = alpha
        self.inplace = inplace

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.elu(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}{_inplace_text(self.inplace)}"


class SiLU(Module):
    """``x * sigmoid(x)``, also called swish."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.silu(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class GELU(Module):
    """``x * Phi(x)`` with the normal distribution function; 'tanh' approximates it, cheaper."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return gg.tanh(input)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``."""

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return gg.sigmoid(input)


class Softplus(Module):
    """``log(1 + exp(beta * x)) / beta``; linear where ``beta * x > threshold``."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class _AlongDim(Module):
    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def _dim_of(self, input: gg.Tensor) -> int:
        if self.dim is not None:
            return self.dim
        warnings.warn(
            f"Implicit dimension choice for {self._get_name()} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=4,
        )
        return 0 if input.ndim in (0, 1, 3) else 1

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_AlongDim):
    """``exp(x)`` scaled to sum to 1 along ``dim``.

    >>> from gpugrad import nn
    >>> nn.Softmax(dim=1)(gg.zeros(1, 4)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.softmax(input, self._dim_of(input))


class LogSoftmax(_AlongDim):
    """Logarithm of the softmax along ``dim``, computed without overflow."""

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.log_softmax(input, self._dim_of(input))


def _inplace_text(inplace: bool) -> str:
    return ", inplace=True" if inplace else ""
