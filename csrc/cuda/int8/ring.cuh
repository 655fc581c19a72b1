// The copies of one block: the keys of a step (64, or 32) of k and v at a time, into slots in
// turns.
//
//   step n: start the copies of step n + 1; wait for those of n; compute; release the slot
//
// A slot is k, v, scales of k, barriers: one register addresses all. The barriers count what has
// come and who has read, so that no warp waits for another but the one that copies: one thread by
// bulk copies from sm_90 on, every thread its share before.
#ifndef SAGE_CUDA_INT8_RING_CUH_
#define SAGE_CUDA_INT8_RING_CUH_

#include <cstdint>

#include "cuda/core/pipeline.h"
#include "cuda/int8/attend_plan.h"
#include "cuda/int8/images.h"
#include "cuda/tensor_core.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define SAGE_HAS_BULK_COPIES 1
#endif

namespace sage::cuda::int8 {

// What a block copies from; kept in shared memory, since registers are few.
struct CopySources {
  const uint8_t *k, *v;        // of the kv head
  const float *table, *means;  // scales of k by 32 keys; what v gets back, null = not smoothed
};

// D: channels of v. kBulk: bulk copies where there are any.
template <int D, int kKeys, int kKRowBytes, int kVRowBytes, int kWarps, int kSlots, bool kBulk>
struct Ring {
  static constexpr int kKBytes = kKeys * kKRowBytes, kVBytes = kKeys * kVRowBytes;
  static constexpr int kTable = kKBytes + kVBytes;  // of a slot
  static constexpr int kTableBytes = kKeys / kStepTokens * 16;
  static constexpr int kFilled = kTable + kTableBytes, kRead = kFilled + 8;  // barriers
  static constexpr int kSlotBytes = kTable + 128;  // rows of banks stay whole
  static_assert(kRead + 8 <= kSlotBytes, "barriers fit");
  static constexpr int kMeanBytes = D * 4;
  static constexpr int kMeans = kSlots * kSlotBytes;  // two blocks of 128 tokens
  static constexpr int kBytes = kMeans + 2 * kMeanBytes;
  static constexpr int kStepsPerMean = kTileTokens / kKeys;
#ifdef SAGE_HAS_BULK_COPIES
  static constexpr int kCopyingThreads = kBulk ? 1 : kWarps * 32;
#else
  static constexpr int kCopyingThreads = kWarps * 32;
#endif

  // Where a step lies: the byte of its slot, and in the lowest bit the parity of how often the slot
  // was filled before.
  struct Place {
    uint32_t bits = 0;

    __device__ __forceinline__ uint32_t Slot() const { return bits & ~1u; }
    __device__ __forceinline__ uint32_t Parity() const { return bits & 1u; }
    __device__ __forceinline__ Place Next() const {
      constexpr uint32_t kLast = (kSlots - 1) * kSlotBytes;
      return {bits >= kLast ? (bits ^ 1u) - kLast : bits + kSlotBytes};
    }
  };

  __device__ __forceinline__ static int Means(int step) {
    return kMeans + step / kStepsPerMean % 2 * kMeanBytes;
  }

  // By all threads, which must meet before anything else is called.
  __device__ __forceinline__ static void Init(uint8_t* memory) {
    if (threadIdx.x != 0) return;
    for (int slot = 0; slot < kSlots; ++slot, memory += kSlotBytes) {
      tile::BarrierInit(At(memory + kFilled), kCopyingThreads);
      tile::BarrierInit(At(memory + kRead), kWarps * 32);
    }
    tile::BarrierInitFence();
  }

