// Modules and kernel launches: the CUDA driver's calls.
//
// The image of a module is "CUDACPU:" and the path of a shared object built by tests/cuda/shim.
// For every kernel `k` it exports
//   int cudacpu_launch_k(const unsigned grid_and_block[6], size_t shared, void** arguments,
//                        int order, unsigned seed, char* message, int length);
//   const char* cudacpu_sig_k();   // arguments, such as "p8:f4c,i8,": kind, size, what it points to
#include "device.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

namespace host_device {

namespace {

constexpr char kPrefix[] = "CUDACPU:";
constexpr int kStaticShared = 48 << 10, kMaximalShared = 227 << 10;

using Launch = int (*)(const unsigned*, size_t, void**, int, unsigned, char*, int);
using Signature = const char* (*)();

struct Module {
  void* library;
  int device;
  std::string path;
};

struct Function {
  std::string name;
  Launch launch;
  std::vector<Parameter> parameters;
  int device;
  std::string module;
  int dynamic_shared = kStaticShared;  // the most a launch may ask for
};

std::vector<Parameter> parse(const std::string& signature) {
  std::vector<Parameter> parameters;
  for (size_t at = 0; at < signature.size(); at = signature.find(',', at) + 1)
    parameters.push_back({signature[at], std::strtoul(&signature[at + 1], nullptr, 10)});
  return parameters;
}

// A pointer argument must lie in memory of the device. Pointers inside of structs are not looked
// at; a wrong one ends at a guard page or in the operating system's hands.
int check_pointer(const Function& f, size_t index, const void* address) {
  const Allocation* a = find_allocation(address);
  const std::string argument = f.name + ": argument " + std::to_string(index);
  if (!a) {
    Dl_info info;
    if (!address || dladdr(address, &info)) return 0;  // null, or a global of a module
    return fail(cudaErrorIllegalAddress,
                argument + " is an illegal address: host memory, or device memory that was freed");
  }
  if (!a->host && a->device != f.device)
    return fail(cudaErrorIllegalAddress, argument + " is an illegal address: memory of device " +
                                             std::to_string(a->device) + " in a kernel on device " +
                                             std::to_string(f.device));
  return 0;
}

struct Shape {
  std::array<unsigned, 6> grid_and_block;
  unsigned shared;
};

int check_shape(const Function& f, const Shape& s) {
  const auto& g = s.grid_and_block;
  for (unsigned extent : g)
    if (!extent) return fail(cudaErrorInvalidValue, f.name + ": an extent of the launch is zero");
  if (uint64_t{g[3]} * g[4] * g[5] > 1024 || g[5] > 64)
    return fail(cudaErrorInvalidValue, f.name + ": more than 1024 threads in a block");
  if (g[0] > 2147483647u || g[1] > 65535 || g[2] > 65535)
    return fail(cudaErrorInvalidValue, f.name + ": the grid is too large");
  if ((int64_t)s.shared > f.dynamic_shared)
    return fail(cudaErrorInvalidValue,
                f.name + ": asks for " + std::to_string(s.shared) +
                    " bytes of dynamic shared memory, allowed are " +
                    std::to_string(f.dynamic_shared) +
                    " (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)");
  return 0;
}

int run(const Function& f, const Shape& shape, const Arguments& arguments) {
  count(kKernels);
  std::vector<void*> pointers;
  for (size_t i = 0; i < arguments.size(); ++i) {
    pointers.push_back((void*)arguments[i].data());
    if (f.parameters[i].kind == 'p')
      if (int error = check_pointer(f, i, *(void* const*)arguments[i].data())) return error;
  }
  Record record({f.module, f.name, shape.grid_and_block, shape.shared, &f.parameters, &arguments});
  char message[1000] = "";
  if (!f.launch(shape.grid_and_block.data(), shape.shared, pointers.data(), schedule.order,
                schedule.seed, message, sizeof message)) {
    record.finish();
    const std::string damage = damaged_allocation();
    return damage.empty() ? 0 : fail(cudaErrorIllegalAddress, f.name + ": " + damage);
  }
  const bool address = strstr(message, "illegal address");
  return fail(address ? cudaErrorIllegalAddress : cudaErrorLaunchFailure, f.name + ": " + message);
}

}  // namespace

}  // namespace host_device

using namespace host_device;

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const char* text = (const char*)image;
  if (strncmp(text, kPrefix, sizeof kPrefix - 1)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  void* library = dlopen(text + sizeof kPrefix - 1, RTLD_NOW | RTLD_LOCAL);
  if (!library) return (CUresult)fail(CUDA_ERROR_INVALID_IMAGE, dlerror());
  *module = (CUmodule) new Module{library, current_device, text + sizeof kPrefix - 1};
  return CUDA_SUCCESS;
}

// The code stays loaded: captured graphs may still hold its kernels.
EXPORT CUresult cuModuleUnload(CUmodule module) {
  delete (Module*)module;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  const auto* module = (const Module*)handle;
  const std::string symbol = name;
  auto launch = (Launch)dlsym(module->library, ("cudacpu_launch_" + symbol).c_str());
  auto signature = (Signature)dlsym(module->library, ("cudacpu_sig_" + symbol).c_str());
  if (!launch || !signature)
    return (CUresult)fail(CUDA_ERROR_NOT_FOUND, "named symbol not found: " + symbol);
  *function = (CUfunction) new Function{symbol, launch, parse(signature()), module->device, module->path};
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, CUmodule module,
                                     const char* name) {
  void* found = dlsym(((Module*)module)->library, name);
  if (!found) return CUDA_ERROR_NOT_FOUND;
  *address = (CUdeviceptr)found;
  *bytes = 0;  // not known
  return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y,
                               unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared, CUstream stream,
                               void** parameters, void**) {
  Lock lock(mutex);
  const Function& f = *(const Function*)handle;
  const Shape shape{{grid_x, grid_y, grid_z, block_x, block_y, block_z}, shared};
  if (f.device != current_device) return CUDA_ERROR_INVALID_HANDLE;
  if (int error = check_shape(f, shape)) return (CUresult)error;
  Arguments arguments;
  for (size_t i = 0; i < f.parameters.size(); ++i) {
    const char* value = (const char*)parameters[i];
    arguments.emplace_back(value, value + f.parameters[i].size);
  }
  if (!capturing(stream)) count(kLaunches);
  return (CUresult)submit(stream, f.name, [f, shape, arguments] { return run(f, shape, arguments); });
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = ((Function*)handle)->dynamic_shared;
      break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value < 0 || value > kMaximalShared) return CUDA_ERROR_INVALID_VALUE;
  ((Function*)handle)->dynamic_shared = value;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction,
                                                 CUoccupancyB2DSize, size_t, int) {
  *grid = 8;
  *block = 256;
  return CUDA_SUCCESS;
}
