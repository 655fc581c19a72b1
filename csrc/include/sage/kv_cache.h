// A key/value cache for decoding: tokens are appended once, in the form that attention reads.
//
// Storage is in pages of 128 tokens. Forks share pages until one of them writes (copy on write).
// Numerics: docs/numerics.md 8. An object serves one thread at a time; forks are independent of
// each other.
#ifndef SAGE_KV_CACHE_H_
#define SAGE_KV_CACHE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

enum class CacheForm : int8_t {
  kFloat32,    // k and v as they came
  kInt8,       // int8 codes of k minus a frozen mean and of v, each with one scale per token
  kInt8Int16,  // the same with codes of v of up to ±16256 in 16 bits
  kInt16,      // those of k too
};

struct KvCacheShape {
  int64_t batch, kv_heads, qk_dim, v_dim;  // head dims 1 to 512
  CacheForm form;
};

// Codes of one (batch, kv_head) as docs/numerics.md 8 defines them; any pointer may be null.
struct CacheCodes {
  int16_t* k;      // [length][qk_dim]
  float* k_scale;  // [length]
  float* k_mean;   // [qk_dim]
  int16_t* v;      // [length][v_dim]; -128 (16 bits: -16384) marks a value that was not finite
  float* v_scale;  // [length]
};

// Copies the codes of one (batch, kv_head) to where `out` points.
using CacheHeadReader =
    std::function<Status(int64_t batch, int64_t kv_head, const CacheCodes& out)>;

struct CachePages;

class KvCache {
 public:
  // `capacity` tokens get their memory at once; more may be appended.
  static Status Create(const KvCacheShape& shape, int64_t capacity, std::unique_ptr<KvCache>* out);
  ~KvCache();

  // A cache of `length` tokens from the codes of another one, such as that of a device. There the
  // scale of a token of k with a value that is not finite is NaN. Not for float32.
  static Status Restore(const KvCacheShape& shape, int64_t length, const CacheHeadReader& read,
                        std::unique_ptr<KvCache>* out);

  // k [B,Hkv,n,D] and v [B,Hkv,n,Dv], contiguous. On failure the cache is as it was.
  Status Append(const float* k, const float* v, int64_t tokens, const EngineOptions& options);
  // Forgets all tokens from `length` on.
  Status Truncate(int64_t length);
  Status Fork(std::unique_ptr<KvCache>* out) const;

  // o (and lse) of problem.q_len queries against all tokens. The problem's sizes must be those of
  // the cache; its recipe and the strides of k and v are not read. Inputs: q, mask, o, lse.
  Status Attend(const Problem& problem, const ForwardBuffers& buffers,
                const EngineOptions& options) const;

  // kUnsupported for a cache of float32.
  Status Inspect(int64_t batch, int64_t kv_head, const CacheCodes& out) const;

  const KvCacheShape& shape() const { return shape_; }
  int64_t length() const { return length_; }
  // Bytes of all pages that this cache reads, and of those that no fork shares.
  int64_t bytes() const;
  int64_t exclusive_bytes() const;

 private:
  explicit KvCache(const KvCacheShape& shape);

  KvCacheShape shape_;
  int64_t length_ = 0;
  std::unique_ptr<CachePages> pages_;
  std::vector<float> k_mean_;  // [B,Hkv,D], frozen at the first append
};

}  // namespace sage

#endif  // SAGE_KV_CACHE_H_
