"""Samplers: order, length, seeds."""

from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad.utils.data import BatchSampler, RandomSampler, SequentialSampler


def seeded(seed=0):
    return gg.Generator().manual_seed(seed)


def test_sequential():
    assert list(SequentialSampler("abcd")) == [0, 1, 2, 3]
    assert len(SequentialSampler("abcd")) == 4


def test_random_is_a_permutation_that_changes_every_pass():
    sampler = RandomSampler(range(100), generator=seeded())
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first == list(RandomSampler(range(100), generator=seeded()))


def test_random_without_generator_follows_the_global_seed():
    gg.manual_seed(5)
    first = list(RandomSampler(range(20)))
    gg.manual_seed(5)
    iterator = iter(RandomSampler(range(20)))
    gg.rand(3)  # random calls during the epoch do not change the order
    assert list(iterator) == first


def test_random_with_replacement_draws_uniformly():
    sampler = RandomSampler(range(4), replacement=True, num_samples=4000, generator=seeded())
    draws = list(sampler)
    assert len(draws) == len(sampler) == 4000
    # A count is binomial(4000, 1/4): mean 1000, standard deviation 27.4; six of these.
    assert all(abs(draws.count(value) - 1000) < 165 for value in range(4))


def test_random_with_more_samples_than_data_repeats_permutations():
    draws = list(RandomSampler(range(3), num_samples=7, generator=seeded()))
    assert sorted(draws[:3]) == sorted(draws[3:6]) == [0, 1, 2]
    assert len(draws) == 7


def test_random_over_nothing_ends():
    assert list(RandomSampler([])) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"replacement": 1}, TypeError),
        ({"num_samples": -1}, ValueError),
        ({"num_samples": 2.5}, ValueError),
    ],
)
def test_random_refuses_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        RandomSampler("abc", **options)


@pytest.mark.parametrize(
    ("drop_last", "batches"), [(False, [[0, 1], [2, 3], [4]]), (True, [[0, 1], [2, 3]])]
)
def test_batches(drop_last, batches):
    sampler = BatchSampler(range(5), 2, drop_last)
    assert list(sampler) == batches
    assert len(sampler) == len(batches)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_batches_refuse_bad_sizes(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        BatchSampler(range(5), batch_size, False)


def test_batches_refuse_bad_drop_last():
    with pytest.raises(ValueError, match="drop_last"):
        BatchSampler(range(5), 2, "no")
