// Convolution of images (N, C, H, W) with filters (O, C/groups, kh, kw), and its two gradients,
// without an im2col matrix in memory.
//
//   convolve        forward and input gradient: one output pixel is one column of a matrix product
//                     C[m, n] = sum_k A[m, k] B[k, n],  A the weights, B pixels of the image,
//                   with m a channel of the result, n = (image, row, column), k = (channel, tap).
//                   Grid (tiles of n, tiles of m * groups).
//   filters         weight gradient: A the cotangent, B pixels of the image, m a filter,
//                   n = (channel, tap), k = (image, row, column). The sum over k is cut into chunks
//                   of a length that shapes decide: grid (tiles of n, tiles of m * groups, chunks).
//   add_chunks      the sum of the chunks, in order: one thread for each weight.
//   convolve_direct, filters_direct   the same for layers of few channels per group (depthwise),
//                   where tiles would be empty: a thread for each pixel, a block for each weight.
//
// A result does not depend on the tile: every sum runs over k in order.
// The tile product is the classical one of shared memory and registers (Volkov and Demmel, 2008;
// CUTLASS, "Efficient GEMM in CUDA"): a block of (BM / TM) * (BN / TN) threads computes BM x BN
// results, each thread TM x TN of them, and loads one tile while it multiplies the one before. That
// B is gathered while it is loaded makes it an implicit GEMM (Chetlur et al., 2014).
//
// Defined before: STORAGE, BM, BN, BK, TM, TN.
#include "common.cuh"

typedef STORAGE T;
typedef Compute<T> Real;
constexpr int THREADS = (BM / TM) * (BN / TN);
// Blocks a multiprocessor can hold at once: one of the largest tile, whose sums alone take half of
// its registers.
constexpr int BLOCKS = TM * TN < 64 ? 2 : 1;

// How results lie over sources along one axis: the source of result t and tap u is
// start + t * step + u * reach, which is zero padding outside 0 .. source - 1; result t is written at
// place + t * spread, tap u is the tap `first + u * skip` of the kernel.
// For an input gradient of stride s, results of one residue modulo s form a convolution of stride 1.
struct Axis {
  int source, target, kernel, results, taps, start, step, reach, place, spread, first, skip;
};

struct Layer {
  int batch, groups, depth, width;  // channels of source and result, per group
  int by_result, by_depth;          // strides of the weights along channels of result and source
  Axis rows, columns;
  __device__ __forceinline__ int pixels() const { return rows.results * columns.results; }
  __device__ __forceinline__ int taps() const { return rows.taps * columns.taps; }
  __device__ __forceinline__ int plane() const { return rows.source * columns.source; }
};

// A number of three digits that counts up by a fixed number without divisions.
struct Digits {
  int high, middle, low;
  __device__ __forceinline__ Digits(int number, int middles, int lows)
      : high(number / (middles * lows)), middle(number / lows % middles), low(number % lows) {}
  __device__ __forceinline__ void add(const Digits& by, int middles, int lows) {
    low += by.low;
    middle += by.middle;
    high += by.high;
    if (low >= lows) low -= lows, ++middle;
    if (middle >= middles) middle -= middles, ++high;
  }
};

__device__ __forceinline__ bool inside(int at, int size) { return (unsigned)at < (unsigned)size; }

// ------------------------------------------------------------------------------------------------
// what the two tiles are filled with. at(i) is the element of the i-th column at the present depth.

// Weights of the channels of the result, column after column.
template <int COLUMNS> struct Weights {
  const Layer& p;
  const T* from;
  int column[COLUMNS];  // offset of a channel of the result, or -1
  Digits k, by;
  __device__ __forceinline__ Weights(const Layer& p, const T* w, int group, int depth, int first,
                                     int apart)
      : p(p),
        from(w + (long long)group * p.depth * p.width * p.rows.kernel * p.columns.kernel),
        k(depth, p.rows.taps, p.columns.taps),
        by(BK, p.rows.taps, p.columns.taps) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i)
      column[i] = first + i * apart < p.width ? (first + i * apart) * p.by_result : -1;
  }
  __device__ __forceinline__ Real at(int i) const {
    if (k.high >= p.depth || column[i] < 0) return 0;
    const int row = p.rows.first + k.middle * p.rows.skip;
    const int tap = row * p.columns.kernel + p.columns.first + k.low * p.columns.skip;
    return widen(from[column[i] + k.high * p.by_depth + tap]);
  }
  __device__ __forceinline__ void next() { k.add(by, p.rows.taps, p.columns.taps); }
};

