// The part of cuBLAS that CuPy's dot, matmul, tensordot and linalg use, on the host-memory device.
//
// Work goes through the device's streams, so capture and replay see it. Matrices are column-major.
// Arithmetic is float for half, bfloat16 and float, double for double; every product is summed in
// the order of its inner dimension.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <library_types.h>

#include "library.hpp"

#include <vector>

namespace {

// cublasStatus_t and cublasComputeType_t; the header is not among the wheels this builds with.
enum Status { kSuccess = 0, kInvalidValue = 7, kExecutionFailed = 13 };
enum ComputeType { kCompute16F = 64, kCompute16FPedantic = 65, kCompute64F = 70,
                   kCompute64FPedantic = 71, kCompute32I = 72, kCompute32IPedantic = 73 };

using library::Handle;

int queue(void* handle, const char* name, std::function<void()> work) {
  return library::queue(handle, name, std::move(work)) ? kExecutionFailed : kSuccess;
}

size_t size_of(int type) {
  switch (type) {
    case CUDA_R_64F: return 8;
    case CUDA_R_16F: case CUDA_R_16BF: return 2;
    case CUDA_R_8I: return 1;
    default: return 4;
  }
}

double load(const void* p, int64_t i, int type) {
  switch (type) {
    case CUDA_R_32F: return ((const float*)p)[i];
    case CUDA_R_64F: return ((const double*)p)[i];
    case CUDA_R_16F: return __half2float(((const __half*)p)[i]);
    case CUDA_R_16BF: return __bfloat162float(((const __nv_bfloat16*)p)[i]);
    case CUDA_R_8I: return ((const signed char*)p)[i];
    default: return ((const int*)p)[i];
  }
}

void store(void* p, int64_t i, int type, double value) {
  switch (type) {
    case CUDA_R_32F: ((float*)p)[i] = (float)value; break;
    case CUDA_R_64F: ((double*)p)[i] = value; break;
    case CUDA_R_16F: ((__half*)p)[i] = __float2half((float)value); break;
    case CUDA_R_16BF: ((__nv_bfloat16*)p)[i] = __float2bfloat16((float)value); break;
    default: ((int*)p)[i] = (int)value;
  }
}

struct Matrix {
  char* data;
  int type, leading;
  int64_t stride;  // elements between the matrices of a batch

  char* at(int batch) const { return data + batch * stride * (int64_t)size_of(type); }
};

// Elements as Number, row by row: rows x columns, of the matrix or of its transpose.
template <class Number>
std::vector<Number> gather(const Matrix& m, int batch, bool transposed, int rows, int columns) {
  std::vector<Number> out((size_t)rows * columns);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      const int64_t at = transposed ? j + (int64_t)i * m.leading : i + (int64_t)j * m.leading;
      out[(size_t)i * columns + j] = (Number)load(m.at(batch), at, m.type);
    }
  return out;
}

// C = alpha op(A) op(B) + beta C; op(A) is m x k, op(B) is k x n.
struct Product {
  int m, n, k;
  bool a_transposed, b_transposed;
  double alpha, beta;
  Matrix a, b, c;
  int batches;
};

template <class Number> void multiply(const Product& p) {
  std::vector<Number> sums(p.n);
  for (int batch = 0; batch < p.batches; ++batch) {
    const auto a = gather<Number>(p.a, batch, p.a_transposed, p.m, p.k);
    const auto b = gather<Number>(p.b, batch, p.b_transposed, p.k, p.n);
    char* c = p.c.at(batch);
    for (int i = 0; i < p.m; ++i) {
      std::fill(sums.begin(), sums.end(), Number(0));
      for (int l = 0; l < p.k; ++l) {
        const Number factor = a[(size_t)i * p.k + l];
        const Number* row = &b[(size_t)l * p.n];
        for (int j = 0; j < p.n; ++j) sums[j] += factor * row[j];
      }
      for (int j = 0; j < p.n; ++j) {
        const int64_t at = i + (int64_t)j * p.c.leading;
        // beta of 0 means that C is not read: it may hold NaN
        const double old = p.beta ? p.beta * load(c, at, p.c.type) : 0;
        store(c, at, p.c.type, p.alpha * (double)sums[j] + old);
      }
    }
  }
}

int gemm(void* handle, const Product& p, bool in_double) {
  const bool legal = p.m >= 0 && p.n >= 0 && p.k >= 0 &&
                     p.a.leading >= std::max(1, p.a_transposed ? p.k : p.m) &&
                     p.b.leading >= std::max(1, p.b_transposed ? p.n : p.k) &&
                     p.c.leading >= std::max(1, p.m);
  if (!legal) return kInvalidValue;
  return queue(handle, "gemm", [=] { in_double ? multiply<double>(p) : multiply<float>(p); });
}

Matrix matrix(const void* data, int type, int leading, int64_t stride = 0) {
  return {(char*)data, type, leading, stride};
}

double scalar(const void* value, int compute) {
  switch (compute) {
    case kCompute16F: case kCompute16FPedantic: return __half2float(*(const __half*)value);
    case kCompute64F: case kCompute64FPedantic: return *(const double*)value;
    case kCompute32I: case kCompute32IPedantic: return *(const int*)value;
    default: return *(const float*)value;
  }
}

