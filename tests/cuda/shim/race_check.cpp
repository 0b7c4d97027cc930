// race_check FILE...: runs launches written by race.py, in modules built for ThreadSanitizer.
//
// ../host_device/recording.cpp says what a file holds.
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

// Never freed: the next launch gets memory of its own, about which nothing is known.
char* read_buffer(Reader& in) {
  const auto size = (size_t)in.number(), phase = (size_t)in.number();
  auto* memory = (char*)aligned_alloc(512, (size + phase + 1023) / 512 * 512);
  in.bytes(memory + phase, size);
  return memory + phase;
}

std::vector<char> read_argument(Reader& in, const std::vector<char*>& buffers) {
  const int64_t buffer = in.number();
  if (buffer < 0) {
    const std::string value = in.text();
    return {value.begin(), value.end()};
  }
  char* address = buffers[(size_t)buffer] + in.number();
  return {(char*)&address, (char*)(&address + 1)};
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
  for (int64_t i = in.number(); i > 0; --i) {  // pointers inside of memory or arguments
    const int64_t at = in.number(), offset = in.number();
    char* place = (at < 0 ? values[(size_t)(-1 - at)].data() : buffers[(size_t)at]) + offset;
    char* target = buffers[(size_t)in.number()];
    target += in.number();
    memcpy(place, &target, sizeof target);
  }
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