// Pixels under the taps of one window.
struct Window {
  const Layer& p;
  const T* image;
  int row, column;
  Digits k, by;
  __device__ __forceinline__ Window(const Layer& p, const T* x, int group, int window, int depth,
                                    int step)
      : p(p), k(depth, p.rows.taps, p.columns.taps), by(step, p.rows.taps, p.columns.taps) {
    const Digits at(window, p.rows.results, p.columns.results);
    const bool any = at.high < p.batch;
    image = x + (long long)(any ? at.high * p.groups + group : 0) * p.depth * p.plane();
    row = any ? p.rows.start + at.middle * p.rows.step : -(1 << 30);
    column = p.columns.start + at.low * p.columns.step;
  }
  __device__ __forceinline__ Real at(int) const {
    const int r = row + k.middle * p.rows.reach, c = column + k.low * p.columns.reach;
    if (k.high >= p.depth || !inside(r, p.rows.source) || !inside(c, p.columns.source)) return 0;
    return widen(image[k.high * p.plane() + r * p.columns.source + c]);
  }
  __device__ __forceinline__ void next() { k.add(by, p.rows.taps, p.columns.taps); }
};

// Cotangents of filters, along the pixels of all images.
template <int COLUMNS> struct Cotangents {
  const Layer& p;
  const T* from;
  int first, apart, end;
  int number;  // k, beyond which `end` is the end of the chunk
  Digits k, by;
  __device__ __forceinline__ Cotangents(const Layer& p, const T* g, int group, int depth, int end,
                                        int first, int apart)
      : p(p),
        from(g + (long long)group * p.width * p.pixels()),
        first(first),
        apart(apart),
        end(end),
        number(depth),
        k(depth, 1, p.pixels()),
        by(BK, 1, p.pixels()) {}
  __device__ __forceinline__ Real at(int i) const {
    const int filter = first + i * apart;
    if (number >= end || filter >= p.width) return 0;
    const long long image = (long long)k.high * p.groups * p.width;
    return widen(from[(image + filter) * p.pixels() + k.low]);
  }
  __device__ __forceinline__ void next() {
    number += BK;
    k.add(by, 1, p.pixels());
  }
};

// What one tap of one channel sees, along the pixels of all images.
template <int COLUMNS> struct Taps {
  const Layer& p;
  const T* from;
  int channel[COLUMNS], row[COLUMNS], column[COLUMNS];
  int number, end;
  Digits k, by;
  __device__ __forceinline__ Taps(const Layer& p, const T* x, int group, int depth, int end,
                                  int first, int apart)
      : p(p),
        from(x + (long long)group * p.depth * p.plane()),
        number(depth),
        end(end),
        k(depth, p.rows.results, p.columns.results),
        by(BK, p.rows.results, p.columns.results) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
      const Digits tap(first + i * apart, p.rows.taps, p.columns.taps);
      channel[i] = tap.high * p.plane();
      row[i] = tap.high < p.depth ? p.rows.start + tap.middle * p.rows.reach : -(1 << 30);
      column[i] = p.columns.start + tap.low * p.columns.reach;
    }
  }
  __device__ __forceinline__ Real at(int i) const {
    const int r = row[i] + k.middle * p.rows.step, c = column[i] + k.low * p.columns.step;
    if (number >= end || !inside(r, p.rows.source) || !inside(c, p.columns.source)) return 0;
    const T* image = from + (long long)k.high * p.groups * p.depth * p.plane();
    return widen(image[channel[i] + r * p.columns.source + c]);
  }
  __device__ __forceinline__ void next() {
    number += BK;
    k.add(by, p.rows.results, p.columns.results);
  }
};

// ------------------------------------------------------------------------------------------------
// the tile product

