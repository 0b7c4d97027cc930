// Loads with cache hints, bits, integer and floating-point intrinsics. The fast ones (__expf) are
// the exact ones here: a test's tolerance must leave room for the GPU's.
#pragma once
#include "types.h"

template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline T __ldca(const T* p) { return *p; }
template <class T> static inline T __ldlu(const T* p) { return *p; }
template <class T> static inline T __ldcv(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }
template <class T> static inline void __stwb(T* p, T v) { *p = v; }
template <class T> static inline void __stwt(T* p, T v) { *p = v; }

#define CUDACPU_CAST(name, From, To)      \
  static inline To name(From from) {      \
    To to;                                \
    memcpy(&to, &from, sizeof to);        \
    return to;                            \
  }
CUDACPU_CAST(__float_as_int, float, int)
CUDACPU_CAST(__float_as_uint, float, unsigned)
CUDACPU_CAST(__int_as_float, int, float)
CUDACPU_CAST(__uint_as_float, unsigned, float)
CUDACPU_CAST(__double_as_longlong, double, long long)
CUDACPU_CAST(__longlong_as_double, long long, double)
#undef CUDACPU_CAST

static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
static inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
static inline int __clzll(long long a) { return a ? __builtin_clzll((unsigned long long)a) : 64; }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline int __ffsll(long long a) { return __builtin_ffsll(a); }
static inline unsigned __brev(unsigned a) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (a >> i & 1) << (31 - i);
  return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline long long __mul64hi(long long a, long long b) {
  return (long long)((__int128)a * b >> 64);
}
static inline int __mul24(int a, int b) { return a * b; }
static inline unsigned __umul24(unsigned a, unsigned b) { return a * b; }
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return (unsigned)(((uint64_t)high << 32 | low) << (by & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31));
}

// What is not to become a fused multiply-add on a GPU is not to become one here.
template <class T> static inline T cudacpu_kept(T value) {
  volatile T kept = value;
  return kept;
}
static inline float __fmul_rn(float a, float b) { return cudacpu_kept(a * b); }
static inline float __fadd_rn(float a, float b) { return cudacpu_kept(a) + cudacpu_kept(b); }
static inline float __fsub_rn(float a, float b) { return cudacpu_kept(a) - cudacpu_kept(b); }
static inline double __dmul_rn(double a, double b) { return cudacpu_kept(a * b); }
static inline double __dadd_rn(double a, double b) { return cudacpu_kept(a) + cudacpu_kept(b); }
static inline double __dsub_rn(double a, double b) { return cudacpu_kept(a) - cudacpu_kept(b); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline float __frcp_rn(float a) { return 1.f / a; }
static inline float __frsqrt_rn(float a) { return 1.f / sqrtf(a); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1.f) : 0.f; }

static inline float rsqrtf(float a) { return (float)(1. / sqrt((double)a)); }
static inline double rsqrt(double a) { return 1. / sqrt(a); }
static inline float rsqrt(float a) { return rsqrtf(a); }
static inline float rcbrtf(float a) { return 1.f / cbrtf(a); }
static inline double rcbrt(double a) { return 1. / cbrt(a); }
static inline float erfcxf(float a) { return (float)(exp((double)a * a) * erfc((double)a)); }
static inline double erfcx(double a) { return exp(a * a) * erfc(a); }
static inline double cudacpu_normcdf(double a) { return 0.5 * erfc(-a * 0.70710678118654752440); }
static inline double normcdf(double a) { return cudacpu_normcdf(a); }
static inline float normcdff(float a) { return (float)cudacpu_normcdf(a); }
static inline double sinpi(double a) { return sin(3.14159265358979323846 * fmod(a, 2.)); }
static inline double cospi(double a) { return cos(3.14159265358979323846 * fmod(a, 2.)); }
static inline float sinpif(float a) { return (float)sinpi(a); }
static inline float cospif(float a) { return (float)cospi(a); }
static inline void sincospi(double a, double* s, double* c) { *s = sinpi(a), *c = cospi(a); }
static inline void sincospif(float a, float* s, float* c) { *s = sinpif(a), *c = cospif(a); }
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

static inline int __float2int_rn(float a) { return (int)nearbyintf(a); }
static inline int __float2int_rz(float a) { return (int)a; }
static inline int __float2int_rd(float a) { return (int)floorf(a); }
static inline int __float2int_ru(float a) { return (int)ceilf(a); }
static inline float __int2float_rn(int a) { return (float)a; }
static inline float __uint2float_rn(unsigned a) { return (float)a; }
static inline float __double2float_rn(double a) { return (float)a; }
static inline long long clock64() { return 0; }
