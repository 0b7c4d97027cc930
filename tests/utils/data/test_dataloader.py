"""The loader: batches, order, threads, exceptions, randomness of transforms, exact resume."""

from __future__ import annotations

import threading
import time
from itertools import islice

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    sample_generator,
)

WORKERS = [0, 1, 3]


class Items(Dataset):
    """Plain items, one Python call each."""

    def __init__(self, length=10, delay=0.0, fail_at=None):
        self.length, self.delay, self.fail_at = length, delay, fail_at

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        # Early items take longer, so that finishing order differs from sampling order.
        time.sleep(self.delay * (self.length - index))
        if index == self.fail_at:
            raise KeyError(f"item {index} is broken")
        return index


class Stream(IterableDataset):
    def __init__(self, length=7):
        self.length = length

    def __iter__(self):
        return iter(range(self.length))


class Noisy(Dataset):
    """Items with noise from the generator the loader provides."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return index + gg.rand(1, generator=sample_generator())


def seeded(seed=0):
    return gg.Generator().manual_seed(seed)


def lists(loader):
    return [batch.tolist() for batch in loader]


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("gpugrad-loader")]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("drop_last", "count"), [(False, 4), (True, 3)])
def test_batches_in_order(workers, drop_last, count):
    loader = DataLoader(
        Items(10, delay=0.0005), batch_size=3, num_workers=workers, drop_last=drop_last
    )
    expected = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]][:count]
    assert len(loader) == count
    assert lists(loader) == lists(loader) == expected


@pytest.mark.parametrize("workers", WORKERS)
def test_shuffle_is_seeded_and_new_every_epoch(workers):
    loader = DataLoader(
        Items(32), batch_size=5, shuffle=True, num_workers=workers, generator=seeded(7)
    )
    again = DataLoader(Items(32), batch_size=5, shuffle=True, generator=seeded(7))
    first, second = lists(loader), lists(loader)
    assert sorted(index for batch in first for index in batch) == list(range(32))
    assert first != second
    assert [first, second] == [lists(again), lists(again)]


def test_shuffle_follows_the_global_seed():
    loader = DataLoader(Items(32), batch_size=32, shuffle=True)
    gg.manual_seed(3)
    first = lists(loader)
    gg.manual_seed(3)
    assert lists(loader) == first
    assert lists(loader) != first


def test_array_backed_data_is_gathered_not_indexed(monkeypatch):
    data = TensorDataset(gg.arange(20).reshape(10, 2), gg.arange(10))
    by_item = [
        [t.tolist() for t in batch]
        for batch in DataLoader(data, 4, collate_fn=lambda s: _collate(s))
    ]
    monkeypatch.setattr(TensorDataset, "__getitem__", None)
    gathered = [[t.tolist() for t in batch] for batch in DataLoader(data, 4)]
    subset = [[t.tolist() for t in batch] for batch in DataLoader(Subset(data, range(10)), 4)]
    assert gathered == subset == by_item


def _collate(samples):
    return [gg.stack(member) for member in zip(*samples, strict=True)]


def test_many_items_protocol():
    class Many(Items):
        def __getitems__(self, indices):
            return [10 * index for index in indices]

    assert lists(DataLoader(Many(3), batch_size=2)) == [[0, 10], [20]]


def test_gather_that_declines_falls_back_to_items():
    class Declines(Items):
        def gather(self, indices):
            return None

    assert lists(DataLoader(Declines(3), batch_size=2)) == [[0, 1], [2]]


def test_custom_collate_gets_the_samples():
    assert list(DataLoader(Items(3), batch_size=2, collate_fn=tuple)) == [(0, 1), (2,)]


def test_no_batching():
    assert list(DataLoader(Items(3), batch_size=None)) == [0, 1, 2]
    samples = list(DataLoader([np.zeros(2)], batch_size=None))
    assert isinstance(samples[0], gg.Tensor)
    assert len(DataLoader(Items(3), batch_size=None)) == 3


def test_samplers():
    assert lists(DataLoader(Items(), batch_size=2, sampler=[5, 1, 2])) == [[5, 1], [2]]
    loader = DataLoader(Items(), batch_sampler=[[1], [2, 3]])
    assert lists(loader) == [[1], [2, 3]]
    assert len(loader) == 2
    assert loader.batch_size is None


@pytest.mark.parametrize("workers", WORKERS)
def test_stream(workers):
    loader = DataLoader(Stream(7), batch_size=3, num_workers=workers)
    assert lists(loader) == lists(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert lists(DataLoader(Stream(7), batch_size=3, num_workers=workers, drop_last=True)) == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    assert list(DataLoader(Stream(2), batch_size=None, num_workers=workers)) == [0, 1]
    with pytest.raises(TypeError):
        len(loader)


@pytest.mark.parametrize("workers", WORKERS)
def test_exception_reaches_the_consumer_in_its_turn(workers):
    loader = DataLoader(Items(10, fail_at=4), batch_size=2, num_workers=workers)
    seen = []
    with pytest.raises(KeyError, match="item 4 is broken"):
        for batch in loader:
            seen.append(batch.tolist())
    assert seen == [[0, 1], [2, 3]]
    assert loader_threads() == []


def test_leaving_early_joins_the_threads():
    for _ in DataLoader(Items(1000, delay=1e-6), batch_size=2, num_workers=3):
        assert loader_threads()
        break
    assert loader_threads() == []


def test_an_exception_in_the_loop_joins_the_threads():
    def consume():
        for _ in DataLoader(Items(1000, delay=1e-6), batch_size=2, num_workers=3):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert loader_threads() == []


def test_threads_work_at_the_same_time():
    barrier = threading.Barrier(2, timeout=10)

    class Meeting(Items):
        def __getitem__(self, index):
            barrier.wait()  # breaks unless two items are being made at once
            return index

    assert lists(DataLoader(Meeting(4), batch_size=1, num_workers=2)) == [[0], [1], [2], [3]]


def test_prefetch_is_bounded():
    made = []

    class Counting(Items):
        def __getitem__(self, index):
            made.append(index)
            return index

    iterator = iter(DataLoader(Counting(100), batch_size=1, num_workers=2, prefetch_factor=3))
    next(iterator)
    deadline = time.monotonic() + 5
    while len(made) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(made) == 7  # the one delivered and 2 x 3 ahead
    iterator.close()


@pytest.mark.parametrize("workers", WORKERS)
def test_random_transforms_do_not_depend_on_workers(workers):
    batches = [
        lists(DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=n, generator=seeded(1)))
        for n in (0, workers)
    ]
    assert batches[0] == batches[1]
    flat = sorted(value[0] % 1 for batch in batches[0] for value in batch)
    assert len(set(flat)) == 9  # every item has its own noise


def test_random_transforms_change_every_epoch():
    loader = DataLoader(Noisy(), batch_size=3, generator=seeded(1))
    assert lists(loader) != lists(loader)


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_resume_is_exact(own_generator, workers, stop):
    def make():
        generator = seeded(11) if own_generator else None
        return DataLoader(
            Noisy(), batch_size=2, shuffle=True, num_workers=workers, generator=generator
        )

    gg.manual_seed(2)
    whole = make()
    expected = [lists(whole) for _ in range(3)]

    gg.manual_seed(2)
    first = make()
    lists(first)
    iterator = iter(first)
    head = [batch.tolist() for batch in islice(iterator, stop)]
    state, global_state = first.state_dict(), gg.get_rng_state()
    iterator.close()

    gg.manual_seed(99)
    second = make()
    second.load_state_dict(state)
    gg.set_rng_state(global_state)
    resumed = [head + lists(second), lists(second)]
    assert resumed == expected[1:]


def test_state_between_epochs_continues_with_the_next_epoch():
    whole = DataLoader(Items(8), batch_size=3, shuffle=True, generator=seeded(4))
    expected = [lists(whole) for _ in range(2)]
    first = DataLoader(Items(8), batch_size=3, shuffle=True, generator=seeded(4))
    lists(first)
    second = DataLoader(Items(8), batch_size=3, shuffle=True, generator=seeded(5))
    second.load_state_dict(first.state_dict())
    assert lists(second) == expected[1]


def test_resume_of_a_stream_and_of_replacement():
    stream = DataLoader(Stream(7), batch_size=2)
    next(iter(stream))
    resumed = DataLoader(Stream(7), batch_size=2)
    resumed.load_state_dict(stream.state_dict())
    assert lists(resumed) == [[2, 3], [4, 5], [6]]

    def drawing():
        generator = seeded(8)
        sampler = RandomSampler(Items(), replacement=True, num_samples=20, generator=generator)
        return DataLoader(Items(), batch_size=4, sampler=sampler, generator=generator)

    expected = lists(drawing())
    first = drawing()
    list(islice(iter(first), 2))
    second = drawing()
    second.load_state_dict(first.state_dict())
    assert lists(second) == expected[2:]


def test_resume_refuses_a_state_that_does_not_fit():
    state = DataLoader(Items(10), batch_size=2).state_dict()
    with pytest.raises(ValueError, match=r"saved with 5 batches per epoch, this loader has 4"):
        DataLoader(Items(8), batch_size=2).load_state_dict(state)
    with pytest.raises(ValueError, match="saved without a generator"):
        DataLoader(Items(10), batch_size=2, generator=seeded()).load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a DataLoader"):
        DataLoader(Items(10)).load_state_dict({"epoch": 1})

    stream = DataLoader(Stream(7), batch_size=2)
    list(islice(iter(stream), 3))
    shorter = DataLoader(Stream(3), batch_size=2)
    shorter.load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="cannot resume after 3 batches"):
        list(shorter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "non-negative"),
        ({"prefetch_factor": 2}, "prefetch_factor"),
        ({"prefetch_factor": 0, "num_workers": 1}, "positive"),
        ({"shuffle": True, "sampler": [0]}, "mutually exclusive with shuffle"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "mutually exclusive with batch_size"),
        ({"batch_sampler": [[0]], "drop_last": True}, "mutually exclusive"),
        ({"batch_size": None, "drop_last": True}, "drop_last"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        DataLoader(Items(), **options)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": [0]}, {"batch_sampler": [[0]]}])
def test_streams_have_no_order_to_choose(options):
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Stream(), **options)


@pytest.mark.skipif(gg.cuda.is_available(), reason="needs a machine without CUDA")
def test_pinning_without_cuda_warns_and_delivers():
    with pytest.warns(UserWarning, match="no accelerator is found"):
        loader = DataLoader(Items(2), batch_size=2, pin_memory=True)
    assert lists(loader) == [[0, 1]]


@pytest.mark.gpu
def test_pinned_batches():
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a GPU")
    loader = DataLoader(TensorDataset(gg.arange(4)), batch_size=4, pin_memory=True)
    ((batch,),) = list(loader)
    attributes = cupy.cuda.runtime.pointerGetAttributes(batch.array.ctypes.data)
    assert attributes.type == 1  # cudaMemoryTypeHost
    assert batch.tolist() == [0, 1, 2, 3]
