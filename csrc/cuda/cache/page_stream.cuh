// A stream of pages into shared memory for a team of warps: K part and V part of one page, each
// copied again for the next page as soon as the team has read it. One bulk copy a part where the
// device has it (sm_90), else 16-byte copies by the lanes of one warp; the waits hide which.
#ifndef SAGE_CUDA_CACHE_PAGE_STREAM_CUH_
#define SAGE_CUDA_CACHE_PAGE_STREAM_CUH_

#include <cstdint>

#include "cuda/sm90/hopper.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define SAGE_BULK_COPIES 1
#endif

// Of one team: K and V are there. Where each lane arrives for itself, for tools that follow single
// threads (docs/kernels_hopper.md, "Keys and values kept on the device"): K and V are read as well.
#ifdef SAGE_EACH_LANE_ARRIVES
constexpr int kStreamBarrierBytes = 32;
#else
constexpr int kStreamBarrierBytes = 16;
#endif

// Parts alternate: K, V, K, V; every Wait is for the older of the two that may be on their way.
template <int kTeam>
class PageStream {
 public:
  // `barriers`: kStreamBarrierBytes of this team alone; initialised before anyone waits.
  __device__ __forceinline__ PageStream(uint32_t barriers, int team, int member, int lane)
      : barriers_(barriers), team_(team), copies_(member == 0), lane_(lane) {
#ifdef SAGE_BULK_COPIES
    if (copies_ && lane == 0) {
      sm90::BarrierInit(barriers, 1);
      sm90::BarrierInit(barriers + 8, 1);
#ifdef SAGE_EACH_LANE_ARRIVES
      sm90::BarrierInit(barriers + 16, 32 * kTeam);
      sm90::BarrierInit(barriers + 24, 32 * kTeam);
#endif
      sm90::BarrierInitFence();
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
#ifdef SAGE_EACH_LANE_ARRIVES
    __syncthreads();  // the team arrives before the block first meets
#endif
#endif
  }

  // Copies a part when the whole team is done with what lies at `to`. A null `from` keeps the order
  // of parts, no more.
  __device__ __forceinline__ void Copy(int part, uint32_t to, const uint8_t* from, int bytes) {
#if defined(SAGE_BULK_COPIES) && defined(SAGE_EACH_LANE_ARRIVES)
    const uint32_t read = barriers_ + 16 + 8 * part;
    sm90::BarrierArrive(read);
    if (copies_ && lane_ == 0) sm90::BarrierWait(read, reads_[part]++ & 1);
#else
    Meet();
#endif
    if (!copies_) return;
#ifdef SAGE_BULK_COPIES
    if (from == nullptr || lane_ != 0) return;
    sm90::BarrierExpect(barriers_ + 8 * part, bytes);
    sm90::BulkCopy(to, from, bytes, barriers_ + 8 * part);
#else
    if (from != nullptr) {
      for (int at = lane_ * 16; at < bytes; at += 512) CopyAsync16(to + at, from + at, true);
    }
    CommitCopies();
#endif
  }

  // Until the part, copied for the `round`-th time (from 0), is there.
  __device__ __forceinline__ void Wait(int part, uint32_t round) {
#ifdef SAGE_BULK_COPIES
    sm90::BarrierWait(barriers_ + 8 * part, round & 1);
#else
    if (copies_) WaitForCopies<1>();
    Meet();
#endif
  }

 private:
  __device__ __forceinline__ void Meet() {
    if constexpr (kTeam == 1) {
      __syncwarp();
    } else {
      // Barrier 0 is the block's.
      asm volatile("bar.sync %0, %1;" ::"r"(team_ + 1), "n"(32 * kTeam) : "memory");
    }
  }

  uint32_t barriers_;
  int team_;
  bool copies_;
  int lane_;
#ifdef SAGE_EACH_LANE_ARRIVES
  uint32_t reads_[2] = {0, 0};
#endif
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_CACHE_PAGE_STREAM_CUH_
