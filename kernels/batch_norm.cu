// Batch normalisation of (N, C, positions) per channel, over images and positions.
//
//   moments     mean and sum of squared deviations of chunks of a channel, in two passes over
//               registers: every element is loaded once.
//   merge       the moments of whole channels from those of chunks (Chan, Golub and LeVeque, 1979),
//               and running averages of them. Launched if a channel has more than one chunk.
//   normalize   (x - mean) / sqrt(variance + eps) * weight + bias.
//   sums        sums of g and of g * (x - mean) over chunks of a channel.
//   gradients   cotangents of x, weight and bias (Ioffe and Szegedy, 2015), from g, x and the sums.
//
// Grid (chunks, channels / WIDE), 256 threads, ITEMS elements per thread. WIDE = 1: a block has one
// channel, and threads lie along its positions, LANES elements in one access of up to 16 bytes.
// WIDE = 32: for few positions, such as (N, C), neighbouring threads have neighbouring channels.
// Chunks are as long as shapes alone decide, and sums over them are in order: no atomics.
// Arithmetic, moments and sums are in Real.
//
// Defined before: STORAGE of x, PARAMETER for weight, bias and running averages, WIDE, LANES.
#include "common.cuh"

typedef STORAGE T;
typedef PARAMETER P;
typedef Compute<T> Real;
constexpr int THREADS = 256, ITEMS = 16, PACKS = ITEMS / LANES;
constexpr int ROW = THREADS / WIDE;   // threads of a block that share a channel
constexpr int CHUNK = ROW * ITEMS;    // elements of a channel that a block takes

struct Sizes {
  int channels, positions, count, chunks;  // count: elements of a channel
};

// The elements of a chunk of a channel that a thread takes, pack by pack.
struct Place {
  int channel, lane;
  bool valid;  // whether there is such a channel
  int image, position, left, by_image, by_position;
  __device__ __forceinline__ Place(const Sizes& n)
      : channel(blockIdx.y * WIDE + threadIdx.x % WIDE), lane(threadIdx.x / WIDE) {
    const int first = blockIdx.x * CHUNK + lane * LANES;
    valid = channel < n.channels;
    left = valid ? n.count - first : 0;
    image = first / n.positions;
    position = first - image * n.positions;
    by_image = ROW * LANES / n.positions;
    by_position = ROW * LANES - by_image * n.positions;
  }
  __device__ __forceinline__ bool inside() const { return left > 0; }
  __device__ __forceinline__ long long at(const Sizes& n) const {
    return ((long long)image * n.channels + channel) * n.positions + position;
  }
  __device__ __forceinline__ void next(const Sizes& n) {
    left -= ROW * LANES;
    image += by_image;
    position += by_position;
    if (position >= n.positions) position -= n.positions, ++image;
  }
};

// Calls visit(place) for each of the packs of a thread.
template <class Visit> __device__ __forceinline__ void over_packs(const Sizes& n, Visit visit) {
  Place place(n);
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    visit(i, place);
    place.next(n);
  }
}

// The sum over the threads of a block that share a channel; each of them gets it.
__device__ __forceinline__ Real sum_of_channel(Real v) {
  __shared__ Real scratch[WIDE == 1 ? 32 : THREADS];
  if (WIDE == 1) return reduce_block<Sum>(v, scratch);
  scratch[threadIdx.x] = v;
  __syncthreads();
  Real total = 0;
  for (int lane = 0; lane < ROW; ++lane) total += scratch[lane * WIDE + threadIdx.x % WIDE];
  __syncthreads();
  return total;
}

// Sums of the chunks of a channel, of which part k is parts[k * stride].
__device__ __forceinline__ Real sum_of_parts(const Real* parts, int chunks, int lane) {
  Real sum = 0;
  for (int k = lane; k < chunks; k += ROW) sum += parts[k];
  return sum_of_channel(sum);
}

// ---- forward

struct Running {
  P *mean, *variance;
  Real momentum;  // 0: there are no running averages
};

// Write the moments of a channel: `squares` is its sum of squared deviations.
__device__ __forceinline__ void finish(const Sizes& n, int channel, Real mean, Real squares,
                                       Real* moments, const Running& running) {
  moments[channel] = mean;
  moments[n.channels + channel] = squares / n.count;
  if (running.momentum == 0) return;
  const Real keep = 1 - running.momentum;
  P *m = running.mean + channel, *v = running.variance + channel;
  *m = narrow<P>(keep * widen(*m) + running.momentum * mean);
  *v = narrow<P>(keep * widen(*v) + running.momentum * (squares / (n.count - 1)));
}

// `parts` is (2, channels, chunks): means and sums of squared deviations.
extern "C" __global__ void __launch_bounds__(THREADS)
moments(const T* x, Real* parts, Real* moments, P* running_mean, P* running_variance,
        double momentum, const Sizes n) {
  Real held[PACKS][LANES], sum = 0;
  over_packs(n, [&](int i, const Place& at) {
    if (!at.inside()) return;
    const Pack<T, LANES> pack = load_pack<LANES>(x + at.at(n));
#pragma unroll
    for (int k = 0; k < LANES; ++k) sum += held[i][k] = widen(pack.at[k]);
  });
  const int rest = n.count - blockIdx.x * CHUNK;
  const Real mean = sum_of_channel(sum) / (rest < CHUNK ? rest : CHUNK);
  Real squares = 0;
  over_packs(n, [&](int i, const Place& at) {
#pragma unroll
    for (int k = 0; k < LANES; ++k)
      if (at.inside()) squares += (held[i][k] - mean) * (held[i][k] - mean);
  });
  squares = sum_of_channel(squares);
  const Place place(n);
  if (place.lane || !place.valid) return;
  if (n.chunks == 1) {
    const Running running = {running_mean, running_variance, (Real)momentum};
    finish(n, place.channel, mean, squares, moments, running);
  } else {
    const long long at = (long long)place.channel * n.chunks + blockIdx.x;
    parts[at] = mean;
    parts[(long long)n.channels * n.chunks + at] = squares;
  }
}

