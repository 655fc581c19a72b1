// Where things lie in the device form of a key/value cache: pages of 128 tokens of one key/value
// head, each the image that the tensor cores read, and the slabs of memory that hold them.
//
//   page   K codes | K scales | V scales | V codes           all parts multiples of 16 bytes
//   K      int8 [token / 16][dim / 32][lane][16]             A fragments of m16n8k32, tokens x dims
//   V      int8 [dim / 16][token / 32][lane][16]             A fragments of m16n8k32, dims x tokens
//   scales float [token % 8][token / 8]                      what one lane needs is contiguous
//
// Lane 4g + c holds of an A fragment rows g and g + 8 and columns 4c.. and 16 + 4c..; its 16 bytes
// are (g, 4c..) (g + 8, 4c..) (g, 16 + 4c..) (g + 8, 16 + 4c..). Column 16h + 4c + i of step s of V
// is token 32s + 8i + 4h + c: a lane that has the scores of tokens t, t + 8, t + 16, t + 24 packs
// them to one word of the B operand.
//
// Marks: the scale of a token of k with a value that is not finite is NaN; that of v has its sign
// bit set, and the code of the value is -128.
#ifndef SAGE_CUDA_CACHE_PAGE_LAYOUT_H_
#define SAGE_CUDA_CACHE_PAGE_LAYOUT_H_

#include <cstdint>

#include "formats/float_bits.h"
#include "sage/kv_cache.h"

namespace sage::cuda {

constexpr int kPageTokens = 128;
constexpr int kGroupTokens = 32;  // tokens that share words of V
constexpr int kCacheDims = 256;   // most head dims
constexpr int kScaleBytes = kPageTokens * 4;
constexpr int kNotFiniteCode = -128;
// Of a cache; when it would have more, they become one.
constexpr int kMostSlabs = 64;

struct CachePageLayout {
  int k_dims, v_dims;  // padded with zeros to 32 and to 16

  static CachePageLayout Of(const KvCacheShape& shape) {
    return {static_cast<int>((shape.qk_dim + 31) / 32 * 32),
            static_cast<int>((shape.v_dim + 15) / 16 * 16)};
  }
  SAGE_HOST_DEVICE int KBytes() const { return kPageTokens * k_dims + kScaleBytes; }
  SAGE_HOST_DEVICE int VBytes() const { return kScaleBytes + kPageTokens * v_dims; }
  SAGE_HOST_DEVICE int PageBytes() const { return KBytes() + VBytes(); }
  SAGE_HOST_DEVICE int KScales() const { return kPageTokens * k_dims; }
  SAGE_HOST_DEVICE int VScales() const { return KBytes(); }
  SAGE_HOST_DEVICE int VCodes() const { return KBytes() + kScaleBytes; }

  // Bytes in a page. Four dims from a multiple of 4 of k are one word; so are tokens t, t + 8,
  // t + 16, t + 24 (t % 32 < 8) of one dim of v.
  SAGE_HOST_DEVICE int KCodeAt(int t, int d) const {
    const int fragment = t / 16 * (k_dims / 32) + d / 32;
    const int lane = t % 8 * 4 + d % 16 / 4;
    return fragment * 512 + lane * 16 + (d % 32 / 16 * 2 + t % 16 / 8) * 4 + d % 4;
  }
  SAGE_HOST_DEVICE int VCodeAt(int t, int d) const {
    const int fragment = d / 16 * 4 + t / 32;
    const int lane = d % 8 * 4 + t % 4;
    return VCodes() + fragment * 512 + lane * 16 + (t % 8 / 4 * 2 + d % 16 / 8) * 4 + t % 32 / 8;
  }
  SAGE_HOST_DEVICE static int ScaleAt(int t) { return (t % 8 * 16 + t / 8) * 4; }
};

// The pages: slab n holds [head][pages of the slab], from page first_page[n] of the sequence on. Of
// a slab that is shared with a fork, the last pages may be out of use.
struct CacheSlabs {
  uint8_t* base[kMostSlabs];
  int pages[kMostSlabs];           // of the slab
  int first_page[kMostSlabs + 1];  // the last is the number of pages
  int count;

  SAGE_HOST_DEVICE uint8_t* Page(const CachePageLayout& layout, int64_t head, int page) const {
    int n = 0;
    while (n + 1 < count && page >= first_page[n + 1]) ++n;
    return base[n] + (head * pages[n] + page - first_page[n]) * layout.PageBytes();
  }
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_CACHE_PAGE_LAYOUT_H_
