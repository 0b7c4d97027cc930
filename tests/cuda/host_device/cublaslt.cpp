// cuBLASLt on host memory: the calls gpugrad makes, stricter than NVIDIA's library.
//
// Work goes to streams of the host-memory device through `host_device_submit`, so that capture, replay and
// asynchrony see it. What the documentation forbids is refused here even where a given GPU would let
// it pass: types outside the table of cublasLtMatmul(), leading dimensions, memory that is no device
// memory, pointers less aligned than the heuristic was told, an algorithm of another problem, a
// workspace that is absent, small or not aligned to 256 bytes, epilogues without their buffers.
// Some problems are summed in parts through the workspace, so that two streams sharing one show.
//
// Sources: cublasLt.h of CUDA 13 (attributes, sizes, epilogues) and the cuBLAS guide, section
// cublasLtMatmul() (types, alignment of the workspace). Results need not be bit-equal to a GPU's.

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

extern "C" int host_device_submit(void* stream, const char* what, int (*run)(void*), void* argument,
                           void (*destroy)(void*));

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_64F = 1, R_16F = 2, C_32F = 4, C_64F = 5, R_16BF = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };
enum Desc { COMPUTE_TYPE = 0, SCALE_TYPE = 1, POINTER_MODE = 2, TRANS_A = 3, TRANS_B = 4, TRANS_C = 5, EPILOGUE = 7,
            BIAS_POINTER = 8, BIAS_STRIDE = 10, AUX_POINTER = 11, AUX_LD = 12, AUX_STRIDE = 13, AUX_TYPE = 22, BIAS_TYPE = 26 };
enum Layout { TYPE = 0, ORDER = 1, ROWS = 2, COLS = 3, LD = 4, BATCH = 5, STRIDE = 6 };
enum Preference { SEARCH_MODE = 0, MAX_WORKSPACE = 1, REDUCTIONS = 3, ALIGN_A = 5, ALIGN_B = 6, ALIGN_C = 7, ALIGN_D = 8 };
enum Epilogue : unsigned { NOTHING = 1, RELU = 2, BIAS = 4, D_RELU = 8, BIAS_GRADIENT = 16, GELU = 32, D_GELU = 64, AUX = 128,
                           BIAS_GRADIENT_A = 256, BIAS_GRADIENT_B = 512 };
constexpr unsigned EPILOGUES[] = {NOTHING, RELU, RELU | AUX, BIAS, RELU | BIAS, RELU | AUX | BIAS, D_RELU | AUX,
                                  D_RELU | AUX | BIAS_GRADIENT, GELU, GELU | AUX, GELU | BIAS, GELU | AUX | BIAS,
                                  D_GELU | AUX, D_GELU | AUX | BIAS_GRADIENT, BIAS_GRADIENT_A, BIAS_GRADIENT_B};
constexpr unsigned NEEDS_BIAS = BIAS | BIAS_GRADIENT | BIAS_GRADIENT_A | BIAS_GRADIENT_B;
constexpr unsigned REDUCTION_IN_COMPUTE_TYPE = 2;

// ---- descriptors: attributes with their sizes, as cublasLt.h states them

using Sizes = std::map<int, size_t>;
const Sizes DESC_SIZES = {{COMPUTE_TYPE, 4}, {SCALE_TYPE, 4}, {POINTER_MODE, 4}, {TRANS_A, 4}, {TRANS_B, 4}, {TRANS_C, 4},
                          {EPILOGUE, 4}, {BIAS_POINTER, 8}, {BIAS_STRIDE, 8}, {AUX_POINTER, 8}, {AUX_LD, 8}, {AUX_STRIDE, 8},
                          {AUX_TYPE, 4}, {BIAS_TYPE, 4}};
const Sizes LAYOUT_SIZES = {{TYPE, 4}, {ORDER, 4}, {ROWS, 8}, {COLS, 8}, {LD, 8}, {BATCH, 4}, {STRIDE, 8}};
const Sizes PREFERENCE_SIZES = {{SEARCH_MODE, 4}, {MAX_WORKSPACE, 8}, {REDUCTIONS, 4}, {ALIGN_A, 4}, {ALIGN_B, 4},
                                {ALIGN_C, 4}, {ALIGN_D, 4}};

