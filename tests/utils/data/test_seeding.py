"""Seeds per batch."""

from __future__ import annotations

import threading

import gpugrad as gg
from gpugrad.utils.data import sample_generator
from gpugrad.utils.data.seeding import batch_generator, draw_seed


def draw(epoch_seed, batch):
    with batch_generator(epoch_seed, batch):
        return gg.rand(2, generator=sample_generator()).tolist()


def test_outside_a_loader_there_is_none():
    assert sample_generator() is None


def test_batches_and_epochs_have_their_own_numbers():
    assert draw(1, 0) == draw(1, 0)
    numbers = {tuple(draw(seed, batch)) for seed in range(10) for batch in range(10)}
    assert len(numbers) == 100


def test_generators_nest_and_belong_to_their_thread():
    seen = []
    with batch_generator(0, 0):
        outer = sample_generator()
        with batch_generator(0, 1):
            assert sample_generator() is not outer
        assert sample_generator() is outer
        thread = threading.Thread(target=lambda: seen.append(sample_generator()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_seeds_come_from_the_generator_given():
    assert draw_seed(gg.Generator().manual_seed(1)) == draw_seed(gg.Generator().manual_seed(1))
    gg.manual_seed(0)
    first = draw_seed(None)
    assert 0 <= first < 2**63
    assert draw_seed(None) != first
