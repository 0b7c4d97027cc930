"""Datasets: items, gathers, subsets, concatenation, splits."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)


@pytest.fixture
def pairs():
    return TensorDataset(gg.arange(12).reshape(6, 2), gg.arange(6))


def test_tensor_dataset_items_are_rows(pairs):
    x, y = pairs[4]
    assert len(pairs) == 6
    assert x.tolist() == [8, 9]
    assert y.item() == 4


@pytest.mark.parametrize("indices", [[5, 0, 0], [-1, 2], []])
def test_gather_equals_collating_the_items(pairs, indices):
    gathered = pairs.gather(np.array(indices, dtype=np.int64))
    assert [len(t) for t in gathered] == [len(indices)] * 2
    if indices:
        collated = default_collate([pairs[i] for i in indices])
        assert [t.tolist() for t in gathered] == [t.tolist() for t in collated]


def test_gather_keeps_the_gradient():
    x = gg.ones(3, 2, requires_grad=True)
    (batch,) = TensorDataset(x).gather(np.array([0, 2, 2]))
    batch.sum().backward()
    assert x.grad.tolist() == [[1, 1], [0, 0], [2, 2]]


def test_gather_copies(pairs):
    (batch, _) = pairs.gather(np.array([0, 1]))
    batch.zero_()
    assert pairs[1][0].tolist() == [2, 3]


def test_gather_out_of_range_raises(pairs):
    with pytest.raises(IndexError):
        pairs.gather(np.array([6]))


def test_tensor_dataset_refuses_unequal_lengths():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        TensorDataset(gg.zeros(2), gg.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        TensorDataset()
    with pytest.raises(TypeError, match="from_numpy"):
        TensorDataset(np.zeros(2))


def test_subset_selects_in_order(pairs):
    subset = Subset(pairs, [3, 1])
    assert len(subset) == 2
    assert subset[0][1].item() == 3
    assert subset.gather(np.array([1, 0]))[1].tolist() == [1, 3]
    assert [y.item() for _, y in subset.__getitems__([1, 1])] == [1, 1]


def test_subset_uses_many_items_protocol_of_its_dataset():
    class Recorder(Dataset):
        def __getitems__(self, indices):
            return [("many", i) for i in indices]

    assert Subset(Recorder(), [4, 7]).__getitems__([1]) == [("many", 7)]
    assert Subset(Recorder(), [4, 7]).gather(np.array([1])) is None


def test_concatenation():
    both = Subset([1, 2], [0, 1]) + Subset([3], [0])
    assert isinstance(both, ConcatDataset)
    assert [both[i] for i in range(-3, 3)] == [1, 2, 3, 1, 2, 3]
    with pytest.raises(IndexError, match="3 is out of range for 3"):
        both[3]
    with pytest.raises(ValueError, match="-4"):
        both[-4]


def test_concatenation_refuses_streams_and_nothing():
    with pytest.raises(ValueError, match="at least one"):
        ConcatDataset([])
    with pytest.raises(TypeError, match="IterableDataset"):
        ConcatDataset([IterableDataset()])


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([7, 3], [7, 3]),
        ([0.5, 0.5], [5, 5]),
        ([0.33, 0.33, 0.34], [4, 3, 3]),
        ([0.15, 0.85], [2, 8]),
    ],
)
def test_random_split_sizes_and_cover(lengths, sizes):
    parts = random_split(range(10), lengths, generator=gg.Generator().manual_seed(3))
    assert [len(part) for part in parts] == sizes
    assert sorted(i for part in parts for i in part) == list(range(10))


@pytest.mark.parametrize("lengths", [[7, 3], [0.33, 0.33, 0.34], [0.15, 0.85]])
def test_random_split_sizes_equal_torch(lengths):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    theirs = torch.utils.data.random_split(range(10), lengths)
    ours = random_split(range(10), lengths)
    assert [len(part) for part in ours] == [len(part) for part in theirs]


def test_random_split_warns_of_empty_parts():
    with pytest.warns(UserWarning, match="split at index 1 is 0"):
        parts = random_split(range(10), [0.999, 0.001])
    assert [len(part) for part in parts] == [10, 0]


def test_random_split_is_seeded():
    first, again = (
        [
            p.indices
            for p in random_split(range(50), [25, 25], generator=gg.Generator().manual_seed(1))
        ]
        for _ in range(2)
    )
    assert first == again


def test_random_split_refuses_wrong_sums():
    with pytest.raises(ValueError, match=r"\[7, 2\] add up to 9.*10 samples"):
        random_split(range(10), [7, 2])


def test_dataset_without_item_says_what_to_define():
    with pytest.raises(NotImplementedError, match="__getitem__"):
        Dataset()[0]
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(IterableDataset())
