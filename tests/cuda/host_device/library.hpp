// What the stand-ins of NVIDIA's libraries share: handles, work queued on the device, factorizations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Queues work on a stream of the device (system.cpp). `release` is called with the argument when no
// queue and no captured graph holds the work any more.
extern "C" int host_device_submit(void* stream, const char* name, int (*run)(void*), void* argument,
                                  void (*release)(void*));

namespace library {

struct Handle {
  void* stream = nullptr;
  int pointer_mode = 0, math_mode = 0;
};

// Zero, or the error code of the device.
inline int queue(void* handle, const char* name, std::function<void()> work) {
  using Work = std::function<void()>;
  return host_device_submit(
      ((Handle*)handle)->stream, name,
      [](void* w) {
        (*(Work*)w)();
        return 0;
      },
      new Work(std::move(work)), [](void* w) { delete (Work*)w; });
}

// A column-major matrix.
template <class T> struct Matrix {
  T* data;
  int leading;

  T& operator()(int row, int column) const { return data[row + (int64_t)column * leading]; }
};

// LU factorization with row exchanges, LAPACK's getrf: pivots count from one; the result is the
// number of the first pivot that is zero, or 0.
template <class T> int factorize(const Matrix<T>& a, int m, int n, int* pivots) {
  int info = 0;
  for (int k = 0; k < std::min(m, n); ++k) {
    int pivot = k;
    for (int i = k + 1; i < m; ++i)
      if (std::abs(a(i, k)) > std::abs(a(pivot, k))) pivot = i;
    if (pivots) pivots[k] = pivot + 1;
    if (a(pivot, k) == 0) {
      if (!info) info = k + 1;
      continue;
    }
    for (int j = 0; j < n; ++j) std::swap(a(k, j), a(pivot, j));
    for (int i = k + 1; i < m; ++i) {
      a(i, k) /= a(k, k);
      for (int j = k + 1; j < n; ++j) a(i, j) -= a(i, k) * a(k, j);
    }
  }
  return info;
}

// Overwrites B with the solution X of A X = B, or of A' X = B, given the factors of A (getrs).
template <class T>
void solve(const Matrix<T>& a, const int* pivots, int n, const Matrix<T>& b, int columns,
           bool transposed) {
  for (int j = 0; j < columns; ++j) {
    if (!transposed) {
      for (int k = 0; k < n; ++k) std::swap(b(k, j), b(pivots[k] - 1, j));
      for (int i = 0; i < n; ++i)
        for (int k = 0; k < i; ++k) b(i, j) -= a(i, k) * b(k, j);
      for (int i = n - 1; i >= 0; --i) {
        for (int k = i + 1; k < n; ++k) b(i, j) -= a(i, k) * b(k, j);
        b(i, j) /= a(i, i);
      }
    } else {
      for (int i = 0; i < n; ++i) {
        for (int k = 0; k < i; ++k) b(i, j) -= a(k, i) * b(k, j);
        b(i, j) /= a(i, i);
      }
      for (int i = n - 1; i >= 0; --i)
        for (int k = i + 1; k < n; ++k) b(i, j) -= a(k, i) * b(k, j);
      for (int k = n - 1; k >= 0; --k) std::swap(b(k, j), b(pivots[k] - 1, j));
    }
  }
}

// Cholesky factorization in place of the given triangle (potrf); returns the order of the first
// leading minor that is not positive, or 0.
template <class T> int cholesky(const Matrix<T>& a, int n, bool lower) {
  auto at = [&](int row, int column) -> T& { return lower ? a(row, column) : a(column, row); };
  for (int j = 0; j < n; ++j) {
    T sum = at(j, j);
    for (int k = 0; k < j; ++k) sum -= at(j, k) * at(j, k);
    if (!(sum > 0)) return j + 1;
    at(j, j) = std::sqrt(sum);
    for (int i = j + 1; i < n; ++i) {
      T rest = at(i, j);
      for (int k = 0; k < j; ++k) rest -= at(i, k) * at(j, k);
      at(i, j) = rest / at(j, j);
    }
  }
  return 0;
}

}  // namespace library
