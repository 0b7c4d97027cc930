// Atomic functions. CUDA's are relaxed; here they are acquire-release operations of the CPU, so
// that ThreadSanitizer accepts the usual "last block" scheme (__threadfence, then atomicAdd).
#pragma once
#include "types.h"

namespace cudacpu {

template <size_t> struct Word;
template <> struct Word<2> { typedef uint16_t type; };
template <> struct Word<4> { typedef uint32_t type; };
template <> struct Word<8> { typedef uint64_t type; };

// *address = f(*address) as one step; the old value.
template <class T, class F> inline T atomic_update(T* address, F f) {
  typedef typename Word<sizeof(T)>::type W;
  W* word = reinterpret_cast<W*>(address);
  W before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  T old;
  do {
    memcpy((void*)&old, &before, sizeof old);
    const T next = f(old);
    memcpy(&after, &next, sizeof after);
  } while (!__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED));
  return old;
}

template <class T> struct Same { typedef T type; };  // the other argument decides the type

}  // namespace cudacpu

#define CUDACPU_ATOMIC(name, expression)                                                     \
  template <class T> static inline T name(T* address, typename cudacpu::Same<T>::type v) {   \
    return cudacpu::atomic_update(address, [v](T old) -> T { return expression; });          \
  }
CUDACPU_ATOMIC(atomicAdd, old + v)
CUDACPU_ATOMIC(atomicSub, old - v)
CUDACPU_ATOMIC(atomicExch, ((void)old, v))
CUDACPU_ATOMIC(atomicMin, v < old ? v : old)
CUDACPU_ATOMIC(atomicMax, v > old ? v : old)
CUDACPU_ATOMIC(atomicAnd, old & v)
CUDACPU_ATOMIC(atomicOr, old | v)
CUDACPU_ATOMIC(atomicXor, old ^ v)
CUDACPU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
CUDACPU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef CUDACPU_ATOMIC

template <class T>
static inline T atomicCAS(T* address, typename cudacpu::Same<T>::type expected,
                          typename cudacpu::Same<T>::type v) {
  return cudacpu::atomic_update(address, [=](T old) -> T { return old == expected ? v : old; });
}

static inline void __threadfence() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() { __threadfence(); }
static inline void __threadfence_system() { __threadfence(); }
