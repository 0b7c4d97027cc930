// Device and pinned memory, copies.
//
// Every allocation starts poisoned (0xFF: NaN, -1, true) and ends at an inaccessible page, so that
// reading what was never written shows in results and running over the end is an error. Poison
// around it is checked when it is freed.
#include "device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace host_device {

namespace {

constexpr size_t kPage = 4096;
constexpr unsigned char kPoison = 0xFF;

std::map<char*, Allocation> allocations;  // by start
size_t used[kDevices];
size_t capacity = size_t{4} << 30;  // bytes of each device
size_t alignment = 16;              // of allocations whose size is no multiple of 512
bool exact = false;                 // whether the poison around allocations is looked at
std::string overrun;                // what the last check of poison found

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Where an allocation starts: at a multiple of 512 as from cudaMalloc if its size is one (CuPy's
// pool allocates so), else as close to the guard page behind it as the alignment allows.
int allocate(void** address, size_t bytes, bool host) {
  if (int error = host ? 0 : unsafe_call()) return error;
  if (!host && used[current_device] + bytes > capacity) return cudaErrorMemoryAllocation;
  const size_t padded = round_up(bytes, bytes % 512 ? alignment : 512);
  const size_t body = round_up(padded ? padded : 1, kPage);
  const size_t mapped = body + 2 * kPage;
  char* mapping = (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return cudaErrorMemoryAllocation;
  mprotect(mapping, kPage, PROT_NONE);
  mprotect(mapping + kPage + body, kPage, PROT_NONE);
  memset(mapping + kPage, kPoison, body);
  char* start = mapping + kPage + body - padded;
  allocations[start] = {start, bytes, current_device, host, mapping, mapped};
  if (!host) used[current_device] += bytes;
  *address = start;
  return 0;
}

bool poisoned(const char* from, const char* to) {
  for (; from < to; ++from)
    if ((unsigned char)*from != kPoison) return false;
  return true;
}

// What is wrong with the poison in up to `most` bytes on each side of an allocation; or empty.
std::string damage(const Allocation& a, size_t most) {
  const char *low = a.mapping + kPage, *high = a.mapping + a.mapped - kPage;
  const char *begin = a.start, *end = a.start + a.bytes;
  const bool below = !poisoned(begin - std::min<size_t>(most, begin - low), begin);
  const bool above = !poisoned(end, end + std::min<size_t>(most, high - end));
  if (!below && !above) return "";
  return "something wrote " + std::string(below ? "below" : "behind") + " an allocation of " +
         std::to_string(a.bytes) + " bytes on device " + std::to_string(a.device);
}

int release(void* address, bool host) {
  if (!address) return 0;
  auto found = allocations.find((char*)address);
  if (found == allocations.end() || found->second.host != host || !found->second.mapping)
    return fail(cudaErrorInvalidValue, "freed memory that is not allocated, or of another kind");
  Allocation a = found->second;
  // Freeing waits for the work that may still use the memory.
  const int error = complete_device(a.device);
  const std::string beside = damage(a, a.mapped);
  if (!beside.empty()) overrun = beside;
  if (!host) used[a.device] -= a.bytes;
  munmap(a.mapping, a.mapped);
  allocations.erase((char*)address);
  return error;
}

bool on_device(const void* address) {
  const Allocation* a = find_allocation(address);
  return a && !a->host;
}

bool pinned(const void* address) {
  const Allocation* a = find_allocation(address);
  return a && a->host;
}

// A copy of `rows` rows. Sizes in bytes.
struct Copy {
  char* to;
  const char* from;
  size_t to_pitch, from_pitch, width, rows;
  cudaMemcpyKind kind;

  Copy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind_)
      : Copy(dst, bytes, src, bytes, bytes, 1, kind_) {}
  Copy(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width_,
       size_t rows_, cudaMemcpyKind kind_)
      : to((char*)dst), from((const char*)src), to_pitch(dst_pitch), from_pitch(src_pitch),
        width(width_), rows(rows_), kind(kind_) {
    if (kind == cudaMemcpyDefault)
      kind = on_device(to) ? on_device(from) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice
                           : on_device(from) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
  }

  size_t bytes() const { return width * rows; }
  bool from_device() const {
    return kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  }
  bool to_device() const {
    return kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  }

  int check() const {
    if (!bytes()) return 0;
    if (from_device() != on_device(from) || to_device() != on_device(to))
      return fail(cudaErrorInvalidValue, "a copy names host memory as device memory, or reversely");
    return 0;
  }

  void announce() const {
    if (kind == cudaMemcpyHostToDevice) notify("h2d", bytes());
    if (kind == cudaMemcpyDeviceToHost) notify("d2h", bytes());
  }

  int run() const {
    switch (kind) {
      case cudaMemcpyHostToDevice: count(kH2D), count(kH2DBytes, bytes()); break;
      case cudaMemcpyDeviceToHost: count(kD2H), count(kD2HBytes, bytes()); break;
      case cudaMemcpyDeviceToDevice: count(kD2D); break;
      default: break;
    }
    for (size_t row = 0; row < rows; ++row)
      memmove(to + row * to_pitch, from + row * from_pitch, width);
    return 0;
  }
};

// As CUDA does it: from pageable memory the source is read before the call returns, to pageable
// memory the call returns when the data is there. Only pinned memory is read and written later.
int copy_async(Copy copy, const void* stream) {
  copy.announce();
  Lock lock(mutex);
  if (int error = copy.check()) return error;
  const bool captured = capturing(stream);
  if (copy.kind == cudaMemcpyHostToDevice && copy.rows == 1 && !captured && !pinned(copy.from)) {
    auto staged = std::make_shared<std::vector<char>>(copy.from, copy.from + copy.bytes());
    copy.from = staged->data();
    return submit(stream, "memcpy", [copy, staged] { return copy.run(); });
  }
  if (int error = submit(stream, "memcpy", [copy] { return copy.run(); })) return error;
  if (copy.kind == cudaMemcpyDeviceToHost && !captured && !pinned(copy.to))
    return complete(find_stream(stream));
  return 0;
}

int copy_and_wait(const Copy& copy) {
  copy.announce();
  if (copy.kind != cudaMemcpyDeviceToDevice) notify("sync");
  Lock lock(mutex);
  if (copy.kind != cudaMemcpyDeviceToDevice) count(kSyncs);
  if (int error = unsafe_call()) return error;
  if (int error = copy.check()) return error;
  if (int error = submit(nullptr, "memcpy", [copy] { return copy.run(); })) return error;
  return complete(find_stream(nullptr));
}

int set_bytes(void* to, int value, size_t bytes, const void* stream) {
  Lock lock(mutex);
  if (bytes && !on_device(to)) return fail(cudaErrorInvalidValue, "memset of host memory");
  return submit(stream, "memset", [=] {
    count(kMemsets);
    memset(to, value, bytes);
    return 0;
  });
}

int allocate_device(void** address, size_t bytes) {
  notify("malloc", bytes);
  Lock lock(mutex);
  count(kMallocs);
  return allocate(address, bytes, false);
}

int free_device(void* address) {
  if (!address) return 0;
  notify("free");
  Lock lock(mutex);
  count(kFrees);
  if (int error = unsafe_call()) return error;
  return release(address, false);
}

}  // namespace

const Allocation* find_allocation(const void* address) {
  auto next = allocations.upper_bound((char*)address);
  if (next == allocations.begin()) return nullptr;
  const Allocation& a = std::prev(next)->second;
  return (char*)address <= a.start + a.bytes ? &a : nullptr;
}

std::string damaged_allocation() {
  if (!exact) return "";
  for (auto& [start, a] : allocations) {
    if (!a.mapping) continue;
    const std::string found = damage(a, 64);
    if (found.empty()) continue;
    // Said once.
    memset(a.mapping + kPage, kPoison, a.start - a.mapping - kPage);
    memset(a.start + a.bytes, kPoison, a.mapping + a.mapped - kPage - a.start - a.bytes);
    return found;
  }
  return "";
}

}  // namespace host_device

