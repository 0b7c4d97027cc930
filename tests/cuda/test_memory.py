"""CUDA memory: what is counted, what an out-of-memory error says, limits."""

import gc
import pickle
import sys

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda
from gpugrad.backend import cuda_memory

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture(autouse=True)
def fresh():
    """Nothing cached, no peak, no limit before and after."""
    gc.collect()
    cuda.synchronize()
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    yield
    cuda.set_memory_limit(None)


def mebibytes(n, **options):
    return gg.empty(n * MIB // 4, device="cuda", **options)


def test_bytes_held_and_the_most_held():
    before = cuda.memory_allocated()
    x = mebibytes(3)
    assert cuda.memory_allocated() == before + 3 * MIB
    y = mebibytes(2)
    del x
    assert cuda.memory_allocated() == before + 2 * MIB
    assert cuda.max_memory_allocated() == before + 5 * MIB
    cuda.reset_peak_memory_stats()
    assert cuda.max_memory_allocated() == before + 2 * MIB
    del y
    assert cuda.memory_allocated() == before
    small = gg.zeros(3, device="cuda")  # blocks are multiples of 512 bytes
    assert cuda.memory_allocated() == before + 512
    del small


def test_reserved_memory_is_kept_until_the_cache_is_emptied():
    before = cuda.memory_reserved()
    x = mebibytes(3)
    assert cuda.memory_reserved() == before + 3 * MIB
    del x
    assert cuda.memory_reserved() == before + 3 * MIB
    free = cuda.mem_get_info()[0]
    cuda.empty_cache()
    assert cuda.memory_reserved() == before
    assert cuda.mem_get_info()[0] == free + 3 * MIB
    assert cuda.max_memory_reserved() == before + 3 * MIB


def test_figures_by_torchs_names():
    x = mebibytes(1)
    stats = cuda.memory_stats()
    assert stats["allocated_bytes.all.current"] == cuda.memory_allocated() >= x.nbytes
    assert stats["allocated_bytes.all.peak"] == cuda.max_memory_allocated()
    assert stats["reserved_bytes.all.current"] == cuda.memory_reserved()
    assert stats["reserved_bytes.all.peak"] == cuda.max_memory_reserved()
    assert cuda.memory_allocated("cuda:0") == cuda.memory_allocated(0) == cuda.memory_allocated()
    with pytest.raises(ValueError, match="cuda device"):
        cuda.memory_allocated("cpu")
    with pytest.raises(gg.DeviceError, match="cuda:99"):
        cuda.memory_allocated(99)


def test_peaks_count_the_memory_of_graphs():
    x = gg.ones(MIB // 4, device="cuda")
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    g, y = cuda.capture(lambda: x + 1)
    assert before + MIB <= cuda.memory_allocated() <= before + MIB + 4096  # and small things
    assert cuda.max_memory_allocated() >= before + MIB
    z = mebibytes(2)
    assert cuda.max_memory_allocated() >= before + 3 * MIB
    del g, y, z


def test_out_of_memory_names_the_lines_that_hold_most():
    cuda.set_memory_limit(cuda.memory_allocated() + 20 * MIB)
    line = here() + 1
    weights = [gg.empty(2 * MIB // 4, device="cuda") for _ in range(3)]
    activations = gg.ones(MIB, dtype=gg.float64, device="cuda")
    with pytest.raises(gg.OutOfMemoryError) as caught:
        mebibytes(30)
    text = str(caught.value)
    assert "Tried to allocate 30.00 MiB (31457280 bytes)" in text
    assert "limited to" in text
    assert "allocated by arrays" in text
    first, second = (t for t in text.splitlines() if " made at " in t and __file__ in t)
    place = f"made at {__file__}"
    assert first == f"  8.00 MiB in 1 array {place}:{line + 1} (largest: float64 (1048576,))"
    assert second == f"  6.00 MiB in 3 arrays {place}:{line} (largest: float32 (524288,))"
    assert cuda.memory_stats()["num_ooms"] >= 1
    del activations, weights
    mebibytes(15)  # what was freed can be used


def here():
    """The line of the caller."""
    return sys._getframe(1).f_lineno


def test_the_error_is_of_all_classes_a_program_may_catch():
    from cupy.cuda.memory import OutOfMemoryError as CuPys

    assert cuda.OutOfMemoryError is gg.OutOfMemoryError
    cuda.set_memory_limit(cuda.memory_allocated() + MIB)
    for kind in (gg.OutOfMemoryError, RuntimeError, CuPys, MemoryError):
        with pytest.raises(kind) as caught:
            mebibytes(5)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, gg.OutOfMemoryError)
    assert str(copy) == str(caught.value)


def test_arrays_of_cupy_programs_are_counted_too():
    import cupy

    cuda.set_memory_limit(cuda.memory_allocated() + 8 * MIB)
    line = here() + 1
    x = cupy.zeros(6 * MIB, "int8")
    with pytest.raises(gg.OutOfMemoryError, match=f"{__file__}:{line}"):
        cupy.zeros(6 * MIB, "int8")
    del x


def test_memory_that_the_device_lacks(host_device):
    cuda.empty_cache()
    with host_device.capacity(host_device.used() + 10 * MIB):
        x = mebibytes(6)
        with pytest.raises(gg.OutOfMemoryError, match="capacity") as caught:
            mebibytes(6)
        assert "limited" not in str(caught.value)
        del x
        mebibytes(6)


def test_garbage_and_caches_are_given_back_before_it_fails():
    """A reference cycle holds memory: collected, and the cached block given back, it is enough."""
    cuda.set_memory_limit(cuda.memory_allocated() + 10 * MIB)
    cycle = [mebibytes(6)]
    cycle.append(cycle)
    del cycle
    x = mebibytes(7)
    assert x.nbytes == 7 * MIB


def test_blocks_cached_by_the_default_pool_make_room_for_a_graph(host_device):
    cuda.empty_cache()
    x = gg.ones(MIB // 4, device="cuda")
    with host_device.capacity(host_device.used() + 10 * MIB):
        small, cached = [gg.zeros(1, device="cuda") for _ in range(20)], mebibytes(6)
        del small, cached  # small blocks for what the graph needs: no piece of the large one
        g, y = cuda.capture(lambda: gg.zeros(8 * MIB // 4, device="cuda"))
        g.replay()
        assert y.sum().item() == 0.0
    assert cuda.memory_stats()["num_alloc_retries"] >= 1
    del x


def test_limits():
    total = cuda.mem_get_info()[1]
    cuda.set_per_process_memory_fraction(0.5)
    import cupy

    assert cupy.get_default_memory_pool().get_limit() == total // 2
    cuda.set_memory_limit(0)
    with pytest.raises(gg.OutOfMemoryError):  # more than any block that is kept
        mebibytes(100)
    cuda.set_memory_limit(None)
    mebibytes(100)
    with pytest.raises(ValueError, match="Invalid fraction"):
        cuda.set_per_process_memory_fraction(1.5)
    with pytest.raises(TypeError, match="fraction"):
        cuda.set_per_process_memory_fraction("half")
    with pytest.raises(ValueError, match="negative"):
        cuda.set_memory_limit(-1)


def test_a_summary_can_be_read():
    line = here() + 1
    x = gg.empty(2 * MIB // 4, device="cuda")
    text = cuda.memory_summary()
    assert "CUDA memory of cuda:0" in text
    assert "held by arrays" in text
    assert f"2.00 MiB in 1 array made at {__file__}:{line} (largest: float32 (524288,))" in text
    assert "made at" not in cuda.memory_summary(abbreviated=True)
    del x


def test_notes_die_with_their_blocks():
    x = mebibytes(4)
    assert sum(h.nbytes for h in cuda_memory.holders(0) if h.file == __file__) == 4 * MIB
    view = x[1:]
    del x
    assert [h.count for h in cuda_memory.holders(0) if h.file == __file__] == [1]
    del view
    assert not [h for h in cuda_memory.holders(0) if h.file == __file__]
    for _ in range(100):  # the same address again and again
        mebibytes(4)
    assert not [h for h in cuda_memory.holders(0) if h.file == __file__]


def test_small_arrays_are_not_noted():
    before = len(cuda_memory._notes)
    kept = [gg.zeros(100, device="cuda") for _ in range(50)]
    assert len(cuda_memory._notes) == before
    del kept


def test_other_allocators_are_left_alone():
    import cupy

    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        x = mebibytes(2)
    with cupy.cuda.using_allocator(None):  # cudaMalloc itself
        y = mebibytes(2)
    assert pool.used_bytes() == 2 * MIB
    del x, y


def test_threads_allocate_at_once(in_threads):
    def work(_):
        for _ in range(50):
            kept = [mebibytes(1) for _ in range(3)]
            del kept

    before = cuda.memory_allocated()
    in_threads(work)
    assert cuda.memory_allocated() == before
    assert before + MIB <= cuda.max_memory_allocated() <= before + 12 * MIB


def test_a_training_step_allocates_nothing_new(no_hidden_traffic):
    w = gg.ones(64, 64, device="cuda", requires_grad=True)
    x = gg.tensor(np.ones((8, 64), np.float32), device="cuda")
    optimizer = gg.optim.SGD([w], lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        (x @ w).tanh().sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    with no_hidden_traffic():
        step()
