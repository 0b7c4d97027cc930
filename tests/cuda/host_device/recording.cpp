// Launches written to files: the kernel, its arguments and all memory it can reach, before and
// after. tests/cuda/recordings.py reads and replays them.
//
// A file holds, numbers being 64 bits and texts a length and the bytes:
//   module's path, kernel's name, extents of grid and block, bytes of dynamic shared memory,
//   number of buffers, for each its length, its address modulo 512, its contents before;
//   number of arguments, for each a buffer and an offset in it, or -1 and the value as a text;
//   number of pointers inside of memory, for each where it is and where it points, both as a buffer
//   (argument i is -1 - i) and an offset;
//   for each buffer its contents after.
#include "device.hpp"

#include <unistd.h>

#include <cstring>
#include <fstream>

namespace host_device {

namespace {

constexpr uint64_t kMostThreads = 1 << 16;
constexpr size_t kMostScanned = 1 << 16;  // bytes searched for pointers

struct Settings {
  std::string folder;  // empty: nothing is recorded
  size_t most_bytes = 0;
  int most_of_a_kernel = 0;
} settings;

// What was written: launches by kernel, and which shapes of them.
std::map<std::string, int> written;
std::set<std::string> shapes;
long long files = 0;

struct Place {
  int64_t buffer, offset;
};
struct Pointer {
  Place at, to;
};

class Writer {
 public:
  explicit Writer(const std::string& path) : file_(path, std::ios::binary) {}
  void number(int64_t value) { bytes(&value, sizeof value); }
  void text(const void* from, size_t size) {
    number((int64_t)size);
    bytes(from, size);
  }
  void text(const std::string& value) { text(value.data(), value.size()); }
  void bytes(const void* from, size_t size) { file_.write((const char*)from, (long)size); }

 private:
  std::ofstream file_;
};

}  // namespace

struct Record::Content {
  Launched launched;
  std::vector<Allocation> buffers;
  std::vector<std::string> before;
  std::vector<Place> arguments;
  std::vector<Pointer> pointers;
  size_t bytes = 0;

  // Where an address lies, with its allocation among the buffers; buffer -1 if in none.
  Place place(const void* address) {
    const Allocation* a = find_allocation(address);
    if (!a || a->bytes > settings.most_bytes) {
      if (a) bytes += a->bytes;  // too large: so is the launch
      return {-1, 0};
    }
    const int64_t offset = (const char*)address - a->start;
    for (size_t i = 0; i < buffers.size(); ++i)
      if (buffers[i].start == a->start) return {(int64_t)i, offset};
    buffers.push_back(*a);
    bytes += a->bytes;
    scan((int64_t)buffers.size() - 1, a->start, a->bytes);
    return {(int64_t)buffers.size() - 1, offset};
  }

  // Notes the pointers to device memory inside of a struct or a buffer.
  void scan(int64_t buffer, const char* data, size_t size) {
    if (size > kMostScanned) return;
    for (size_t i = 0; i + sizeof(void*) <= size && bytes <= settings.most_bytes; i += 8) {
      const void* address;
      memcpy(&address, data + i, sizeof address);
      if (!find_allocation(address)) continue;
      const Place to = place(address);
      if (to.buffer >= 0) pointers.push_back({{buffer, (int64_t)i}, to});
    }
  }

  // The arguments that are no pointers, and the sizes of memory: launches alike are written once.
  std::string shape() const {
    std::string all = launched.module + launched.function;
    for (unsigned extent : launched.grid_and_block) all += " " + std::to_string(extent);
    for (const Allocation& a : buffers) all += " " + std::to_string(a.bytes);
    for (size_t i = 0; i < arguments.size(); ++i)
      if ((*launched.parameters)[i].kind != 'p' && (*launched.arguments)[i].size() <= 8)
        all.append((*launched.arguments)[i].begin(), (*launched.arguments)[i].end());
    return all;
  }

  void write() const;
};

void Record::Content::write() const {
  const std::string name = std::to_string(getpid()) + "-" + std::to_string(files++) + ".launch";
  Writer out(settings.folder + "/" + name);
  out.text(launched.module);
  out.text(launched.function);
  for (unsigned extent : launched.grid_and_block) out.number(extent);
  out.number((int64_t)launched.shared);
  out.number((int64_t)buffers.size());
  for (size_t i = 0; i < buffers.size(); ++i) {
    out.number((int64_t)buffers[i].bytes);
    out.number((int64_t)((uintptr_t)buffers[i].start % 512));
    out.bytes(before[i].data(), before[i].size());
  }
  out.number((int64_t)arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    out.number(arguments[i].buffer);
    if (arguments[i].buffer >= 0) out.number(arguments[i].offset);
    else out.text((*launched.arguments)[i].data(), (*launched.arguments)[i].size());
  }
  out.number((int64_t)pointers.size());
  for (const Pointer& p : pointers)
    for (int64_t n : {p.at.buffer, p.at.offset, p.to.buffer, p.to.offset}) out.number(n);
  for (const Allocation& a : buffers) out.bytes(a.start, a.bytes);
}

Record::Record(const Launched& launched) {
  if (settings.folder.empty()) return;
  const auto& g = launched.grid_and_block;
  if (uint64_t{g[0]} * g[1] * g[2] * g[3] * g[4] * g[5] > kMostThreads) return;
  if (written[launched.module + launched.function] >= settings.most_of_a_kernel) return;
  auto content = std::make_unique<Content>();
  content->launched = launched;
  for (size_t i = 0; i < launched.arguments->size(); ++i) {
    const auto& value = (*launched.arguments)[i];
    Place place{-1, 0};
    const char kind = (*launched.parameters)[i].kind;
    if (kind == 'p') place = content->place(*(void* const*)value.data());
    if (kind == 's') content->scan(-1 - (int64_t)i, value.data(), value.size());
    content->arguments.push_back(place);
  }
  if (content->bytes > settings.most_bytes || !shapes.insert(content->shape()).second) return;
  ++written[launched.module + launched.function];
  for (const Allocation& a : content->buffers) content->before.emplace_back(a.start, a.bytes);
  content_ = std::move(content);
}

Record::~Record() = default;

void Record::finish() {
  if (content_) content_->write();
}

}  // namespace host_device

// Launches are written to a folder from now on; null: no more. Of each kernel so many with
// different shapes, and none that reaches more bytes of memory.
EXPORT void host_device_record(const char* folder, size_t most_bytes, int most_of_a_kernel) {
  host_device::Lock lock(host_device::mutex);
  host_device::settings = {folder ? folder : "", most_bytes, most_of_a_kernel};
}
