// The runtime of ordinary runs: blocks one after another on the calling thread, each CUDA thread a
// fiber that runs until it waits.
//
// Which thread goes first is the schedule's choice, so a result that depends on it shows: forward,
// reverse and shuffled with odd seeds let every thread go from one meeting to the next in turn;
// shuffled with even seeds lets one warp run as far ahead as it can, then the next. Threads that
// never wait cost a function call: they take turns on one fiber. A module's shared memory is its
// thread-local storage; it is poisoned before every block.
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <memory>
#include <mutex>
#include <string>

#include "launch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cudacpu {
namespace {

constexpr int poison = 0xFF;  // a NaN of every floating-point type
constexpr size_t stack_bytes = 128 << 10;

struct Fiber {
  ucontext_t start;
  jmp_buf context;
  bool started = false;
};

struct Snapshot : Gathered {
  int readers = 0;
};

enum class State { ready, at_barrier, in_warp, returned };

struct Thread {
  uint3 index;
  int id, lane, warp;
  State state = State::ready;
  Fiber* fiber = nullptr;  // null: not started
  Location where{};        // of the meeting it waits at, and what it brought there:
  Collective kind{};
  unsigned mask = 0;
  uint64_t value = 0;
  Snapshot* snapshot = nullptr;  // what it got
};

struct Warp {
  unsigned alive = 0;
  Snapshot snapshots[warp_lanes + 1];  // each lane holds at most one
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int alive = 0, waiting = 0;  // threads that have not returned; of these, at a barrier
  Votes votes{};
};

struct Launch {
  const Kernel* kernel;
  void** arguments;
  Block block;
  std::vector<int> turns;  // the order of the threads of a round
  size_t next = 0;         // in `turns`
  bool ahead = false;      // the first that can go on does, in place of all in turn
  std::string error;
};

Launch* launched = nullptr;
Thread* current = nullptr;
jmp_buf scheduler;
char* dynamic = nullptr;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;

std::string at(Location where) {
  return std::string(where.file) + ":" + std::to_string(where.line);
}

const char* name(Collective kind) {
  static const char* const names[] = {"__syncwarp", "__shfl_sync",  "__ballot_sync", "__any_sync",
                                      "__all_sync", "__match_sync", "__reduce_sync", "wmma"};
  return names[(int)kind];
}

std::string text(uint3 p) {
  return "(" + std::to_string(p.x) + "," + std::to_string(p.y) + "," + std::to_string(p.z) + ")";
}

std::string here() { return " [block " + text(blockIdx) + " thread " + text(threadIdx) + "]"; }

// Out of whatever runs, back to the scheduler, which gives up.
[[noreturn]] void stop(std::string message) {
  launched->error = std::move(message) + here();
  _longjmp(scheduler, 2);
}

// ---- who may go on

void release_barrier(Block& block) {
  if (!block.alive || block.waiting < block.alive) return;
  const Thread* first = nullptr;
  int in_favour = 0;
  for (const Thread& t : block.threads) {
    if (t.state != State::at_barrier) continue;
    if (!first) first = &t;
    if (t.where.line != first->where.line || strcmp(t.where.file, first->where.file))
      stop("threads of one block wait at different barriers, " + at(first->where) + " and " +
           at(t.where));
    in_favour += t.value != 0;
  }
  const size_t returned = block.threads.size() - (size_t)block.alive;
  if (returned && !launched->kernel->lenient_exit)
    stop("barrier at " + at(first->where) + " after " + std::to_string(returned) +
         " thread(s) of the block returned");
  block.votes = {in_favour, in_favour > 0, in_favour == block.alive};
  block.waiting = 0;
  for (Thread& t : block.threads)
    if (t.state == State::at_barrier) t.state = State::ready;
}

void release_lanes(Block& block, int warp, unsigned mask, Collective kind) {
  const unsigned needed = mask & block.warps[warp].alive;
  Thread* lanes = &block.threads[(size_t)warp * warp_lanes];
  for (int k = 0; k < warp_lanes; ++k) {
    if (!(needed >> k & 1)) continue;
    const Thread& t = lanes[k];
    if (t.state != State::in_warp) return;
    if (t.mask != mask)
      stop("lanes disagree on the mask of " + std::string(name(t.kind)) + " at " + at(t.where));
    if (t.kind != kind)
      stop(std::string("lanes of a warp wait at ") + name(kind) + " and " + name(t.kind) + ", " +
           at(t.where));
  }
  Snapshot* free = block.warps[warp].snapshots;
  while (free->readers) ++free;
  free->lanes = needed;
  for (int k = 0; k < warp_lanes; ++k) {
    if (!(needed >> k & 1)) continue;
    free->value[k] = lanes[k].value;
    ++free->readers;
    lanes[k].snapshot = free;
    lanes[k].state = State::ready;
  }
}

void leave(Block& block, Thread& t) {
  t.state = State::returned;
  --block.alive;
  unsigned& alive = block.warps[t.warp].alive;
  alive &= ~(1u << t.lane);
  release_barrier(block);
  const Thread* lanes = &block.threads[(size_t)t.warp * warp_lanes];
  for (int k = 0; k < warp_lanes; ++k)
    if (alive >> k & 1 && lanes[k].state == State::in_warp)
      release_lanes(block, t.warp, lanes[k].mask, lanes[k].kind);
}

// ---- fibers

// The next thread of this round that can go on, or null at the end of the round.
Thread* next_ready() {
  Launch& l = *launched;
  if (l.ahead) l.next = 0;
  while (l.next < l.turns.size()) {
    Thread& t = l.block.threads[(size_t)l.turns[l.next]];
    if (t.state == State::ready) return &t;
    ++l.next;
  }
  return nullptr;
}

void become(Thread& t) {
  current = &t;
  threadIdx = t.index;
}

// A fiber runs threads from start to end; between two it looks for another that has not started.
void fiber_main() {
  for (;;) {
    Launch& l = *launched;
    Fiber* mine = current->fiber;
    l.kernel->call(l.arguments);
    leave(l.block, *current);
    ++l.next;
    Thread* t = next_ready();
    if (t && !t->fiber) {
      t->fiber = mine;
      become(*t);
      continue;
    }
    idle.push_back(mine);
    if (!_setjmp(mine->context)) _longjmp(scheduler, 1);
  }
}

Fiber* new_fiber() {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  auto fiber = std::make_unique<Fiber>();
  char* stack = (char*)mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) return nullptr;
  mprotect(stack, page, PROT_NONE);
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = stack + page;
  fiber->start.uc_stack.ss_size = stack_bytes;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, fiber_main, 0);
  fibers.push_back(std::move(fiber));
  return fibers.back().get();
}

