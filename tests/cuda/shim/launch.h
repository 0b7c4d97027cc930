// The parts of a launch that both runtimes share: the checks a driver makes, positions, memory.
#pragma once
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <numeric>
#include <random>
#include <vector>

#include "runtime.h"

namespace cudacpu {

constexpr int warp_lanes = 32;
constexpr size_t most_shared = 232448;  // of a block, on sm_90; the largest there is

inline uint3 position(uint64_t index, dim3 in) {
  return make_uint3((unsigned)(index % in.x), (unsigned)(index / in.x % in.y),
                    (unsigned)(index / in.x / in.y));
}

// What a driver refuses: an error text, or null.
inline const char* refused(const Kernel& kernel, const unsigned* g, size_t shared) {
  const uint64_t threads = (uint64_t)g[3] * g[4] * g[5];
  if (threads < 1 || threads > 1024 || g[5] > 64)
    return "invalid configuration: threads of a block";
  if (threads > (uint64_t)kernel.max_threads)
    return "invalid configuration: more threads than __launch_bounds__";
  if (!g[0] || !g[1] || !g[2]) return "invalid configuration: an empty grid";
  if (g[0] > 0x7fffffffu || g[1] > 65535 || g[2] > 65535)
    return "invalid configuration: blocks of the grid";
  if (shared > most_shared) return "invalid configuration: too much shared memory";
  return nullptr;
}

inline std::string text_of(const Parameter* parameters, size_t count) {
  std::string all;
  for (size_t i = 0; i < count; ++i) {
    const Parameter& p = parameters[i];
    all += p.letter + std::to_string(p.size);
    if (p.target) all += std::string(":") + p.target + std::to_string(p.target_size);
    if (p.constant) all += "c";
    all += ",";
  }
  return all;
}

// Pages that end at an inaccessible one, so that going beyond the end is an illegal address.
class GuardedPages {
 public:
  // `bytes` before the guard, at a multiple of 16.
  char* ending(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), need = (bytes + 15) / 16 * 16;
    if (!base_ || need + page > length_) {
      if (base_) munmap(base_, length_);
      length_ = (need + page - 1) / page * page + page;
      base_ = (char*)mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                          -1, 0);
      mprotect(base_ + length_ - page, page, PROT_NONE);
    }
    return base_ + length_ - page - need;
  }

 private:
  char* base_ = nullptr;
  size_t length_ = 0;
};

}  // namespace cudacpu