using namespace host_device;

// ---- allocation ---------------------------------------------------------------------------------

EXPORT cudaError_t cudaMalloc(void** address, size_t bytes) {
  return result(allocate_device(address, bytes));
}
EXPORT cudaError_t cudaMallocManaged(void** address, size_t bytes, unsigned) {
  return result(allocate_device(address, bytes));
}
EXPORT cudaError_t cudaMallocAsync(void** address, size_t bytes, cudaStream_t) {
  return result(allocate_device(address, bytes));
}
EXPORT cudaError_t cudaFree(void* address) { return result(free_device(address)); }
EXPORT cudaError_t cudaFreeAsync(void* address, cudaStream_t) {
  return result(free_device(address));
}

EXPORT cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  Lock lock(mutex);
  count(kHostMallocs);
  return result(allocate(address, bytes, true));
}
EXPORT cudaError_t cudaFreeHost(void* address) {
  Lock lock(mutex);
  return result(release(address, true));
}
EXPORT cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  Lock lock(mutex);
  if (find_allocation(address)) return result(cudaErrorInvalidValue);
  allocations[(char*)address] = {(char*)address, bytes, current_device, true, nullptr, 0};
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* address) {
  Lock lock(mutex);
  return result(allocations.erase((char*)address) ? 0 : cudaErrorInvalidValue);
}

EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Lock lock(mutex);
  *free = capacity > used[current_device] ? capacity - used[current_device] : 0;
  *total = capacity;
  return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                            const void* address) {
  Lock lock(mutex);
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->device = -2;
  if (const Allocation* a = find_allocation(address)) {
    attributes->type = a->host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = a->device;
    attributes->devicePointer = (void*)address;
    if (a->host) attributes->hostPointer = (void*)address;
  }
  return cudaSuccess;
}

// ---- copies -------------------------------------------------------------------------------------

EXPORT cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  return result(copy_and_wait({dst, src, bytes, kind}));
}
EXPORT cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  return result(copy_async({dst, src, bytes, kind}, stream));
}
EXPORT cudaError_t cudaMemcpy2D(void* dst, size_t dst_pitch, const void* src, size_t src_pitch,
                                size_t width, size_t rows, cudaMemcpyKind kind) {
  return result(copy_and_wait({dst, dst_pitch, src, src_pitch, width, rows, kind}));
}
EXPORT cudaError_t cudaMemcpy2DAsync(void* dst, size_t dst_pitch, const void* src,
                                     size_t src_pitch, size_t width, size_t rows,
                                     cudaMemcpyKind kind, cudaStream_t stream) {
  return result(copy_async({dst, dst_pitch, src, src_pitch, width, rows, kind}, stream));
}
EXPORT cudaError_t cudaMemcpyPeer(void* dst, int, const void* src, int, size_t bytes) {
  return result(copy_and_wait({dst, src, bytes, cudaMemcpyDeviceToDevice}));
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* dst, int, const void* src, int, size_t bytes,
                                       cudaStream_t stream) {
  return result(copy_async({dst, src, bytes, cudaMemcpyDeviceToDevice}, stream));
}
EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return result(set_bytes(to, value, bytes, nullptr));
}
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return result(set_bytes(to, value, bytes, stream));
}

// ---- test controls ------------------------------------------------------------------------------

EXPORT void host_device_set_capacity(size_t bytes) { capacity = bytes; }

EXPORT void host_device_set_exact(int on, size_t bytes) {
  exact = on;
  alignment = bytes;
}

EXPORT size_t host_device_capacity() { return capacity; }

EXPORT size_t host_device_used(int device) { return used[device]; }

EXPORT size_t host_device_allocations() { return allocations.size(); }

// What checks of poison found since the last call; empty if nothing.
EXPORT const char* host_device_overrun() {
  static std::string given;
  given.swap(overrun);
  overrun.clear();
  return given.c_str();
}