void resume(Thread& t) {
  if (!t.fiber) {
    if (idle.empty()) {
      if (Fiber* made = new_fiber())
        idle.push_back(made);
      else
        stop("no memory for the stack of a thread");
    }
    t.fiber = idle.back();
    idle.pop_back();
  }
  become(t);
  if (t.fiber->started) _longjmp(t.fiber->context, 1);
  t.fiber->started = true;
  setcontext(&t.fiber->start);
}

void wait() {  // until the thread is ready again and its turn has come
  Thread& t = *current;
  ++launched->next;
  if (!_setjmp(t.fiber->context)) _longjmp(scheduler, 1);
  become(t);
}

// After an error fibers stand in the middle of threads: they are thrown away.
void abandon_fibers() {
  for (auto& fiber : fibers)
    munmap((char*)fiber->start.uc_stack.ss_sp - sysconf(_SC_PAGESIZE),
           stack_bytes + (size_t)sysconf(_SC_PAGESIZE));
  fibers.clear();
  idle.clear();
}

std::string deadlock(const Block& block) {
  std::string message = "dead-lock:";
  int shown = 0;
  for (const Thread& t : block.threads) {
    if (t.state == State::returned || ++shown > 6) continue;
    message += " thread " + text(t.index) + " at " + at(t.where) + " (" +
               (t.state == State::at_barrier ? "__syncthreads" : name(t.kind)) + ")";
  }
  return message;
}