struct Attributes {
  const Sizes* sizes;
  std::map<int, int64_t> values;
  int64_t operator[](int name) const {
    auto found = values.find(name);
    return found == values.end() ? 0 : found->second;
  }
};

std::set<const void*> alive;  // descriptors and handles that exist: use after destruction is found
std::mutex alive_lock;

bool lives(const void* p) {
  std::lock_guard<std::mutex> guard(alive_lock);
  return alive.count(p) != 0;
}

template <class T>
int create(T** out, T* made) {
  std::lock_guard<std::mutex> guard(alive_lock);
  alive.insert(made);
  *out = made;
  return SUCCESS;
}

template <class T>
int destroy(T* p) {
  std::lock_guard<std::mutex> guard(alive_lock);
  if (!alive.erase(p)) return INVALID_VALUE;
  delete p;
  return SUCCESS;
}

int set(Attributes* d, int name, const void* value, size_t bytes) {
  if (!lives(d) || !value) return INVALID_VALUE;
  auto size = d->sizes->find(name);
  if (size == d->sizes->end()) {
    std::fprintf(stderr, "cublaslt.cpp: attribute %d is not modelled\n", name);
    return NOT_SUPPORTED;
  }
  if (size->second != bytes) return INVALID_VALUE;
  int32_t narrow;
  int64_t wide;
  if (bytes == 4) std::memcpy(&narrow, value, 4), wide = narrow;
  else std::memcpy(&wide, value, 8);
  d->values[name] = wide;
  return SUCCESS;
}

// ---- what is supported

size_t size_of(int type) {
  return type == C_64F ? 16 : type == R_64F || type == C_32F ? 8 : type == R_32F ? 4 : 2;
}

// The table of cublasLtMatmul(): (compute, scale, A and B, C and D); whether epilogues are supported.
struct Row { int compute, scale, ab, cd; bool epilogues; };
constexpr Row TABLE[] = {
    {COMPUTE_32F, R_32F, R_16BF, R_16BF, true},  {COMPUTE_32F, R_32F, R_16F, R_16F, true},
    {COMPUTE_32F, R_32F, R_16BF, R_32F, true},   {COMPUTE_32F, R_32F, R_16F, R_32F, true},
    {COMPUTE_32F, R_32F, R_32F, R_32F, true},    {COMPUTE_32F, C_32F, C_32F, C_32F, false},
    {COMPUTE_32F_FAST_TF32, R_32F, R_32F, R_32F, true}, {COMPUTE_32F_FAST_TF32, C_32F, C_32F, C_32F, false},
    {COMPUTE_64F, R_64F, R_64F, R_64F, true},    {COMPUTE_64F, C_64F, C_64F, C_64F, false},
};

std::atomic<unsigned> refused{0};  // epilogue bits this "GPU" does not support, for tests
std::atomic<long> heuristics{0}, products{0};

struct Matrix { int type; int64_t rows, cols, ld, batch, stride; };

Matrix matrix_of(const Attributes& d) {
  return {(int)d[TYPE], d[ROWS], d[COLS], d[LD], std::max<int64_t>(d[BATCH], 1), d[STRIDE]};
}

struct Problem {
  int compute, scale, epilogue;
  bool trans_a, trans_b;
  Matrix a, b, c, d;
  int64_t m, n, k, aux_ld, bias_stride, aux_stride;
};

int complain(int status, const char* why) {
  std::fprintf(stderr, "cublaslt.cpp: %s\n", why);
  return status;
}

bool sound(const Matrix& x) {
  return x.rows > 0 && x.cols > 0 && x.rows < 1ll << 31 && x.cols < 1ll << 31 && x.ld >= x.rows && x.stride >= 0;
}

