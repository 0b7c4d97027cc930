"""Samplers: the order in which a loader visits the samples of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import gpugrad as gg
from gpugrad.utils.data.seeding import draw_seed

__all__ = ["BatchSampler", "RandomSampler", "Sampler", "SequentialSampler"]

T_co = TypeVar("T_co", covariant=True)


class Sampler(Generic[T_co]):
    """Something that iterates over indices (or lists of them): ``__iter__``, ``__len__`` if known.

    Example:
        >>> from gpugrad.utils.data import Sampler
        >>> class Backwards(Sampler):
        ...     def __init__(self, data):
        ...         self.data = data
        ...     def __iter__(self):
        ...         return iter(range(len(self.data) - 1, -1, -1))
        >>> list(Backwards("abc"))
        [2, 1, 0]
    """

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(
            f"{type(self).__name__} is a Sampler without __iter__: define __iter__(self) yielding "
            "indices"
        )


class SequentialSampler(Sampler[int]):
    """Indices 0, 1, 2, ... in order.

    Example:
        >>> from gpugrad.utils.data import SequentialSampler
        >>> list(SequentialSampler("abc"))
        [0, 1, 2]
    """

    def __init__(self, data_source: Any) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """Indices in random order: a permutation, or draws with replacement.

    Args:
        data_source: anything with ``len``.
        replacement: draw each index independently and uniformly.
        num_samples: how many indices one pass yields; default ``len(data_source)``. Without
            replacement more than the length means several permutations one after the other.
        generator: source of randomness. Default: a fresh generator per pass, seeded by one draw
            from the global generator, so that other random calls during the epoch do not change the
            order (torch does the same).

    Raises:
        TypeError: ``replacement`` is not a bool.
        ValueError: ``num_samples`` is not a positive int.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.utils.data import RandomSampler
        >>> sorted(RandomSampler("abc", generator=gg.Generator().manual_seed(0)))
        [0, 1, 2]
    """

    def __init__(
        self,
        data_source: Any,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: gg.Generator | None = None,
    ) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(
                f"replacement should be a boolean value, but got replacement={replacement!r}"
            )
        if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 0):
            raise ValueError(
                "num_samples should be a positive integer value, but got "
                f"num_samples={num_samples!r}"
            )
        self.data_source = data_source
        self.replacement = replacement
        self.generator = generator
        self._num_samples = num_samples

    @property
    def num_samples(self) -> int:
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        # Drawn here and not at the first next(), so that the order of random calls in a program is
        # the order of its lines.
        generator = self.generator
        if generator is None:
            generator = gg.Generator().manual_seed(draw_seed(None))
        return self._draw(generator)

    def _draw(self, generator: gg.Generator) -> Iterator[int]:
        available, wanted = len(self.data_source), self.num_samples
        while wanted > 0 and available > 0:
            if self.replacement:
                # In portions, so that a huge num_samples needs no huge array.
                count = min(wanted, 65536)
                portion = gg.randint(0, available, (count,), generator=generator).tolist()
            else:
                portion = gg.randperm(available, generator=generator).tolist()[:wanted]
            yield from portion
            wanted -= len(portion)

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Groups the indices of another sampler into lists of ``batch_size``.

    Args:
        sampler: any iterable of indices.
        batch_size: indices per list.
        drop_last: leave out a last list that is shorter.

    Example:
        >>> from gpugrad.utils.data import BatchSampler
        >>> list(BatchSampler(range(5), batch_size=2, drop_last=False))
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size <= 0:
            raise ValueError(
                f"batch_size should be a positive integer value, but got batch_size={batch_size!r}"
            )
        if not isinstance(drop_last, bool):
            raise ValueError(
                f"drop_last should be a boolean value, but got drop_last={drop_last!r}"
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return self._group(iter(self.sampler))

    def _group(self, indices: Iterator[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in indices:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)
