"""Embedding."""

from __future__ import annotations

from typing import Self

import gpugrad as gg
from gpugrad import functional as F

from . import init
from .module import Module
from .parameter import Parameter


class Embedding(Module):
    """Look up rows of ``weight`` (num_embeddings, embedding_dim) by integer indices of any shape.

    The row ``padding_idx`` starts as zeros and gets no gradient. The others start as N(0, 1).

    >>> from gpugrad import nn
    >>> nn.Embedding(10, 3)(gg.tensor([[1, 2], [4, 9]])).shape
    (2, 2, 3)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = _checked_index(padding_idx, num_embeddings)
        self.weight = Parameter(gg.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with gg.no_grad():
                self.weight[self.padding_idx] = 0

    @classmethod
    def from_pretrained(
        cls, embeddings: gg.Tensor, freeze: bool = True, padding_idx: int | None = None
    ) -> Self:
        """A layer around the given (num_embeddings, embedding_dim) tensor, frozen by default."""
        if embeddings.dim() != 2:
            raise AssertionError("Embeddings parameter is expected to be 2-dimensional")
        rows, columns = embeddings.shape
        layer = cls.__new__(cls)
        Module.__init__(layer)
        layer.num_embeddings, layer.embedding_dim = rows, columns
        layer.padding_idx = _checked_index(padding_idx, rows)
        layer.weight = Parameter(embeddings, requires_grad=not freeze)
        return layer

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


def _checked_index(padding_idx: int | None, num_embeddings: int) -> int | None:
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise AssertionError(
            f"Padding_idx must be within num_embeddings: got {padding_idx} and {num_embeddings}"
        )
    return padding_idx % num_embeddings
