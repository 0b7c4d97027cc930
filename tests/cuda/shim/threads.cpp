// The runtime of race checks: every CUDA thread is a thread of the system, all blocks at once, and
// ThreadSanitizer watches the kernel (compiled with -fsanitize=thread; this file is not).
//
// What orders memory accesses is told to ThreadSanitizer explicitly, as the programming model has
// it: __syncthreads orders the threads of a block, __syncwarp the lanes of its mask; shuffles and
// votes order nothing. The locks in here are made of atomics and futexes, which it does not see,
// so they do not hide races. A mistake that ends a launch ends the process, with status 3.
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>

#include <atomic>
#include <deque>
#include <memory>

#include "launch.h"

extern "C" {
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
}

__thread uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cudacpu {
namespace {

// ThreadSanitizer's time and memory grow with the square of this; races show with few threads.
constexpr uint64_t most_threads = 512;
constexpr size_t thread_stack = 512 << 10;

void order_after(void* event) {
  if (__tsan_acquire) __tsan_acquire(event);
}
void order_before(void* event) {
  if (__tsan_release) __tsan_release(event);
}

class Lock {
 public:
  void lock() {
    while (held_.exchange(1, std::memory_order_acquire))
      syscall(SYS_futex, &held_, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
  }
  void unlock() {
    held_.store(0, std::memory_order_release);
    syscall(SYS_futex, &held_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }

 private:
  std::atomic<int> held_{0};
};

class Holding {
 public:
  explicit Holding(Lock& lock) : lock_(lock) { lock_.lock(); }
  ~Holding() { lock_.unlock(); }

 private:
  Lock& lock_;
};

class Signal {  // one thread waits, another wakes it
 public:
  void wait() {
    while (!set_.load(std::memory_order_acquire))
      syscall(SYS_futex, &set_, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
    set_.store(0, std::memory_order_relaxed);
  }
  void wake() {
    set_.store(1, std::memory_order_release);
    syscall(SYS_futex, &set_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }

 private:
  std::atomic<int> set_{0};
};

enum class State { running, at_barrier, in_warp, returned };

struct Block;

struct Thread {
  Block* block;
  uint3 index;
  int lane, warp;
  State state = State::running;
  Location where{};
  Collective kind{};
  unsigned mask = 0;
  uint64_t value = 0;
  Gathered result{};
  Signal go;
  char arrival[2];  // what ThreadSanitizer knows this thread's arrivals at a warp's meeting by
  int arrivals = 0;
};

struct Block {
  uint3 index;
  Lock lock;
  std::deque<Thread> threads;
  int alive = 0, waiting = 0;
  Votes votes[2]{};  // of barriers with even and odd numbers
  char passed[2];    // what ThreadSanitizer knows these barriers by
  int barriers = 0;
  char* shared = nullptr;  // dynamic, then what declarations have asked for
  size_t shared_used = 0;
  std::vector<std::pair<const void*, char*>> declarations;
};

struct Grid {
  const Kernel* kernel;
  void** arguments;
  std::deque<Block> blocks;
  std::atomic<int> running{0}, alive{0};
};

Grid* grid = nullptr;
__thread Thread* current = nullptr;

[[noreturn]] void stop(const char* what, Location where) {
  fprintf(stderr, "cudacpu: %s, %s:%d [block (%u,%u,%u) thread (%u,%u,%u)]\n", what, where.file,
          where.line, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  _exit(3);
}

// Before this thread stops running: somebody else must be.
void stop_running() {
  if (grid->running.fetch_sub(1) == 1 && grid->alive.load() > 0)
    stop("dead-lock: every thread waits; the last one", current->where);
}

void wake(Thread& t) {
  t.state = State::running;
  if (&t == current) return;
  grid->running.fetch_add(1);
  t.go.wake();
}

// ---- meetings; the block's lock is held

bool pass_barrier(Block& block) {
  if (!block.alive || block.waiting < block.alive) return false;
  const Thread* first = nullptr;
  int in_favour = 0;
  for (const Thread& t : block.threads) {
    if (t.state != State::at_barrier) continue;
    if (!first) first = &t;
    if (t.where.line != first->where.line || strcmp(t.where.file, first->where.file))
      stop("threads of one block wait at different barriers", t.where);
    in_favour += t.value != 0;
  }
  if (block.alive < (int)block.threads.size() && !grid->kernel->lenient_exit)
    stop("barrier after threads of the block returned", first->where);
  block.votes[block.barriers & 1] = {in_favour, in_favour > 0, in_favour == block.alive};
  ++block.barriers;
  block.waiting = 0;
  for (Thread& t : block.threads)
    if (t.state == State::at_barrier) wake(t);
  return true;
}

unsigned alive_lanes(const Block& block, int warp) {
  unsigned lanes = 0;
  for (size_t i = (size_t)warp * warp_lanes;
       i < block.threads.size() && i < ((size_t)warp + 1) * warp_lanes; ++i)
    if (block.threads[i].state != State::returned) lanes |= 1u << (i % warp_lanes);
  return lanes;
}

bool pass_warp(Block& block, int warp, unsigned mask, Collective kind) {
  Gathered all{{}, mask & alive_lanes(block, warp)};
  Thread* lanes[warp_lanes];
  for (int k = 0; k < warp_lanes; ++k) {
    if (!(all.lanes >> k & 1)) continue;
    const Thread& t = *(lanes[k] = &block.threads[(size_t)warp * warp_lanes + (size_t)k]);
    if (t.state != State::in_warp) return false;
    if (t.mask != mask) stop("lanes disagree on the mask of a warp intrinsic", t.where);
    if (t.kind != kind) stop("lanes of a warp wait at different intrinsics", t.where);
    all.value[k] = t.value;
  }
  for (int k = 0; k < warp_lanes; ++k) {
    if (!(all.lanes >> k & 1)) continue;
    lanes[k]->result = all;
    wake(*lanes[k]);
  }
  return true;
}

void leave(Thread& t) {
  Block& block = *t.block;
  const Holding lock(block.lock);
  t.state = State::returned;
  --block.alive;
  grid->alive.fetch_sub(1);
  pass_barrier(block);
  const size_t first = (size_t)t.warp * warp_lanes;
  for (size_t i = first; i < first + warp_lanes && i < block.threads.size(); ++i) {
    const Thread& other = block.threads[i];
    if (other.state == State::in_warp) pass_warp(block, t.warp, other.mask, other.kind);
  }
  stop_running();
}

void* thread_main(void* data) {
  Thread& t = *static_cast<Thread*>(data);
  current = &t;
  threadIdx = t.index;
  blockIdx = t.block->index;
  grid->kernel->call(grid->arguments);
  leave(t);
  return nullptr;
}

void prepare(Block& block, uint64_t number, size_t dynamic_bytes) {
  block.index = position(number, gridDim);
  block.shared =
      (char*)mmap(nullptr, most_shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(block.shared, 0xFF, most_shared);
  block.shared_used = (dynamic_bytes + 127) / 128 * 128;
  block.alive = (int)(blockDim.x * blockDim.y * blockDim.z);
  for (int i = 0; i < block.alive; ++i) {
    Thread& t = block.threads.emplace_back();
    t.block = &block;
    t.index = position((uint64_t)i, blockDim);
    t.lane = i % warp_lanes;
    t.warp = i / warp_lanes;
  }
}

}  // namespace

// ---- what kernels call

void fail(Location where, const char* format, ...) {
  char message[400];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  stop(message, where);
}

Votes block_barrier(Location where, bool vote) {
  Thread& t = *current;
  Block& block = *t.block;
  block.lock.lock();
  const int number = block.barriers & 1;
  order_before(&block.passed[number]);
  t.state = State::at_barrier;
  t.where = where;
  t.value = vote;
  ++block.waiting;
  const bool last = pass_barrier(block);
  if (!last) stop_running();
  block.lock.unlock();
  if (!last) t.go.wait();
  order_after(&block.passed[number]);
  return block.votes[number];
}

const Gathered& meet(Location where, Collective kind, unsigned mask, uint64_t value) {
  Thread& t = *current;
  Block& block = *t.block;
  if (!(mask >> t.lane & 1)) fail(where, "lane %d is not in its mask %#x", t.lane, mask);
  const bool orders = kind == Collective::sync || kind == Collective::matrix;
  const int number = t.arrivals & 1;
  block.lock.lock();
  if (orders) order_before(&t.arrival[number]), ++t.arrivals;
  t.state = State::in_warp;
  t.where = where;
  t.kind = kind;
  t.mask = mask;
  t.value = value;
  const bool last = pass_warp(block, t.warp, mask, kind);
  if (!last) stop_running();
  block.lock.unlock();
  if (!last) t.go.wait();
  if (!orders) return t.result;
  for (int k = 0; k < warp_lanes; ++k) {
    if (!(t.result.lanes >> k & 1)) continue;
    Thread& other = block.threads[(size_t)t.warp * warp_lanes + (size_t)k];
    order_after(&other.arrival[0]);
    order_after(&other.arrival[1]);
  }
  return t.result;
}

int lane() { return current->lane; }

unsigned lanes_alive() {
  const Holding lock(current->block->lock);
  return alive_lanes(*current->block, current->warp);
}

char* dynamic_shared() { return current->block->shared; }

void* shared_storage(const void* key, size_t bytes, size_t alignment) {
  Block& block = *current->block;
  const Holding lock(block.lock);
  for (const auto& known : block.declarations)
    if (known.first == key) return known.second;
  alignment = std::max<size_t>(alignment, 16);
  const size_t start = (block.shared_used + alignment - 1) / alignment * alignment;
  block.shared_used = start + bytes;
  if (block.shared_used > most_shared) stop("too much shared memory", {"kernel", 0});
  block.declarations.emplace_back(key, block.shared + start);
  return block.shared + start;
}

const char* signature_text(const Parameter* parameters, size_t count) {
  return strdup(text_of(parameters, count).c_str());
}

// Runs the first blocks of the grid, as many as `most_threads` allows; `order` means nothing here.
int launch(const Kernel& kernel, const unsigned* grid_block, size_t dynamic_bytes, void** arguments,
           int, unsigned, char* message, int message_bytes) {
  if (const char* why = refused(kernel, grid_block, dynamic_bytes)) {
    snprintf(message, (size_t)message_bytes, "%s", why);
    return 1;
  }
  gridDim = dim3(grid_block[0], grid_block[1], grid_block[2]);
  blockDim = dim3(grid_block[3], grid_block[4], grid_block[5]);
  const uint64_t threads = (uint64_t)blockDim.x * blockDim.y * blockDim.z;
  const uint64_t all = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
  const uint64_t blocks = std::min(all, std::max<uint64_t>(1, most_threads / threads));
  auto* made = new Grid;  // kept: ThreadSanitizer knows barriers by their addresses
  made->kernel = &kernel;
  made->arguments = arguments;
  for (uint64_t b = 0; b < blocks; ++b) prepare(made->blocks.emplace_back(), b, dynamic_bytes);
  made->alive = made->running = (int)(threads * blocks);
  grid = made;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, thread_stack);
  std::vector<pthread_t> started;
  for (Block& block : made->blocks)
    for (Thread& t : block.threads)
      if (pthread_create(&started.emplace_back(), &attributes, thread_main, &t))
        stop("no more threads", {"launch", 0});
  for (const pthread_t t : started) pthread_join(t, nullptr);
  for (Block& block : made->blocks) munmap(block.shared, most_shared);
  return 0;
}

}  // namespace cudacpu
