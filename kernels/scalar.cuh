// The scalar primitives of gpugrad's expressions: op_<name>(...) for float and double.
//
// Generated code calls these and nothing else. Sums and products are rounded one by one (no
// contraction to fused multiply-add), so that + - * / sqrt, comparisons and selections give the
// same bits as NumPy; other functions are those of CUDA's math library, within 2 ulp.
#include "types.cuh"

#define FLOATS(name, f, d)                                                        \
  __device__ __forceinline__ float op_##name(float x) { return f(x); }            \
  __device__ __forceinline__ double op_##name(double x) { return d(x); }
#define FLOATS_2(name, f, d)                                                      \
  __device__ __forceinline__ float op_##name(float a, float b) { return f(a, b); } \
  __device__ __forceinline__ double op_##name(double a, double b) { return d(a, b); }
#define SCALAR template <class C> __device__ __forceinline__

FLOATS_2(add, __fadd_rn, __dadd_rn)
FLOATS_2(mul, __fmul_rn, __dmul_rn)
__device__ __forceinline__ float op_sub(float a, float b) { return __fadd_rn(a, -b); }
__device__ __forceinline__ double op_sub(double a, double b) { return __dadd_rn(a, -b); }
__device__ __forceinline__ float op_div(float a, float b) { return a / b; }
__device__ __forceinline__ double op_div(double a, double b) { return a / b; }
SCALAR C op_neg(C x) { return -x; }
SCALAR C op_positive(C x) { return x; }
SCALAR C op_square(C x) { return op_mul(x, x); }
SCALAR C op_reciprocal(C x) { return C(1) / x; }
SCALAR C op_where(bool condition, C a, C b) { return condition ? a : b; }

SCALAR bool op_lt(C a, C b) { return a < b; }
SCALAR bool op_le(C a, C b) { return a <= b; }
SCALAR bool op_gt(C a, C b) { return a > b; }
SCALAR bool op_ge(C a, C b) { return a >= b; }
SCALAR bool op_eq(C a, C b) { return a == b; }
SCALAR bool op_ne(C a, C b) { return a != b; }
SCALAR bool op_isnan(C x) { return x != x; }
__device__ __forceinline__ bool op_logical_and(bool a, bool b) { return a && b; }
__device__ __forceinline__ bool op_logical_or(bool a, bool b) { return a || b; }
__device__ __forceinline__ bool op_logical_xor(bool a, bool b) { return a != b; }
__device__ __forceinline__ bool op_logical_not(bool a) { return !a; }

FLOATS(abs, fabsf, fabs)
FLOATS(sqrt, sqrtf, sqrt)
FLOATS(exp, expf, exp)
FLOATS(exp2, exp2f, exp2)
FLOATS(expm1, expm1f, expm1)
FLOATS(log, logf, log)
FLOATS(log2, log2f, log2)
FLOATS(log10, log10f, log10)
FLOATS(log1p, log1pf, log1p)
FLOATS(sin, sinf, sin)
FLOATS(cos, cosf, cos)
FLOATS(tan, tanf, tan)
FLOATS(asin, asinf, asin)
FLOATS(acos, acosf, acos)
FLOATS(atan, atanf, atan)
FLOATS(sinh, sinhf, sinh)
FLOATS(cosh, coshf, cosh)
FLOATS(tanh, tanhf, tanh)
FLOATS(asinh, asinhf, asinh)
FLOATS(acosh, acoshf, acosh)
FLOATS(atanh, atanhf, atanh)
FLOATS(erf, erff, erf)
FLOATS(floor, floorf, floor)
FLOATS(ceil, ceilf, ceil)
FLOATS(trunc, truncf, trunc)
FLOATS(round, rintf, rint)
FLOATS_2(pow, powf, pow)
FLOATS_2(atan2, atan2f, atan2)
FLOATS_2(hypot, hypotf, hypot)
FLOATS_2(fmod, fmodf, fmod)

SCALAR bool op_isinf(C x) { return op_abs(x) == C(INFINITY); }
SCALAR bool op_isfinite(C x) { return op_abs(x) < C(INFINITY); }
SCALAR C op_sign(C x) { return x > C(0) ? C(1) : x < C(0) ? C(-1) : x == C(0) ? C(0) : x; }
SCALAR C op_maximum(C a, C b) { return Max::of(a, b); }
SCALAR C op_minimum(C a, C b) { return Min::of(a, b); }

SCALAR C op_logaddexp(C a, C b) {
  if (a == b) return op_add(a, C(0.69314718055994530942));  // also for two infinities
  const C high = a > b ? a : b, distance = op_abs(op_sub(a, b));
  return distance == distance ? op_add(high, op_log1p(op_exp(-distance))) : distance;
}
// NumPy's: the sign of the divisor, the quotient rounded down
SCALAR C op_remainder(C a, C b) {
  const C r = op_fmod(a, b);
  if (r == C(0)) return copysign(C(0), b);
  return (r < C(0)) != (b < C(0)) ? op_add(r, b) : r;
}
SCALAR C op_floor_divide(C a, C b) {
  if (b == C(0)) return op_div(a, b);
  const C r = op_fmod(a, b);
  C quotient = op_div(op_sub(a, r), b);
  if (r != C(0) && (r < C(0)) != (b < C(0))) quotient = op_sub(quotient, C(1));
  if (quotient == C(0)) return copysign(C(0), op_div(a, b));
  const C down = op_floor(quotient);
  return op_sub(quotient, down) > C(0.5) ? op_add(down, C(1)) : down;
}
