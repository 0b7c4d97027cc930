// The functions of a module that a loader looks up, two for each kernel:
//   cudacpu_launch_<name>(grid_block, dynamic_bytes, arguments, order, seed, message, bytes)
//   cudacpu_sig_<name>()   its parameters: "p8:f4c,i8,s24," is const float*, 8-byte integer, struct;
//                          h2 is __half, w2 __nv_bfloat16
#pragma once
#include "runtime.h"

namespace cudacpu {

template <class T> constexpr char letter() {
  return std::is_pointer<T>::value                ? 'p'
         : std::is_same<T, bool>::value           ? 'b'
         : std::is_same<T, __half>::value         ? 'h'
         : std::is_same<T, __nv_bfloat16>::value  ? 'w'
         : std::is_floating_point<T>::value       ? 'f'
         : !std::is_integral<T>::value            ? 's'
         : std::is_signed<T>::value               ? 'i'
                                                  : 'u';
}

template <class T> constexpr Parameter parameter() {
  typedef std::remove_cv_t<T> U;
  typedef std::remove_pointer_t<U> Pointed;
  if constexpr (std::is_pointer<U>::value && !std::is_void<Pointed>::value) {
    typedef std::remove_cv_t<Pointed> V;
    return {'p', sizeof(U), letter<V>(), sizeof(V), std::is_const<Pointed>::value};
  } else {
    return {letter<U>(), sizeof(U), 0, 0, false};
  }
}

template <class... A> const char* signature(void (*)(A...)) {
  static constexpr Parameter parameters[sizeof...(A) + 1] = {parameter<A>()...};
  return signature_text(parameters, sizeof...(A));
}

template <class... A, size_t... I>
inline void unpack(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
}
template <class... A> inline void call(void (*kernel)(A...), void** arguments) {
  unpack(kernel, arguments, std::index_sequence_for<A...>());
}

// __launch_bounds__(threads) or __launch_bounds__(threads, blocks): the first number.
constexpr int bounds(int threads = 1024, int = 0, int = 0) { return threads; }

}  // namespace cudacpu

#ifdef CUDACPU_LENIENT_EXIT
#define CUDACPU_LENIENT true
#else
#define CUDACPU_LENIENT false
#endif

#define CUDACPU_EXPORT(name, kernel, ...)                                                        \
  extern "C" __attribute__((visibility("default"))) int cudacpu_launch_##name(                   \
      const unsigned* grid_block, size_t dynamic_bytes, void** arguments, int order,             \
      unsigned seed, char* message, int message_bytes) {                                         \
    const cudacpu::Kernel described{[](void** a) { cudacpu::call(kernel, a); },                  \
                                    cudacpu::bounds(__VA_ARGS__), CUDACPU_LENIENT};              \
    return cudacpu::launch(described, grid_block, dynamic_bytes, arguments, order, seed,         \
                           message, message_bytes);                                              \
  }                                                                                              \
  extern "C" __attribute__((visibility("default"))) const char* cudacpu_sig_##name() {           \
    static const char* const text = cudacpu::signature(kernel);                                  \
    return text;                                                                                 \
  }
