// Errors, devices, counters and what tests switch.
#include "device.hpp"

#include <atomic>
#include <cstdio>
#include <cstring>

namespace host_device {

std::recursive_mutex mutex;
thread_local int current_device = 0;
Schedule schedule;

namespace {

const char* const kCounterNames =
    "launches kernels graph_launches library_calls mallocs frees host_mallocs syncs queries "
    "h2d d2h d2d memsets h2d_bytes d2h_bytes";
std::atomic<long long> counters[kCounters];

using Watcher = void (*)(const char* what, size_t bytes);
std::atomic<Watcher> watcher{nullptr};

thread_local int last_error = 0;
thread_local int described_error = 0;
thread_local std::string description;

struct ErrorName {
  int code;
  const char *name, *text;
};
const ErrorName kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidKernelImage, "cudaErrorInvalidKernelImage",
     "device kernel image is invalid"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "the host-memory device runs kernels built for the host only"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle",
     "invalid resource handle: destroyed, or made on another device"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorSymbolNotFound, "cudaErrorSymbolNotFound", "named symbol not found"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported",
     "the host-memory device does not model this call"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
};

const ErrorName* lookup(int code) {
  for (const ErrorName& error : kErrors)
    if (error.code == code) return &error;
  return nullptr;
}

}  // namespace

void count(Counter counter, long long by) { counters[counter] += by; }

void notify(const char* what, size_t bytes) {
  if (Watcher watch = watcher) watch(what, bytes);
}

int fail(int code, const std::string& message) {
  described_error = code;
  description = message;
  return code;
}

cudaError_t result(int code) {
  if (code) last_error = code;
  return (cudaError_t)code;
}

}  // namespace host_device

using namespace host_device;

// ---- errors -------------------------------------------------------------------------------------

EXPORT const char* cudaGetErrorName(cudaError_t code) {
  const ErrorName* error = lookup(code);
  return error ? error->name : "cudaErrorUnknown";
}

EXPORT const char* cudaGetErrorString(cudaError_t code) {
  if (code && code == described_error) return description.c_str();
  const ErrorName* error = lookup(code);
  return error ? error->text : "unknown error";
}

EXPORT cudaError_t cudaGetLastError() {
  auto code = (cudaError_t)last_error;
  last_error = 0;
  return code;
}

EXPORT CUresult cuGetErrorName(CUresult code, const char** name) {
  *name = cudaGetErrorName((cudaError_t)code);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = cudaGetErrorString((cudaError_t)code);
  return CUDA_SUCCESS;
}

// ---- devices ------------------------------------------------------------------------------------

EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = HOST_DEVICE_CUDA_VERSION;
  return cudaSuccess;
}

EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

EXPORT cudaError_t cudaGetDeviceCount(int* devices) {
  *devices = kDevices;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

EXPORT cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

// The numbers of an H100, but for the few multiprocessors, which make grid-stride loops loop.
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxBlockDimX: *value = 1024; break;
    case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *value = 65535; break;
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    default: *value = 0;  // among them: no memory pools, no managed memory, no peer access
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "host-memory device");
  properties->major = 9;
  properties->totalGlobalMem = total;
  properties->multiProcessorCount = 4;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = 227 << 10;
  const int threads[] = {1024, 1024, 64}, grid[] = {2147483647, 65535, 65535};
  memcpy(properties->maxThreadsDim, threads, sizeof threads);
  memcpy(properties->maxGridSize, grid, sizeof grid);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  snprintf(id, length, "0000:%02x:00.0", device);
  return cudaSuccess;
}

EXPORT CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

static char contexts[kDevices];  // only their addresses matter

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)&contexts[current_device];
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  auto device = (char*)context - contexts;
  if (device < 0 || device >= kDevices) return CUDA_ERROR_INVALID_VALUE;
  current_device = (int)device;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext* context) {
  Lock lock(mutex);
  StreamRef found = find_stream(stream);
  *context = (CUcontext)&contexts[found ? found->device : current_device];
  return CUDA_SUCCESS;
}

// ---- test controls: tests/cuda/host_device/__init__.py ------------------------------------------

EXPORT const char* host_device_counter_names() { return kCounterNames; }

EXPORT long long host_device_counter(int index) { return counters[index]; }

EXPORT void host_device_watch(void (*watch)(const char*, size_t)) { watcher = watch; }

EXPORT void host_device_schedule(int order, unsigned seed) { schedule = {order, seed}; }

// Work of another library, such as the cuBLAS beside this: queued, captured and replayed like a
// kernel. `release` is called with the argument when no queue and no graph holds the work any more.
EXPORT int host_device_submit(void* stream, const char* name, int (*run)(void*), void* argument,
                              void (*release)(void*)) {
  std::shared_ptr<void> keep(argument, release);
  return submit(stream, name, [=] {
    count(kLibraryCalls);
    return run(keep.get());
  });
}
