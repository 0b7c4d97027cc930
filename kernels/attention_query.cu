// The gradient of attention (attention.cuh) to the queries.
#include "attention.cuh"

// dq = (weights * (g v^T - delta)) k * scale
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    backward_query(const Element* __restrict__ q, const Element* __restrict__ k,
                   const Element* __restrict__ v, const Mask* __restrict__ mask,
                   const Element* __restrict__ g, const Real* __restrict__ sums,
                   const Real* __restrict__ deltas, Element* __restrict__ dq, const Attention a) {
  extern __shared__ double memory[];
  Real* queries = (Real*)memory;               // (HEAD, ROWS)
  Real* gradients = queries + HEAD * ROW_STEP;  // (VALUE, ROWS)
  Real* keys = gradients + VALUE * ROW_STEP;    // (HEAD, LENGTH)
  Real* values = keys + HEAD * STEP;            // (VALUE, LENGTH)
  Real* weights = values + VALUE * STEP;        // (ROWS, LENGTH)
  const Place p(a, a.queries);
  q = p.in(q, a.q), k = p.in(k, a.k), v = p.in(v, a.v), mask = p.in(mask, a.mask);
  load_tile<HEAD, ROWS, ROW_STEP>(queries, q, a.q, p.first, a.queries);
  load_tile<VALUE, ROWS, ROW_STEP>(gradients, p.in(g, a.g), a.g, p.first, a.queries);

  Rows<HEAD> total;
  total.clear();
  const long long end = a.causal ? min(a.keys, p.first + ROWS) : a.keys;
  for (long long first = 0; first < end; first += LENGTH) {
    load_tile<HEAD, LENGTH, STEP>(keys, k, a.k, first, a.keys);
    load_tile<VALUE, LENGTH, STEP>(values, v, a.v, first, a.keys);
    __syncthreads();
    Real s[MINE][OTHERS], d[MINE][OTHERS];
    product<HEAD>(s, queries, keys, p);
    product<VALUE>(d, gradients, values, p);
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const long long query = p.first + p.y + SIDE * i;
      const long long at = p.matrix * a.queries + min(query, a.queries - 1);
#pragma unroll
      for (int j = 0; j < OTHERS; ++j) {
        const long long key = first + p.x + SIDE * j;
        const Real w = weight(score(s[i][j], a, mask, query, key), sums[at], a, query, key);
        weights[(p.y + SIDE * i) * STEP + p.x + SIDE * j] = w * (d[i][j] - deltas[at]);
      }
    }
    __syncwarp();
    total.add(weights, keys, p);
    __syncthreads();
  }
  total.store(p.in(dq, a.dq), a.dq, Real(a.scale), p, a.queries);
}