// Grid (1, channels / WIDE); `elements` is how many a chunk has, but for the last.
extern "C" __global__ void __launch_bounds__(THREADS)
merge(const Real* parts, Real* moments, P* running_mean, P* running_variance, double momentum,
      const Sizes n) {
  const Place place(n);
  const int chunks = place.valid ? n.chunks : 0;
  const Real* means = parts + (long long)place.channel * n.chunks;
  const Real* squares = means + (long long)n.channels * n.chunks;
  Real sum = 0;
  for (int k = place.lane; k < chunks; k += ROW) {
    const int rest = n.count - k * CHUNK;
    sum += (rest < CHUNK ? rest : CHUNK) * means[k];
  }
  const Real mean = sum_of_channel(sum) / n.count;
  sum = 0;
  for (int k = place.lane; k < chunks; k += ROW) {
    const int rest = n.count - k * CHUNK;
    sum += squares[k] + (rest < CHUNK ? rest : CHUNK) * (means[k] - mean) * (means[k] - mean);
  }
  sum = sum_of_channel(sum);
  const Running running = {running_mean, running_variance, (Real)momentum};
  if (!place.lane && place.valid) finish(n, place.channel, mean, sum, moments, running);
}

__device__ __forceinline__ Real inverse_root(Real v) { return 1 / sqrt(v); }

extern "C" __global__ void __launch_bounds__(THREADS)
normalize(const T* x, const P* weight, const P* bias, const Real* means, const Real* variances,
          T* y, double eps, const Sizes n) {
  const Place place(n);
  if (!place.valid) return;
  const Real scale = inverse_root(variances[place.channel] + (Real)eps) * widen(weight[place.channel]);
  const Real mean = means[place.channel], shift = widen(bias[place.channel]);
  over_packs(n, [&](int, const Place& at) {
    if (!at.inside()) return;
    Pack<T, LANES> pack = load_pack<LANES>(x + at.at(n));
#pragma unroll
    for (int k = 0; k < LANES; ++k) pack.at[k] = narrow<T>((widen(pack.at[k]) - mean) * scale + shift);
    store_pack<LANES>(y + at.at(n), pack);
  });
}

// ---- backward

// `parts` is (2, channels, chunks): sums of g and of g * (x - mean).
extern "C" __global__ void __launch_bounds__(THREADS)
sums(const T* g, const T* x, const Real* means, Real* parts, const Sizes n) {
  const Place place(n);
  const Real mean = place.valid ? means[place.channel] : 0;
  Real sum = 0, product = 0;
  over_packs(n, [&](int, const Place& at) {
    if (!at.inside()) return;
    const Pack<T, LANES> from_g = load_pack<LANES>(g + at.at(n));
    const Pack<T, LANES> from_x = load_pack<LANES>(x + at.at(n));
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
      sum += widen(from_g.at[k]);
      product += widen(from_g.at[k]) * (widen(from_x.at[k]) - mean);
    }
  });
  sum = sum_of_channel(sum);
  product = sum_of_channel(product);
  if (place.lane || !place.valid) return;
  const long long at = (long long)place.channel * n.chunks + blockIdx.x;
  parts[at] = sum;
  parts[(long long)n.channels * n.chunks + at] = product;
}

// With n the elements of a channel, y = (x - mean) * inverse and inverse = 1 / sqrt(variance + eps):
//   gx = weight * inverse * (g - (sum of g) / n - y * (sum of g * y) / n)
//   gweight = sum of g * y,  gbias = sum of g
// If mean and variance are given numbers and not those of x (training is 0), gx = weight * inverse * g.
// Blocks of the first chunk write gweight and gbias. A grid of one chunk without gx (with_gx is 0)
// writes these alone.
extern "C" __global__ void __launch_bounds__(THREADS)
gradients(const T* g, const T* x, const P* weight, const Real* means, const Real* variances,
          const Real* parts, T* gx, P* gweight, P* gbias, double eps, long long training,
          long long with_gx, const Sizes n) {
  const Place place(n);
  const int chunks = place.valid ? n.chunks : 0;
  const Real* of_channel = parts + (long long)place.channel * n.chunks;
  const Real sum = sum_of_parts(of_channel, chunks, place.lane);
  const Real product =
      sum_of_parts(of_channel + (long long)n.channels * n.chunks, chunks, place.lane);
  if (!place.valid) return;
  const Real inverse = inverse_root(variances[place.channel] + (Real)eps);
  if (!blockIdx.x && !place.lane) {
    gweight[place.channel] = narrow<P>(product * inverse);
    gbias[place.channel] = narrow<P>(sum);
  }
  if (!with_gx) return;
  const Real scale = inverse * widen(weight[place.channel]), mean = means[place.channel];
  const Real constant = training ? sum / n.count : 0;
  const Real slope = training ? product * inverse * inverse / n.count : 0;
  over_packs(n, [&](int, const Place& at) {
    if (!at.inside()) return;
    Pack<T, LANES> pack = load_pack<LANES>(g + at.at(n));
    const Pack<T, LANES> from_x = load_pack<LANES>(x + at.at(n));
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
      const Real along = (widen(from_x.at[k]) - mean) * slope;
      pack.at[k] = narrow<T>(scale * (widen(pack.at[k]) - constant - along));
    }
    store_pack<LANES>(gx + at.at(n), pack);
  });
}
