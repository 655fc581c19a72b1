// What the attention kernel is given, and how it is cut into tiles of work.
#ifndef SAGE_CUDA_SM90_WORK_CUH_
#define SAGE_CUDA_SM90_WORK_CUH_

#include <cstdint>

#include "cuda/sm90/visibility.cuh"
#include "cuda/sm90/workspace.h"
#include "sage/problem.h"

namespace sage {
namespace sm90 {

struct AttendArguments {
  const uint8_t *q_codes, *k_codes, *v_codes;
  const float *mean_image, *q_scale, *k_scale, *v_scale, *lse_shift;
  uint32_t* schedule;
  Visibility see;
  Values v;
  TokenStrides o_strides;
  float *o, *lse;
  float *spans, *sums;  // what spans leave in memory (spans.cuh)
  float factor;         // |scale| log2(e)
  int v_dim, q_heads, group, tiles, mean_groups, q_rows, q_tiles, work;
  int heads_per_wave;  // whose k and v stay in L2 together
  bool longest_first, smooth_v, o_pairs;
};

// One tile of work: rows of a query head, and the tiles of keys that some row sees.
struct Work {
  int head, row0, first, count;
};

template <int kRows>
SAGE_DEVICE Work WorkOf(const AttendArguments& a, int index) {
  const int per_wave = a.heads_per_wave * a.q_tiles;
  const int wave = index / per_wave, rest = index % per_wave;
  const int heads = min(a.heads_per_wave, a.work / a.q_tiles - wave * a.heads_per_wave);
  int tile = rest / heads;
  if (a.longest_first) tile = a.q_tiles - 1 - tile;
  Work work;
  work.head = wave * a.heads_per_wave + rest % heads;
  work.row0 = tile * kRows;
  const int begin = a.see.FirstKey(work.row0);
  const int end = a.see.EndKey(min(work.row0 + kRows, a.see.q_len) - 1);
  work.first = begin / kTile;
  work.count = end > begin ? (end + kTile - 1) / kTile - work.first : 0;
  return work;
}

SAGE_DEVICE int KvHead(const AttendArguments& a, int head) {
  const int batch = head / a.q_heads;
  return batch * (a.q_heads / a.group) + head % a.q_heads / a.group;
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_WORK_CUH_
