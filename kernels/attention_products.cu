// What the gradient of attention (attention.cuh) subtracts: of every query, g * out summed.
#include "attention.cuh"

// deltas[matrix, query] = sum over columns of g * out: a warp per query
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    products_of_rows(const Element* __restrict__ g, const Element* __restrict__ out,
                     Real* __restrict__ deltas, long long count, const Attention a) {
  const long long row = (long long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  if (row >= count) return;
  const long long matrix = row / a.queries, query = row - matrix * a.queries;
  const long long batch = matrix / a.heads, head = matrix - batch * a.heads;
  g += batch * a.g.batch + head * a.g.head + query * a.g.row;
  out += batch * a.out.batch + head * a.out.head + query * a.out.row;
  Real sum = Real(0);
  for (int c = threadIdx.x & 31; c < VALUE; c += 32)
    sum += Real(widen(g[c * a.g.column])) * Real(widen(out[c * a.out.column]));
  sum = reduce_warp<Sum>(sum);
  if (!(threadIdx.x & 31)) deltas[row] = sum;
}
