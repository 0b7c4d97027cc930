// Pooling over the last two axes of planes (..., height, width); padding has been done before.
//
//   windows   max_pool, sum_pool: one thread for each window.
//   scatter   the cotangent of max_pool: one thread for each pixel, which looks at the windows that
//             cover it and takes from those whose first maximum it is. No atomics: sums run over the
//             taps in reading order.
//   gather    what lies at the first maximum of every window: one thread for each window.
//   spread    the cotangent of sum_pool: one thread for each pixel, as in scatter.
//
// Blocks of 256 threads over all elements. The first maximum is the first in reading order that
// equals the maximum, so a window with a NaN, whose maximum is NaN, has none (as the reference).
//
// Defined before: STORAGE; Index (int or long long) counts elements.
#include "common.cuh"

typedef STORAGE T;
typedef Compute<T> Real;

struct Axis {
  int size, windows, taps, stride, dilation;
  // The window in which pixel `at` is tap `tap`, or -1.
  __device__ __forceinline__ int window(int at, int tap) const {
    const int corner = at - tap * dilation, found = corner / stride;
    return corner >= 0 && found < windows && found * stride == corner ? found : -1;
  }
};
struct Pool {
  Axis rows, columns;
  // Where tap (i, j) of a window lies, seen from its corner.
  __device__ __forceinline__ int tap(int i, int j) const {
    return i * rows.dilation * columns.size + j * columns.dilation;
  }
};

// An element of (planes, height, width): its number, plane, row and column.
struct Place {
  Index number, plane;
  int row, column;
  __device__ __forceinline__ Place(int height, int width)
      : number((Index)blockIdx.x * blockDim.x + threadIdx.x) {
    const Index line = number / width;
    column = number - line * width;
    plane = line / height;
    row = line - plane * height;
  }
};

__device__ __forceinline__ Place window_here(const Pool& p) {
  return Place(p.rows.windows, p.columns.windows);
}
__device__ __forceinline__ Place pixel_here(const Pool& p) {
  return Place(p.rows.size, p.columns.size);
}
// The pixel in the corner of a window.
__device__ __forceinline__ Index corner(const Pool& p, Index plane, int row, int column) {
  return (plane * p.rows.size + row * p.rows.stride) * p.columns.size + column * p.columns.stride;
}

template <class Op> __device__ __forceinline__ void reduce_windows(const T* x, T* y, long long count,
                                                                   const Pool& p) {
  const Place at = window_here(p);
  if (at.number >= count) return;
  x += corner(p, at.plane, at.row, at.column);
  Real result = widen(x[0]);
  for (int i = 0; i < p.rows.taps; ++i)
    for (int j = i ? 0 : 1; j < p.columns.taps; ++j) result = Op::of(result, widen(x[p.tap(i, j)]));
  y[at.number] = narrow<T>(result);
}

extern "C" __global__ void __launch_bounds__(256)
max_windows(const T* x, T* y, long long count, const Pool p) {
  reduce_windows<Max>(x, y, count, p);
}

extern "C" __global__ void __launch_bounds__(256)
sum_windows(const T* x, T* y, long long count, const Pool p) {
  reduce_windows<Sum>(x, y, count, p);
}

// Whether no tap of a window before tap (i, j) holds its maximum.
__device__ __forceinline__ bool is_first(const T* window, Real maximum, int i, int j,
                                         const Pool& p) {
  for (int a = 0; a <= i; ++a)
    for (int b = 0; b < (a < i ? p.columns.taps : j); ++b)
      if (widen(window[p.tap(a, b)]) == maximum) return false;
  return true;
}

extern "C" __global__ void __launch_bounds__(256)
scatter(const T* g, const T* x, const T* out, T* gx, long long count, const Pool p) {
  const Place at = pixel_here(p);
  if (at.number >= count) return;
  const Real value = widen(x[at.number]);
  Real sum = 0;
  for (int i = 0; i < p.rows.taps; ++i) {
    const int row = p.rows.window(at.row, i);
    if (row < 0) continue;
    for (int j = 0; j < p.columns.taps; ++j) {
      const int column = p.columns.window(at.column, j);
      if (column < 0) continue;
      const Index window = (at.plane * p.rows.windows + row) * p.columns.windows + column;
      if (value == widen(out[window]) && is_first(x + corner(p, at.plane, row, column), value, i, j, p))
        sum += widen(g[window]);
    }
  }
  gx[at.number] = narrow<T>(sum);
}

extern "C" __global__ void __launch_bounds__(256)
gather(const T* h, const T* x, const T* out, T* found, long long count, const Pool p) {
  const Place at = window_here(p);
  if (at.number >= count) return;
  const Index first = corner(p, at.plane, at.row, at.column);
  const Real maximum = widen(out[at.number]);
  for (int i = 0; i < p.rows.taps; ++i)
    for (int j = 0; j < p.columns.taps; ++j)
      if (widen(x[first + p.tap(i, j)]) == maximum) {
        found[at.number] = h[first + p.tap(i, j)];
        return;
      }
  found[at.number] = narrow<T>(0);
}

extern "C" __global__ void __launch_bounds__(256)
spread(const T* g, T* gx, long long count, const Pool p) {
  const Place at = pixel_here(p);
  if (at.number >= count) return;
  Real sum = 0;
  for (int i = 0; i < p.rows.taps; ++i) {
    const int row = p.rows.window(at.row, i);
    if (row < 0) continue;
    for (int j = 0; j < p.columns.taps; ++j) {
      const int column = p.columns.window(at.column, j);
      if (column < 0) continue;
      sum += widen(g[(at.plane * p.rows.windows + row) * p.columns.windows + column]);
    }
  }
  gx[at.number] = narrow<T>(sum);
}
