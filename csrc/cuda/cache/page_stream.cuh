// A warp's stream of pages into its own piece of shared memory: K part and V part of one page, each
// copied again for the next page as soon as it is read. One bulk copy a part where the device has
// it (sm_90), else 16-byte copies by all lanes; the waits hide which.
#ifndef SAGE_CUDA_CACHE_PAGE_STREAM_CUH_
#define SAGE_CUDA_CACHE_PAGE_STREAM_CUH_

#include <cstdint>

#include "cuda/sm90/hopper.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define SAGE_BULK_COPIES 1
#endif

// Parts alternate: K, V, K, V; every Wait is for the older of the two that may be on their way.
class PageStream {
 public:
  // `barriers`: two of 8 bytes, of this warp alone.
  __device__ __forceinline__ PageStream(uint32_t barriers, int lane)
      : barriers_(barriers), lane_(lane) {
#ifdef SAGE_BULK_COPIES
    if (lane == 0) {
      sm90::BarrierInit(barriers, 1);
      sm90::BarrierInit(barriers + 8, 1);
      sm90::BarrierInitFence();
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
#endif
  }

  // All lanes have read what lies at `to`. A null `from` keeps the order of parts, no more.
  __device__ __forceinline__ void Copy(int part, uint32_t to, const uint8_t* from, int bytes) {
    __syncwarp();
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
    WaitForCopies<1>();
    __syncwarp();
#endif
  }

 private:
  uint32_t barriers_;
  int lane_;
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_CACHE_PAGE_STREAM_CUH_
