// The gradient of an additive mask: dS = P (dP - delta) summed over the axes that the mask is
// broadcast along, by ordinary float32 arithmetic on the inputs as they are.
//
// One block per tile of mask elements, 32 queries x 32 keys (whole axes where the mask has none),
// walks over everything that shares them, so each element has one owner and one order. 256 threads:
// key t % 32, queries t / 32 + 8 n. Shared memory: two 32 x 32 tiles, of Q and K, then dO and V.
#include <cuda_runtime.h>

#include <cmath>

#include "cuda/exact/plan.h"

namespace sage::cuda {
namespace {

constexpr int kTile = 32, kThreads = 256, kRowsAThread = 4;

struct Tiles {
  float queries[kTile][kTile + 1], keys[kTile][kTile + 1];
};

// Adds the products of 32 rows each of `a` and `b` to `out`, for this thread's pairs.
__device__ void MultiplyRows(const float* a, int64_t a_token, int rows, const float* b,
                             int64_t b_token, int keys, int dims, Tiles* tiles,
                             float (&out)[kRowsAThread]) {
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  for (int d0 = 0; d0 < dims; d0 += kTile) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kRowsAThread; ++n) {
      const int row = y + n * 8;
      const bool in = d0 + x < dims;
      tiles->queries[row][x] = in && row < rows ? a[row * a_token + d0 + x] : 0.0f;
      tiles->keys[row][x] = in && row < keys ? b[row * b_token + d0 + x] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kTile; ++d) {
      const float k = tiles->keys[x][d];
#pragma unroll
      for (int n = 0; n < kRowsAThread; ++n) out[n] = fmaf(tiles->queries[y + n * 8][d], k, out[n]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    MaskGradientKernel(const __grid_constant__ MaskGradientPlan plan) {
  __shared__ Tiles tiles;
  __shared__ double sums[kThreads];
  const Visibility& see = plan.visibility;
  const MaskStrides& has = see.strides;
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;

  // What this block owns, and what it walks over: [begin, end) of each axis.
  const int query_tiles = (see.q_len + kTile - 1) / kTile,
            key_tiles = (see.kv_len + kTile - 1) / kTile;
  int64_t id = blockIdx.x;
  int64_t batch0 = 0, batch1 = plan.batch;
  int head0 = 0, head1 = plan.q_heads, query0 = 0, query1 = query_tiles, key0 = 0, key1 = key_tiles;
  if (has.key != 0) {
    key0 = static_cast<int>(id % key_tiles);
    key1 = key0 + 1;
    id /= key_tiles;
  }
  if (has.query != 0) {
    query0 = static_cast<int>(id % query_tiles);
    query1 = query0 + 1;
    id /= query_tiles;
  }
  if (has.head != 0) {
    head0 = static_cast<int>(id % plan.q_heads);
    head1 = head0 + 1;
    id /= plan.q_heads;
  }
  if (has.batch != 0) {
    batch0 = id;
    batch1 = id + 1;
  }

  double total[kRowsAThread] = {};
  for (int64_t batch = batch0; batch < batch1; ++batch) {
    for (int head = head0; head < head1; ++head) {
      for (int query_tile = query0; query_tile < query1; ++query_tile) {
        const int i0 = query_tile * kTile, rows = min(kTile, see.q_len - i0);
        const int first = see.FirstKey(i0), last = see.EndKey(i0 + rows - 1);
        for (int key_tile = key0; key_tile < key1; ++key_tile) {
          const int j0 = key_tile * kTile, keys = min(kTile, see.kv_len - j0);
          if (j0 >= last || j0 + keys <= first) continue;
          float s[kRowsAThread] = {}, d_p[kRowsAThread] = {};
          MultiplyRows(plan.q + batch * plan.q_strides.batch + head * plan.q_strides.head +
                           i0 * plan.q_strides.token,
                       plan.q_strides.token, rows,
                       plan.k + batch * plan.k_strides.batch +
                           head / plan.group * plan.k_strides.head + j0 * plan.k_strides.token,
                       plan.k_strides.token, keys, plan.qk_dim, &tiles, s);
          MultiplyRows(plan.d_o + batch * plan.d_o_strides.batch + head * plan.d_o_strides.head +
                           i0 * plan.d_o_strides.token,
                       plan.d_o_strides.token, rows,
                       plan.v + batch * plan.v_strides.batch +
                           head / plan.group * plan.v_strides.head + j0 * plan.v_strides.token,
                       plan.v_strides.token, keys, plan.v_dim, &tiles, d_p);
          const int key = j0 + x;
          const int64_t row0 = (batch * plan.q_heads + head) * see.q_len;
#pragma unroll
          for (int n = 0; n < kRowsAThread; ++n) {
            const int query = i0 + y + n * 8;
            if (query >= see.q_len || key < see.FirstKey(query) || key >= see.EndKey(query))
              continue;
            const float bias = see.Bias(see.MaskRow(batch, head, query), key);
            const float lse = plan.lse[row0 + query];
            if (bias == -INFINITY || lse == -INFINITY) continue;
            const float score = (fmaf(s[n], plan.scale, bias) - lse) * kLog2E;
            const float p = Exp2(score > 127.0f ? 127.0f : score);
            total[n] += p * (d_p[n] - plan.delta[row0 + query]);
          }
        }
      }
    }
  }

  float* out = plan.d_mask + batch0 * has.batch + head0 * has.head;
  if (has.query != 0 && has.key != 0) {
#pragma unroll
    for (int n = 0; n < kRowsAThread; ++n) {
      const int query = query0 * kTile + y + n * 8, key = key0 * kTile + x;
      if (query < see.q_len && key < see.kv_len)
        out[query * has.query + key * has.key] = static_cast<float>(total[n]);
    }
    return;
  }
  for (int n = 0; n < kRowsAThread; ++n) {
    // Sums over the thread's own queries too, unless each has an element of its own.
    double mine = total[n];
    if (has.query == 0) {
      if (n > 0) break;
      mine = total[0] + total[1] + total[2] + total[3];
    }
    __syncthreads();
    sums[threadIdx.x] = mine;
    __syncthreads();
    double sum = 0.0;
    if (has.query != 0) {  // one element per query: over the 32 keys
      if (x != 0) continue;
      for (int j = 0; j < kTile; ++j) sum += sums[y * kTile + j];
      const int query = query0 * kTile + y + n * 8;
      if (query < see.q_len) out[query * has.query] = static_cast<float>(sum);
    } else if (has.key != 0) {  // one per key: over the 8 groups of queries
      const int key = key0 * kTile + x;
      if (y != 0) continue;
      for (int i = 0; i < kThreads / kTile; ++i) sum += sums[i * kTile + x];
      if (key < see.kv_len) out[key * has.key] = static_cast<float>(sum);
    } else if (threadIdx.x == 0) {
      for (int i = 0; i < kThreads; ++i) sum += sums[i];
      out[0] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void LaunchMaskGradient(const MaskGradientPlan& plan, void* stream) {
  const Visibility& see = plan.visibility;
  int64_t blocks = 1;
  if (see.strides.key != 0) blocks *= (see.kv_len + kTile - 1) / kTile;
  if (see.strides.query != 0) blocks *= (see.q_len + kTile - 1) / kTile;
  if (see.strides.head != 0) blocks *= plan.q_heads;
  if (see.strides.batch != 0) blocks *= plan.batch;
  MaskGradientKernel<<<static_cast<unsigned>(blocks), kThreads, 0,
                       static_cast<cudaStream_t>(stream)>>>(plan);
}

}  // namespace sage::cuda
