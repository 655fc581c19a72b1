// Attention over quantised operands by mma.sync: int8 or int4 products for the scores, halves or
// e4m3 for P·V. One block owns 256 rows of one head, 8 warps of 32 (or half of that: form.cuh), and
// runs over the keys in steps of 64, whose scores are held 32 or 64 keys at a time:
//
//   S = q_codes k_codes^T           int32, from kMagic on, so that its bits read as a float
//   x = S f + c                     f = scale q_scale k_scale, c = -(kMagic f + m): log2 units
//   P = 2^x, l += sum P             unrounded
//   O += P v_codes                  P rounded to halves or e4m3 in registers
//   o = (O + sums of P · means of v) v_scale / l
//
// The offset m of a row follows its maximum rarely: a step takes the largest integer score of each
// thread, and only where some P would leave the range of its format does the warp reduce maxima
// over threads and rescale O and l. Nearly every step takes no reduction and no rescaling.
//
// Steps that a mask or an edge cuts, with scales of k by key, with means of q or of steep scores
// (kOpenFactor) turn their scores into log2 units first (f = 1, c = -m from there); the rest is the
// same code.
//
//          keys, 64 a step                registers of a thread at D = 128 and 32 rows:
//        +------------------+               O 128, S 32 (64 where P·V sums 64 keys)
//   256  | warp 0: 32 rows  |             shared memory, P·V by halves:
//  rows  | ...              |               k 2 x 8, v 2 x 16 KiB (ring.cuh), q 32 KiB,
//        +------------------+               sums of P 4 KiB, scores of q's means 4 KiB,
//                                           scales and offsets of rows 2 KiB
//
// Above 128 channels of v two blocks share the rows, each with its part of v: both compute the
// scores, since O of more channels has no registers to stand in.
#ifndef SAGE_CUDA_INT8_ATTEND_CUH_
#define SAGE_CUDA_INT8_ATTEND_CUH_

#include <cfloat>

#include "cuda/int8/open_step.cuh"
#include "cuda/int8/warp.cuh"

namespace sage::cuda::int8 {

// Steps that a block and its warps take.
template <int kKeys>  // of a step
struct Steps {
  int first = 0, end = 0;            // of the block
  int warp_first = 0, warp_end = 0;  // that some row of the warp sees
  int open_first = 0, open_end = 0;  // that every row of the warp sees whole