// Which elements of a tile of WIDTH x BK a thread loads: threads lie along the depth if the depth is
// contiguous in memory (one depth, COUNT columns), else along the columns (one column, COUNT depths).
template <int WIDTH, bool ALONG_DEPTH> struct Share {
  static constexpr int LINE = ALONG_DEPTH ? BK : WIDTH;
  static constexpr int COUNT = WIDTH * BK / THREADS;
  static constexpr int APART = THREADS / LINE;
  static_assert(THREADS % LINE == 0 && WIDTH * BK % THREADS == 0, "every thread loads as much");
  static __device__ __forceinline__ int along() { return threadIdx.x % LINE; }
  static __device__ __forceinline__ int across() { return threadIdx.x / LINE; }

  template <class Source> static __device__ __forceinline__ void load(Real* held, Source& from) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      held[i] = from.at(i);
      if (!ALONG_DEPTH) from.next();
    }
    if (ALONG_DEPTH) from.next();
  }
  template <int PITCH> static __device__ __forceinline__ void store(Real (*tile)[PITCH],
                                                                   const Real* held) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int line = across() + i * APART;
      if (ALONG_DEPTH) tile[along()][line] = held[i];
      else tile[line][along()] = held[i];
    }
  }
};

// The j-th of the lines of a thread: runs of up to four, so that neighbouring threads read
// neighbouring runs of shared memory.
template <int PER_THREAD, int WIDTH> __device__ __forceinline__ int line_of(int thread, int j) {
  constexpr int RUN = PER_THREAD < 4 ? PER_THREAD : 4;
  return j / RUN * (WIDTH / PER_THREAD * RUN) + thread * RUN + j % RUN;
}
__device__ __forceinline__ int result_row(int i) {
  return line_of<TM, BM>(threadIdx.x / (BN / TN), i);
}
__device__ __forceinline__ int result_column(int j) {
  return line_of<TN, BN>(threadIdx.x % (BN / TN), j);
}

// sums[i][j] = sum over k of left(result_row(i), k) * right(k, result_column(j)), for k from 0 to
// BK * steps. Two tiles of each are kept, so one barrier a step is enough: what is overwritten was
// last read before the barrier of the step before.
template <bool GATHERED, class Left, class Right>
__device__ __forceinline__ void multiply(Real (&sums)[TM][TN], Left& left, Right& right, int steps) {
  using LeftShare = Share<BM, true>;
  using RightShare = Share<BN, !GATHERED>;
  alignas(16) __shared__ Real a[2][BK][BM + 4];
  alignas(16) __shared__ Real b[2][BK][BN + 4];
  Real next_a[LeftShare::COUNT], next_b[RightShare::COUNT];
#pragma unroll
  for (int i = 0; i < TM * TN; ++i) sums[i / TN][i % TN] = 0;
  if (!steps) return;
  LeftShare::load(next_a, left);
  RightShare::load(next_b, right);
  for (int step = 0; step < steps; ++step) {
    const int now = step & 1;
    LeftShare::store(a[now], next_a);
    RightShare::store(b[now], next_b);
    __syncthreads();
    if (step + 1 < steps) {
      LeftShare::load(next_a, left);
      RightShare::load(next_b, right);
    }
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      Real mine_a[TM], mine_b[TN];
#pragma unroll
      for (int i = 0; i < TM; ++i) mine_a[i] = a[now][k][result_row(i)];
#pragma unroll
      for (int j = 0; j < TN; ++j) mine_b[j] = b[now][k][result_column(j)];
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) sums[i][j] += mine_a[i] * mine_b[j];
    }
  }
}

// ------------------------------------------------------------------------------------------------
// kernels

