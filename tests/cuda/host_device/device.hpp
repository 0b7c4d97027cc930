// A CUDA device made of host memory: what the files of this folder share.
//
// The library answers the calls of the CUDA runtime and driver that CuPy makes. Streams are queues
// of tasks, graphs are lists of tasks with their dependencies, device memory is host memory between
// guard pages, and kernels are host functions in shared objects built by tests/cuda/shim.
//
//   memory.cpp   allocations, copies      streams.cpp  streams, events, capture, graphs
//   kernels.cpp  modules, launches        system.cpp   errors, devices, counters, test controls
//   recording.cpp  launches written to files, for replays
//
// Numbers of errors are those of cudaError_t; CUresult uses the same ones for what is used here.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace host_device {

constexpr int kDevices = 2;

// ---- system.cpp ---------------------------------------------------------------------------------

// One lock for everything: the device is for correctness, not for speed.
extern std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

extern thread_local int current_device;

// What the tests count. Names in system.cpp, in this order.
enum Counter {
  kLaunches,      // kernels launched by the host, outside a capture
  kKernels,       // kernels run, those of graphs too
  kGraphLaunches,
  kLibraryCalls,  // cuBLAS and cuBLASLt work run
  kMallocs,       // device allocations (cudaMalloc, not those served by CuPy's pool)
  kFrees,
  kHostMallocs,   // pinned allocations
  kSyncs,         // the host waited for a stream, an event or the device
  kQueries,       // the host asked whether a stream or an event is done
  kH2D, kD2H, kD2D, kMemsets,
  kH2DBytes, kD2HBytes,
  kCounters
};
void count(Counter counter, long long by = 1);

// Tell the test that watches, if there is one, that the host does something a training step must
// not do: "sync", "h2d", "d2h", "malloc", "free". Called before the lock is taken.
void notify(const char* what, size_t bytes = 0);

// Remember a message for an error code, for cudaGetErrorString. Returns the code.
int fail(int code, const std::string& message);

// The code as the runtime's result; it also becomes the thread's last error.
cudaError_t result(int code);

struct Schedule {
  int order = 0;  // of threads, blocks and graph nodes: 0 as numbered, 1 reversed, 2 shuffled
  unsigned seed = 0;
};
extern Schedule schedule;

// ---- streams.cpp --------------------------------------------------------------------------------

using Work = std::function<int()>;  // returns an error code

struct Stream;
using StreamRef = std::shared_ptr<Stream>;

// Everything submitted to a stream before a position.
struct Point {
  StreamRef stream;
  uint64_t position = 0;
};

struct Task {
  std::string name;
  Work run;
  std::vector<Point> after;
};

struct Graph {
  struct Node {
    std::string name;
    Work run;
    std::set<size_t> after;
  };
  std::vector<Node> nodes;
};

// The nodes that the next node of a captured stream depends on.
using Frontier = std::set<size_t>;

struct Capture {
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  Stream* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  std::thread::id thread;
  bool invalid = false;
  std::map<Stream*, Frontier> streams;
};

struct Stream {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  std::deque<Task> queue;
  uint64_t submitted = 0, finished = 0;
  std::vector<Point> waits;  // what the next task must wait for
  std::shared_ptr<Capture> capture;

  bool blocking() const { return !(flags & cudaStreamNonBlocking); }
};

// The stream of a handle; null if it was destroyed or belongs to another device.
StreamRef find_stream(const void* handle);

bool capturing(const void* handle);

// Queue work on a stream, or add it to the graph that is being captured there. Unless work is
// deferred it runs at once.
int submit(const void* handle, const std::string& name, Work work);

// Run all work queued on a stream, on a device, everywhere.
int complete(const StreamRef& stream);
int complete_device(int device);

// For calls that may not happen while a capture is under way in their mode (cudaMalloc ...): the
// captures they spoil become invalid.
int unsafe_call();

// ---- memory.cpp ---------------------------------------------------------------------------------

struct Allocation {
  char* start = nullptr;
  size_t bytes = 0;
  int device = 0;
  bool host = false;
  char* mapping = nullptr;  // null: memory of somebody else, registered as pinned
  size_t mapped = 0;
};

// The allocation an address lies in, or just behind; null for other memory.
const Allocation* find_allocation(const void* address);

// That something wrote close beside some allocation, in words; empty if nothing did, or if arrays
// are not allocated exactly.
std::string damaged_allocation();

// ---- kernels.cpp, recording.cpp -----------------------------------------------------------------

struct Parameter {
  char kind;  // p pointer, i and u integers, f floating point, b bool, s struct
  size_t size;
};

using Arguments = std::vector<std::vector<char>>;

struct Launched {
  std::string module;  // path of the shared object
  std::string function;
  std::array<unsigned, 6> grid_and_block;
  size_t shared;
  const std::vector<Parameter>* parameters;
  const Arguments* arguments;
};

// A launch with the memory it finds and leaves, if a recording is made and wants it: made before
// the kernel runs, finished after it succeeded.
class Record {
 public:
  explicit Record(const Launched& launched);
  ~Record();
  void finish();

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

}  // namespace host_device