// Warps in random order, and the lanes of each.
void shuffle_warps(std::vector<int>& turns, std::mt19937& random) {
  std::vector<unsigned> warp((turns.size() + warp_lanes - 1) / warp_lanes);
  for (unsigned& key : warp) key = (unsigned)random();
  std::shuffle(turns.begin(), turns.end(), random);
  std::stable_sort(turns.begin(), turns.end(), [&](int a, int b) {
    return warp[(size_t)a / warp_lanes] < warp[(size_t)b / warp_lanes];
  });
}

// Runs the threads of the current block to their ends. False after an error.
bool run_block(Launch& l, int order, std::mt19937& random) {
  l.turns.resize(l.block.threads.size());
  std::iota(l.turns.begin(), l.turns.end(), 0);
  if (order == reverse) std::reverse(l.turns.begin(), l.turns.end());
  if (l.ahead) shuffle_warps(l.turns, random);
  while (l.block.alive) {
    if (order == shuffled && !l.ahead) std::shuffle(l.turns.begin(), l.turns.end(), random);
    l.next = 0;
    if (!next_ready()) {
      l.error = deadlock(l.block) + " [block " + text(blockIdx) + "]";
      return false;
    }
    while (true) {
      const int came_back = _setjmp(scheduler);
      if (came_back == 2) return false;
      Thread* t = next_ready();
      if (!t) break;
      resume(*t);
    }
  }
  return true;
}

void begin_block(Block& block) {
  const size_t n = (size_t)blockDim.x * blockDim.y * blockDim.z;
  block.threads.assign(n, Thread());
  block.warps.assign((n + warp_lanes - 1) / warp_lanes, Warp());
  block.alive = (int)n;
  block.waiting = 0;
  for (size_t i = 0; i < n; ++i) {
    Thread& t = block.threads[i];
    t.index = position(i, blockDim);
    t.id = (int)i;
    t.lane = (int)(i % warp_lanes);
    t.warp = (int)(i / warp_lanes);
    block.warps[(size_t)t.warp].alive |= 1u << t.lane;
  }
}

// ---- shared memory

struct Storage {
  char* start = nullptr;
  size_t bytes = 0;
};

extern "C" void* __tls_get_addr(size_t*);

// The thread-local storage of the module a function is in.
Storage thread_local_storage(const void* function) {
  struct Search {
    uintptr_t address;
    Storage found;
  } search{(uintptr_t)function, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& s = *static_cast<Search*>(data);
        const ElfW(Phdr)* storage = nullptr;
        bool inside = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& h = info->dlpi_phdr[i];
          const uintptr_t start = info->dlpi_addr + h.p_vaddr;
          if (h.p_type == PT_LOAD) inside |= s.address >= start && s.address < start + h.p_memsz;
          if (h.p_type == PT_TLS) storage = &h;
        }
        if (!inside) return 0;
        if (storage) {
          size_t index[2] = {info->dlpi_tls_modid, 0};
          s.found = {(char*)__tls_get_addr(index), storage->p_memsz};
        }
        return 1;
      },
      &search);
  return search.found;
}

// ---- signals: an illegal address or a division by zero ends the launch, not the process

sigjmp_buf trapped;
siginfo_t trap;

void on_signal(int, siginfo_t* information, void*) {
  trap = *information;
  siglongjmp(trapped, 1);
}

