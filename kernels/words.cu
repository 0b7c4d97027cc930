// Words of eight bytes written to the device's memory, given as an argument of the launch
// (gpugrad/codegen/cuda_words.py): nothing is copied, and the host may change its own at once.
//
// Defines: CAPACITY, how many words an argument holds.
// Launch: one block of any number of threads.

struct Words {
  unsigned long long at[CAPACITY];
};

extern "C" __global__ void __launch_bounds__(128)
write_words(const __grid_constant__ Words words, unsigned long long* out, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = words.at[i];
}
