// Between strided host arrays and device memory: page-locked chunks that processors fill and empty
// while the copy engines work on the others.
//
//   array --gather--> chunk --copy engine--> device        4 chunks in, 4 chunks out, 4 MiB each:
//   array <-scatter-- chunk <--copy engine-- device        32 MiB a call, whatever its size
//
// Arrays of an area are one row of bytes on the device, so that small ones share a copy.
#ifndef SAGE_CUDA_HOST_STAGING_H_
#define SAGE_CUDA_HOST_STAGING_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "cuda/host/host_device.h"
#include "cuda/host/strided_box.h"

namespace sage::cuda {

// One array of an area.
struct Part {
  StridedBox box;
  void* host;
  int64_t offset;  // in the area
  bool add;        // on the way back: added to what is there
};

struct Area {
  std::vector<Part> parts;
  int64_t bytes = 0;

  // The new part's offset, aligned as cudaMalloc aligns.
  int64_t Add(const StridedBox& box, const void* host, bool add = false) {
    const int64_t offset = bytes;
    parts.push_back({box, const_cast<void*>(host), offset, add});
    bytes = (offset + box.bytes() + 255) / 256 * 256;
    return offset;
  }
};

// The chunks of one call. Every function but the destructor reports the first CUDA error; what was
// enqueued before it must be waited for (by its stream) before this object goes.
class Staging {
 public:
  Staging(HostDevice& device, int threads) : device_(device), threads_(threads) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Returns when the host arrays have been read; the last copies may still run.
  cudaError_t Upload(const Area& area, void* to, cudaStream_t stream);
  // Enqueues; `area` must stay where it is until Finish.
  cudaError_t Download(const Area& area, const void* from, cudaStream_t stream);
  // Waits until everything downloaded has reached the host arrays.
  cudaError_t Finish();

 private:
  struct Chunk {
    void* memory;
    cudaEvent_t copied;
    const Area* area;  // null: nothing to scatter
    int64_t from, to;  // bytes of the area
    bool busy;
  };
  struct Ring {
    std::vector<Chunk> chunks;
    size_t next = 0;
  };

  cudaError_t Acquire(Ring* ring, Chunk** chunk);
  cudaError_t Land(Chunk* chunk);
  void Move(const Area& area, int64_t from, int64_t to, void* chunk, bool gather) const;

  HostDevice& device_;
  const int threads_;
  Ring in_, out_;
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_STAGING_H_
