// The copying warp of the attention kernel.
#ifndef SAGE_CUDA_SM90_PRODUCE_CUH_
#define SAGE_CUDA_SM90_PRODUCE_CUH_

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/work.cuh"

namespace sage {
namespace sm90 {

// The copying warp: keeps the ring of k and v full for the tiles of work that are drawn beside it
// (round_queries.cuh). One lane acts; all follow, so that loop and addresses stay in uniform
// registers.
template <int D, bool kMasked>
SAGE_DEVICE void Produce(const AttendArguments& a, uint32_t shared,
                         const Barriers<SharedMap<D, kMasked>::kStages>& bar) {
  using Map = SharedMap<D, kMasked>;
  const int lane = ThreadAnew() & 31;
  const bool acts = lane == 0;
  uint32_t it = 0;
  for (uint32_t round = 0;; ++round) {
    const int slot = round & 1;
    const uint32_t at = shared + Map::kWork + slot * kWorkBytes;
    BarrierWait(bar.Drawn(slot), round >> 1 & 1);
    const Work work = LoadWork(at);
    const int kv_head = __shfl_sync(~0u, LoadSharedInt(at + 16), 0);
    if (__shfl_sync(~0u, work.head, 0) < 0) return;
    const int first = __shfl_sync(~0u, work.first, 0);
    const int last = first + __shfl_sync(~0u, work.count, 0) - 1;
    WarpArrive(bar.QEmpty(slot), lane);  // what was drawn is read
    const int64_t tile0 = static_cast<int64_t>(kv_head) * a.tiles;
    for (int i = last; i >= first; --i, ++it) {
      const int s = it % Map::kStages;
      const uint32_t parity = (it / Map::kStages & 1) ^ 1;
      BarrierWait(bar.Empty(s), parity);
      if (acts) {
        BarrierExpect(bar.Full(s), Map::kKBytes + Map::kVBytes + Map::kKScaleBytes);
        BulkCopy(shared + Map::kK + s * Map::kKBytes, a.k_codes + (tile0 + i) * Map::kKBytes,
                 Map::kKBytes, bar.Full(s));
        BulkCopy(shared + Map::kV + s * Map::kVBytes, a.v_codes + (tile0 + i) * Map::kVBytes,
                 Map::kVBytes, bar.Full(s));
        BulkCopy(shared + Map::kKScale + s * Map::kKScaleBytes, a.k_scale + (tile0 + i) * 4,
                 Map::kKScaleBytes, bar.Full(s));
      }
    }
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_PRODUCE_CUH_