// Where result `window` of the first channel of a group is written.
__device__ __forceinline__ long long target(const Layer& p, const Digits& at, int channel) {
  const int row = p.rows.place + at.middle * p.rows.spread;
  const int column = p.columns.place + at.low * p.columns.spread;
  const long long plane = (long long)p.rows.target * p.columns.target;
  return ((long long)at.high * p.groups * p.width + channel) * plane +
         row * p.columns.target + column;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
convolve(const T* x, const T* w, T* y, const Layer p) {
  const int tiles = (p.width + BM - 1) / BM;
  const int group = blockIdx.y / tiles, m = blockIdx.y % tiles * BM, n = blockIdx.x * BN;
  using LeftShare = Share<BM, true>;
  using RightShare = Share<BN, false>;
  Weights<LeftShare::COUNT> left(p, w, group, LeftShare::along(), m + LeftShare::across(),
                                 LeftShare::APART);
  Window right(p, x, group, n + RightShare::along(), RightShare::across(), RightShare::APART);
  Real sums[TM][TN];
  multiply<true>(sums, left, right, (p.depth * p.taps() + BK - 1) / BK);
#pragma unroll
  for (int j = 0; j < TN; ++j) {
    const Digits at(n + result_column(j), p.rows.results, p.columns.results);
    if (at.high >= p.batch) continue;
    T* to = y + target(p, at, group * p.width);
#pragma unroll
    for (int i = 0; i < TM; ++i) {
      const int channel = m + result_row(i);
      if (channel < p.width)
        to[(long long)channel * p.rows.target * p.columns.target] = narrow<T>(sums[i][j]);
    }
  }
}

// `sums` is (chunks, filters, channels, taps). Chunk c takes the depths from c * chunk on.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
filters(const T* g, const T* x, Real* sums, long long chunk, const Layer p) {
  const int tiles = (p.width + BM - 1) / BM, columns = p.depth * p.taps();
  const int group = blockIdx.y / tiles, m = blockIdx.y % tiles * BM, n = blockIdx.x * BN;
  const long long begin = blockIdx.z * chunk, all = (long long)p.batch * p.pixels();
  const long long end = begin + chunk < all ? begin + chunk : all;
  using LeftShare = Share<BM, true>;
  using RightShare = Share<BN, true>;
  Cotangents<LeftShare::COUNT> left(p, g, group, begin + LeftShare::along(), end,
                                    m + LeftShare::across(), LeftShare::APART);
  Taps<RightShare::COUNT> right(p, x, group, begin + RightShare::along(), end,
                                n + RightShare::across(), RightShare::APART);
  Real found[TM][TN];
  multiply<false>(found, left, right, (end - begin + BK - 1) / BK);
  Real* to = sums + ((long long)blockIdx.z * p.groups + group) * p.width * columns;
#pragma unroll
  for (int i = 0; i < TM; ++i)
#pragma unroll
    for (int j = 0; j < TN; ++j) {
      const int filter = m + result_row(i), column = n + result_column(j);
      if (filter < p.width && column < columns) to[filter * columns + column] = found[i][j];
    }
}

extern "C" __global__ void __launch_bounds__(256)
add_chunks(const Real* sums, T* weights, long long count, long long chunks) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  Real total = sums[at];
  for (int chunk = 1; chunk < chunks; ++chunk) total += sums[chunk * count + at];
  weights[at] = narrow<T>(total);
}

extern "C" __global__ void __launch_bounds__(256)
convolve_direct(const T* x, const T* w, T* y, const Layer p) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  const int channel = blockIdx.y, group = channel / p.width;
  const Digits at(n, p.rows.results, p.columns.results);
  if (at.high >= p.batch) return;
  Window window(p, x, group, n, 0, 1);
  Weights<1> weights(p, w, group, 0, channel % p.width, 0);
  Real sum = 0;
  for (int k = p.depth * p.taps(); k; --k) {
    sum += weights.at(0) * window.at(0);
    window.next();
    weights.k = window.k;
  }
  y[target(p, at, channel)] = narrow<T>(sum);
}

// A block for each weight and chunk; `sums` and chunks as in `filters`.
extern "C" __global__ void __launch_bounds__(256)
filters_direct(const T* g, const T* x, Real* sums, long long chunk, const Layer p) {
  __shared__ Real scratch[32];
  const int columns = p.depth * p.taps(), filter = blockIdx.x / columns;
  const Digits tap(blockIdx.x % columns, p.rows.taps, p.columns.taps);
  const int group = filter / p.width;
  const long long begin = blockIdx.y * chunk, all = (long long)p.batch * p.pixels();
  const long long end = begin + chunk < all ? begin + chunk : all;
  Real sum = 0;
  for (int k = begin + threadIdx.x; k < end; k += blockDim.x) {
    const Digits at(k, p.rows.results, p.columns.results);
    const int r = p.rows.start + at.middle * p.rows.step + tap.middle * p.rows.reach;
    const int c = p.columns.start + at.low * p.columns.step + tap.low * p.columns.reach;
    if (!inside(r, p.rows.source) || !inside(c, p.columns.source)) continue;
    const long long plane = ((long long)at.high * p.groups + group) * p.depth + tap.high;
    const long long pixel = ((long long)at.high * p.groups * p.width + filter) * p.pixels();
    sum += widen(g[pixel + at.middle * p.columns.results + at.low]) *
           widen(x[plane * p.plane() + r * p.columns.source + c]);
  }
  sum = reduce_block<Sum>(sum, scratch);
  if (!threadIdx.x) sums[(long long)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}
