// What the kernels of fp4 and fp4_fp8 are given: plain data, the same on a device and in the
// simulation.
#ifndef SAGE_CUDA_SM120_ARGUMENTS_H_
#define SAGE_CUDA_SM120_ARGUMENTS_H_

#include <cstdint>

#include "cuda/sm120/visibility.h"
#include "cuda/sm120/workspace.h"
#include "sage/attention.h"
#include "sage/problem.h"

namespace sage {
namespace sm120 {

struct Source {
  const void* data;  // of the problem's input type
  TokenStrides strides;
  int heads, tokens, dim;
  bool aligned;  // rows begin at multiples of 16 bytes
};

struct PrepassArguments {
  Source q, k, v;
  Workspace space;
  int q_heads, group, kv_count, q_count;  // query heads, queries per kv head, B·Hkv, B·Hq
  int q_tiles;                            // 128-row tiles of q
  int smooth_q;                           // rows per mean, 0 = off
  int rotation;                           // block of the Hadamard rotation, 0 = none
  float rotation_norm;
  bool smooth_k, smooth_v, balance, four_six, head_exponent, fp8, want_lse;
  bool negative;  // sign of the scale: carried by q
  double scale;
};

struct AttendArguments {
  const uint8_t *q_codes, *tiles_image, *q_bad, *marks;
  const uint32_t *q_scale, *q_mean, *k_half, *not_finite, *q_largest, *k_largest;
  const float *mean_rows, *v_scale, *lse_shift;
  Visibility see;
  const void* v;
  InputType v_input;
  TokenStrides v_strides, o_strides;
  float *o, *lse;
  float factor;  // |scale| log2(e)
  int v_dim, q_heads, group, tiles, mean_groups, q_rows, tile_bytes;
  int q_tiles, work;   // blocks of rows of a head; tiles of work
  int v_parts;         // tiles of work per block of rows: see VChannelsOf
  int heads_per_wave;  // whose k and v stay in L2 together
  bool longest_first, smooth_q, head_exponent, o_pairs;
  uint32_t zero;  // 0, which the compiler does not know
};

PrepassArguments PlanPrepass(const Problem& problem, const ForwardBuffers& buffers,
                             const Workspace& space);
AttendArguments PlanAttend(const Problem& problem, const ForwardBuffers& buffers,
                           const Workspace& space);

// Threads and blocks of the two kernels of the pre-pass, and their shared memory.
constexpr int kQuantiseThreads = 256;
inline int64_t PrepassBlocks(const PrepassArguments& a) {
  return static_cast<int64_t>(a.kv_count) * a.space.tiles +
         static_cast<int64_t>(a.q_count) * a.q_tiles;
}
constexpr int StatisticsThreads(int dim) { return 2 * dim; }

// Why these kernels do not compute the problem, whatever the device; null if they do.
const char* RefusalOf(const Problem& problem);

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_ARGUMENTS_H_