int check_types(const Problem& p) {
  for (const Row& row : TABLE)
    if (row.compute == p.compute && row.scale == p.scale && row.ab == p.a.type && row.ab == p.b.type &&
        row.cd == p.c.type && row.cd == p.d.type) {
      if (p.epilogue != NOTHING && !row.epilogues) return complain(NOT_SUPPORTED, "no epilogue for these types");
      return SUCCESS;
    }
  return complain(NOT_SUPPORTED, "types are not in the table of cublasLtMatmul()");
}

int check_epilogue(const Problem& p) {
  if (std::find(std::begin(EPILOGUES), std::end(EPILOGUES), (unsigned)p.epilogue) == std::end(EPILOGUES))
    return complain(INVALID_VALUE, "no such epilogue");
  if (p.epilogue & refused) return NOT_SUPPORTED;
  if (p.epilogue & AUX) {
    int64_t multiple = p.epilogue & (RELU | D_RELU) ? 128 : 8;
    if (p.aux_ld % multiple || p.aux_ld < p.m) return complain(INVALID_VALUE, "leading dimension of the auxiliary matrix");
    if (p.aux_stride % multiple) return complain(INVALID_VALUE, "batch stride of the auxiliary matrix");
  }
  return SUCCESS;
}

int describe(const Attributes* desc, const Attributes* a, const Attributes* b, const Attributes* c, const Attributes* d,
             Problem& p) {
  for (const Attributes* x : {desc, a, b, c, d})
    if (!lives(x)) return complain(INVALID_VALUE, "a descriptor is not alive");
  auto& s = *desc;
  p = {(int)s[COMPUTE_TYPE], (int)s[SCALE_TYPE], (int)s[EPILOGUE], s[TRANS_A] == 1, s[TRANS_B] == 1,
       matrix_of(*a), matrix_of(*b), matrix_of(*c), matrix_of(*d), 0, 0, 0, s[AUX_LD], s[BIAS_STRIDE], s[AUX_STRIDE]};
  if (s[TRANS_A] > 1 || s[TRANS_B] > 1 || s[TRANS_C] || s[POINTER_MODE]) return complain(NOT_SUPPORTED, "transposition or pointer mode");
  for (const Attributes* x : {a, b, c, d})
    if ((*x)[ORDER]) return complain(NOT_SUPPORTED, "only column-major matrices are modelled");
  for (const Matrix* x : {&p.a, &p.b, &p.c, &p.d})
    if (!sound(*x)) return complain(INVALID_VALUE, "size or leading dimension of a matrix");
  p.m = p.trans_a ? p.a.cols : p.a.rows;
  p.k = p.trans_a ? p.a.rows : p.a.cols;
  p.n = p.trans_b ? p.b.rows : p.b.cols;
  if ((p.trans_b ? p.b.cols : p.b.rows) != p.k || p.d.rows != p.m || p.d.cols != p.n || p.c.rows != p.m || p.c.cols != p.n)
    return complain(INVALID_VALUE, "sizes of the matrices do not fit");
  if (p.a.batch != p.d.batch || p.b.batch != p.d.batch || p.c.batch != p.d.batch) return complain(INVALID_VALUE, "batch counts differ");
  if (p.d.batch > 1 && p.d.stride < p.d.ld * (p.d.cols - 1) + p.d.rows) return complain(INVALID_VALUE, "results of a batch overlap");
  int status = check_types(p);
  return status ? status : check_epilogue(p);
}

// ---- algorithms

struct Algo { uint64_t magic, problem, workspace, parts; uint32_t align[4]; uint64_t unused[2]; };
static_assert(sizeof(Algo) == 64, "cublasLtMatmulAlgo_t");
struct Result { Algo algo; size_t workspace; int state; float waves; int reserved[4]; };
static_assert(sizeof(Result) == 96, "cublasLtMatmulHeuristicResult_t");
constexpr uint64_t MAGIC = 0x6c74616c676f7269;

