// The copying warp of the attention kernel.
#ifndef SAGE_CUDA_SM90_PRODUCE_CUH_
#define SAGE_CUDA_SM90_PRODUCE_CUH_

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/work.cuh"

namespace sage {
namespace sm90 {

// The copying warp: draws tiles of work and keeps the rings full. One lane acts; all follow, so
// that loop and addresses stay in uniform registers.
template <int D, bool kMasked>
SAGE_DEVICE void Produce(const AttendArguments& a, uint32_t shared,
                         const Barriers<SharedMap<D, kMasked>::kStages>& bar) {
  using Map = SharedMap<D, kMasked>;
  constexpr int kRows = Roles<D, kMasked>::kRows;
  const bool acts = (threadIdx.x & 31) == 0;
  uint32_t it = 0, round = 0;
  int index = blockIdx.x;
  while (true) {
    const int slot = round & 1;
    BarrierWait(bar.QEmpty(slot), (round >> 1 & 1) ^ 1);
    if (index >= a.work) break;
    const Work work = WorkOf<kRows>(a, index);
    const int kv_head = KvHead(a, work.head), last = work.first + work.count - 1;
    if (acts) {
      StoreWork(shared + Map::kWork + slot * kWorkBytes, work, kv_head);
      const int64_t row = static_cast<int64_t>(work.head) * a.q_rows + work.row0;
      BarrierExpect(bar.QFull(slot), Map::kQBytes + Map::kQScaleBytes + Map::kVScaleBytes);
      BulkCopy(shared + slot * Map::kQBytes, a.q_codes + row * D, Map::kQBytes, bar.QFull(slot));
      BulkCopy(shared + Map::kQScale + slot * Map::kQScaleBytes, a.q_scale + row, Map::kQScaleBytes,
               bar.QFull(slot));
      BulkCopy(shared + Map::kVScale + slot * Map::kVScaleBytes,
               a.v_scale + static_cast<int64_t>(kv_head) * D, Map::kVScaleBytes, bar.QFull(slot));
    }
    int drawn = 0;
    if (acts) drawn = static_cast<int>(atomicAdd(a.schedule, 1u));
    ++round;
    const int64_t tile0 = static_cast<int64_t>(kv_head) * a.tiles;
    for (int i = last; i >= work.first; --i, ++it) {
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
    index = gridDim.x + __shfl_sync(~0u, drawn, 0);
  }
  if (!acts) return;
  StoreWork(shared + Map::kWork + (round & 1) * kWorkBytes, {-1, 0, 0, 0}, 0);
  BarrierArrive(bar.QFull(round & 1));
  // The last block to finish leaves the counter ready for another pass.
  if (atomicAdd(a.schedule + 1, 1u) == gridDim.x - 1) {
    a.schedule[0] = 0;
    a.schedule[1] = 0;
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_PRODUCE_CUH_
