// Attention (attention.cuh) and the logarithmic sums that its gradient reads.
#include "attention.cuh"

// sums[matrix, query] is the logarithm of the sum of exponentials of its scores
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    forward(const Element* __restrict__ q, const Element* __restrict__ k,
            const Element* __restrict__ v, const Mask* __restrict__ mask,
            Element* __restrict__ out, Real* __restrict__ sums, const Attention a) {
  extern __shared__ double memory[];
  Real* queries = (Real*)memory;              // (HEAD, ROWS)
  Real* keys = queries + HEAD * ROW_STEP;     // (HEAD, LENGTH)
  Real* values = keys + HEAD * STEP;          // (VALUE, LENGTH)
  Real* weights = values + VALUE * STEP;      // (ROWS, LENGTH)
  const Place p(a, a.queries);
  q = p.in(q, a.q), k = p.in(k, a.k), v = p.in(v, a.v), mask = p.in(mask, a.mask);
  load_tile<HEAD, ROWS, ROW_STEP>(queries, q, a.q, p.first, a.queries);

  Rows<VALUE> total;
  Real top[MINE], sum[MINE];  // of the scores so far
  total.clear();
#pragma unroll
  for (int i = 0; i < MINE; ++i) top[i] = -INFINITY, sum[i] = Real(0);
  const long long end = a.causal ? min(a.keys, p.first + ROWS) : a.keys;
  for (long long first = 0; first < end; first += LENGTH) {
    load_tile<HEAD, LENGTH, STEP>(keys, k, a.k, first, a.keys);
    load_tile<VALUE, LENGTH, STEP>(values, v, a.v, first, a.keys);
    __syncthreads();
    Real s[MINE][OTHERS];
    product<HEAD>(s, queries, keys, p);
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const long long query = p.first + p.y + SIDE * i;
      Real highest = top[i];
#pragma unroll
      for (int j = 0; j < OTHERS; ++j) {
        s[i][j] = score(s[i][j], a, mask, query, first + p.x + SIDE * j);
        highest = max(highest, s[i][j]);
      }
      highest = row_max(highest);
      // while all keys are hidden: no difference of infinities
      const Real base = highest == Real(-INFINITY) ? Real(0) : highest;
      const Real shrink = exponential(top[i] - base);
      Real part = Real(0);
#pragma unroll
      for (int j = 0; j < OTHERS; ++j) {
        const Real w = exponential(s[i][j] - base);
        part += w;
        weights[(p.y + SIDE * i) * STEP + p.x + SIDE * j] = w;
      }
      sum[i] = sum[i] * shrink + row_sum(part);
      top[i] = highest;
#pragma unroll
      for (int c = 0; c < PADDED(VALUE); ++c) total.at[i][c] *= shrink;
    }
    __syncwarp();  // the rows that a warp reads of the weights are its own
    total.add(weights, values, p);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    const long long query = p.first + p.y + SIDE * i;
    if (!p.x && query < a.queries) sums[p.matrix * a.queries + query] = top[i] + logarithm(sum[i]);
    const Real inverse = Real(1) / sum[i];  // no visible key: 0 * inf is NaN, as of the formula
#pragma unroll
    for (int c = 0; c < PADDED(VALUE); ++c) total.at[i][c] *= inverse;
  }
  total.store(p.in(out, a.out), a.out, Real(1), p, a.queries);
}