uint64_t hash_of(const Problem& p) {
  uint64_t h = 1469598103934665603ull;
  auto mix = [&](int64_t v) { h = (h ^ (uint64_t)v) * 1099511628211ull; };
  for (int64_t v : {(int64_t)p.compute, (int64_t)p.scale, (int64_t)p.epilogue, (int64_t)p.trans_a, (int64_t)p.trans_b, p.aux_ld}) mix(v);
  for (const Matrix* x : {&p.a, &p.b, &p.c, &p.d})
    for (int64_t v : {(int64_t)x->type, x->rows, x->cols, x->ld, x->batch, x->stride}) mix(v);
  return h;
}

// ---- arithmetic

struct BF16 { uint16_t bits; };

template <class A, class T> A load(const T& x) { return (A)x; }
template <> float load<float, BF16>(const BF16& x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
template <class T, class A> T store(A x) { return (T)x; }
template <> BF16 store<BF16, float>(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float to_tf32(float x) {  // ten bits of mantissa, to nearest
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isfinite(x)) bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&x, &bits, 4);
  return x;
}
template <class A> A to_tf32(A x) { return x; }

// The cuBLAS guide names GELU without its form; the library computes the approximation by tanh.
template <class A> A gelu(A x) {
  return x / 2 * (1 + std::tanh((A)0.7978845608028654 * (x + (A)0.044715 * x * x * x)));
}
template <class A> A gelu_slope(A x) {
  A inner = (A)0.7978845608028654 * (x + (A)0.044715 * x * x * x), t = std::tanh(inner);
  return (1 + t) / 2 + x / 2 * (1 - t * t) * (A)0.7978845608028654 * (1 + 3 * (A)0.044715 * x * x);
}

struct Call {
  Problem p;
  const char *a, *b, *c;
  char *d, *bias, *aux, *workspace;
  int64_t parts;
  double alpha[2], beta[2];
};

// op(X) as a dense column-major matrix of the accumulator's type.
template <class A, class T>
std::vector<A> dense(const T* x, const Matrix& shape, bool transposed, bool tf32) {
  int64_t rows = transposed ? shape.cols : shape.rows, cols = transposed ? shape.rows : shape.cols;
  std::vector<A> out(rows * cols);
  for (int64_t j = 0; j < cols; ++j)
    for (int64_t i = 0; i < rows; ++i) {
      A v = load<A, T>(x[transposed ? j + i * shape.ld : i + j * shape.ld]);
      out[i + j * rows] = tf32 ? to_tf32(v) : v;
    }
  return out;
}

template <class A>
void multiply(const A* a, const A* b, A* out, int64_t m, int64_t n, int64_t k, int64_t from, int64_t to) {
  std::fill(out, out + m * n, A(0));
  for (int64_t j = 0; j < n; ++j)
    for (int64_t l = from; l < to; ++l) {
      A factor = b[l + j * k];
      const A* column = a + l * m;
      A* sum = out + j * m;
      for (int64_t i = 0; i < m; ++i) sum[i] += column[i] * factor;
    }
}


template <class A, class T>
void apply_epilogue(const Call& call, std::vector<A>& z, int64_t batch) {
  const Problem& p = call.p;
  unsigned e = p.epilogue;
  T* bias = (T*)call.bias + batch * p.bias_stride;
  if (e & BIAS)
    for (int64_t j = 0; j < p.n; ++j)
      for (int64_t i = 0; i < p.m; ++i) z[i + j * p.m] += load<A, T>(bias[i]);
  for (int64_t j = 0; j < p.n; ++j)
    for (int64_t i = 0; i < p.m; ++i) {
      A& v = z[i + j * p.m];
      int64_t at = batch * p.aux_stride + i + j * p.aux_ld;
      uint8_t* mask = (uint8_t*)call.aux + at / 8;
      uint8_t bit = 1 << at % 8;
      T* kept = (T*)call.aux + at;
      if (e & RELU) {  // NaN becomes 0, as in the library and unlike torch.relu
        bool positive = v > 0;
        if (e & AUX) *mask = positive ? *mask | bit : *mask & ~bit;
        v = positive ? v : A(0);
      } else if (e & GELU) {
        if (e & AUX) *kept = store<T, A>(v);
        v = gelu(v);
      } else if (e & D_RELU) {
        v = *mask & bit ? v : A(0);
      } else if (e & D_GELU) {
        v *= gelu_slope(load<A, T>(*kept));
      }
    }
  if (e & BIAS_GRADIENT)
    for (int64_t i = 0; i < p.m; ++i) {
      A sum = 0;
      for (int64_t j = 0; j < p.n; ++j) sum += z[i + j * p.m];
      bias[i] = store<T, A>(sum);
    }
}

