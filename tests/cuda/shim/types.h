// What CUDA C++ means on a CPU: the qualifiers, and NVIDIA's own vector, half and bfloat16 types.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <vector_types.h>      // dim3, float4, ...
#include <vector_functions.h>  // make_float4, ...
#include <cuda_fp16.h>         // both carry implementations for the host
#include <cuda_bf16.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __grid_constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__ __attribute__((visibility("default")))
#define __managed__ __attribute__((visibility("default")))
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))

// Fibers of a block run on one thread of the system, blocks one after another: what is local to
// that thread is shared by the block, and is all the thread-local storage the module has, so the
// runtime finds it and fills it with poison before each block. With one thread of the system per
// CUDA thread, compiler.py rewrites the declarations (see shared_variable in runtime.h).
#define __shared__ static thread_local

// The programming model has constants here; device code finds these without a prefix.
using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
using std::signbit;
#define warpSize 32
