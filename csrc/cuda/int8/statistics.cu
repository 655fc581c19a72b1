// First launch of the pre-pass: means of k, means of v per 128 tokens, scales of v
// (docs/numerics.md 3 and 4.6). Also assembles the plan of both launches.
//
// Block = 128 tokens of one kv head (256 from 16 bits), thread = a word of them, one channel of k
// or of v or two. k: float64 sum over the tokens in order; v: mean of the block and largest
// |v - mean|, which the extremes of v give in one pass, because subtraction rounds monotonically.
// The last block of a head adds the sums in block order. No arithmetic here may be contracted:
// every difference is rounded by itself.
#include <cmath>

#include "cuda/int8/rows.cuh"

namespace sage::cuda::int8 {
namespace {

constexpr float kHalfMost = 65504.0f;

// Scale and inverse of one channel of v from its largest magnitude.
__device__ float2 ScaleOfChannel(uint32_t largest, float top) {
  if (top > 0.0f) return ScaleOf(largest, top);
  // Halves: a power of two, so that values within their range keep every bit.
  float scale = 1.0f;
  while (__fdiv_rn(__uint_as_float(largest), scale) > kHalfMost) scale *= 2.0f;
  return make_float2(scale, __fdiv_rn(1.0f, scale));
}

constexpr int kBatch = 32;  // loads in flight per thread

// One channel of a block: sum in token order, how many values are finite, their extremes.
struct Channel {
  double sum = 0.0;
  int count = 0;
  float low = INFINITY, high = -INFINITY;

  __device__ __forceinline__ void Add(float x) {
    sum += static_cast<double>(x);
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
};

// The next tokens of a word's channels.
template <class E>
__device__ __forceinline__ void Absorb(Channel (&channels)[E::kInWord],
                                       const uint32_t (&words)[kBatch]) {
#pragma unroll
  for (int n = 0; n < E::kInWord; ++n) {
    Channel& channel = channels[n];
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kBatch; i += 2)
      most = __vimax3_u32(most, Magnitude(E::At(words[i], n)), Magnitude(E::At(words[i + 1], n)));
    if (most < kInfBits) {
      channel.count += kBatch;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) channel.Add(E::At(words[i], n));
      continue;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float x = E::At(words[i], n);
      if (!Finite(x)) continue;
      channel.Add(x);
      ++channel.count;
    }
  }
}

// Blocks of 128 tokens that a block of threads takes, so that every thread has a word.
template <class E>
constexpr int kTilesAtOnce = E::kInWord;

template <class E>
__host__ __device__ int StatisticsBlocks(int tiles) {
  return (tiles + kTilesAtOnce<E> - 1) / kTilesAtOnce<E>;
}

template <int D, class E>
__global__ void __launch_bounds__(2 * D) Statistics(const __grid_constant__ PrepassPlan a) {
  constexpr int kWords = D / E::kInWord;  // of a row
  const Workspace& space = a.space;
  const int blocks = StatisticsBlocks<E>(space.tiles), head = blockIdx.x / blocks;
  {
    const int tile = blockIdx.x % blocks * kTilesAtOnce<E> + threadIdx.x / (2 * kWords);
    const bool is_v = threadIdx.x / kWords % 2 == 1;
    const int d = threadIdx.x % kWords * E::kInWord;
    const Source& x = is_v ? a.v : a.k;
    const int first = tile * kTileTokens, rows = min(kTileTokens, x.tokens - first);
    Channel channels[E::kInWord];
    if (d < x.dim && rows > 0) {
      const typename E::Storage* at = x.Row<E>(head, first) + d;
      const bool second = d + 1 < x.dim, whole = x.words && second;
      for (int t = 0; t < rows; t += kBatch) {
        uint32_t batch[kBatch];
        if (t + kBatch <= rows) {
#pragma unroll
          for (int i = 0; i < kBatch; ++i)
            batch[i] = LoadWord<E>(at + (t + i) * x.strides.token, whole, second);
        } else {
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            batch[i] = t + i < rows ? LoadWord<E>(at + (t + i) * x.strides.token, whole, second)
                                    : E::kInfinities;
          }
        }
        Absorb<E>(channels, batch);
      }
    }
    const int64_t block_channel = (static_cast<int64_t>(head) * space.tiles + tile) * D + d;
#pragma unroll
    for (int n = 0; n < E::kInWord; ++n) {
      if (tile >= space.tiles) break;
      const Channel& channel = channels[n];
      if (!is_v) {
        space.k_sum[block_channel + n] = channel.sum;
        space.k_count[block_channel + n] = channel.count;
        continue;
      }
      const float mean = a.smooth_v && channel.count > 0
                             ? static_cast<float>(channel.sum / static_cast<double>(channel.count))
                             : 0.0f;
      space.v_mean[block_channel + n] = mean;
      space.v_count[block_channel + n] = channel.count;
      if (channel.count > 0) {
        const uint32_t largest =
            max(Magnitude(__fsub_rn(channel.high, mean)), Magnitude(__fsub_rn(channel.low, mean)));
        atomicMax(space.v_largest + static_cast<int64_t>(head) * D + d + n, largest);
      }
    }
  }

  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(space.arrived + head, 1u) + 1 == blocks;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int d = threadIdx.x % D;
  const int64_t head_channel = static_cast<int64_t>(head) * D + d;
  if (threadIdx.x >= D) {
    const float2 pair = ScaleOfChannel(__ldcg(space.v_largest + head_channel), a.v_top);
    space.v_scale[head_channel] = pair.x;
    space.v_inverse[head_channel] = pair.y;
    return;
  }
  double total = 0.0;
  int64_t finite = 0;
  const int64_t base = static_cast<int64_t>(head) * space.tiles * D + d;
  for (int t = 0; t < space.tiles; t += 8) {
    double sums[8];
    int counts[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool inside = t + i < space.tiles;
      sums[i] = inside ? __ldcg(space.k_sum + base + static_cast<int64_t>(t + i) * D) : 0.0;
      counts[i] = inside ? __ldcg(space.k_count + base + static_cast<int64_t>(t + i) * D) : 0;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (t + i < space.tiles) total += sums[i];
      finite += counts[i];
    }
  }
  space.k_mean[head_channel] =
      a.smooth_k && finite > 0 ? static_cast<float>(total / static_cast<double>(finite)) : 0.0f;
}

