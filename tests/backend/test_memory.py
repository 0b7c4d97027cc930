"""Recycled buffers: a live result is never handed out again, an idle buffer is."""

import gc
import weakref

import numpy as np
import pytest

from gpugrad.backend.memory import LARGE, Pool, exclusive

F32, F64 = np.dtype("float32"), np.dtype("float64")
BIG = 100_000


@pytest.fixture
def pool():
    return Pool()


def address(array):
    return array.__array_interface__["data"][0]


# ------------------------------------------------------------------------------------------------
# the pool


def test_a_released_buffer_is_used_again(pool):
    a = pool.empty((BIG,), F32)
    where = address(a)
    del a
    assert address(pool.empty((BIG,), F32)) == where


@pytest.mark.parametrize("shape", [(BIG,), (10, BIG // 10), (BIG // 2, 2), (BIG + 7,)])
def test_one_buffer_serves_shapes_and_dtypes_of_its_size(pool, shape):
    a = pool.empty((BIG,), F32)
    where = address(a)
    del a
    b = pool.empty(shape, F32)
    assert address(b) == where
    assert b.shape == shape
    assert b.flags.c_contiguous
    assert b.flags.writeable
    del b
    assert address(pool.empty((BIG // 2,), F64)) == where


def test_live_arrays_do_not_overlap(pool):
    alive = [pool.empty((BIG,), F32) for _ in range(20)]
    for k, a in enumerate(alive):
        a.fill(k)
    for k, a in enumerate(alive):
        assert (a == k).all()


KEEPERS = {
    "a view": lambda a: a[10:20],
    "a reshape": lambda a: a.reshape(-1, 2),
    "a view of a view": lambda a: a[1:][1:],
    "another dtype": lambda a: a.view(np.uint8),
    "memoryview": memoryview,
    "iterator": lambda a: iter(a),
    "flat": lambda a: a.flat,
    "a list of it": lambda a: [a],
    "the base": lambda a: a.base,
    "DLPack": lambda a: np.from_dlpack(a),
    "transposed": lambda a: a.reshape(2, -1).T,
    "ctypes": lambda a: a.ctypes.data_as(__import__("ctypes").c_void_p),
    "frombuffer": lambda a: np.frombuffer(a, np.uint8),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_whatever_can_still_see_the_memory_keeps_it(pool, name):
    a = pool.empty((BIG,), F32)
    where = address(a)
    kept = KEEPERS[name](a)
    del a
    gc.collect()
    assert address(pool.empty((BIG,), F32)) != where
    del kept
    gc.collect()
    assert where in {address(x) for x in [pool.empty((BIG,), F32) for _ in range(2)]}


def test_a_weak_reference_keeps_nothing(pool):
    a = pool.empty((BIG,), F32)
    where, seen = address(a), weakref.ref(a)
    del a
    assert seen() is None
    assert address(pool.empty((BIG,), F32)) == where


def test_small_arrays_do_not_pass_the_pool(pool):
    a = pool.empty((LARGE // 4 - 1,), F32)
    assert a.base is None
    assert pool.stats() == {"held": 0, "idle": 0}


def test_empty_and_zero_dimensional_arrays(pool):
    assert pool.empty((0, BIG), F32).shape == (0, BIG)
    assert pool.empty((), F64).shape == ()


def test_release_gives_idle_memory_back_and_no_other(pool):
    a, b = pool.empty((BIG,), F32), pool.empty((BIG * 4,), F32)
    a.fill(1)
    held = pool.stats()["held"]
    assert held >= a.nbytes + b.nbytes
    assert pool.stats()["idle"] == 0
    assert pool.release() == 0
    size = b.nbytes
    del b
    idle = pool.stats()["idle"]
    assert size <= idle <= size * 1.13
    assert pool.release() == idle
    assert pool.stats() == {"held": held - idle, "idle": 0}
    assert (a == 1).all()
    again = pool.empty((BIG,), F32)
    assert address(again) != address(a)
    del a, again
    assert pool.release() > 0
    assert pool.stats() == {"held": 0, "idle": 0}


def test_held_memory_does_not_grow_in_a_loop(pool):
    for _ in range(3):
        x = [pool.empty((BIG,), F32) for _ in range(4)]
        del x
    held = pool.stats()["held"]
    for _ in range(50):
        x = [pool.empty((BIG,), F32) for _ in range(4)]
        del x
    assert pool.stats()["held"] == held


def test_owns(pool):
    a = pool.empty((BIG,), F32)
    assert pool.owns(a.base)
    assert not pool.owns(np.empty(BIG, np.uint8))
    assert not pool.owns(a)


def test_threads_get_different_memory(pool, in_threads):
    """Each writes its own number and must find it again."""

    def work(k):
        for _ in range(200):
            a, b = pool.empty((BIG // 4,), F32), pool.empty((BIG // 4,), F32)
            a.fill(k + 1)
            b.fill(-k)
            assert (a == k + 1).all()
            assert (b == -k).all()

    in_threads(work)


# ------------------------------------------------------------------------------------------------
# exclusive: asked about a local variable, as the engine does


def test_the_only_reference_is_exclusive():
    a = np.empty(BIG, F32)
    assert exclusive(a)
    c = np.empty((BIG, 2), F32).reshape(-1)
    assert exclusive(c)  # a whole view whose base nobody else holds


SECOND = {
    "a second name": lambda a: a,
    "a list": lambda a: [a],
    "a view": lambda a: a[1:],
    "a reshape": lambda a: a.reshape(-1, 2),
    "a closure": lambda a: lambda: a,
    "a memoryview": memoryview,
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_reference_is_not_exclusive(name):
    a = np.empty(BIG, F32)
    other = SECOND[name](a)
    assert not exclusive(a)
    del other
    gc.collect()
    assert exclusive(a)


def test_a_view_of_memory_that_somebody_holds():
    base = np.empty(BIG, F32)
    view = base[: BIG // 2]
    assert not exclusive(view)
    del base
    assert exclusive(view)
    other = view[:10]
    assert not exclusive(view)
    del other
    assert exclusive(view)


def test_memory_of_others_is_never_exclusive():
    data = bytearray(BIG * 4)
    a = np.frombuffer(data, F32)
    assert not exclusive(a)
    b = np.broadcast_to(np.empty(1, F32), (BIG,))
    assert not exclusive(b)
    c = np.empty(BIG, F32)
    c.flags.writeable = False
    assert not exclusive(c)


def test_memory_of_the_pool():
    from gpugrad.backend.memory import pool

    a = pool.empty((BIG,), F32)
    assert exclusive(a)
    b = a[1:]
    assert not exclusive(a)
    assert not exclusive(b)
    del a
    assert exclusive(b)
