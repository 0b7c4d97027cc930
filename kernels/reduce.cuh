// Reductions over some dimensions of an array: sums, means, extremes and their places, any, all.
//
// A reduction is an operation on states: `enter` makes one of a value and its place, `of` joins two,
// `leave` gives the result. Values come from a source, `source.load<WIDTH>(offset)`: the elements of
// an array, the parts of a first launch, or whatever generated code computes there.
//
// Dimensions that are next to each other in memory have been merged; two kept and two reduced ones
// are left (size 1 where there are fewer). Two frames share the work:
//
//   reduce_inner   a team of threads for each result, along the last reduced dimension
//   reduce_outer   a thread for WIDTH neighbouring results, blockDim.y rows at a time
//
// blockIdx.y is a chunk of the reduced range. With several chunks the states are stored as parts,
// which a second launch joins. The order of all additions depends on the shape alone.
//
// Launch: reduce_inner (results / rows of a block, chunks) blocks of Team<TEAM>::BLOCK threads;
// reduce_outer (kept0 * tiles of kept1, chunks) blocks of (columns, rows) threads, 256 at most.
#include "team.cuh"

template <class T> __device__ __forceinline__ T plain(T x) { return x; }
__device__ __forceinline__ float plain(__half x) { return widen(x); }
__device__ __forceinline__ float plain(__nv_bfloat16 x) { return widen(x); }

template <class Out> struct Rounded {
  template <class C> static __device__ __forceinline__ Out of(C x) { return Out(x); }
};
template <> struct Rounded<__half> : Narrow<__half> {};
template <> struct Rounded<__nv_bfloat16> : Narrow<__nv_bfloat16> {};

// ---- operations, for values of the type of arithmetic C (float, double, long long)

template <class C> struct Lowest {
  static __device__ __forceinline__ C value() { return C(-INFINITY); }
};
template <> struct Lowest<long long> {
  static __device__ __forceinline__ long long value() { return -0x7fffffffffffffffLL - 1; }
};
template <class C> struct Highest {
  static __device__ __forceinline__ C value() { return C(INFINITY); }
};
template <> struct Highest<long long> {
  static __device__ __forceinline__ long long value() { return 0x7fffffffffffffffLL; }
};

template <class C> struct SumOf {
  typedef C State;
  static __device__ __forceinline__ C identity() { return C(0); }
  static __device__ __forceinline__ C enter(C x, long long) { return x; }
  static __device__ __forceinline__ C of(C a, C b) { return a + b; }
  static __device__ __forceinline__ C leave(C x, double) { return x; }
};
template <class C> struct MeanOf : SumOf<C> {
  static __device__ __forceinline__ C leave(C x, double scale) { return x * C(scale); }
};
template <class C> struct MaxOf : SumOf<C> {
  static __device__ __forceinline__ C identity() { return Lowest<C>::value(); }
  static __device__ __forceinline__ C of(C a, C b) { return Max::of(a, b); }
};
template <class C> struct MinOf : SumOf<C> {
  static __device__ __forceinline__ C identity() { return Highest<C>::value(); }
  static __device__ __forceinline__ C of(C a, C b) { return Min::of(a, b); }
};

template <class C> struct AnyOf {  // NaN is not 0
  typedef int State;
  static __device__ __forceinline__ int identity() { return 0; }
  static __device__ __forceinline__ int enter(C x, long long) { return x != C(0); }
  static __device__ __forceinline__ int of(int a, int b) { return a | b; }
  static __device__ __forceinline__ bool leave(int x, double) { return x != 0; }
};
template <class C> struct AllOf : AnyOf<C> {
  static __device__ __forceinline__ int identity() { return 1; }
  static __device__ __forceinline__ int of(int a, int b) { return a & b; }
};

// A value and its place; the first of equal ones counts, and NaN above all, as in NumPy.
template <class C> struct Found {
  C value;
  long long place;
};
template <class C> __device__ __forceinline__ Found<C> swap_lanes(Found<C> x, int lanes) {
  return {swap_lanes(x.value, lanes), swap_lanes(x.place, lanes)};
}
template <class C> struct ArgMaxOf {
  typedef Found<C> State;
  static constexpr long long NOWHERE = 0x7fffffffffffffffLL;
  static __device__ __forceinline__ State identity() { return {Lowest<C>::value(), NOWHERE}; }
  static __device__ __forceinline__ State enter(C x, long long place) { return {x, place}; }
  static __device__ __forceinline__ State enter(State x, long long) { return x; }
  static __device__ __forceinline__ long long leave(State x, double) { return x.place; }
  static __device__ __forceinline__ State choose(State a, State b, bool better, bool worse) {
    const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
    if (nan_a != nan_b) return nan_a ? a : b;
    if (!nan_a && (better || worse)) return better ? a : b;
    return a.place < b.place ? a : b;
  }
  static __device__ __forceinline__ State of(State a, State b) {
    return choose(a, b, a.value > b.value, a.value < b.value);
  }
};
template <class C> struct ArgMinOf : ArgMaxOf<C> {
  typedef Found<C> State;
  static __device__ __forceinline__ State identity() {
    return {Highest<C>::value(), ArgMaxOf<C>::NOWHERE};
  }
  static __device__ __forceinline__ State of(State a, State b) {
    return ArgMaxOf<C>::choose(a, b, a.value < b.value, a.value > b.value);
  }
};