  // Starts the copies of `step`, if it is before `end`, once its slot is read; by all warps.
  // `first`: the block's first step, which brings the means of a block that it does not begin.
  __device__ __forceinline__ static void Start(uint8_t* memory, const CopySources& from, int step,
                                               int end, const Place& place, bool first) {
    if (step >= end) return;
    // Warps take turns, since the one that copies waits for the slowest.
    if (kCopyingThreads == 1 &&
        (threadIdx.x / 32 != static_cast<unsigned>(step) % kWarps || !IsChosenLane()))
      return;
    // The slot's first filling waits for nobody: the phase before the first counts as ended.
    tile::BarrierWait(At(memory + place.Slot() + kRead), place.Parity() ^ 1);
    const bool means = (step % kStepsPerMean == 0 || first) && from.means != nullptr;
    uint8_t* to = memory + place.Slot();
    tile::Barrier* filled = At(to + kFilled);
    const uint8_t* k = from.k + static_cast<int64_t>(step) * kKBytes;
    const uint8_t* v = from.v + static_cast<int64_t>(step) * kVBytes;
    const uint8_t* table =
        reinterpret_cast<const uint8_t*>(from.table) + static_cast<int64_t>(step) * kTableBytes;
    const uint8_t* back = reinterpret_cast<const uint8_t*>(
        from.means + static_cast<int64_t>(step / kStepsPerMean) * D);
#ifdef SAGE_HAS_BULK_COPIES
    if constexpr (kBulk) {
      constexpr int kStepBytes = kKBytes + kVBytes + kTableBytes;
      tile::BarrierExpect(filled, means ? kStepBytes + kMeanBytes : kStepBytes);
      tile::BulkCopy(to, k, kKBytes, filled);
      tile::BulkCopy(to + kKBytes, v, kVBytes, filled);
      tile::BulkCopy(to + kTable, table, kTableBytes, filled);
      if (means) tile::BulkCopy(memory + Means(step), back, kMeanBytes, filled);
      return;
    }
#endif
    CopyShare<kKBytes>(to, k);
    CopyShare<kVBytes>(to + kKBytes, v);
    CopyShare<kTableBytes>(to + kTable, table);
    if (means) CopyShare<kMeanBytes>(memory + Means(step), back);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(SharedAddress(filled))
                 : "memory");
  }

  __device__ __forceinline__ static void Wait(uint8_t* memory, const Place& place) {
    tile::BarrierWait(At(memory + place.Slot() + kFilled), place.Parity());
  }

  // By all threads: this one has read the slot, and the means if its step ends a block. Each says
  // so for itself: one for its warp, after the warp has met, takes as long, and racecheck, which
  // does not follow it, would report every copy over what other lanes have read.
  __device__ __forceinline__ static void Release(uint8_t* memory, const Place& place) {
    tile::BarrierArrive(At(memory + place.Slot() + kRead));
  }

 private:
  // One lane of a warp that stands together. The assembler knows what this means: behind another
  // condition each bulk copy takes a loop over the lanes that might copy.
  __device__ __forceinline__ static bool IsChosenLane() {
#ifdef SAGE_HAS_BULK_COPIES
    uint32_t chosen;
    asm volatile(
        "{\n.reg .pred chosen;\nelect.sync _|chosen, 0xffffffff;\nselp.u32 %0, 1, 0, chosen;\n}"
        : "=r"(chosen));
    return chosen != 0;
#else
    return true;
#endif
  }

  __device__ __forceinline__ static tile::Barrier* At(uint8_t* barrier) {
    return reinterpret_cast<tile::Barrier*>(barrier);
  }

  // This thread's 16-byte pieces.
  template <int kCopied>
  __device__ __forceinline__ static void CopyShare(uint8_t* to, const uint8_t* from) {
    static_assert(kCopied % 16 == 0, "whole vectors");
    constexpr int kStride = kWarps * 32 * 16;
    const int mine = static_cast<int>(threadIdx.x) * 16;
    const uint32_t address = SharedAddress(to) + mine;
#pragma unroll
    for (int at = 0; at < kCopied; at += kStride) {
      if (at + kStride <= kCopied || at + mine < kCopied)
        CopyAsync16(address + at, from + at + mine, true);
    }
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_RING_CUH_
