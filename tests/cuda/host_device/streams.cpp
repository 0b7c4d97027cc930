// Streams, events, stream capture and graphs.
//
// A stream is a queue. Ordinarily its work runs when it is submitted; when work is deferred
// (host_device_defer) it runs when somebody waits for it, as late as CUDA's rules allow, which
// shows where a wait is missing. A task runs after the earlier tasks of its stream, the events its
// stream was told to wait for and, between the legacy stream and blocking streams, whatever was
// submitted before.
//
// Capture follows the programming guide, "Graphs: creating a graph using stream capture": a
// captured stream collects nodes; an event recorded in it carries its dependencies to the streams
// that wait for the event, which join the capture; all must be joined to the first before the end.
// Graphs run in any order their dependencies allow, as the schedule says.
#include "device.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

namespace host_device {

namespace {

struct Event {
  Point point;                                                 // ordinary: what it marks
  std::shared_ptr<double> time = std::make_shared<double>(0);  // ms, when the stream reached it
  std::shared_ptr<Capture> capture;                            // or the capture it belongs to
  Frontier frontier;
};

std::map<const Stream*, StreamRef> streams;  // those created, by handle
bool deferred = false;

StreamRef legacy_stream(int device) {
  static StreamRef legacy[kDevices];
  if (!legacy[device]) {
    legacy[device] = std::make_shared<Stream>();
    legacy[device]->device = device;
  }
  return legacy[device];
}

bool is_legacy(const StreamRef& stream) { return stream == legacy_stream(stream->device); }

bool is_legacy_handle(const void* handle) {
  // The per-thread default stream is treated as the legacy one: CuPy uses it only when asked to.
  return !handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
}

double now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

// ---- queues

int complete_until(const StreamRef& stream, uint64_t position) {
  int error = 0;
  while (stream->finished < position) {
    for (const Point& point : std::vector<Point>(stream->queue.front().after))
      if (int e = complete_until(point.stream, point.position)) error = error ? error : e;
    Task task = std::move(stream->queue.front());
    stream->queue.pop_front();
    ++stream->finished;
    if (int e = task.run()) error = error ? error : e;
  }
  return error;
}

void enqueue(const StreamRef& stream, const std::string& name, Work work) {
  Task task{name, std::move(work), std::move(stream->waits)};
  stream->waits.clear();
  if (is_legacy(stream)) {
    for (auto& [handle, other] : streams)
      if (other->device == stream->device && other->blocking())
        task.after.push_back({other, other->submitted});
  } else if (stream->blocking()) {
    StreamRef legacy = legacy_stream(stream->device);
    task.after.push_back({legacy, legacy->submitted});
  }
  stream->queue.push_back(std::move(task));
  ++stream->submitted;
}

// ---- capture

int invalidate(const std::shared_ptr<Capture>& capture, int error) {
  capture->invalid = true;
  return error;
}

// Work on the legacy stream would have to wait for blocking streams, which a capture cannot do.
int use_legacy(int device) {
  int error = 0;
  for (auto& [handle, other] : streams)
    if (other->device == device && other->blocking() && other->capture && !other->capture->invalid)
      error = invalidate(other->capture, cudaErrorStreamCaptureImplicit);
  return error;
}

int add_node(Stream& stream, const std::string& name, Work work) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  Frontier& frontier = capture.streams[&stream];
  auto& nodes = capture.graph->nodes;
  nodes.push_back({name, std::move(work), frontier});
  frontier = {nodes.size() - 1};
  return 0;
}

// Whether every node leads to the stream the capture began with.
bool all_joined(const Capture& capture) {
  const auto& nodes = capture.graph->nodes;
  std::vector<size_t> open(capture.streams.at(capture.origin).begin(),
                           capture.streams.at(capture.origin).end());
  std::set<size_t> seen(open.begin(), open.end());
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    for (size_t before : nodes[node].after)
      if (seen.insert(before).second) open.push_back(before);
  }
  return seen.size() == nodes.size();
}

int end_capture(Stream& stream, cudaGraph_t* graph) {
  std::shared_ptr<Capture> capture = stream.capture;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != &stream) return invalidate(capture, cudaErrorStreamCaptureUnmatched);
  for (auto& [member, frontier] : capture->streams) member->capture = nullptr;
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!all_joined(*capture)) return cudaErrorStreamCaptureUnjoined;
  *graph = (cudaGraph_t) new std::shared_ptr<Graph>(capture->graph);
  return 0;
}

// ---- graphs

const std::shared_ptr<Graph>& graph_of(const void* handle) {
  return *(const std::shared_ptr<Graph>*)handle;
}

