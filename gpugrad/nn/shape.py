"""Flatten and Unflatten."""

from __future__ import annotations

import gpugrad as gg

from .module import Module


class Flatten(Module):
    """Flatten the dimensions ``start_dim`` to ``end_dim`` into one; by default all but the first.

    >>> from gpugrad import nn
    >>> nn.Flatten()(gg.zeros(8, 1, 4, 4)).shape
    (8, 16)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Split dimension ``dim`` into ``unflattened_size``; one size may be -1.

    >>> from gpugrad import nn
    >>> nn.Unflatten(1, (1, 4, 4))(gg.zeros(8, 16)).shape
    (8, 1, 4, 4)
    """

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise TypeError(f"dim must be an int, got {type(dim).__name__}")
        if not isinstance(unflattened_size, (tuple, list)) or not all(
            isinstance(size, int) for size in unflattened_size
        ):
            raise TypeError(f"unflattened_size must be a tuple of ints, got {unflattened_size!r}")
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        shape = tuple(input.shape)
        if not -len(shape) <= self.dim < len(shape):
            raise IndexError(
                f"Dimension out of range (expected to be in range of [{-len(shape)}, "
                f"{len(shape) - 1}], but got {self.dim})"
            )
        dim = self.dim % len(shape)
        sizes = self.unflattened_size
        known = 1
        for size in sizes:
            known *= 1 if size == -1 else size
        inferred = sizes.count(-1)
        fits = shape[dim] % known == 0 if known and inferred == 1 else known == shape[dim]
        if inferred > 1 or not fits:
            raise RuntimeError(
                f"unflatten: Provided sizes {list(sizes)} don't multiply up to the size of dim "
                f"{dim} ({shape[dim]}) in the input tensor of shape {shape}"
            )
        return input.reshape(shape[:dim] + sizes + shape[dim + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
