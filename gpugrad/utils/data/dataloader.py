"""The loader: batches of a dataset, in order, optionally prepared ahead by threads."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.utils.data.collate import default_collate, default_convert
from gpugrad.utils.data.dataset import IterableDataset
from gpugrad.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler
from gpugrad.utils.data.seeding import batch_generator, draw_seed

__all__ = ["DataLoader"]

_END = object()  # what a task returns when the stream of an IterableDataset is exhausted


class DataLoader:
    """Iterate over a dataset in batches; every ``iter(loader)`` is one epoch.

    Workers are threads, not processes: nothing is copied or pickled, so eight workers do not need
    eight times the memory, and a dataset may hold open files or device arrays. NumPy releases the
    interpreter lock in its loops, so decoding and augmentation written with arrays overlap with
    training; a dataset whose ``__getitem__`` is slow pure Python gains little. Batches arrive in
    the sampler's order whatever the number of workers, an exception in a worker is raised in the
    consumer, and leaving the loop early ends the threads.

    Array-backed datasets (those with ``gather``: :class:`TensorDataset`, ``vision.datasets.MNIST``)
    give whole batches by one take per array instead of one Python call per item.

    Randomness: one draw per epoch from ``generator`` (default: the global generator) seeds the
    order; random transforms that draw from :func:`sample_generator` get their own generator per
    batch, so the numbers do not depend on ``num_workers``.

    Args:
        dataset: map-style (``dataset[i]``, ``len``) or an :class:`IterableDataset`.
        batch_size: samples per batch; None gives single samples, converted but not stacked.
        shuffle: a new random order every epoch.
        sampler: an iterable of indices instead of ``shuffle``.
        batch_sampler: an iterable of lists of indices instead of ``batch_size``, ``shuffle``,
            ``sampler``, ``drop_last``.
        num_workers: threads that prepare batches ahead; 0 prepares each batch when it is asked for.
            An IterableDataset is one stream and is read by one thread however many are asked for.
        collate_fn: turns a list of samples into a batch; default :func:`default_collate`.
        pin_memory: copy batches to page-locked memory, from which copies to the GPU are faster and
            asynchronous. Without a CUDA device it warns and has nothing to do, as in torch.
        drop_last: leave out a last batch that is shorter.
        generator: source of the order and of the seeds of transforms.
        prefetch_factor: batches prepared ahead per worker; default 2. Only with workers.

    Raises:
        ValueError: options that exclude one another, or out of range.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(gg.arange(5)), batch_size=2)
        >>> [x.tolist() for (x,) in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        *,
        generator: gg.Generator | None = None,
        prefetch_factor: int | None = None,
    ) -> None:
        _check_workers(num_workers, prefetch_factor)
        self._streaming = isinstance(dataset, IterableDataset)
        if self._streaming and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError(
                "DataLoader with IterableDataset: expected no shuffle, sampler or batch_sampler, "
                "since a stream has no index; shuffle inside __iter__"
            )
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, "
                    "and drop_last"
                )
            batch_size = None
        elif batch_size is None and drop_last:
            raise ValueError(
                "batch_size=None option disables auto-batching and is mutually exclusive with "
                "drop_last"
            )
        if sampler is None and not self._streaming:
            sampler = (
                RandomSampler(dataset, generator=generator)
                if shuffle
                else SequentialSampler(dataset)
            )
        if batch_size is not None:
            grouped = BatchSampler([] if sampler is None else sampler, batch_size, drop_last)
            batch_sampler = None if self._streaming else grouped

        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.generator = generator
        self.prefetch_factor = prefetch_factor
        self._batched = batch_size is not None or batch_sampler is not None
        self.collate_fn = collate_fn or (default_collate if self._batched else default_convert)
        self.pin_memory = pin_memory
        if pin_memory and not gg.cuda.is_available():
            warnings.warn(
                "'pin_memory' argument is set as true but no accelerator is found, then device "
                "pinned memory won't be used.",
                stacklevel=2,
            )
        self._epoch_start: gg.Tensor | None = None  # generator state when the current pass began
        self._delivered = 0  # batches of the current pass handed to the consumer
        self._resume: tuple[gg.Tensor, int] | None = None

    def __len__(self) -> int:
        if not self._streaming:
            return len(self._order)
        count = len(self.dataset)
        if self.batch_size is None:
            return count
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self._resume is not None:
            tasks = self._tasks_of_resumed_epoch(*self._resume)
            self._resume = None
        else:
            self._epoch_start, self._delivered = self._generator_state(), 0
            tasks = self._tasks()
        return self._deliver(tasks)

    def _deliver(self, tasks: Iterator[Callable[[], Any]]) -> Iterator[Any]:
        threads = min(self.num_workers, 1) if self._streaming else self.num_workers
        ahead = self.num_workers * (2 if self.prefetch_factor is None else self.prefetch_factor)
        batches: Generator[Any, None, None] = (
            _run_ahead(tasks, threads, ahead) if threads else (task() for task in tasks)
        )
        try:
            for batch in batches:
                if batch is _END:
                    break
                self._delivered += 1
                yield batch
            self._epoch_start, self._delivered = None, 0
        finally:
            batches.close()

    # ---- the batches of one epoch, as tasks that any thread may run ----

    def _tasks(self) -> Iterator[Callable[[], Any]]:
        seed = draw_seed(self.generator)
        if self._streaming:
            stream = iter(self.dataset)
            return (partial(self._read_stream, stream, seed, n) for n in itertools.count())
        indices = iter(self._order)
        return (partial(self._fetch, chosen, seed, n) for n, chosen in enumerate(indices))

    @property
    def _order(self) -> Any:
        """What yields the lists of indices, or single ones without batching."""
        return self.batch_sampler if self._batched else self.sampler

    def _fetch(self, chosen: Any, seed: int, number: int) -> Any:
        with batch_generator(seed, number):
            if self._batched:
                batch = self._fetch_batch(list(chosen))
            else:
                batch = self.collate_fn(self.dataset[chosen])
            return _pin(batch) if self._pins() else batch

    def _fetch_batch(self, chosen: list[Any]) -> Any:
        if self.collate_fn is default_collate and hasattr(self.dataset, "gather"):
            batch = self.dataset.gather(np.asarray(chosen, dtype=np.int64))
            if batch is not None:
                return batch
        if hasattr(self.dataset, "__getitems__"):
            return self.collate_fn(self.dataset.__getitems__(chosen))
        return self.collate_fn([self.dataset[index] for index in chosen])

    def _read_stream(self, stream: Iterator[Any], seed: int, number: int) -> Any:
        with batch_generator(seed, number):
            samples: Any = list(itertools.islice(stream, self.batch_size or 1))
            if not samples or (self.drop_last and len(samples) < (self.batch_size or 1)):
                return _END
            batch = self.collate_fn(samples if self._batched else samples[0])
            return _pin(batch) if self._pins() else batch

    def _pins(self) -> bool:
        return self.pin_memory and gg.cuda.is_available()

    # ---- exact resume ----

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the current epoch and the generator states to continue from.

        Saved in the middle of an epoch and loaded into a loader of the same data, the next
        ``iter(loader)`` continues with the batch after the last one delivered. When the loader has
        no ``generator`` of its own, save and restore the global one as well
        (``gpugrad.io.save_checkpoint`` does), else later epochs have another order.
        """
        own = self.generator.get_state() if self.generator is not None else None
        return {
            "delivered": self._delivered,
            "epoch_start": self._epoch_start,
            "generator": own,
            "batches": self._length_or_none(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the :meth:`state_dict` of a loader over the same data, with like options.

        Raises:
            ValueError: the state belongs to a loader with another number of batches, or only one of
                the two loaders has a generator of its own.

        Example:
            >>> import gpugrad as gg
            >>> from gpugrad.utils.data import DataLoader
            >>> def make():
            ...     generator = gg.Generator().manual_seed(0)
            ...     return DataLoader(range(6), batch_size=2, shuffle=True, generator=generator)
            >>> batches = [b.tolist() for b in make()]
            >>> resumed = make()
            >>> for batch in resumed:
            ...     break
            >>> resumed.load_state_dict(resumed.state_dict())
            >>> [b.tolist() for b in resumed] == batches[1:]
            True
        """
        missing = {"delivered", "epoch_start", "generator", "batches"} - set(state)
        if missing:
            raise ValueError(
                f"not the state of a DataLoader: {sorted(missing)} missing, it has {sorted(state)}"
            )
        if state["batches"] != self._length_or_none():
            raise ValueError(
                f"the state was saved with {state['batches']} batches per epoch, this loader has "
                f"{self._length_or_none()}: use the same dataset, batch_size and drop_last"
            )
        if (state["generator"] is None) != (self.generator is None):
            saved, here = ("without", "with") if state["generator"] is None else ("with", "without")
            raise ValueError(
                f"the state was saved {saved} a generator= of the loader's own, this loader is "
                f"{here} one: construct both alike"
            )
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        self._epoch_start, self._delivered = state["epoch_start"], state["delivered"]
        self._resume = None
        if self._epoch_start is not None:
            self._resume = (self._epoch_start, self._delivered)

    def _tasks_of_resumed_epoch(
        self, epoch_start: gg.Tensor, delivered: int
    ) -> Iterator[Callable[[], Any]]:
        """Draw the epoch again from its first generator state; skip what was delivered unread."""
        now = self._generator_state()
        self._set_generator_state(epoch_start)
        tasks = self._tasks()
        for number in range(delivered):
            task = next(tasks, None)
            if task is None or (self._streaming and task() is _END):
                raise ValueError(
                    f"cannot resume after {delivered} batches: the data ended after {number}; it "
                    "is not what was saved with"
                )
        if self.generator is None:
            # The global generator belongs to the whole program: what it did since the epoch began
            # is restored.
            self._set_generator_state(now)
        return tasks

    def _generator_state(self) -> gg.Tensor:
        return gg.get_rng_state() if self.generator is None else self.generator.get_state()

    def _set_generator_state(self, state: gg.Tensor) -> None:
        if self.generator is None:
            gg.set_rng_state(state)
        else:
            self.generator.set_state(state)

    def _length_or_none(self) -> int | None:
        try:
            return len(self)
        except TypeError:  # a stream or sampler without a length
            return None


