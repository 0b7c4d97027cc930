"""The CUDA-on-CPU shim runs kernels as a GPU would and refuses what a GPU would not survive."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda import shim

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())
f4 = np.float32


def kernel(text: str, name: str = "k") -> shim.Kernel:
    return shim.Module(text)[name]


def one_block(text: str, *args, threads: int = 32, shared: int = 0) -> None:
    kernel(text)((1,), (threads,), args, shared)


def refused(message: str, text: str, *args, threads: int = 32, shared: int = 0) -> None:
    """The kernel must fail with a message, and the next launch must work."""
    with pytest.raises(shim.ShimError, match=message):
        one_block(text, *args, threads=threads, shared=shared)
    a = np.zeros(1, f4)
    one_block('extern "C" __global__ void k(float* a) { __syncthreads(); a[0] = 1; }', a)
    assert a[0] == 1


# ---- it runs kernels -----------------------------------------------------------------------------

SOFTMAX = """
template <class T> __device__ T max_of(T v) {
  for (int d = 16; d; d >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}
template <class T> __device__ T sum_of(T v) {
  for (int d = 16; d; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
  return __shfl_sync(0xffffffffu, v, 0);
}
extern "C" __global__ void __launch_bounds__(256) k(const float* __restrict__ x, float* y,
                                                    long long columns) {
  __shared__ float of_warp[8];
  extern __shared__ __align__(16) float row[];  // __shared__ in a comment stays
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  x += blockIdx.x * columns, y += blockIdx.x * columns;
  float m = -INFINITY;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) m = fmaxf(m, row[i] = x[i]);
  m = max_of(m);
  if (!lane) of_warp[warp] = m;
  __syncthreads();
  m = max_of(lane < 8 ? of_warp[lane] : -INFINITY);
  __syncthreads();
  float s = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) s += row[i] = __expf(row[i] - m);
  s = sum_of(s);
  if (!lane) of_warp[warp] = s;
  __syncthreads();
  s = sum_of(lane < 8 ? of_warp[lane] : 0.f);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) y[i] = row[i] / s;
}"""


@pytest.mark.parametrize("columns", [1, 31, 257, 1000])
def test_block_and_warp_cooperate(rng, columns):
    x = rng.standard_normal((5, columns)).astype(f4) * 3
    (y,) = shim.same_in_every_schedule(
        kernel(SOFTMAX),
        (5,),
        (256,),
        lambda: (x, np.full_like(x, np.nan), columns),
        [1],
        columns * 4,
    )
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-6, atol=1e-8)


def test_atomics_and_grids(rng):
    text = """extern "C" __global__ void k(const float* v, const long long* at, float* out,
                                           long long n, int* largest) {
      long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
      if (i < n) { atomicAdd(&out[at[i]], v[i]); atomicMax(largest, (int)i); }
    }"""
    n = 1000
    v, at = rng.standard_normal(n).astype(f4), rng.integers(0, 13, n)
    make = lambda: (v, at, np.zeros(13, f4), n, np.zeros(1, np.int32))
    out, largest = shim.same_in_every_schedule(
        kernel(text), (9,), (128,), make, [2, 4], tolerance=1e-5
    )
    expected = np.zeros(13)
    np.add.at(expected, at, v)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert largest[0] == n - 1


def test_half_types_and_structs_by_value(rng):
    text = """struct Scales { double a; int b[2]; };
    extern "C" __global__ void k(const __half* x, const __nv_bfloat16* y, __half2* z, Scales s) {
      const int i = threadIdx.x;
      const float sum = __half2float(x[i]) * s.a + __bfloat162float(y[i]) * s.b[1];
      z[i] = __floats2half2_rn(sum, __half2float(__hadd(x[i], x[i])));
    }"""
    x = rng.standard_normal(50).astype(np.float16)
    y = (rng.standard_normal(50).astype(f4).view(np.uint32) >> 16).astype(np.uint16)
    z = np.zeros((50, 2), np.float16)
    scales = np.array([(0.5, (3, 2))], [("a", "f8"), ("b", "i4", 2)])
    one_block(text, x, y, z, scales, threads=50)
    wide = (y.astype(np.uint32) << 16).view(f4)
    np.testing.assert_allclose(z[:, 0], x.astype(f4) * 0.5 + wide * 2, rtol=1e-3)
    np.testing.assert_array_equal(z[:, 1], x + x)


def test_votes_matches_and_reductions():
    text = """extern "C" __global__ void k(unsigned* o) {
      const unsigned all = ~0u, i = threadIdx.x;
      o[i] = __ballot_sync(all, i % 3 == 0);
      o[32 + i] = __match_any_sync(all, i % 4);
      o[64 + i] = __reduce_add_sync(all, i) + (__any_sync(all, i == 7) << 10) + __all_sync(all, i);
      o[96 + i] = i < 8 ? __ballot_sync(0xffu, i & 1) : 0;
      o[128 + i] = __shfl_up_sync(all, i, 1, 8);
      o[160 + i] = __syncthreads_count(i < 5);
    }"""
    o = np.zeros((6, 32), np.uint32)
    one_block(text, o)
    i = np.arange(32)
    assert (o[0] == sum(1 << k for k in range(0, 32, 3))).all()
    assert (o[1] == np.array([sum(1 << k for k in range(r, 32, 4)) for r in range(4)])[i % 4]).all()
    assert (o[2] == 496 + 1024).all()
    assert (o[3] == np.where(i < 8, 0b10101010, 0)).all()
    assert (o[4] == np.where(i % 8, i - 1, i)).all()
    assert (o[5] == 5).all()


def test_templates_and_macros_that_make_kernels():
    text = """#define KERNEL(name, T) \\
      extern "C" __global__ void name(T* a) { a[threadIdx.x] = fill<T>(); }
    template <class T> __device__ T fill() { __shared__ T s[4]; s[0] = 3; return s[0]; }
    KERNEL(of_float, float) KERNEL(of_double, double)
    template <class T> __global__ void unused(T* a) { a[0] = 0; }"""
    module = shim.Module(text)
    assert module.names == ["of_float", "of_double"]
    for name, dtype in (("of_float", f4), ("of_double", np.float64)):
        a = np.zeros(8, dtype)
        module[name]((1,), (8,), (a,))
        assert (a == 3).all()


def test_shared_memory_of_modules_is_their_own():
    """The same template in two modules with arrays of different sizes."""
    text = """template <class T> __device__ T f() {
      __shared__ T s[%d];
      s[%d - 1] = 2;
      return s[0];
    }
    extern "C" __global__ void k(float* a) { a[0] = f<float>(); }"""
    small, large = kernel(text % (1, 1)), kernel(text % (4000, 4000))
    a = np.zeros(1, f4)
    for k, expected in ((small, 2), (large, np.nan), (small, 2)):
        k((1,), (1,), (a,))
        np.testing.assert_equal(a[0], f4(expected))


# ---- it says no ----------------------------------------------------------------------------------

TREE = """extern "C" __global__ void k(const float* x, float* out, long long n) {
  __shared__ float s[128];
  const int t = threadIdx.x, i = blockIdx.x * 128 + t;
  s[t] = i < n ? x[i] : 0.f; BARRIER
  for (int d = 64; d; d >>= 1) { if (t < d) s[t] += s[t + d]; __syncthreads(); }
  if (!t) out[blockIdx.x] = s[0];
}"""


def test_missing_barrier(rng):
    x = rng.standard_normal(256).astype(f4)
    arguments = ((2,), (128,), lambda: (x, np.zeros(2, f4), 256), [1])
    shim.same_in_every_schedule(kernel(TREE.replace("BARRIER", "__syncthreads();")), *arguments)
    with pytest.raises(shim.ShimError, match="depends on the schedule"):
        shim.same_in_every_schedule(kernel(TREE.replace("BARRIER", "")), *arguments)


STORE = """extern "C" __global__ void k(float* a, long long at) {
  __shared__ float s[32]; s[threadIdx.x] = 1; __syncthreads(); a[(int)threadIdx.x + at] = 1; }"""


def test_outside_of_an_array():
    one_block(STORE, np.zeros(32, f4), 0)
    refused(r"illegal address .*thread \(31,0,0\)", STORE, np.zeros(32, f4), 1)
    refused("wrote before the start", STORE, np.zeros(32, f4), -1)
    refused("wrote after the end", STORE, np.zeros(31, f4), 0)


def test_outside_of_shared_memory():
    text = """
    extern "C" __global__ void k(float* a) { __shared__ float s[32];
      s[threadIdx.x + 1] = 1; a[0] = s[0]; }"""
    refused(
        r"index 32 outside of 'float \[32\]', kernel.cu:3 .*thread \(31,0,0\)",
        text,
        np.zeros(1, f4),
    )
    text = 'extern "C" __global__ void k() { extern __shared__ float s[]; s[threadIdx.x] = 1; }'
    one_block(text, shared=128)
    refused("illegal address", text, shared=112)


def test_misaligned_vector_access():
    text = """extern "C" __global__ void k(float* a, long long at) {
      *(float4*)(a + at) = make_float4(1, 2, 3, 4); }"""
    one_block(text, np.zeros(8, f4), 4, threads=1)
    refused("misaligned address", text, np.zeros(8, f4), 1, threads=1)


def test_divergent_barriers():
    text = """extern "C" __global__ void k(float* a) {
      if (threadIdx.x < 16) { __syncthreads(); a[0] = 1; }
      else { a[1] = 2; __syncthreads(); } }"""
    refused("different barriers, kernel.cu:2 and kernel.cu:3", text, np.zeros(2, f4))
    text = """extern "C" __global__ void k(long long n) {
      if (threadIdx.x >= n) return;
      __syncthreads(); }"""
    one_block(text, 32)
    refused(r"barrier at kernel.cu:3 after 12 thread\(s\) of the block returned", text, 20)


def test_wrong_masks():
    text = """extern "C" __global__ void k(float* a, long long n) {
      if (threadIdx.x < n) a[threadIdx.x] = __shfl_down_sync(0xffffffffu, a[threadIdx.x], 1);
      else __syncthreads(); }"""
    refused("dead-lock: thread .* at kernel.cu:2 .__shfl_sync", text, np.zeros(32, f4), 16)
    text = """extern "C" __global__ void k(float* a) {
      if (threadIdx.x < 16) a[0] = __shfl_xor_sync(0xffffu, a[threadIdx.x], 16); }"""
    refused("reads lane 16, which is not active", text, np.zeros(32, f4))
    text = 'extern "C" __global__ void k() { __syncwarp(MASK); }'
    refused("lane 1, which is not in its mask", text.replace("MASK", "1"))
    refused("disagree on the mask", text.replace("MASK", "threadIdx.x & 1 ? ~0u : 0x55555555u"))


def test_shared_memory_is_poisoned_for_each_block():
    text = """extern "C" __global__ void k(float* a) {
      __shared__ float s[2];
      extern __shared__ float t[];
      a[2 * blockIdx.x] = s[1]; a[2 * blockIdx.x + 1] = t[0]; s[1] = t[0] = 5; }"""
    a = np.zeros(6, f4)
    kernel(text)((3,), (1,), (a,), 4)
    assert np.isnan(a).all()


def test_launches_a_driver_refuses():
    text = 'extern "C" __global__ void __launch_bounds__(64, 2) k() {}'
    one_block(text, threads=64)
    refused("launch_bounds", text, threads=65)
    for grid, block in (((0,), (1,)), ((1,), (1025,)), ((1, 70000), (1,)), ((1,), (1, 1, 65))):
        with pytest.raises(shim.ShimError, match="invalid configuration"):
            kernel('extern "C" __global__ void k() {}')(grid, block, ())


def test_division_by_zero():
    text = 'extern "C" __global__ void k(long long n) { volatile int rest = 7 % (int)n; }'
    refused("division by zero", text, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(4, np.float64), 1, 1.0),  # the array's dtype
        (np.zeros(4, f4), np.int32(1), 1.0),  # four bytes where eight are read
        (np.zeros(4, f4), 1, f4(1)),
        (np.zeros(4, f4), 1.0, 1.0),
        (np.zeros(4, f4), 1, 1),
        (np.zeros(4, f4), 1),
        (np.zeros((4, 4), f4)[:, 0], 1, 1.0),
    ],
)
def test_wrong_arguments(arguments):
    text = 'extern "C" __global__ void k(float* a, long long n, double s) { a[0] = n * s; }'
    one_block(text, np.zeros(4, f4), 1, 1.0, threads=1)
    with pytest.raises(shim.ShimError, match="argument"):
        one_block(text, *arguments)


def test_text_that_does_not_compile():
    with pytest.raises(shim.ShimError, match="kernel.cu:2:.*nothing"):
        kernel('extern "C" __global__ void k(float* a) {\n a[0] = nothing; }')
    with pytest.raises(shim.ShimError, match="inline PTX cannot run on the CPU"):
        kernel('extern "C" __global__ void k() { asm volatile("bar.sync 0;"); }')
    with pytest.raises(shim.ShimError, match="no kernel"):
        kernel("// __global__ void k()")
