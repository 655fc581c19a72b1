// Threads of a block, and what the 32 threads of a warp do together.
#ifndef SAGE_CUDA_CORE_WARP_H_
#define SAGE_CUDA_CORE_WARP_H_

#include <cstring>

#include "cuda/core/execution.h"

namespace sage::tile {

#ifdef __CUDACC__

SAGE_TILE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
SAGE_TILE int BlockIndex() { return static_cast<int>(blockIdx.x); }
SAGE_TILE int GridSize() { return static_cast<int>(gridDim.x); }
SAGE_TILE void SyncWarp() { __syncwarp(); }
SAGE_TILE void SyncBlock() { __syncthreads(); }
template <class T>
SAGE_TILE T Shuffle(T value, int lane) {
  return __shfl_sync(~0u, value, lane);
}
template <class T>
SAGE_TILE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}
SAGE_TILE bool Any(bool condition) { return __any_sync(~0u, condition); }
SAGE_TILE bool All(bool condition) { return __all_sync(~0u, condition); }
SAGE_TILE void AtomicMax(uint32_t* at, uint32_t value) { atomicMax(at, value); }
SAGE_TILE void AtomicOr(uint32_t* at, uint32_t value) { atomicOr(at, value); }
SAGE_TILE uint32_t AtomicAdd(uint32_t* at, uint32_t value) { return atomicAdd(at, value); }
// Orders this thread's memory operations for the whole device.
SAGE_TILE void Fence() { __threadfence(); }
// What other blocks wrote during this kernel.
template <class T>
SAGE_TILE T LoadFresh(const T* at) {
  return __ldcg(at);
}

#else

SAGE_TILE int ThreadIndex() { return simulate::ThreadIndex(); }
SAGE_TILE int BlockIndex() { return simulate::BlockIndex(); }
SAGE_TILE int GridSize() { return simulate::GridSize(); }
SAGE_TILE void SyncWarp() { simulate::SyncWarp(); }
SAGE_TILE void SyncBlock() { simulate::SyncBlock(); }
template <class T>
SAGE_TILE T Shuffle(T value, int lane) {
  T result;
  std::memcpy(&result, simulate::Exchange(&value, sizeof(T)) + lane * simulate::kExchangeBytes,
              sizeof(T));
  return result;
}
template <class T>
SAGE_TILE T ShuffleXor(T value, int mask) {
  return Shuffle(value, simulate::ThreadIndex() % 32 ^ mask);
}
SAGE_TILE bool Any(bool condition) {
  const uint8_t* all = simulate::Exchange(&condition, 1);
  for (int lane = 0; lane < 32; ++lane) {
    if (all[lane * simulate::kExchangeBytes] != 0) return true;
  }
  return false;
}
SAGE_TILE bool All(bool condition) { return !Any(!condition); }
SAGE_TILE void AtomicMax(uint32_t* at, uint32_t value) { *at = *at < value ? value : *at; }
SAGE_TILE void AtomicOr(uint32_t* at, uint32_t value) { *at |= value; }
SAGE_TILE uint32_t AtomicAdd(uint32_t* at, uint32_t value) {
  const uint32_t old = *at;
  *at += value;
  return old;
}
SAGE_TILE void Fence() {}
template <class T>
SAGE_TILE T LoadFresh(const T* at) {
  return *at;
}

#endif

SAGE_TILE int Lane() { return ThreadIndex() & 31; }
// The same value, which stays in a register from here on: what a compiler can compute again from a
// thread's index it does compute again, next to each use.
template <class T>
SAGE_TILE T Keep(T value) {
  return Shuffle(value, Lane());
}
// A value that all threads of the warp have in common, as if each had one of its own: else it goes
// to a register that they share, and instructions that cannot read that one copy it each time.
template <class T>
SAGE_TILE T KeepOwn(T value) {
  return Shuffle(Lane() % 2 == 0 ? value : T(), Lane() & ~1);
}
// The warp's index, known to be the same in all its threads.
SAGE_TILE int WarpIndex() { return Shuffle(ThreadIndex() >> 5, 0); }

}  // namespace sage::tile

#endif  // SAGE_CUDA_CORE_WARP_H_