Source SourceOf(const void* data, InputType input, const TokenStrides& strides, int64_t heads,
                int64_t tokens, int64_t dim) {
  const auto aligned = [&](int64_t elements, int bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0 && strides.batch % elements == 0 &&
           strides.head % elements == 0 && strides.token % elements == 0;
  };
  const int bytes = input == InputType::kFloat32 ? 4 : 2;
  Source source = {};
  source.data = data;
  source.strides = strides;
  source.heads = static_cast<int>(heads);
  source.tokens = static_cast<int>(tokens);
  source.dim = static_cast<int>(dim);
  source.words = aligned(4 / bytes, 4);
  source.vectors = dim % 4 == 0 && aligned(4, 4 * bytes);
  return source;
}

template <class E>
void Launch(const PrepassPlan& plan, int dim, cudaStream_t stream) {
  const unsigned blocks =
      static_cast<unsigned>(plan.kv_count) * StatisticsBlocks<E>(plan.space.tiles);
  switch (dim) {
    case 64:
      Statistics<64, E><<<blocks, 128, 0, stream>>>(plan);
      break;
    case 128:
      Statistics<128, E><<<blocks, 256, 0, stream>>>(plan);
      break;
    default:
      Statistics<256, E><<<blocks, 512, 0, stream>>>(plan);
  }
}

}  // namespace

void LaunchStatistics(const PrepassPlan& plan, int dim, cudaStream_t stream) {
  WithElements(plan.input, [&](auto element) { Launch<decltype(element)>(plan, dim, stream); });
}

cudaError_t Prepass(const Problem& p, const Form& form, const ForwardBuffers& buffers,
                    const Workspace& space, cudaStream_t stream) {
  PrepassPlan a = {};
  a.q = SourceOf(buffers.q, p.input, p.q, p.q_heads, p.q_len, p.qk_dim);
  a.k = SourceOf(buffers.k, p.input, p.k, p.kv_heads, p.kv_len, p.qk_dim);
  a.v = SourceOf(buffers.v, p.input, p.v, p.kv_heads, p.kv_len, p.v_dim);
  a.space = space;
  a.q_heads = static_cast<int>(p.q_heads);
  a.group = static_cast<int>(p.group());
  a.kv_count = static_cast<int>(p.batch * p.kv_heads);
  a.q_blocks = space.q_rows / kTileTokens;
  a.v_parts = form.v_parts;
  a.input = p.input;
  a.q_group = p.recipe.q_group;
  a.k_group = p.recipe.k_group;
  a.qk_top = p.recipe.qk == QkFormat::kInt4 ? 7.0f : 127.0f;
  a.e4m3 = p.recipe.pv == PvFormat::kE4m3;
  a.v_top = a.e4m3 ? p.recipe.v_top : 0.0f;
  a.smooth_q = p.recipe.smooth_q;
  a.smooth_k = p.recipe.smooth_k;
  a.smooth_v = p.recipe.smooth_v > 0;
  a.want_lse = p.want_lse;
  a.away = p.recipe.rounding == Rounding::kAway;
  a.int4 = form.int4;
  a.bytes = ValuesAreBytes(form.values);
  a.sign = p.scale < 0.0 ? -1.0f : 1.0f;
  a.scale = p.scale;
  const cudaError_t cleared = cudaMemsetAsync(space.arrived, 0, space.zeroed_bytes, stream);
  if (cleared != cudaSuccess) return cleared;
  LaunchStatistics(a, form.dim, stream);
  LaunchQuantise(a, form.dim, stream);
  return cudaGetLastError();
}

}  // namespace sage::cuda::int8