template <class A, class T>
void sum_operand(const Call& call, const std::vector<A>& a, const std::vector<A>& b) {
  const Problem& p = call.p;
  bool of_a = p.epilogue & BIAS_GRADIENT_A;
  for (int64_t i = 0; i < (of_a ? p.m : p.n); ++i) {
    A sum = 0;
    for (int64_t l = 0; l < p.k; ++l) sum += of_a ? a[i + l * p.m] : b[l + i * p.k];
    ((T*)call.bias)[i] = store<T, A>(sum);
  }
}

template <class A, class T, class O, bool real>
int run(const Call& call) {
  const Problem& p = call.p;
  for (int64_t q = 0; q < p.d.batch; ++q) {
    bool tf32 = p.compute == COMPUTE_32F_FAST_TF32;
    auto a = dense<A, T>((const T*)call.a + q * p.a.stride, p.a, p.trans_a, tf32);
    auto b = dense<A, T>((const T*)call.b + q * p.b.stride, p.b, p.trans_b, tf32);
    std::vector<A> z(p.m * p.n);
    if (call.parts == 1) {
      multiply(a.data(), b.data(), z.data(), p.m, p.n, p.k, 0, p.k);
    } else {  // partial sums in the workspace, then their sum
      A* partial = (A*)call.workspace;
      for (int64_t s = 0; s < call.parts; ++s)
        multiply(a.data(), b.data(), partial + s * p.m * p.n, p.m, p.n, p.k, p.k * s / call.parts, p.k * (s + 1) / call.parts);
      for (int64_t s = 0; s < call.parts; ++s)
        for (int64_t i = 0; i < p.m * p.n; ++i) z[i] += partial[s * p.m * p.n + i];
    }
    A alpha, beta;
    if constexpr (real) alpha = (A)call.alpha[0], beta = (A)call.beta[0];
    else alpha = A(call.alpha[0], call.alpha[1]), beta = A(call.beta[0], call.beta[1]);
    const O* c = (const O*)call.c + q * p.c.stride;
    for (int64_t j = 0; j < p.n; ++j)
      for (int64_t i = 0; i < p.m; ++i) {
        A& v = z[i + j * p.m];
        v *= alpha;
        if (beta != A(0)) v += beta * load<A, O>(c[i + j * p.c.ld]);
      }
    if constexpr (real) {
      if (p.epilogue & (BIAS_GRADIENT_A | BIAS_GRADIENT_B)) sum_operand<A, O>(call, a, b);
      apply_epilogue<A, O>(call, z, q);
    }
    O* d = (O*)call.d + q * p.d.stride;
    for (int64_t j = 0; j < p.n; ++j)
      for (int64_t i = 0; i < p.m; ++i) d[i + j * p.d.ld] = store<O, A>(z[i + j * p.m]);
  }
  ++products;
  return 0;
}

int execute(const Call& call) {
  switch (call.p.a.type) {
    case R_64F: return run<double, double, double, true>(call);
    case C_32F: return run<std::complex<float>, std::complex<float>, std::complex<float>, false>(call);
    case C_64F: return run<std::complex<double>, std::complex<double>, std::complex<double>, false>(call);
    case R_32F: return run<float, float, float, true>(call);
    case R_16F:
      return call.p.d.type == R_16F ? run<float, _Float16, _Float16, true>(call) : run<float, _Float16, float, true>(call);
    default: return call.p.d.type == R_16BF ? run<float, BF16, BF16, true>(call) : run<float, BF16, float, true>(call);
  }
}

// ---- memory: every operand must lie in device memory, as the device's own runtime says

