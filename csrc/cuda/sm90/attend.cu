// Launch of the attention kernel.
#include <algorithm>
#include <cmath>

#include "cuda/sm90/attend.cuh"
#include "cuda/sm90/launch.h"

namespace sage {
namespace sm90 {
namespace {

// Windows beyond this see everything: lengths are at most 2^30.
constexpr int64_t kNoLimit = int64_t{1} << 30;
// K and V of the heads that are worked on together under causality; the L2 of an H200 holds 50 MB.
constexpr int64_t kWaveBytes = int64_t{20} << 20;

// Up to here a last tile of work with few rows counts: it goes last, as the shortest.
constexpr int64_t kRaggedRows = 4096;

template <int D, bool kMasked>
cudaError_t Launch(AttendArguments a, int64_t heads, cudaStream_t stream) {
  constexpr int kBytes = SharedMap<D, kMasked>::kBytes, kRows = Roles<D, kMasked>::kRows;
  a.q_tiles = (a.see.q_len + kRows - 1) / kRows;
  a.work = static_cast<int>(heads * a.q_tiles);
  cudaError_t error = cudaFuncSetAttribute(AttendKernel<D, kMasked>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  int device = 0, multiprocessors = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(std::min(multiprocessors, kMostBlocks), a.work);
  // Blocks start as those of the pre-pass leave, and round their first rows of q meanwhile.
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(Roles<D, kMasked>::kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, AttendKernel<D, kMasked>, a);
}

__global__ void EmptyRows(float* o, TokenStrides strides, float* lse, int heads, int64_t q_len,
                          int64_t v_dim, int64_t rows) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows;
       i += step) {
    const int64_t batch = i / (heads * q_len), head = i / q_len % heads, token = i % q_len;
    float* row = o + batch * strides.batch + head * strides.head + token * strides.token;
    for (int64_t d = 0; d < v_dim; ++d) row[d] = 0.0f;
    if (lse != nullptr) lse[i] = -INFINITY;
  }
}

}  // namespace

cudaError_t Attend(const Problem& p, const ForwardBuffers& buffers, const Workspace& space,
                   cudaStream_t stream) {
  AttendArguments a = {};
  a.q = SourceOf(buffers.q, p.input, p.q, p.q_heads, p.q_len, p.qk_dim, space.dim);
  a.q_codes = space.q_codes;
  a.k_codes = space.k_codes;
  a.v_codes = space.v_codes;
  a.mean_image = space.mean_image;
  a.q_scale = space.q_scale;
  a.k_scale = space.k_scale;
  a.v_scale = space.v_scale;
  a.lse_shift = space.lse_shift;
  a.schedule = space.schedule;
  a.spans = space.spans;
  a.sums = space.sums;
  a.see.q_len = static_cast<int>(p.q_len);
  a.see.kv_len = static_cast<int>(p.kv_len);
  a.see.offset = static_cast<int>(p.offset());
  a.see.window_left = p.window_left >= kNoLimit ? -1 : static_cast<int>(p.window_left);
  a.see.window_right = p.window_right >= kNoLimit ? -1 : static_cast<int>(p.window_right);
  a.see.mask_kind = p.mask_kind;
  a.see.mask_strides = p.mask;
  a.see.mask = buffers.mask;
  a.see.q_heads = static_cast<int>(p.q_heads);
  a.see.marks = space.marks;
  a.see.not_finite = space.not_finite;
  a.see.tiles = space.tiles;
  a.v = {buffers.v, p.v, p.input};
  a.o_strides = p.o;
  a.o = buffers.o;
  a.lse = p.want_lse ? buffers.lse : nullptr;
  a.sign = p.scale < 0.0 ? -1.0f : 1.0f;
  a.factor = static_cast<float>(std::fabs(p.scale) * 1.44269504088896340736);
  a.v_dim = static_cast<int>(p.v_dim);
  a.q_heads = static_cast<int>(p.q_heads);
  a.group = static_cast<int>(p.group());
  a.tiles = space.tiles;
  a.mean_groups = space.mean_groups;
  a.kept_words = KeptWords(space.mean_groups);
  a.q_rows = space.q_rows;
  const int64_t heads = p.batch * p.q_heads;
  // Tiles of work of one length go head by head, so that k and v are read from L2; of many lengths
  // the longest go first, across as many heads as L2 holds.
  a.longest_first = a.see.window_left >= 0 || a.see.window_right >= 0;
  const int64_t head_bytes = int64_t{2} * space.tiles * kTile * space.dim;
  const bool ragged = p.q_len % kMostRows != 0 && p.q_len < kRaggedRows;
  a.heads = static_cast<int>(heads);
  a.heads_per_wave = a.longest_first || ragged
                         ? static_cast<int>(std::min(
                               heads, std::max<int64_t>(1, kWaveBytes / head_bytes) * a.group))
                         : 1;
  a.rounds_queries = space.rounds_queries && a.q.chunks;
  a.smooth_v = p.recipe.smooth_v > 0;
  a.o_pairs = p.v_dim % 2 == 0 && reinterpret_cast<uintptr_t>(buffers.o) % 8 == 0 &&
              p.o.batch % 2 == 0 && p.o.head % 2 == 0 && p.o.token % 2 == 0;
  if (space.plan.parts > 0) return LaunchParts(a, heads, space, stream);
  const bool masked = p.mask_kind != MaskKind::kNone;
  if (space.dim == 64) {
    return masked ? Launch<64, true>(a, heads, stream) : Launch<64, false>(a, heads, stream);
  }
  return masked ? Launch<128, true>(a, heads, stream) : Launch<128, false>(a, heads, stream);
}

cudaError_t WriteEmptyRows(const Problem& p, const ForwardBuffers& buffers, cudaStream_t stream) {
  const int64_t rows = p.batch * p.q_heads * p.q_len;
  const int blocks = static_cast<int>(std::min<int64_t>((rows + 127) / 128, 1024));
  EmptyRows<<<blocks, 128, 0, stream>>>(buffers.o, p.o, p.want_lse ? buffers.lse : nullptr,
                                        static_cast<int>(p.q_heads), p.q_len, p.v_dim, rows);
  return cudaGetLastError();
}

}  // namespace sm90
}  // namespace sage
