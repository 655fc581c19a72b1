// A key/value cache on the one device of sage/cuda_host.h, for arrays of this process and for
// device memory of whoever works on the same device. A build without CUDA has the same functions;
// they say so.
//
// Nothing here throws or ends the process. kUnsupported, kOutOfMemory and kInternal leave the
// tokens as they were, unless CUDA itself has failed: ToHost tells.
#ifndef SAGE_CUDA_HOST_CACHE_H_
#define SAGE_CUDA_HOST_CACHE_H_

#include <cstdint>
#include <memory>

#include "sage/attention.h"
#include "sage/cuda_host.h"
#include "sage/kv_cache.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// Whether the device holds caches of this shape: kOk, or kUnsupported and why.
Status CudaHostCacheSupports(const KvCacheShape& shape);

struct CudaHostCacheState;

class CudaHostCache {
 public:
  // Room for `capacity` tokens is taken at once, within the limit of SetCudaMemoryLimit.
  static Status Create(const KvCacheShape& shape, int64_t capacity,
                       std::unique_ptr<CudaHostCache>* out);
  ~CudaHostCache();

  // Host arrays k [B,Hkv,n,D] and v [B,Hkv,n,Dv], contiguous. Returns when they have been read and
  // stored.
  Status Append(const float* k, const float* v, int64_t tokens, const CudaHostOptions& options);
  // As KvCache::Attend, on host arrays; returns when the outputs are written.
  Status Attend(const Problem& problem, const ForwardBuffers& buffers,
                const CudaHostOptions& options);

  // The same on device memory, enqueued in a stream of the device that is current.
  Status AppendInStream(const float* k, const float* v, int64_t tokens, void* stream);
  Status AttendInStream(const Problem& problem, const ForwardBuffers& buffers, void* stream);

  Status Truncate(int64_t length);
  Status Fork(std::unique_ptr<CudaHostCache>* out);
  // A cache of the CPU engine with the same codes. Without tokens it needs no device.
  Status ToHost(std::unique_ptr<KvCache>* out) const;
  Status Inspect(int64_t batch, int64_t kv_head, const CacheCodes& out) const;

  const KvCacheShape& shape() const;
  int64_t length() const;
  // Bytes of device memory, and of those that no fork shares.
  int64_t bytes() const;
  int64_t exclusive_bytes() const;

 private:
  CudaHostCache();

  std::unique_ptr<CudaHostCacheState> state_;
};

}  // namespace sage

#endif  // SAGE_CUDA_HOST_CACHE_H_
