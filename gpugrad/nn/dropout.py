"""Dropout."""

from __future__ import annotations

import gpugrad as gg
from gpugrad import functional as F

from .module import Module


class Dropout(Module):
    """In training mode set each element to zero with probability ``p``, scale the rest by 1/(1-p).

    >>> from gpugrad import nn
    >>> nn.Dropout(0.5).eval()(gg.ones(3)).tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if p < 0 or p > 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
