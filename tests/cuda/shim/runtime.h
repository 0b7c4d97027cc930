// What a compiled kernel asks of the runtime: its position, meetings of a block or a warp, memory,
// errors and the launch. fibers.cpp and threads.cpp implement it.
#pragma once
#include "types.h"

#ifdef CUDACPU_THREADS
#define CUDACPU_LOCAL __thread
#else
#define CUDACPU_LOCAL
#endif

extern CUDACPU_LOCAL uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cudacpu {

struct Location {
  const char* file;
  int line;
};

// Ends the launch with an error: the text, the location, the block and the thread.
[[noreturn]] void fail(Location where, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// ---- meetings

struct Votes {  // of the threads that wait at a barrier
  int count;
  bool any, all;
};
Votes block_barrier(Location where, bool vote);

enum class Collective { sync, shuffle, ballot, any, all, match, reduce, matrix };

struct Gathered {  // what the lanes of a mask brought to a warp intrinsic
  uint64_t value[32];
  unsigned lanes;  // those that took part: of the mask, without those that had returned
};
// Waits for the other lanes of the mask. The result is valid until the lane's next call.
const Gathered& meet(Location where, Collective kind, unsigned mask, uint64_t value);

int lane();
unsigned lanes_alive();

// ---- memory

char* dynamic_shared();
// Threads mode: the storage of one declaration in the current block. `key` names the declaration.
void* shared_storage(const void* key, size_t bytes, size_t alignment);

template <class T, class Tag> T& shared_variable(Tag) {
  static const char key = 0;  // one for each declaration in each instance of a template
  return *static_cast<T*>(shared_storage(&key, sizeof(T), alignof(T)));
}

// ---- launch

struct Parameter {  // of a kernel, and what it points to
  char letter;
  size_t size;
  char target;
  size_t target_size;
  bool constant;
};
// "p8:f4c,i8,": never freed.
const char* signature_text(const Parameter* parameters, size_t count);

struct Kernel {
  void (*call)(void** arguments);
  int max_threads;    // of a block, by __launch_bounds__
  bool lenient_exit;  // a barrier does not wait for threads that returned, as hardware does
};

enum Order { forward = 0, reverse = 1, shuffled = 2 };

// 0, or 1 with a message. `grid_block` is the grid's three dimensions and the block's.
int launch(const Kernel& kernel, const unsigned* grid_block, size_t dynamic_bytes,
           void** arguments, int order, unsigned seed, char* message, int message_bytes);

}  // namespace cudacpu