bool is_double(int compute) { return compute == kCompute64F || compute == kCompute64FPedantic; }

template <class T> constexpr int type_of = sizeof(T) == 8 ? CUDA_R_64F : CUDA_R_32F;

template <class T>
int typed_gemm(void* handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* a,
               int lda, int64_t stride_a, const T* b, int ldb, int64_t stride_b, const T* beta,
               T* c, int ldc, int64_t stride_c, int batches) {
  constexpr int type = type_of<T>;
  return gemm(handle,
              {m, n, k, ta != 0, tb != 0, *alpha, *beta, matrix(a, type, lda, stride_a),
               matrix(b, type, ldb, stride_b), matrix(c, type, ldc, stride_c), batches},
              sizeof(T) == 8);
}

// The same for matrices at addresses that are themselves in device memory.
template <class T>
int gemm_at(void* handle, int ta, int tb, int m, int n, int k, const T* alpha_, const T* const* a,
            int lda, const T* const* b, int ldb, const T* beta_, T* const* c, int ldc,
            int batches) {
  constexpr int type = type_of<T>;
  const double alpha = *alpha_, beta = *beta_;
  return queue(handle, "gemm", [=] {
    for (int i = 0; i < batches; ++i)
      multiply<T>({m, n, k, ta != 0, tb != 0, alpha, beta, matrix(a[i], type, lda),
                   matrix(b[i], type, ldb), matrix(c[i], type, ldc), 1});
  });
}

// y = alpha op(A) x + beta y
template <class T>
int gemv(void* handle, int transposed, int m, int n, const T* alpha_, const T* a, int lda,
         const T* x, int step_x, const T* beta_, T* y, int step_y) {
  const T alpha = *alpha_, beta = *beta_;
  return queue(handle, "gemv", [=] {
    const int rows = transposed ? n : m, columns = transposed ? m : n;
    for (int i = 0; i < rows; ++i) {
      T sum = 0;
      for (int j = 0; j < columns; ++j) {
        const int64_t at = transposed ? j + (int64_t)i * lda : i + (int64_t)j * lda;
        sum += a[at] * x[(int64_t)j * step_x];
      }
      T& out = y[(int64_t)i * step_y];
      out = alpha * sum + (beta ? beta * out : T(0));
    }
  });
}

template <class T>
int dot(void* handle, int n, const T* x, int step_x, const T* y, int step_y, T* out) {
  return queue(handle, "dot", [=] {
    T sum = 0;
    for (int i = 0; i < n; ++i) sum += x[(int64_t)i * step_x] * y[(int64_t)i * step_y];
    *out = sum;
  });
}

// A = alpha x y' + A
template <class T>
int ger(void* handle, int m, int n, const T* alpha_, const T* x, int step_x, const T* y, int step_y,
        T* a, int lda) {
  const T alpha = *alpha_;
  return queue(handle, "ger", [=] {
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < m; ++i)
        a[i + (int64_t)j * lda] += alpha * x[(int64_t)i * step_x] * y[(int64_t)j * step_y];
  });
}

// Factors of many matrices, their inverses and solutions. Without pivots there are no exchanges.
template <class T>
int getrf_batched(void* handle, int n, T* const* a, int lda, int* pivots, int* info, int batches) {
  return queue(handle, "getrf", [=] {
    for (int i = 0; i < batches; ++i)
      info[i] = library::factorize<T>({a[i], lda}, n, n, pivots + (int64_t)i * n);
  });
}

template <class T>
int getrs_batched(void* handle, int transposed, int n, int columns, const T* const* a, int lda,
                  const int* pivots, T* const* b, int ldb, int* info, int batches) {
  *info = 0;  // of the arguments; host memory
  return queue(handle, "getrs", [=] {
    for (int i = 0; i < batches; ++i)
      library::solve<T>({(T*)a[i], lda}, pivots + (int64_t)i * n, n, {b[i], ldb}, columns,
                        transposed != 0);
  });
}

template <class T>
int getri_batched(void* handle, int n, const T* const* a, int lda, const int* pivots,
                  T* const* inverse, int ldc, int* info, int batches) {
  return queue(handle, "getri", [=] {
    for (int i = 0; i < batches; ++i) {
      const library::Matrix<T> c{inverse[i], ldc};
      for (int row = 0; row < n; ++row)
        for (int column = 0; column < n; ++column) c(row, column) = row == column;
      library::solve<T>({(T*)a[i], lda}, pivots + (int64_t)i * n, n, c, n, false);
      info[i] = 0;
    }
  });
}

}  // namespace