bool on_device(const void* p, int64_t bytes) {
  struct { int type, device; void *of_device, *of_host; long reserved[8]; } found;  // cudaPointerAttributes
  static auto ask = (int (*)(void*, const void*))dlsym(RTLD_DEFAULT, "cudaPointerGetAttributes");
  if (!p) return false;
  if (!ask) return true;
  for (const char* end : {(const char*)p, (const char*)p + bytes - 1})
    if (ask(&found, end) || found.type != 2) return false;
  return true;
}

int64_t bytes_of(const Matrix& x) {
  return (x.stride * (x.batch - 1) + x.ld * (x.cols - 1) + x.rows) * (int64_t)size_of(x.type);
}

int64_t bytes_of_aux(const Problem& p) {
  int64_t elements = p.aux_stride * (p.d.batch - 1) + p.aux_ld * (p.n - 1) + p.m;
  return p.epilogue & (RELU | D_RELU) ? (elements + 7) / 8 : elements * (int64_t)size_of(p.d.type);
}

bool aligned(const void* p, uint32_t bytes) { return bytes == 0 || (uintptr_t)p % bytes == 0; }

int check_memory(const Call& call, const Algo& algo, size_t workspace_bytes) {
  const Problem& p = call.p;
  const void* pointers[] = {call.a, call.b, call.c, call.d};
  const Matrix* shapes[] = {&p.a, &p.b, &p.c, &p.d};
  for (int i = 0; i < 4; ++i) {
    bool read = i != 2 || call.beta[0] || call.beta[1];
    if (read && !on_device(pointers[i], bytes_of(*shapes[i]))) return complain(EXECUTION_FAILED, "an operand is not in device memory");
    if (read && !aligned(pointers[i], algo.align[i])) return complain(INVALID_VALUE, "an operand is less aligned than the heuristic was told");
  }
  unsigned e = p.epilogue;
  int64_t length = e & BIAS_GRADIENT_B ? p.n : p.m;
  if (e & NEEDS_BIAS && !on_device(call.bias, length * (int64_t)size_of(p.d.type))) return complain(INVALID_VALUE, "no bias vector");
  if (e & NEEDS_BIAS && !aligned(call.bias, (uint32_t)size_of(p.d.type))) return complain(INVALID_VALUE, "alignment of the bias vector");
  if (e & AUX && (!on_device(call.aux, bytes_of_aux(p)) || !aligned(call.aux, 16))) return complain(INVALID_VALUE, "no auxiliary matrix, or not aligned to 16 bytes");
  if (workspace_bytes < algo.workspace) return complain(INVALID_VALUE, "the workspace is smaller than the algorithm needs");
  if (workspace_bytes && (!on_device(call.workspace, (int64_t)workspace_bytes) || !aligned(call.workspace, 256)))
    return complain(INVALID_VALUE, "the workspace is not in device memory or not aligned to 256 bytes");
  return SUCCESS;
}

int handles = 0;

}  // namespace

// ---- the library

API int cublasLtCreate(int** handle) { return create(handle, new int(++handles)); }
API int cublasLtDestroy(int* handle) { return destroy(handle); }
API size_t cublasLtGetVersion() { return 130000; }
API const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    default: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}

API int cublasLtMatmulDescCreate(Attributes** out, int compute, int scale) {
  return create(out, new Attributes{&DESC_SIZES, {{COMPUTE_TYPE, compute}, {SCALE_TYPE, scale}, {EPILOGUE, NOTHING}}});
}
API int cublasLtMatmulDescDestroy(Attributes* d) { return destroy(d); }
API int cublasLtMatmulDescSetAttribute(Attributes* d, int name, const void* value, size_t bytes) { return set(d, name, value, bytes); }

API int cublasLtMatrixLayoutCreate(Attributes** out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  return create(out, new Attributes{&LAYOUT_SIZES, {{TYPE, type}, {ROWS, (int64_t)rows}, {COLS, (int64_t)cols}, {LD, ld}, {BATCH, 1}}});
}
API int cublasLtMatrixLayoutDestroy(Attributes* d) { return destroy(d); }
API int cublasLtMatrixLayoutSetAttribute(Attributes* d, int name, const void* value, size_t bytes) { return set(d, name, value, bytes); }

