// Barriers in shared memory that count arrivals and bytes, and copies that complete on them.
#ifndef SAGE_CUDA_CORE_PIPELINE_H_
#define SAGE_CUDA_CORE_PIPELINE_H_

#include <cstring>

#include "cuda/core/warp.h"

namespace sage::tile {

// Eight bytes. A phase ends when all arrivals and all announced bytes have come; phases are told
// apart by their parity, 0 first.
using Barrier = uint64_t;

#ifdef __CUDACC__

SAGE_TILE uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
SAGE_TILE void BarrierInit(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals));
}
// After all BarrierInit of a thread, before the block's threads meet.
SAGE_TILE void BarrierInitFence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
SAGE_TILE void BarrierArrive(Barrier* barrier) {
  asm volatile(
      "{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(SharedAddress(barrier))
      : "memory");
}
#if __CUDA_ARCH__ >= 900
// An arrival that announces bytes.
SAGE_TILE void BarrierExpect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
#endif
SAGE_TILE void BarrierWait(Barrier* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nagain_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again_%=;\n}" ::"r"(
          SharedAddress(barrier)),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred done;\nagain_%=:\n"
      "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again_%=;\n}" ::"r"(
          SharedAddress(barrier)),
      "r"(parity)
      : "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// One bulk copy to shared memory, by one thread; its bytes count on the barrier.
SAGE_TILE void BulkCopy(uint8_t* to, const uint8_t* from, int bytes, Barrier* barrier) {
  // Where there are no clusters, a destination among them becomes a call of the driver's code, and
  // no warp could take registers (sm_120).
  asm volatile(
#if SAGE_NATIVE_FP4
      "cp.async.bulk.shared::cta.global"
#else
      "cp.async.bulk.shared::cluster.global"
#endif
      ".mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}
#endif

// Copies two pieces (multiples of 16 bytes, aligned to 16), one behind the other in shared memory;
// counts as one arrival on the barrier. To be called by a whole warp.
SAGE_TILE void CopyStage(uint8_t* to, const uint8_t* first, int first_bytes, const uint8_t* second,
                         int second_bytes, Barrier* barrier) {
#if __CUDA_ARCH__ >= 900
  if (Lane() == 0) {
    BarrierExpect(barrier, first_bytes + second_bytes);
    BulkCopy(to, first, first_bytes, barrier);
    BulkCopy(to + first_bytes, second, second_bytes, barrier);
  }
  SyncWarp();
#else
  // No bulk copies before sm_90.
  SAGE_NO_UNROLL
  for (int at = Lane() * 16; at < first_bytes + second_bytes; at += 512) {
    const uint8_t* from = at < first_bytes ? first + at : second + (at - first_bytes);
    *reinterpret_cast<uint4*>(to + at) = __ldg(reinterpret_cast<const uint4*>(from));
  }
  SyncWarp();
  if (Lane() == 0) BarrierArrive(barrier);
#endif
}

// Gives registers of this warpgroup back, or takes them: all its warps must call.
template <int kRegisters>
SAGE_TILE void GiveRegisters() {
#if SAGE_NATIVE_FP4
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
SAGE_TILE void TakeRegisters() {
#if SAGE_NATIVE_FP4
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

#else

// As a pair of counters: arrivals expected per phase and left in this one, and the phase.
struct BarrierState {
  uint16_t arrivals, left;
  uint32_t phase;
};
static_assert(sizeof(BarrierState) == sizeof(Barrier));

SAGE_TILE BarrierState ReadBarrier(const Barrier* barrier) {
  BarrierState state;
  std::memcpy(&state, barrier, sizeof(state));
  return state;
}
SAGE_TILE void BarrierInit(Barrier* barrier, int arrivals) {
  const uint16_t count = static_cast<uint16_t>(arrivals);
  const BarrierState state = {count, count, 0};
  std::memcpy(barrier, &state, sizeof(state));
}
SAGE_TILE void BarrierInitFence() {}
SAGE_TILE void BarrierArrive(Barrier* barrier) {
  BarrierState state = ReadBarrier(barrier);
  if (--state.left == 0) {
    state.left = state.arrivals;
    ++state.phase;
    simulate::Progress();
  }
  std::memcpy(barrier, &state, sizeof(state));
}
SAGE_TILE void BarrierWait(Barrier* barrier, uint32_t parity) {
  while ((ReadBarrier(barrier).phase & 1) == parity) simulate::Yield();
}
SAGE_TILE void CopyStage(uint8_t* to, const uint8_t* first, int first_bytes, const uint8_t* second,
                         int second_bytes, Barrier* barrier) {
  if (Lane() == 0) {
    std::memcpy(to, first, static_cast<size_t>(first_bytes));
    std::memcpy(to + first_bytes, second, static_cast<size_t>(second_bytes));
    BarrierArrive(barrier);
  }
  SyncWarp();
}
template <int kRegisters>
SAGE_TILE void GiveRegisters() {}
template <int kRegisters>
SAGE_TILE void TakeRegisters() {}

#endif

}  // namespace sage::tile

#endif  // SAGE_CUDA_CORE_PIPELINE_H_
