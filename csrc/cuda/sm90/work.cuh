// What the attention kernel is given, and how it is cut into tiles of work.
#ifndef SAGE_CUDA_SM90_WORK_CUH_
#define SAGE_CUDA_SM90_WORK_CUH_

#include <cstdint>

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/source.cuh"
#include "cuda/sm90/visibility.cuh"
#include "cuda/sm90/workspace.h"
#include "sage/problem.h"

namespace sage {
namespace sm90 {

struct AttendArguments {
  Source q;
  const uint8_t *q_codes, *k_codes, *v_codes;
  const float *mean_image, *q_scale, *k_scale, *v_scale, *lse_shift;
  uint32_t* schedule;
  Visibility see;
  Values v;
  TokenStrides o_strides;
  float *o, *lse;
  float* spans;  // what spans leave in memory (spans.cuh)
  uint32_t* sums;
  float sign;    // of the scale: carried by the codes of q
  float factor;  // |scale| log2(e)
  int v_dim, q_heads, group, tiles, mean_groups, q_rows, q_tiles, work;
  int heads;           // of q, of all batches
  int kept_words;      // KeptWords
  int heads_per_wave;  // whose k and v stay in L2 together
  bool longest_first, smooth_v, o_pairs;
  bool rounds_queries;  // q is rounded here, and not in the workspace
};

// One tile of work: rows of a query head, and the tiles of keys that some row sees.
struct Work {
  int head, row0, first, count;
};

template <int kRows>
SAGE_DEVICE Work WorkOf(const AttendArguments& a, int index) {
  const int per_wave = a.heads_per_wave * a.q_tiles;
  const int wave = index / per_wave, rest = index % per_wave;
  const int heads = min(a.heads_per_wave, a.heads - wave * a.heads_per_wave);
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

// A tile of work as the copying warp hands it on.
constexpr int kWorkBytes = 32;
SAGE_DEVICE void StoreWork(uint32_t at, const Work& work, int kv_head) {
  StoreSharedInt4(at, work.head, work.row0, work.first, work.count);
  StoreSharedInt(at + 16, kv_head);
}
SAGE_DEVICE Work LoadWork(uint32_t at) {
  const int2 x = LoadSharedInt2(at), y = LoadSharedInt2(at + 8);
  return {x.x, x.y, y.x, y.y};
}

// What a warp keeps of its tile of work; byte offsets of ints.
constexpr int kPlace = 0;  // head; first row of the tile of work
constexpr int kFirst = 8;  // tiles of keys that some row of this warpgroup sees
constexpr int kLast = 12;
constexpr int kOpenTiles = 16;  // [begin, end): seen in full by all rows of this warp
constexpr int kKvHead = 24;
constexpr int kWorkFirst = 28;  // first tile of keys of the tile of work
constexpr int kRecordBytes = 32;

// For the 64 rows from `rows` on of a tile of work, and the 16 from `warp_rows` on.
SAGE_DEVICE void StoreRecord(const AttendArguments& a, uint32_t record, const Work& work,
                             int kv_head, int rows, int warp_rows) {
  const int end_row = a.see.q_len - 1, row = work.row0 + rows, warp_row = work.row0 + warp_rows;
  int first = work.first + work.count - 1, last = first;  // at least one tile
  if (row <= end_row) {
    const int begin = a.see.FirstKey(row), end = a.see.EndKey(min(row + 63, end_row));
    if (end > begin) {
      first = begin / kTile;
      last = (end - 1) / kTile;
    }
  }
  const int open_begin = (a.see.FirstKey(min(warp_row + 15, end_row)) + kTile - 1) / kTile;
  const int open_end = a.see.EndKey(min(warp_row, end_row)) / kTile;
  __syncwarp();
  if ((threadIdx.x & 31) == 0) {
    StoreSharedInt4(record, work.head, work.row0, first, last);
    StoreSharedInt4(record + kOpenTiles, open_begin, open_end, kv_head, work.first);
  }
  __syncwarp();
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_WORK_CUH_
