// What compute-sanitizer's synccheck says of clusters of more than 8 blocks
// (docs/kernels_hopper.md, "Checks"). Each block initialises a barrier of its own, arrives once,
// pauses, waits once, and meets its cluster; nothing else happens, so there is no wait that could
// be missing.
//
//   nvcc -arch=sm_90a -o cluster_barriers csrc/test/cuda/cluster_barriers.cu
//   compute-sanitizer --tool synccheck ./cluster_barriers 13 40    blocks of a cluster, clusters
//
// Without the tool it prints "no error". Nothing here is part of the library.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

constexpr int kBarriers = 4;  // as the pre-pass has, one for each quarter of a tile

__global__ void Meet(int* out, int pause) {
  __shared__ uint64_t barriers[kBarriers];
  const uint32_t first = static_cast<uint32_t>(__cvta_generic_to_shared(barriers));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBarriers; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(first + 8 * i) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBarriers; ++i) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(first + 8 * i) : "memory");
    }
  }
  for (int i = 0; i < pause; ++i) __nanosleep(1000);
  for (int i = 0; i < kBarriers; ++i) {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
          "selp.b32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(first + 8 * i)
          : "memory");
    }
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}

int main(int argc, char** argv) {
  const int blocks = argc > 1 ? std::atoi(argv[1]) : 13,
            clusters = argc > 2 ? std::atoi(argv[2]) : 40;
  int* out = nullptr;
  if (cudaMalloc(&out, sizeof(int) * blocks * clusters) != cudaSuccess) return 1;
  cudaFuncSetAttribute(Meet, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks * clusters));
  config.blockDim = dim3(64);
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t launch = cudaLaunchKernelEx(&config, Meet, out, 50);
  const cudaError_t end = cudaDeviceSynchronize();
  std::printf("%d clusters of %d blocks: %s, %s\n", clusters, blocks, cudaGetErrorString(launch),
              cudaGetErrorString(end));
  return launch == cudaSuccess && end == cudaSuccess ? 0 : 1;
}
