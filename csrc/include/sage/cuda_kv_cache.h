// A key/value cache in device memory: the CUDA form of sage/kv_cache.h, with the same codes bit for
// bit (docs/numerics.md 8). Tokens are quantised once, when they are appended; a decoding step then
// reads 8 bits per element of k and v and nothing else of size.
//
// Storage is in slabs of pages of 128 tokens. Forks share slabs until one of them writes where the
// other reads: then the page in question is copied to a slab of its own (copy on write).
//
// An object belongs to the device that was current at Create, which must be current in every call,
// also when it is destroyed. Its calls, and those of its forks, are enqueued in order: in one
// stream, or in streams that wait for each other. An object serves one thread at a time.
#ifndef SAGE_CUDA_KV_CACHE_H_
#define SAGE_CUDA_KV_CACHE_H_

#include <cstdint>
#include <memory>

#include "sage/attention.h"
#include "sage/kv_cache.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// Whether caches of this shape are served on the current device. If not, `reason` (static storage)
// tells why. head dims 1 to 256, form kInt8.
bool CudaKvCacheSupports(const KvCacheShape& shape, const char** reason);

// Where caches take device memory from; lives longer than they do.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // At least `bytes` bytes, aligned as cudaMalloc aligns; null when there are none.
  virtual void* Take(int64_t bytes) = 0;
  // No work of the device uses it any more.
  virtual void Give(void* memory) = 0;
};

struct CudaCacheMemory;

class CudaKvCache {
 public:
  // `capacity` tokens get their memory at once; more may be appended. A null `memory` is CUDA's own
  // allocator. kUnsupported with the reason of CudaKvCacheSupports, kOutOfMemory.
  static Status Create(const KvCacheShape& shape, int64_t capacity, DeviceMemory* memory,
                       std::unique_ptr<CudaKvCache>* out);
  // Waits for the device.
  ~CudaKvCache();

  // Adds `tokens` tokens from float32 device memory: k [B,Hkv,n,D] and v [B,Hkv,n,Dv] in any
  // strides. The first append to an empty cache freezes the mean of k. On failure the cache is as
  // it was.
  Status Append(const float* k, const TokenStrides& k_strides, const float* v,
                const TokenStrides& v_strides, int64_t tokens, void* stream);

  // o (and lse) of problem.q_len queries against all tokens, from and to device memory; any number
  // of queries, few are fastest. The problem's sizes must be those of the cache; its recipe and the
  // strides of k and v are not read. Inputs: q, mask, o, lse.
  Status Attend(const Problem& problem, const ForwardBuffers& buffers, void* stream);

  // Forgets all tokens from `length` on; keeps their memory.
  Status Truncate(int64_t length);

  // A cache with the same tokens that goes its own way. Enqueues nothing.
  Status Fork(std::unique_ptr<CudaKvCache>* out);

  // Codes of one head, to host memory; waits for the device. The scale of a token of k with a value
  // that is not finite is NaN.
  Status Inspect(int64_t batch, int64_t kv_head, const CacheCodes& out) const;

  const KvCacheShape& shape() const { return shape_; }
  int64_t length() const { return length_; }
  int64_t capacity() const;
  // Bytes of device memory held, and of those that no fork shares.
  int64_t bytes() const;
  int64_t exclusive_bytes() const;

 private:
  explicit CudaKvCache(const KvCacheShape& shape);

  KvCacheShape shape_;
  int64_t length_ = 0;
  std::unique_ptr<CudaCacheMemory> memory_;
};

}  // namespace sage

#endif  // SAGE_CUDA_KV_CACHE_H_
