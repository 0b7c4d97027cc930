// The gradients of attention (attention.cuh) to the keys and values.
#include "attention.cuh"

// dv = weights^T g, dk = (weights * (g v^T - delta))^T q * scale
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    backward_key(const Element* __restrict__ q, const Element* __restrict__ k,
                 const Element* __restrict__ v, const Mask* __restrict__ mask,
                 const Element* __restrict__ g, const Real* __restrict__ sums,
                 const Real* __restrict__ deltas, Element* __restrict__ dk,
                 Element* __restrict__ dv, const Attention a) {
  extern __shared__ double memory[];
  Real* keys = (Real*)memory;                   // (HEAD, ROWS)
  Real* values = keys + HEAD * ROW_STEP;        // (VALUE, ROWS)
  Real* queries = values + VALUE * ROW_STEP;    // (HEAD, LENGTH)
  Real* gradients = queries + HEAD * STEP;      // (VALUE, LENGTH)
  Real* weights = gradients + VALUE * STEP;     // (ROWS, LENGTH)
  const Place p(a, a.keys);
  q = p.in(q, a.q), k = p.in(k, a.k), v = p.in(v, a.v), mask = p.in(mask, a.mask);
  g = p.in(g, a.g);
  load_tile<HEAD, ROWS, ROW_STEP>(keys, k, a.k, p.first, a.keys);
  load_tile<VALUE, ROWS, ROW_STEP>(values, v, a.v, p.first, a.keys);

  Rows<HEAD> total_k;
  Rows<VALUE> total_v;
  total_k.clear();
  total_v.clear();
  // queries before the first key of the tile see none of it
  for (long long first = a.causal ? p.first / LENGTH * LENGTH : 0; first < a.queries;
       first += LENGTH) {
    load_tile<HEAD, LENGTH, STEP>(queries, q, a.q, first, a.queries);
    load_tile<VALUE, LENGTH, STEP>(gradients, g, a.g, first, a.queries);
    __syncthreads();
    Real s[MINE][OTHERS], d[MINE][OTHERS];
    product<HEAD>(s, keys, queries, p);
    product<VALUE>(d, values, gradients, p);
#pragma unroll
    for (int j = 0; j < OTHERS; ++j) {
      const long long query = first + p.x + SIDE * j;
      const long long at = p.matrix * a.queries + min(query, a.queries - 1);
      const Real sum = sums[at], delta = deltas[at];
#pragma unroll
      for (int i = 0; i < MINE; ++i) {
        const long long key = p.first + p.y + SIDE * i;
        const Real w = weight(score(s[i][j], a, mask, query, key), sum, a, query, key);
        weights[(p.y + SIDE * i) * STEP + p.x + SIDE * j] = w;
        d[i][j] = w * (d[i][j] - delta);
      }
    }
    __syncwarp();
    total_v.add(weights, gradients, p);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MINE; ++i)
#pragma unroll
      for (int j = 0; j < OTHERS; ++j)
        weights[(p.y + SIDE * i) * STEP + p.x + SIDE * j] = d[i][j];
    __syncwarp();
    total_k.add(weights, queries, p);
    __syncthreads();
  }
  total_k.store(p.in(dk, a.dk), a.dk, Real(a.scale), p, a.keys);
  total_v.store(p.in(dv, a.dv), a.dv, Real(1), p, a.keys);
}