def _run_ahead(
    tasks: Iterator[Callable[[], Any]], threads: int, ahead: int
) -> Generator[Any, None, None]:
    """Yield the results of ``tasks`` in order, up to ``ahead`` of them begun early."""
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(threads, thread_name_prefix="gpugrad-loader")
    pending: deque[Future[Any]] = deque()
    try:
        for task in itertools.islice(tasks, ahead):
            pending.append(pool.submit(task))
        while pending:
            result = pending.popleft().result()
            following = next(tasks, None) if result is not _END else None
            if following is not None:
                pending.append(pool.submit(following))
            yield result
    finally:
        # Reached at the end, on an exception, and when the consumer leaves its loop (the generator
        # is closed).
        pool.shutdown(wait=True, cancel_futures=True)


def _pin(batch: Any) -> Any:
    """Copy the CPU tensors of a batch to page-locked memory."""
    if isinstance(batch, gg.Tensor):
        return batch if batch.is_cuda else batch.pin_memory()
    if isinstance(batch, Mapping):
        make: Any = type(batch)
        return make({key: _pin(value) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_pin(value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_pin(value) for value in batch)
    return batch


def _check_workers(num_workers: int, prefetch_factor: int | None) -> None:
    if num_workers < 0:
        raise ValueError(
            "num_workers option should be non-negative; use num_workers=0 to load without threads "
            f"(got {num_workers})"
        )
    if prefetch_factor is not None and num_workers == 0:
        raise ValueError(
            "prefetch_factor option could only be specified with prefetch threads; let num_workers "
            "> 0 to enable them, otherwise set prefetch_factor to None"
        )
    if prefetch_factor is not None and prefetch_factor <= 0:
        raise ValueError(f"prefetch_factor option should be positive, got {prefetch_factor}")