API int cublasLtMatmulPreferenceCreate(Attributes** out) {
  return create(out, new Attributes{&PREFERENCE_SIZES, {{REDUCTIONS, 7}, {ALIGN_A, 256}, {ALIGN_B, 256}, {ALIGN_C, 256}, {ALIGN_D, 256}}});
}
API int cublasLtMatmulPreferenceDestroy(Attributes* d) { return destroy(d); }
API int cublasLtMatmulPreferenceSetAttribute(Attributes* d, int name, const void* value, size_t bytes) { return set(d, name, value, bytes); }

API int cublasLtMatmulAlgoGetHeuristic(int* handle, Attributes* desc, Attributes* a, Attributes* b, Attributes* c, Attributes* d,
                                       Attributes* preference, int wanted, Result* results, int* found) {
  if (!lives(handle)) return NOT_INITIALIZED;
  if (!lives(preference) || wanted < 1 || !results || !found) return INVALID_VALUE;
  *found = 0;
  Problem p;
  if (int status = describe(desc, a, b, c, d, p)) return status;
  ++heuristics;
  Algo algo = {MAGIC, hash_of(p), 0, 1, {}, {}};
  for (int i = 0; i < 4; ++i) algo.align[i] = (uint32_t)(*preference)[ALIGN_A + i];
  uint64_t partial = 4ull * p.m * p.n * (p.a.type == R_64F ? 8 : p.a.type == C_32F ? 8 : p.a.type == C_64F ? 16 : 4);
  bool deep = p.k >= 64 && p.k >= 2 * std::max(p.m, p.n);
  if (deep && partial <= (uint64_t)(*preference)[MAX_WORKSPACE] && (*preference)[REDUCTIONS] & REDUCTION_IN_COMPUTE_TYPE)
    algo.parts = 4, algo.workspace = partial;
  results[0] = {algo, algo.workspace, SUCCESS, 1.0f, {}};
  *found = 1;
  return SUCCESS;
}

API int cublasLtMatmul(int* handle, Attributes* desc, const void* alpha, const char* A, Attributes* a, const char* B, Attributes* b,
                       const void* beta, const char* C, Attributes* c, char* D, Attributes* d, const Algo* algo, char* workspace,
                       size_t workspace_bytes, void* stream) {
  if (!lives(handle)) return NOT_INITIALIZED;
  Call call = {};
  if (int status = describe(desc, a, b, c, d, call.p)) return status;
  if (!algo || algo->magic != MAGIC || algo->problem != hash_of(call.p)) return complain(INVALID_VALUE, "the algorithm is that of another problem");
  auto& s = *desc;
  call.a = A, call.b = B, call.c = C, call.d = D, call.workspace = workspace, call.parts = (int64_t)algo->parts;
  call.bias = (char*)s[BIAS_POINTER], call.aux = (char*)s[AUX_POINTER];
  for (auto [from, to] : {std::pair{alpha, call.alpha}, std::pair{beta, call.beta}}) {
    if (!from) return INVALID_VALUE;
    if (call.p.scale == R_32F) to[0] = *(const float*)from;
    else if (call.p.scale == C_32F) to[0] = ((const float*)from)[0], to[1] = ((const float*)from)[1];
    else if (call.p.scale == R_64F) to[0] = *(const double*)from;
    else to[0] = ((const double*)from)[0], to[1] = ((const double*)from)[1];
  }
  if (int status = check_memory(call, *algo, workspace_bytes)) return status;
  auto run_it = [](void* x) { return execute(*(Call*)x); };
  return host_device_submit(stream, "gemm", run_it, new Call(call), [](void* x) { delete (Call*)x; }) ? EXECUTION_FAILED : SUCCESS;
}

// ---- for tests

API void host_cublaslt_refuse(unsigned epilogue_bits) { refused = epilogue_bits; }
API long host_cublaslt_count(int which) { return which ? products.load() : heuristics.load(); }
