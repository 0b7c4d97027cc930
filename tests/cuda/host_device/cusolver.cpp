// The part of cuSOLVER that CuPy's linalg.inv, solve, det, slogdet and cholesky use.
#include "library.hpp"

using namespace library;

namespace {

enum Status { kSuccess = 0, kExecutionFailed = 6 };

int queued(void* handle, const char* name, std::function<void()> work) {
  return queue(handle, name, std::move(work)) ? kExecutionFailed : kSuccess;
}

}  // namespace

EXPORT int cusolverDnCreate(void** handle) {
  *handle = new Handle;
  return kSuccess;
}
EXPORT int cusolverDnDestroy(void* handle) {
  delete (Handle*)handle;
  return kSuccess;
}
EXPORT int cusolverDnSetStream(void* handle, void* stream) {
  ((Handle*)handle)->stream = stream;
  return kSuccess;
}
EXPORT int cusolverDnGetStream(void* handle, void** stream) {
  *stream = ((Handle*)handle)->stream;
  return kSuccess;
}
// MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL: of the library whose soname this one has.
EXPORT int cusolverGetProperty(int type, int* value) {
  *value = type == 0 ? 12 : 0;
  return kSuccess;
}

#define TYPED(P, T)                                                                                \
  EXPORT int cusolverDn##P##getrf_bufferSize(void*, int, int, T*, int, int* size) {                \
    *size = 1;                                                                                     \
    return kSuccess;                                                                               \
  }                                                                                                \
  EXPORT int cusolverDn##P##getrf(void* handle, int m, int n, T* a, int lda, T*, int* pivots,      \
                                  int* info) {                                                     \
    return queued(handle, "getrf", [=] { *info = factorize<T>({a, lda}, m, n, pivots); });         \
  }                                                                                                \
  EXPORT int cusolverDn##P##getrs(void* handle, int transposed, int n, int columns, const T* a,    \
                                  int lda, const int* pivots, T* b, int ldb, int* info) {          \
    return queued(handle, "getrs", [=] {                                                           \
      solve<T>({(T*)a, lda}, pivots, n, {b, ldb}, columns, transposed != 0);                       \
      *info = 0;                                                                                   \
    });                                                                                            \
  }                                                                                                \
  EXPORT int cusolverDn##P##potrf_bufferSize(void*, int, int, T*, int, int* size) {                \
    *size = 1;                                                                                     \
    return kSuccess;                                                                               \
  }                                                                                                \
  EXPORT int cusolverDn##P##potrf(void* handle, int upper, int n, T* a, int lda, T*, int,          \
                                  int* info) {                                                     \
    return queued(handle, "potrf", [=] { *info = cholesky<T>({a, lda}, n, !upper); });             \
  }                                                                                                \
  EXPORT int cusolverDn##P##potrfBatched(void* handle, int upper, int n, T** a, int lda,           \
                                         int* info, int batches) {                                 \
    return queued(handle, "potrf", [=] {                                                           \
      for (int i = 0; i < batches; ++i) info[i] = cholesky<T>({a[i], lda}, n, !upper);             \
    });                                                                                            \
  }

TYPED(S, float)
TYPED(D, double)
