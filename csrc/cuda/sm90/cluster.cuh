// Blocks of a cluster, which read each other's shared memory and meet: one function per
// instruction.
#ifndef SAGE_CUDA_SM90_CLUSTER_CUH_
#define SAGE_CUDA_SM90_CLUSTER_CUH_

#include "cuda/sm90/hopper.cuh"

namespace sage {
namespace sm90 {

// An address of this block's shared memory, in block `rank` of its cluster.
SAGE_DEVICE uint32_t ClusterAddress(uint32_t at, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
SAGE_DEVICE uint32_t LoadCluster(uint32_t at) {
  uint32_t x;
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}
SAGE_DEVICE double LoadClusterDouble(uint32_t at) {
  double x;
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(x) : "r"(at) : "memory");
  return x;
}
SAGE_DEVICE void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// Having used what was read, and written nothing for others.
SAGE_DEVICE void ClusterArriveRelaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
SAGE_DEVICE void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_CLUSTER_CUH_
