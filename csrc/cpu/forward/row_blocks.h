// Hands the row blocks of a wave's heads to the workers of the attention phase.
//
// A worker starts at a head of its own, and takes blocks of it until there are none, then of the
// heads after it. So a head's packed keys and values are read into one worker's cache (or a few),
// not into all of them in turns, and nobody is idle before the blocks run out. Which worker
// computes a block changes no bits.
#ifndef SAGE_CPU_FORWARD_ROW_BLOCKS_H_
#define SAGE_CPU_FORWARD_ROW_BLOCKS_H_

#include "cpu/forward/plan.h"

namespace sage {
namespace {

struct RowBlock {
  int64_t head, block;
};

class RowBlocks {
 public:
  static int64_t Bytes(int64_t heads, int64_t workers) { return (heads + workers) * kLine; }

  RowBlocks(uint8_t* memory, int64_t heads, int64_t blocks, int64_t workers)
      : memory_(memory), heads_(heads), blocks_(blocks) {
    for (int64_t h = 0; h < heads; ++h) *Taken(h) = 0;
    for (int64_t w = 0; w < workers; ++w) *HeadOf(w) = w * heads / workers;
  }

  // The next block for this worker; to be called heads · blocks times in all, by any workers.
  RowBlock Take(int64_t worker) const {
    for (int64_t h = *HeadOf(worker);; h = h + 1 < heads_ ? h + 1 : 0) {
      const int64_t block = __atomic_fetch_add(Taken(h), 1, __ATOMIC_RELAXED);
      if (block >= blocks_) continue;
      *HeadOf(worker) = h;
      return {h, block};
    }
  }

 private:
  // Each counter in a cache line of its own: workers write them at the same time.
  static constexpr int64_t kLine = 64;
  int64_t* Taken(int64_t head) const { return reinterpret_cast<int64_t*>(memory_ + head * kLine); }
  int64_t* HeadOf(int64_t worker) const {
    return reinterpret_cast<int64_t*>(memory_ + (heads_ + worker) * kLine);
  }

  uint8_t* memory_;
  int64_t heads_, blocks_;
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_ROW_BLOCKS_H_
