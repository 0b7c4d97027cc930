"""Datasets: indexable or iterable collections of samples."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

import gpugrad as gg

__all__ = ["ConcatDataset", "Dataset", "IterableDataset", "Subset", "TensorDataset", "random_split"]

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    """A collection of samples with ``dataset[i]`` and, for most samplers, ``len(dataset)``.

    Two optional methods make batches cheap:

    * ``__getitems__(indices)`` returns the list of samples of a list of indices (torch's protocol);
    * ``gather(indices)`` takes an int64 ndarray of indices and returns the batch that
      :func:`default_collate` would have made of those samples, or None where it cannot.
      :class:`DataLoader` calls it when its ``collate_fn`` is the default.

    Example:
        >>> from gpugrad.utils.data import Dataset
        >>> class Squares(Dataset):
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return index * index
        >>> Squares()[3]
        9
    """

    def __getitem__(self, index: Any) -> T_co:
        raise NotImplementedError(
            f"{type(self).__name__} is a Dataset without __getitem__: define __getitem__(self, "
            "index) returning one sample"
        )

    def __add__(self, other: Dataset[T_co]) -> ConcatDataset[T_co]:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co]):
    """A stream of samples with ``__iter__``; no index, no length needed, no sampler.

    Example:
        >>> from gpugrad.utils.data import DataLoader, IterableDataset
        >>> class Countdown(IterableDataset):
        ...     def __iter__(self):
        ...         return iter([3, 2, 1])
        >>> [batch.tolist() for batch in DataLoader(Countdown(), batch_size=2)]
        [[3, 2], [1]]
    """

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(
            f"{type(self).__name__} is an IterableDataset without __iter__: define __iter__(self) "
            "yielding samples"
        )

    def __add__(self, other: Dataset[T_co]) -> ConcatDataset[T_co]:
        raise TypeError(
            f"cannot concatenate {type(self).__name__}, an IterableDataset: chain the iterators "
            "with itertools.chain"
        )


class TensorDataset(Dataset[tuple[gg.Tensor, ...]]):
    """Samples are the rows of tensors: item ``i`` is ``(tensors[0][i], tensors[1][i], ...)``.

    Args:
        *tensors: tensors of any dtype and device whose first dimensions are equal.

    Raises:
        ValueError: no tensor, a 0-d tensor, or first dimensions that differ.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.utils.data import TensorDataset
        >>> data = TensorDataset(gg.arange(6).reshape(3, 2), gg.tensor([0, 1, 0]))
        >>> len(data), data[1]
        (3, (tensor([2, 3]), tensor(1)))
    """

    def __init__(self, *tensors: gg.Tensor) -> None:
        if not tensors:
            raise ValueError("TensorDataset needs at least one tensor")
        for position, tensor in enumerate(tensors):
            if not isinstance(tensor, gg.Tensor):
                raise TypeError(
                    f"TensorDataset takes tensors, but argument {position} is "
                    f"{type(tensor).__name__}; wrap arrays with gpugrad.from_numpy"
                )
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                "Size mismatch between tensors: TensorDataset needs equal first dimensions, got "
                f"shapes {shapes}"
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[gg.Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def gather(self, indices: np.ndarray) -> list[gg.Tensor]:
        """Return the collated batch of ``indices``: one take per tensor."""
        return [take_rows(tensor, indices) for tensor in self.tensors]

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])


def take_rows(tensor: gg.Tensor, indices: np.ndarray) -> gg.Tensor:
    """Return ``tensor[indices]``, on the CPU without gradient by one ``ndarray.take``."""
    array = tensor.array
    if tensor.requires_grad or not isinstance(array, np.ndarray):
        return tensor[gg.from_numpy(indices).to(tensor.device)]
    # take of whole rows is 1.3-3 times as fast as advanced indexing (64 of 8,000 rows of 784 bytes:
    # 2.6 against 4.5 us).
    return gg.from_numpy(array.take(indices, axis=0))


class Subset(Dataset[T_co]):
    """The samples of ``dataset`` at ``indices``, in that order.

    Example:
        >>> from gpugrad.utils.data import Subset
        >>> list(Subset("abcd", [3, 0]))
        ['d', 'a']
    """

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: list[int]) -> list[T_co]:
        chosen = [self.indices[i] for i in indices]
        many = getattr(self.dataset, "__getitems__", None)
        return many(chosen) if many is not None else [self.dataset[i] for i in chosen]

    def gather(self, indices: np.ndarray) -> Any:
        """Return the collated batch where the underlying dataset can gather, else None."""
        gather = getattr(self.dataset, "gather", None)
        if gather is None:
            return None
        return gather(np.asarray(self.indices, dtype=np.int64)[indices])

    def __len__(self) -> int:
        return len(self.indices)


class ConcatDataset(Dataset[T_co]):
    """Several datasets one after the other.

    Example:
        >>> from gpugrad.utils.data import ConcatDataset
        >>> both = ConcatDataset([[1, 2], [3]])
        >>> len(both), both[2], both[-1]
        (3, 3, 3)
    """

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset needs at least one dataset, got an empty iterable")
        for dataset in self.datasets:
            if isinstance(dataset, IterableDataset):
                raise TypeError(
                    f"ConcatDataset cannot hold {type(dataset).__name__}, an IterableDataset: it "
                    "has no index"
                )
        sizes = np.cumsum([len(dataset) for dataset in self.datasets])
        self.cumulative_sizes = [int(size) for size in sizes]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> T_co:
        if index < 0:
            if -index > len(self):
                raise ValueError(f"index {index} is out of range for {len(self)} samples")
            index += len(self)
        which = bisect.bisect_right(self.cumulative_sizes, index)
        if which == len(self.datasets):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        start = self.cumulative_sizes[which - 1] if which else 0
        return self.datasets[which][index - start]


def random_split(
    dataset: Any, lengths: Sequence[int | float], generator: gg.Generator | None = None
) -> list[Subset[Any]]:
    """Split a dataset at random into subsets of the given lengths, or of the given fractions of it.

    Args:
        dataset: anything with ``len``.
        lengths: whole numbers adding up to ``len(dataset)``, or fractions adding up to 1. With
            fractions, each length is rounded down and what remains is handed out one by one to the
            first subsets.
        generator: source of the permutation; default the global generator.

    Raises:
        ValueError: the lengths do not add up.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.utils.data import random_split
        >>> parts = random_split(range(10), [0.75, 0.25], generator=gg.Generator().manual_seed(0))
        >>> [len(part) for part in parts]
        [8, 2]
    """
    total = len(dataset)
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1:
        sizes = _sizes_from_fractions(lengths, total)
    else:
        sizes = [int(length) for length in lengths]
    if sum(sizes) != total:
        raise ValueError(
            f"Sum of input lengths does not equal the length of the input dataset: {list(lengths)} "
            f"add up to {sum(lengths)}, the dataset has {total} samples"
        )
    for position, size in enumerate(sizes):
        if size == 0:
            warnings.warn(
                f"Length of split at index {position} is 0. This might result in an empty dataset.",
                stacklevel=2,
            )
    order = gg.randperm(total, generator=generator).tolist()
    ends = np.cumsum(sizes)
    return [Subset(dataset, order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _sizes_from_fractions(fractions: Sequence[float], total: int) -> list[int]:
    for position, fraction in enumerate(fractions):
        if not 0 <= fraction <= 1:
            raise ValueError(f"Fraction at index {position} is not between 0 and 1: got {fraction}")
    sizes = [math.floor(total * fraction) for fraction in fractions]
    for position in range(total - sum(sizes)):
        sizes[position % len(sizes)] += 1
    return sizes
