// Errors that a kernel finds, for gpugrad/backend/device_errors.py, which raises them on the host.
//
// The record is host memory mapped into the device. Atomics on it are atomic among the threads of
// the device, which is all that is needed: the host reads it after waiting for the device.

struct ErrorRecord {
  int site;  // 0: no error
  int unused;
  long long value, bound;
};

// The first error wins. `site` > 0 says which launch this is.
__device__ __forceinline__ void report_error(ErrorRecord* record, long long site, long long value,
                                             long long bound) {
  if (atomicCAS(&record->site, 0, (int)site) == 0) {
    record->value = value;
    record->bound = bound;
  }
}

// An index with negative ones counted from the end, as in NumPy. One out of range is reported and
// 0 taken instead, so that no address is wrong; of an empty axis (size 0) nothing may be read.
template <class I>
__device__ __forceinline__ long long checked_index(I index, long long size, ErrorRecord* record,
                                                   long long site) {
  long long i = (long long)index;
  if (i < 0) i += size;
  if ((unsigned long long)i < (unsigned long long)size) return i;
  report_error(record, site, (long long)index, size);
  return 0;
}

// An index that must not be negative: a label, a class.
template <class I>
__device__ __forceinline__ long long checked_label(I index, long long size, ErrorRecord* record,
                                                   long long site) {
  const long long i = (long long)index;
  if ((unsigned long long)i < (unsigned long long)size) return i;
  report_error(record, site, i, size);
  return 0;
}