// Run all nodes, each after those it depends on: the first that is ready, the last, or any.
int run_graph(const Graph& graph) {
  std::vector<size_t> waiting(graph.nodes.size());
  std::vector<std::vector<size_t>> followers(graph.nodes.size());
  std::set<size_t> ready;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    waiting[i] = graph.nodes[i].after.size();
    for (size_t before : graph.nodes[i].after) followers[before].push_back(i);
    if (!waiting[i]) ready.insert(i);
  }
  std::mt19937 random(schedule.seed);
  while (!ready.empty()) {
    auto next = ready.begin();
    if (schedule.order == 1) next = std::prev(ready.end());
    if (schedule.order == 2) std::advance(next, random() % ready.size());
    const size_t node = *next;
    ready.erase(next);
    if (int error = graph.nodes[node].run()) return error;
    for (size_t follower : followers[node])
      if (!--waiting[follower]) ready.insert(follower);
  }
  return 0;
}

}  // namespace

StreamRef find_stream(const void* handle) {
  if (is_legacy_handle(handle)) return legacy_stream(current_device);
  auto found = streams.find((const Stream*)handle);
  return found == streams.end() ? nullptr : found->second;
}

bool capturing(const void* handle) {
  StreamRef stream = find_stream(handle);
  return stream && stream->capture;
}

int submit(const void* handle, const std::string& name, Work work) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream || stream->device != current_device) return cudaErrorInvalidResourceHandle;
  if (stream->capture) return add_node(*stream, name, std::move(work));
  if (is_legacy(stream))
    if (int error = use_legacy(stream->device)) return error;
  enqueue(stream, name, std::move(work));
  return deferred ? 0 : complete(stream);
}

int complete(const StreamRef& stream) { return complete_until(stream, stream->submitted); }

int complete_device(int device) {
  int error = complete(legacy_stream(device));
  for (auto& [handle, stream] : std::map(streams))
    if (stream->device == device)
      if (int e = complete(stream)) error = error ? error : e;
  return error;
}

int unsafe_call() {
  int error = 0;
  for (auto& [handle, stream] : streams) {
    const auto& capture = stream->capture;
    if (!capture || capture->invalid || capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal &&
        capture->thread != std::this_thread::get_id())
      continue;
    error = invalidate(capture, cudaErrorStreamCaptureUnsupported);
  }
  return error;
}

}  // namespace host_device

using namespace host_device;

// ---- streams ------------------------------------------------------------------------------------

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags,
                                                int priority) {
  Lock lock(mutex);
  auto stream = std::make_shared<Stream>();
  stream->device = current_device;
  stream->flags = flags;
  stream->priority = priority;
  streams[stream.get()] = stream;
  *handle = (cudaStream_t)stream.get();
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* handle) {
  return cudaStreamCreateWithPriority(handle, cudaStreamDefault, 0);
}

// Destroying a stream does not wait: work and events that refer to it keep it alive.
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream || is_legacy(stream)) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    invalidate(stream->capture, 0);
    stream->capture->streams.erase(stream.get());
  }
  const int error = complete(stream);
  streams.erase(stream.get());
  return result(error);
}

EXPORT cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  *flags = stream->flags;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  *priority = stream->priority;
  return cudaSuccess;
}

// Waiting for, or asking about, a stream that is being captured is an error of the capture.
static int wait_for(const void* handle, Counter counter) {
  Lock lock(mutex);
  count(counter);
  StreamRef stream = find_stream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream->capture) return invalidate(stream->capture, cudaErrorStreamCaptureUnsupported);
  if (is_legacy(stream))
    if (int error = use_legacy(stream->device)) return error;
  if (counter == kQueries) return stream->finished < stream->submitted ? cudaErrorNotReady : 0;
  int error = complete(stream);
  if (!is_legacy(stream)) return error;
  for (auto& [other_handle, other] : std::map(streams))
    if (other->device == stream->device && other->blocking())
      if (int e = complete(other)) error = error ? error : e;
  return error;
}

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  notify("sync");
  return result(wait_for(handle, kSyncs));
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return result(wait_for(handle, kQueries));
}

EXPORT cudaError_t cudaDeviceSynchronize() {
  notify("sync");
  Lock lock(mutex);
  count(kSyncs);
  int error = 0;
  for (auto& [handle, stream] : streams)
    if (stream->device == current_device && stream->capture && !stream->capture->invalid)
      error = invalidate(stream->capture, cudaErrorStreamCaptureUnsupported);
  return result(error ? error : complete_device(current_device));
}

EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  auto* event = (Event*)event_handle;
  if (!event->capture) {
    if (stream->capture)
      return result(event->point.stream ? invalidate(stream->capture,
                                                     cudaErrorStreamCaptureIsolation) : 0);
    if (event->point.stream) stream->waits.push_back(event->point);
    return cudaSuccess;
  }
  if (stream->capture && stream->capture != event->capture)
    return result(invalidate(stream->capture, cudaErrorStreamCaptureMerge));
  stream->capture = event->capture;
  event->capture->streams[stream.get()].insert(event->frontier.begin(), event->frontier.end());
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t callback,
                                         void* data, unsigned) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  if (stream->capture) return result(invalidate(stream->capture, cudaErrorStreamCaptureUnsupported));
  return result(submit(handle, "callback", [=] {
    callback(handle, cudaSuccess, data);
    return 0;
  }));
}

EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  return result(submit(handle, "host function", [=] {
    function(data);
    return 0;
  }));
}

// ---- events -------------------------------------------------------------------------------------

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) {
  *handle = (cudaEvent_t) new Event;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* handle) {
  return cudaEventCreateWithFlags(handle, cudaEventDefault);
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  Lock lock(mutex);
  delete (Event*)handle;
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  Lock lock(mutex);
  auto* event = (Event*)handle;
  StreamRef stream = find_stream(stream_handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  event->capture = stream->capture;
  if (stream->capture) {
    event->frontier = stream->capture->streams[stream.get()];
    return cudaSuccess;
  }
  auto time = event->time = std::make_shared<double>(0);
  const int device = current_device;
  current_device = stream->device;  // an event may be recorded from another device
  const int error = submit(stream_handle, "event", [time] {
    *time = now();
    return 0;
  });
  current_device = device;
  event->point = {stream, stream->submitted};
  return result(error);
}

static int wait_for_event(Event* event, Counter counter) {
  Lock lock(mutex);
  count(counter);
  if (event->capture) return invalidate(event->capture, cudaErrorStreamCaptureUnsupported);
  if (!event->point.stream) return 0;
  if (counter == kQueries)
    return event->point.stream->finished < event->point.position ? cudaErrorNotReady : 0;
  return complete_until(event->point.stream, event->point.position);
}

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  notify("sync");
  return result(wait_for_event((Event*)handle, kSyncs));
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return result(wait_for_event((Event*)handle, kQueries));
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(mutex);
  const double begin = *((Event*)from)->time, end = *((Event*)to)->time;
  if (!begin || !end) return result(cudaErrorNotReady);
  *milliseconds = (float)(end - begin);
  return cudaSuccess;
}

// ---- capture and graphs -------------------------------------------------------------------------

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  if (is_legacy(stream)) return result(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return result(cudaErrorIllegalState);
  auto capture = std::make_shared<Capture>();
  capture->origin = stream.get();
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->streams[stream.get()] = {};
  stream->capture = capture;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Lock lock(mutex);
  *graph = nullptr;
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  return result(end_capture(*stream, graph));
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  StreamRef stream = find_stream(handle);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  if (is_legacy(stream))
    for (auto& [other_handle, other] : streams)
      if (other->device == stream->device && other->blocking() && other->capture)
        return result(cudaErrorStreamCaptureImplicit);
  *status = !stream->capture          ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                        unsigned long long) {
  *executable = (cudaGraphExec_t) new std::shared_ptr<Graph>(graph_of(graph));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete (std::shared_ptr<Graph>*)graph;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete (std::shared_ptr<Graph>*)executable;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  std::shared_ptr<Graph> graph = graph_of(executable);
  return result(submit(stream, "graph", [graph] {
    count(kGraphLaunches);
    return run_graph(*graph);
  }));
}

EXPORT cudaError_t cudaGraphDebugDotPrint(cudaGraph_t handle, const char* path, unsigned) {
  FILE* file = fopen(path, "w");
  if (!file) return result(cudaErrorInvalidValue);
  fprintf(file, "digraph graph_0 {\n");
  const auto& nodes = graph_of(handle)->nodes;
  for (size_t i = 0; i < nodes.size(); ++i) {
    fprintf(file, "  n%zu [label=\"%s\"];\n", i, nodes[i].name.c_str());
    for (size_t before : nodes[i].after) fprintf(file, "  n%zu -> n%zu;\n", before, i);
  }
  fprintf(file, "}\n");
  fclose(file);
  return cudaSuccess;
}

// ---- test controls ------------------------------------------------------------------------------

// Run work as late as allowed (1), or at once (0; what is still queued runs now).
EXPORT int host_device_defer(int on) {
  Lock lock(mutex);
  deferred = on;
  int error = 0;
  if (!on)
    for (int device = 0; device < kDevices; ++device)
      if (int e = complete_device(device)) error = error ? error : e;
  return error;
}
