// race_check FILE...: runs launches written by race.py, in modules built for ThreadSanitizer.
//
// A file holds, as 64-bit numbers unless said otherwise: the length of the module's path and the
// path, the same for the kernel's name, the grid's and the block's extents and the bytes of dynamic
// shared memory, the number of buffers and for each its length and contents, the number of
// arguments and for each a buffer (or -1), then an offset in it, or the length and bytes of a
// value.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  int64_t number() {
    int64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  std::string text() {
    std::string value((size_t)number(), 0);
    bytes(&value[0], value.size());
    return value;
  }
  void bytes(void* to, size_t count) {
    if (!file_.read((char*)to, (std::streamsize)count)) {
      fprintf(stderr, "race_check: the file is too short\n");
      exit(2);
    }
  }

 private:
  std::ifstream file_;
};

char* read_buffer(Reader& in) {
  const auto size = (size_t)in.number();
  auto* buffer = (char*)aligned_alloc(512, (size + 1023) / 512 * 512);
  in.bytes(buffer, size);
  return buffer;
}

std::vector<char> read_argument(Reader& in, const std::vector<char*>& buffers) {
  const int64_t buffer = in.number(), count = in.number();
  std::vector<char> value((size_t)(buffer < 0 ? count : (int64_t)sizeof(char*)));
  if (buffer < 0) {
    in.bytes(value.data(), value.size());
  } else {
    char* address = buffers[(size_t)buffer] + count;
    memcpy(value.data(), &address, sizeof address);
  }
  return value;
}

[[noreturn]] void missing() {
  fprintf(stderr, "race_check: %s\n", dlerror());
  exit(2);
}

void load(const char* path) {
  const std::string module = Reader(path).text();
  if (!dlopen(module.c_str(), RTLD_NOW | RTLD_LOCAL)) missing();
}

void run(const char* path) {
  typedef int (*Launch)(const unsigned*, size_t, void**, int, unsigned, char*, int);
  Reader in(path);
  const std::string module = in.text(), kernel = in.text();
  unsigned grid_block[6];
  for (unsigned& extent : grid_block) extent = (unsigned)in.number();
  const auto shared = (size_t)in.number();
  std::vector<char*> buffers((size_t)in.number());
  for (char*& buffer : buffers) buffer = read_buffer(in);
  std::vector<std::vector<char>> values((size_t)in.number());
  for (auto& value : values) value = read_argument(in, buffers);
  std::vector<void*> arguments;
  for (auto& value : values) arguments.push_back(value.data());
  void* library = dlopen(module.c_str(), RTLD_NOW | RTLD_LOCAL);
  const auto launch = (Launch)dlsym(library, ("cudacpu_launch_" + kernel).c_str());
  if (!launch) missing();
  char message[1000] = "";
  if (launch(grid_block, shared, arguments.data(), 0, 0, message, sizeof message)) {
    fprintf(stderr, "cudacpu: %s\n", message);
    exit(3);
  }
  for (char* buffer : buffers) free(buffer);
}

}  // namespace

// All modules first: ThreadSanitizer finds the lines of those that are there at the first report.
int main(int count, char** paths) {
  for (int i = 1; i < count; ++i) load(paths[i]);
  for (int i = 1; i < count; ++i) {
    fprintf(stderr, "race_check: %s\n", paths[i]);
    run(paths[i]);
  }
}
