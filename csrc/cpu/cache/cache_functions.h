// Entry points of the cache and of decoding, one per instruction set, and what they take.
#ifndef SAGE_CPU_CACHE_CACHE_FUNCTIONS_H_
#define SAGE_CPU_CACHE_CACHE_FUNCTIONS_H_

#include <cstdint>

#include "cpu/cache/page_layout.h"
#include "cpu/forward/forward.h"
#include "sage/attention.h"
#include "sage/kv_cache.h"

namespace sage {

// A cache as the kernels see it.
struct CacheView {
  const KvCacheShape* shape;
  uint8_t* const* pages;
  const float* k_mean;  // [B,Hkv,D]
};

// New tokens: k [B,Hkv,tokens,D] and v [B,Hkv,tokens,Dv] become tokens [first, first + tokens).
struct NewTokens {
  const float* k;
  const float* v;
  int64_t first, tokens;
};

struct CacheFunctions {
  // Per head: channel means of the finite values of k, into mean [B,Hkv,D].
  void (*freeze_mean)(const KvCacheShape&, const NewTokens&, float* mean);
  // Stores the tokens of head `head` of B·Hkv.
  void (*store)(const CacheView&, const NewTokens&, int64_t head);
  Status (*attend)(const CacheView&, const Problem&, const ForwardBuffers&, const EngineOptions&,
                   Workspace*);
  // Float32 attention of few queries straight from k and v (recipe `exact`).
  Status (*decode)(const Problem&, const ForwardBuffers&, const EngineOptions&, Workspace*);
};

CacheFunctions CacheFunctions_portable();
#if defined(__x86_64__) || defined(_M_X64)
CacheFunctions CacheFunctions_avx2();
CacheFunctions CacheFunctions_avx512();
CacheFunctions CacheFunctions_avx512_bf16();
#elif defined(__aarch64__)
CacheFunctions CacheFunctions_neon();
CacheFunctions CacheFunctions_neon_dot();
#endif

// Those of an instruction set.
CacheFunctions CacheFunctionsOf(Isa isa);

// Whether few queries meet many keys, where reading k and v in place beats packing them.
bool IsDecoding(const Problem& problem, Isa isa);

}  // namespace sage

#endif  // SAGE_CPU_CACHE_CACHE_FUNCTIONS_H_
