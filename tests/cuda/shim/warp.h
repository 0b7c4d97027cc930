// Barriers and warp intrinsics, on top of two meetings of the runtime.
#pragma once
#include "runtime.h"

// Defaults are evaluated where the function is called: messages speak of the kernel's line.
#define CUDACPU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

#define __syncthreads() ((void)cudacpu::block_barrier({__FILE__, __LINE__}, false))
#define __syncthreads_count(p) (cudacpu::block_barrier({__FILE__, __LINE__}, (p) != 0).count)
#define __syncthreads_or(p) ((int)cudacpu::block_barrier({__FILE__, __LINE__}, (p) != 0).any)
#define __syncthreads_and(p) ((int)cudacpu::block_barrier({__FILE__, __LINE__}, (p) != 0).all)

namespace cudacpu {

template <class T> uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8,
                "CUDA shuffles values of 2, 4 and 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T> T from_bits(uint64_t bits) {
  T value;
  memcpy((void*)&value, &bits, sizeof value);
  return value;
}

// The value of lane `source`; the own one where that lies outside the segment.
template <class T>
T shuffle(Location where, unsigned mask, T value, int source, bool inside) {
  const Gathered& all = meet(where, Collective::shuffle, mask, to_bits(value));
  if (!inside) return value;
  if (!(all.lanes >> source & 1)) fail(where, "__shfl reads lane %d, which is not active", source);
  return from_bits<T>(all.value[source]);
}

template <class T, class F> T reduce(Location where, unsigned mask, T value, F f) {
  const Gathered& all = meet(where, Collective::reduce, mask, to_bits(value));
  bool first = true;
  T result{};
  for (int k = 0; k < 32; ++k) {
    if (!(all.lanes >> k & 1)) continue;
    const T v = from_bits<T>(all.value[k]);
    result = first ? v : f(result, v);
    first = false;
  }
  return result;
}

inline unsigned votes(Location where, Collective kind, unsigned mask, bool vote, unsigned& lanes) {
  const Gathered& all = meet(where, kind, mask, vote);
  lanes = all.lanes;
  unsigned result = 0;
  for (int k = 0; k < 32; ++k) result |= (all.lanes >> k & 1 && all.value[k] ? 1u : 0u) << k;
  return result;
}

}  // namespace cudacpu

static inline void __syncwarp(unsigned mask = ~0u, CUDACPU_CALLER) {
  cudacpu::meet({file, line}, cudacpu::Collective::sync, mask, 0);
}

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDACPU_CALLER) {
  const int first = cudacpu::lane() & ~(width - 1);
  return cudacpu::shuffle({file, line}, mask, value, first + (source & (width - 1)), true);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                 CUDACPU_CALLER) {
  const int lane = cudacpu::lane(), source = lane + (int)delta;
  const bool inside = (lane & (width - 1)) + (int)delta < width;
  return cudacpu::shuffle({file, line}, mask, value, source, inside);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                               CUDACPU_CALLER) {
  const int lane = cudacpu::lane(), source = lane - (int)delta;
  const bool inside = (lane & (width - 1)) >= (int)delta;
  return cudacpu::shuffle({file, line}, mask, value, source, inside);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                               CUDACPU_CALLER) {
  const int lane = cudacpu::lane(), source = lane ^ bits;
  const bool inside = (source & ~(width - 1)) <= (lane & ~(width - 1));
  return cudacpu::shuffle({file, line}, mask, value, source, inside);
}

static inline unsigned __ballot_sync(unsigned mask, int p, CUDACPU_CALLER) {
  unsigned lanes;
  return cudacpu::votes({file, line}, cudacpu::Collective::ballot, mask, p != 0, lanes);
}
static inline int __any_sync(unsigned mask, int p, CUDACPU_CALLER) {
  unsigned lanes;
  return cudacpu::votes({file, line}, cudacpu::Collective::any, mask, p != 0, lanes) != 0;
}
static inline int __all_sync(unsigned mask, int p, CUDACPU_CALLER) {
  unsigned lanes;
  const auto kind = cudacpu::Collective::all;
  return cudacpu::votes({file, line}, kind, mask, p != 0, lanes) == lanes;
}

template <class T>
static inline unsigned __match_any_sync(unsigned mask, T v, CUDACPU_CALLER) {
  const auto bits = cudacpu::to_bits(v);
  const auto& all = cudacpu::meet({file, line}, cudacpu::Collective::match, mask, bits);
  unsigned result = 0;
  for (int k = 0; k < 32; ++k)
    result |= (all.lanes >> k & 1 && all.value[k] == bits ? 1u : 0u) << k;
  return result;
}
template <class T>
static inline unsigned __match_all_sync(unsigned mask, T v, int* same, CUDACPU_CALLER) {
  const auto bits = cudacpu::to_bits(v);
  const auto& all = cudacpu::meet({file, line}, cudacpu::Collective::match, mask, bits);
  *same = 1;
  for (int k = 0; k < 32; ++k)
    if (all.lanes >> k & 1 && all.value[k] != bits) *same = 0;
  return *same ? mask : 0;
}

#define CUDACPU_REDUCE(name, T, expression)                           \
  static inline T name(unsigned mask, T value, CUDACPU_CALLER) {      \
    return cudacpu::reduce({file, line}, mask, value,                 \
                           [](T a, T b) -> T { return expression; }); \
  }
CUDACPU_REDUCE(__reduce_add_sync, int, a + b)
CUDACPU_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDACPU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUDACPU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CUDACPU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CUDACPU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CUDACPU_REDUCE(__reduce_and_sync, unsigned, a & b)
CUDACPU_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDACPU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef CUDACPU_REDUCE

static inline unsigned __activemask() { return cudacpu::lanes_alive(); }
