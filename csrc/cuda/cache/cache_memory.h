// The memory of a device cache: slabs of pages that forks share, the frozen mean, and what the
// attention kernel needs from call to call.
//
// Sharing. A slab's pages are in the views of all forks that hold tokens there. One of them, the
// cache that was there first, goes on writing behind the tokens of the others (`owned_from`): they
// read no byte of that. Whoever writes in front of that place, a fork or a cache that was
// truncated, continues in a slab of its own, to which the page that is begun is copied.
#ifndef SAGE_CUDA_CACHE_CACHE_MEMORY_H_
#define SAGE_CUDA_CACHE_CACHE_MEMORY_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/cache/page_layout.h"
#include "sage/cuda_kv_cache.h"
#include "sage/status.h"

namespace sage {
namespace cuda {

// A block of device memory. Its end waits for the device.
struct DeviceBlock {
  DeviceMemory* source;
  void* data;
  int64_t bytes;
  ~DeviceBlock();
};
using SharedBlock = std::shared_ptr<DeviceBlock>;

// Zeroed, when this returns and in whatever stream the caller works: codes and scales of tokens not
// yet there are read, never used.
Status TakeZeroed(DeviceMemory* source, int64_t bytes, SharedBlock* out);

// What a call that failed becomes.
Status StatusOf(cudaError_t error);

inline int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace cuda

struct CudaCacheMemory {
  DeviceMemory* source = nullptr;
  int64_t heads = 0;  // batch * kv_heads
  cuda::CachePageLayout layout = {};
  std::vector<cuda::SharedBlock> blocks;  // of the slabs
  cuda::CacheSlabs slabs = {};
  // Tokens from here on are written where they lie.
  int64_t owned_from = 0;
  cuda::SharedBlock mean;     // k_mean [heads][k_dims], then counters [heads] of FreezeMean
  cuda::SharedBlock scratch;  // of AttendPages: counters, then parts

  int64_t pages() const { return slabs.count == 0 ? 0 : slabs.first_page[slabs.count]; }
  float* k_mean() const { return static_cast<float*>(mean->data); }
  uint32_t* arrived() const {
    return reinterpret_cast<uint32_t*>(k_mean() + heads * layout.k_dims);
  }

  // A mean that no fork reads.
  Status TakeMean();
  // At least `counters` and `floats`, for the next call of AttendPages.
  Status HoldScratch(int64_t counters, int64_t floats);
  // One more slab, of at least `more` pages.
  Status Grow(int64_t more, cudaStream_t stream);
  // Tokens [length, end) may be written, of which those before `length` stay. On failure the tokens
  // are where they were.
  Status MakeWritable(int64_t length, int64_t end, cudaStream_t stream);
  // A view of the first `length` tokens.
  void ShareWith(int64_t length, CudaCacheMemory* fork);

  int64_t Bytes(bool exclusive) const;

 private:
  bool IsShared(int slab) const { return blocks[static_cast<size_t>(slab)].use_count() > 1; }
  Status AddSlab(int64_t pages);
  Status Compact(int64_t more, cudaStream_t stream);
  // The view ends before `page`.
  void CutAt(int page);
};

}  // namespace sage

#endif  // SAGE_CUDA_CACHE_CACHE_MEMORY_H_