// ---- sources and targets

template <class T> struct Elements {
  const T* x;
  template <int WIDTH, class Index>
  __device__ __forceinline__ Pack<T, WIDTH> load(Index offset) const {
    return load_pack<WIDTH>(x + offset);
  }
};

// Results, or the states of a chunk.
template <class Op, class Out> struct Results {
  Out* out;
  __device__ __forceinline__ void store(long long at, typename Op::State x, double scale) const {
    out[at] = Rounded<Out>::of(Op::leave(x, scale));
  }
};
template <class Op> struct States {
  typename Op::State* out;
  __device__ __forceinline__ void store(long long at, typename Op::State x, double) const {
    out[at] = x;
  }
};

// Sizes, and steps from one element to the next; `chunk` in packs (inner) or rows (outer).
template <class Index> struct Layout {
  Index kept0, kept1, keep_step0, keep_step1, size0, size1, step0, step1, chunk;
};

// ---- frames

template <class Op, int TEAM, int WIDTH, bool NESTED, class Source, class Target, class Index>
__device__ __forceinline__ void reduce_inner(const Source& source, const Target& target,
                                             const Layout<Index>& l, double scale) {
  typedef typename Op::State State;
  const int lane = Team<TEAM>::lane();
  const long long results = (long long)l.kept0 * l.kept1;
  const long long result = (long long)blockIdx.x * Team<TEAM>::ROWS + Team<TEAM>::row();
  const bool active = result < results;  // all threads take part in the reduction
  const Index kept = active ? Index(result) : 0, outer = kept / l.kept1;
  const Index base = outer * l.keep_step0 + (kept - outer * l.kept1) * l.keep_step1;
  const Index packs = l.size1 / WIDTH, first = Index(blockIdx.y) * l.chunk;
  const Index last = active ? min(first + l.chunk, (NESTED ? l.size0 : Index(1)) * packs) : first;
  State state[1] = {Op::identity()};
#pragma unroll 4
  for (Index i = first + lane; i < last; i += TEAM) {
    const Index row = NESTED ? i / packs : 0, column = (i - row * packs) * WIDTH;
    const auto pack = source.template load<WIDTH>(base + row * l.step0 + column * l.step1);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      const long long place = (long long)row * l.size1 + column + k;
      state[0] = Op::of(state[0], Op::enter(plain(pack.at[k]), place));
    }
  }
  if constexpr (TEAM > 32) {
    __shared__ State scratch[2][1][TEAM / 32];
    int turn = 0;
    reduce_team<TEAM, Op>(state, scratch, turn);
  } else {
    reduce_team<TEAM, Op>(state);
  }
  if (active && lane == 0) target.store(blockIdx.y * results + result, state[0], scale);
}

template <class Op, int WIDTH, bool NESTED, class Source, class Target, class Index>
__device__ __forceinline__ void reduce_outer(const Source& source, const Target& target,
                                             const Layout<Index>& l, double scale) {
  typedef typename Op::State State;
  __shared__ State parts[WIDTH][256];
  const int me = threadIdx.y * blockDim.x + threadIdx.x;
  const Index packs = l.kept1 / WIDTH, tiles = (packs + Index(blockDim.x) - 1) / Index(blockDim.x);
  const Index outer = Index(blockIdx.x) / tiles;
  const Index pack = (Index(blockIdx.x) - outer * tiles) * Index(blockDim.x) + Index(threadIdx.x);
  const bool active = pack < packs;
  const Index base = outer * l.keep_step0 + (active ? pack * WIDTH * l.keep_step1 : 0);
  const Index first = Index(blockIdx.y) * l.chunk, rows = (NESTED ? l.size0 : Index(1)) * l.size1;
  const Index last = active ? min(first + l.chunk, rows) : first;
  State state[WIDTH];
#pragma unroll
  for (int k = 0; k < WIDTH; ++k) state[k] = Op::identity();
#pragma unroll 4
  for (Index i = first + Index(threadIdx.y); i < last; i += Index(blockDim.y)) {
    const Index row = NESTED ? i / l.size1 : 0;
    const auto values =
        source.template load<WIDTH>(base + row * l.step0 + (i - row * l.size1) * l.step1);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k)
      state[k] = Op::of(state[k], Op::enter(plain(values.at[k]), (long long)i));
  }
  for (int rows = blockDim.y / 2; rows; rows /= 2) {  // halves of the block in turn
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) parts[k][me] = state[k];
    __syncthreads();
    if (int(threadIdx.y) < rows)
#pragma unroll
      for (int k = 0; k < WIDTH; ++k)
        state[k] = Op::of(state[k], parts[k][me + rows * int(blockDim.x)]);
    __syncthreads();
  }
  if (active && threadIdx.y == 0)
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      const long long results = (long long)l.kept0 * l.kept1;
      const long long at = (long long)outer * l.kept1 + (long long)pack * WIDTH + k;
      target.store(blockIdx.y * results + at, state[k], scale);
    }
}