  __device__ __forceinline__ Steps(const AttendPlan& plan, int query0, int block_rows, int warp_row,
                                   int warp_rows) {
    const Visibility& see = plan.see;
    const int last = min(query0 + block_rows, see.q_len) - 1;
    const int end_key = see.EndKey(last), first_key = min(see.FirstKey(query0), end_key);
    if (end_key > first_key) {
      first = first_key / kKeys;
      end = (end_key + kKeys - 1) / kKeys;
    }
    const int warp_query0 = query0 + warp_row;
    const int warp_last = min(warp_query0 + warp_rows, see.q_len) - 1;
    if (warp_last < warp_query0) return;
    const int to = see.EndKey(warp_last), from = see.FirstKey(warp_query0);
    if (to > from) warp_first = from / kKeys, warp_end = (to + kKeys - 1) / kKeys;
    if (see.mask_kind != MaskKind::kNone || plan.key_scales || plan.smooth_q > 0) return;
    open_first = (see.FirstKey(warp_last) + kKeys - 1) / kKeys;
    open_end = see.EndKey(warp_query0) / kKeys;  // no more than `end`
  }
};

template <class Form>
__global__ void __launch_bounds__(Form::kThreads, Form::kBlocks)
    AttendKernel(const __grid_constant__ AttendPlan plan) {
  using W = Warp<Form>;
  using Copies = typename Form::Copies;
  constexpr int D = Form::kDim, kRows = W::kRows, kStepKeys = Form::kStepKeys;
  constexpr int kStepsPerTile = kTileTokens / kStepKeys;
  extern __shared__ __align__(128) uint8_t memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Workspace& space = plan.space;
  const int warp_row = warp * 16 * Form::kTiles;  // of the block
  float* sums = reinterpret_cast<float*>(memory + Form::kSums) + threadIdx.x;
  float* mean_scores = reinterpret_cast<float*>(memory + Form::kMeanScores);
  uint8_t* q_image = memory + Form::kQ + warp * Form::kTiles * Form::kQBytes;
  // Kept there rather than in registers: only cut steps and the end need it.
  Kept& stored = *reinterpret_cast<Kept*>(memory + Form::kBlock);
  const Block& kept = stored.block;

  W w;
  LoadMagic(w.magic);
  w.rows =
      reinterpret_cast<float*>(memory + Form::kRows) + warp * W::kRowFloats + lane / 4 * W::kRows;
  const Block block(plan, Form::kBlockRows);
  Steps<kStepKeys> steps(plan, block.query0, Form::kBlockRows, warp_row, 8 * kRows);
  {
    const int64_t k_tiles = block.kv_head * space.tiles, v_tiles = block.v_part * space.tiles;
    CopySources from;
    from.k = space.k_codes + k_tiles * kStepsPerTile * Copies::kKBytes;
    from.v = space.v_codes + v_tiles * kStepsPerTile * Copies::kVBytes;
    from.table = space.k_table + k_tiles * (kTileTokens / kStepTokens * 4);
    from.means = plan.smooth_v ? space.v_back + v_tiles * D : nullptr;
    if (threadIdx.x == 0) stored.from = from, stored.block = block;
    Copies::Init(memory);
    __syncthreads();
    Copies::Start(memory, from, steps.first, steps.end, {}, true);
  }
  {
    const bool exists = block.query0 + warp_row < plan.see.q_len;
    const int64_t row0 = block.head * space.q_rows + block.query0 + warp_row;
    const uint4* from =
        reinterpret_cast<const uint4*>(space.q_codes + row0 / kRowImage * Form::kQBytes);
    uint4* to = reinterpret_cast<uint4*>(q_image);
#pragma unroll
    for (int n = lane; n < Form::kTiles * Form::kQBytes / 16; n += 32)
      to[n] = exists ? __ldg(from + n) : make_uint4(0, 0, 0, 0);
    __syncwarp();
    const float most_k = __uint_as_float(__ldg(space.k_scale_most + block.kv_head));
    bool steep = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float scale = exists ? space.q_scale[row0 + 8 * r + lane / 4] : 0.0f;
      // A row that is not finite counts as zero until its outputs are written.
      const float factor = scale == scale ? scale * plan.scale : 0.0f;
      steep |= factor * most_k >= kOpenFactor;
      if (lane % 4 == 0) {
        w.rows[r] = factor;
        w.rows[W::kLessM + r] = FLT_MAX;
      }
      w.part[r] = 0.0f;
      sums[r * Form::kThreads] = 0.0f;
    }
    if (__any_sync(~0u, steep)) steps.open_first = steps.open_end = 0;
    __syncwarp();
  }
  if (plan.smooth_q > 0 && steps.first < steps.end) {
    MeanScores<Form::kQkDim, Form::kBlockRows, kStepKeys, Form::kWarps>(
        plan, block, steps.first,
        mean_scores + steps.first % 2 * kMeanScoreFloats<Form::kBlockRows, kStepKeys>);
  }
#pragma unroll
  for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) w.o[t][j][e] = 0.0f;
      if constexpr (Form::kSumsInHalves) w.o_half[t][j][0] = w.o_half[t][j][1] = 0;
    }
  }

  const uint32_t* largest_k = space.k_scale_most + block.kv_head;
  int i = steps.first;
  typename Copies::Place place;  // of step i
  const auto begin = [&] {
    Copies::Start(memory, stored.from, i + 1, steps.end, place.Next(), false);
    Copies::Wait(memory, place);
  };
  const auto end = [&] {
    if (i % kStepsPerTile == kStepsPerTile - 1 || i + 1 == steps.end) {
      w.EndBlock(
          plan.smooth_v ? reinterpret_cast<const float*>(memory + Copies::Means(i)) : nullptr,
          sums);
    }
    Copies::Release(memory, place);
    place = place.Next();
    ++i;
  };
  while (i < steps.end) {
    if (i >= steps.open_first && i < steps.open_end) {
      // A loop of their own: in one with the cut steps the assembler moves O about at every step.
#pragma unroll 1
      while (i < steps.open_end) {
        begin();
        const uint8_t* keys = memory + place.Slot();
        const uint8_t* values = keys + Copies::kKBytes;
        const float* table = reinterpret_cast<const float*>(keys + Copies::kTable) + lane % 4;
        if constexpr (Form::kKeys < kStepKeys) {
          OpenStep(w, keys, values, table, q_image, largest_k, sums, plan.zero);
        } else {
#pragma unroll
          for (int n = 0; n < W::kTables; ++n) w.table[n] = table[n * 4];
          w.Scores(keys, q_image);
          w.SetLines();
          float most[W::kTables][kRows];
          w.Largest(most);
          if (__any_sync(~0u, !w.Fits(most))) w.template Move<false>(most, largest_k, sums);
          w.Outputs(values);
        }
        end();
      }
      continue;
    }
    begin();
    if (plan.smooth_q > 0) __syncthreads();  // the scores of q's means are there
    if (i >= steps.warp_first && i < steps.warp_end) {
      const uint8_t* keys = memory + place.Slot();
#pragma unroll 1
      for (int at = 0; at < kStepKeys; at += Form::kKeys) {
        w.Scores(keys + at * Form::kKRowBytes, q_image);
        const float* shift = nullptr;
        if (plan.smooth_q > 0) {
          const int row = kept.query0 % kTileTokens + warp_row;
          shift = mean_scores + i % 2 * kMeanScoreFloats<Form::kBlockRows, kStepKeys> +
                  (row / kTileTokens * kMostMeans + row % kTileTokens / plan.smooth_q) * kStepKeys +
                  at;
        }
        w.ToLog2(plan, kept, warp_row, i * kStepKeys + at, shift);
        w.SetLinesOfLog2();
        float most[W::kTables][kRows];
        w.LargestOfLog2(most);
        if (__any_sync(~0u, !w.Fits(most))) w.template Move<true>(most, largest_k, sums);
        w.Outputs(keys + Copies::kKBytes + at * Form::kVRowBytes);
      }
    }
    if (plan.smooth_q > 0 && i + 1 < steps.end) {
      MeanScores<Form::kQkDim, Form::kBlockRows, kStepKeys, Form::kWarps>(
          plan, kept, i + 1,
          mean_scores + (i + 1) % 2 * kMeanScoreFloats<Form::kBlockRows, kStepKeys>);
    }
    end();
  }

  w.EndSums();
  float sum[kRows], less_m[kRows];
  w.LoadLessM(less_m);
#pragma unroll
  for (int r = 0; r < kRows; ++r) sum[r] = QuadSum(sums[r * Form::kThreads]);
  WriteRows<D, Form::kQkDim>(plan, kept, kept.query0 + warp_row, w.o, less_m, sum);
}

template <class Form>
void LaunchInstance(AttendPlan plan, cudaStream_t stream) {
  const auto kernel = AttendKernel<Form>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           Form::kSharedBytes) != cudaSuccess)
    return;
  plan.query_tiles = (plan.see.q_len + Form::kBlockRows - 1) / Form::kBlockRows;
  const int64_t blocks = plan.heads * plan.query_tiles;
  kernel<<<static_cast<unsigned>(blocks), Form::kThreads, Form::kSharedBytes, stream>>>(plan);
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_ATTEND_CUH_