EXPORT int cublasCreate_v2(void** handle) {
  *handle = new Handle;
  return kSuccess;
}
EXPORT int cublasDestroy_v2(void* handle) {
  delete (Handle*)handle;
  return kSuccess;
}
EXPORT int cublasGetVersion_v2(void*, int* version) {
  *version = 130000;
  return kSuccess;
}
EXPORT int cublasSetStream_v2(void* handle, void* stream) {
  ((Handle*)handle)->stream = stream;
  return kSuccess;
}
EXPORT int cublasGetStream_v2(void* handle, void** stream) {
  *stream = ((Handle*)handle)->stream;
  return kSuccess;
}
EXPORT int cublasSetPointerMode_v2(void* handle, int mode) {
  ((Handle*)handle)->pointer_mode = mode;
  return kSuccess;
}
EXPORT int cublasGetPointerMode_v2(void* handle, int* mode) {
  *mode = ((Handle*)handle)->pointer_mode;
  return kSuccess;
}
EXPORT int cublasSetMathMode(void* handle, int mode) {
  ((Handle*)handle)->math_mode = mode;
  return kSuccess;
}
EXPORT int cublasGetMathMode(void* handle, int* mode) {
  *mode = ((Handle*)handle)->math_mode;
  return kSuccess;
}
EXPORT int cublasSetWorkspace_v2(void*, void*, size_t) { return kSuccess; }

#define TYPED(P, T)                                                                                \
  EXPORT int cublas##P##gemm_v2(void* handle, int ta, int tb, int m, int n, int k, const T* alpha, \
                                const T* a, int lda, const T* b, int ldb, const T* beta, T* c,     \
                                int ldc) {                                                         \
    return typed_gemm(handle, ta, tb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);   \
  }                                                                                                \
  EXPORT int cublas##P##gemmStridedBatched(void* handle, int ta, int tb, int m, int n, int k,      \
                                           const T* alpha, const T* a, int lda, long long sa,      \
                                           const T* b, int ldb, long long sb, const T* beta, T* c, \
                                           int ldc, long long sc, int batches) {                   \
    return typed_gemm(handle, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc,    \
                      batches);                                                                    \
  }                                                                                                \
  EXPORT int cublas##P##gemmBatched(void* handle, int ta, int tb, int m, int n, int k,             \
                                    const T* alpha, const T* const* a, int lda, const T* const* b, \
                                    int ldb, const T* beta, T* const* c, int ldc, int batches) {   \
    return gemm_at(handle, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batches);         \
  }                                                                                                \
  EXPORT int cublas##P##gemv_v2(void* handle, int t, int m, int n, const T* alpha, const T* a,     \
                                int lda, const T* x, int sx, const T* beta, T* y, int sy) {        \
    return gemv(handle, t, m, n, alpha, a, lda, x, sx, beta, y, sy);                               \
  }                                                                                                \
  EXPORT int cublas##P##dot_v2(void* handle, int n, const T* x, int sx, const T* y, int sy,        \
                               T* out) {                                                           \
    return dot(handle, n, x, sx, y, sy, out);                                                      \
  }                                                                                                \
  EXPORT int cublas##P##ger_v2(void* handle, int m, int n, const T* alpha, const T* x, int sx,     \
                               const T* y, int sy, T* a, int lda) {                                \
    return ger(handle, m, n, alpha, x, sx, y, sy, a, lda);                                         \
  }                                                                                                \
  EXPORT int cublas##P##getrfBatched(void* handle, int n, T* const* a, int lda, int* pivots,       \
                                     int* info, int batches) {                                     \
    return getrf_batched(handle, n, a, lda, pivots, info, batches);                                \
  }                                                                                                \
  EXPORT int cublas##P##getrsBatched(void* handle, int t, int n, int columns, const T* const* a,   \
                                     int lda, const int* pivots, T* const* b, int ldb, int* info,  \
                                     int batches) {                                                \
    return getrs_batched(handle, t, n, columns, a, lda, pivots, b, ldb, info, batches);            \
  }                                                                                                \
  EXPORT int cublas##P##getriBatched(void* handle, int n, const T* const* a, int lda,              \
                                     const int* pivots, T* const* inverse, int ldc, int* info,     \
                                     int batches) {                                                \
    return getri_batched(handle, n, a, lda, pivots, inverse, ldc, info, batches);                  \
  }

TYPED(S, float)
TYPED(D, double)

EXPORT int cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha,
                        const void* a, int type_a, int lda, const void* b, int type_b, int ldb,
                        const void* beta, void* c, int type_c, int ldc, int compute, int) {
  return gemm(handle,
              {m, n, k, ta != 0, tb != 0, scalar(alpha, compute), scalar(beta, compute),
               matrix(a, type_a, lda), matrix(b, type_b, ldb), matrix(c, type_c, ldc), 1},
              is_double(compute));
}

EXPORT int cublasGemmStridedBatchedEx(void* handle, int ta, int tb, int m, int n, int k,
                                      const void* alpha, const void* a, int type_a, int lda,
                                      long long sa, const void* b, int type_b, int ldb,
                                      long long sb, const void* beta, void* c, int type_c, int ldc,
                                      long long sc, int batches, int compute, int) {
  return gemm(handle,
              {m, n, k, ta != 0, tb != 0, scalar(alpha, compute), scalar(beta, compute),
               matrix(a, type_a, lda, sa), matrix(b, type_b, ldb, sb), matrix(c, type_c, ldc, sc),
               batches},
              is_double(compute));
}