class Signals {
 public:
  Signals() {
    static char stack[1 << 16];
    stack_t own{};
    own.ss_sp = stack;
    own.ss_size = sizeof stack;
    sigaltstack(&own, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(caught[i], &action, &before_[i]);
  }
  ~Signals() {
    for (int i = 0; i < 3; ++i) sigaction(caught[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static constexpr int caught[3] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction before_[3];
  stack_t stack_before_{};
};

std::string trap_text() {
  char message[96];
  if (trap.si_signo == SIGFPE) return "integer division by zero" + here();
  snprintf(message, sizeof message, "illegal address %p", trap.si_addr);
  return message + here();
}

void run_grid(Launch& l, size_t dynamic_bytes, Storage shared, int order, unsigned seed) {
  std::mt19937 random(seed);
  l.ahead = order == shuffled && seed % 2 == 0;
  const uint64_t blocks = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
  std::vector<uint64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), 0);
  if (order == reverse) std::reverse(sequence.begin(), sequence.end());
  if (order == shuffled) std::shuffle(sequence.begin(), sequence.end(), random);
  for (const uint64_t index : sequence) {
    blockIdx = position(index, gridDim);
    if (shared.bytes) memset(shared.start, poison, shared.bytes);
    if (dynamic_bytes) memset(dynamic, poison, dynamic_bytes);
    begin_block(l.block);
    if (!run_block(l, order, random)) return;
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
  stop(std::string(message) + ", " + at(where));
}

Votes block_barrier(Location where, bool vote) {
  Thread& t = *current;
  t.state = State::at_barrier;
  t.where = where;
  t.value = vote;
  ++launched->block.waiting;
  release_barrier(launched->block);
  wait();
  return launched->block.votes;
}

const Gathered& meet(Location where, Collective kind, unsigned mask, uint64_t value) {
  Thread& t = *current;
  if (!(mask >> t.lane & 1))
    fail(where, "%s called by lane %d, which is not in its mask %#x", name(kind), t.lane, mask);
  if (t.snapshot) --t.snapshot->readers;
  t.snapshot = nullptr;
  t.state = State::in_warp;
  t.where = where;
  t.kind = kind;
  t.mask = mask;
  t.value = value;
  release_lanes(launched->block, t.warp, mask, kind);
  wait();
  return *t.snapshot;
}

int lane() { return current->lane; }
unsigned lanes_alive() { return launched->block.warps[(size_t)current->warp].alive; }
char* dynamic_shared() { return dynamic; }
void* shared_storage(const void*, size_t, size_t) { return nullptr; }

const char* signature_text(const Parameter* parameters, size_t count) {
  return strdup(text_of(parameters, count).c_str());
}

int launch(const Kernel& kernel, const unsigned* grid_block, size_t dynamic_bytes, void** arguments,
           int order, unsigned seed, char* message, int message_bytes) {
  static std::mutex one_at_a_time;  // positions and fibers are global
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  static GuardedPages pages;
  static Launch state;
  auto result = [&](const std::string& error) {
    snprintf(message, (size_t)message_bytes, "%s", error.c_str());
    return error.empty() ? 0 : 1;
  };
  const Storage shared = thread_local_storage((const void*)kernel.call);
  if (const char* why = refused(kernel, grid_block, shared.bytes + dynamic_bytes))
    return result(why);
  gridDim = dim3(grid_block[0], grid_block[1], grid_block[2]);
  blockDim = dim3(grid_block[3], grid_block[4], grid_block[5]);
  dynamic = pages.ending(dynamic_bytes);
  state.kernel = &kernel;
  state.arguments = arguments;
  state.error.clear();
  launched = &state;
  {
    const Signals signals;
    if (sigsetjmp(trapped, 1))
      state.error = trap_text();
    else
      run_grid(state, dynamic_bytes, shared, order, seed);
  }
  if (!state.error.empty()) abandon_fibers();
  return result(state.error);
}

}  // namespace cudacpu

// ---- what -fsanitize=bounds,alignment calls (the handlers' parameters are fixed by the compiler)

namespace {
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, information;
  char name[1];
};
struct OutOfBounds {
  SourceLocation where;
  TypeDescriptor *array, *index;
};
struct TypeMismatch {
  SourceLocation where;
  TypeDescriptor* type;
  uint8_t log_alignment, access;
};
cudacpu::Location location(const SourceLocation& s) {
  return {s.file ? s.file : "kernel", (int)s.line};
}
}  // namespace

extern "C" void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) {
  cudacpu::fail(location(data->where), "index %lld outside of %s", (long long)index,
                data->array->name);
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, uintptr_t address) {
  if (!address) cudacpu::fail(location(data->where), "null pointer to %s", data->type->name);
  cudacpu::fail(location(data->where), "misaligned address %#llx of %s, which needs %u bytes",
                (unsigned long long)address, data->type->name, 1u << data->log_alignment);
}
