// A cache from the codes of another one: the inverse of KvCache::Inspect.
#include <cmath>
#include <cstring>
#include <new>

#include "cpu/cache/cache_pages.h"
#include "sage/kv_cache.h"

namespace sage {
namespace {

// A code to its one or two planes; the high digit.
int StoreCode(uint8_t* at, int planes, int64_t plane, int code, int* low) {
  int high = code;
  *low = 0;
  if (planes == 2) {
    high = (code + kHighDigit / 2) >> 7;
    *low = code - high * kHighDigit;
    at[plane] = static_cast<uint8_t>(*low);
  }
  at[0] = static_cast<uint8_t>(high);
  return high;
}

void StoreHead(const KvCacheShape& shape, const PageLayout& layout, const CacheCodes& codes,
               int64_t token, int t, uint8_t* part) {
  int32_t sums[2] = {0, 0};
  for (int d = 0; d < shape.qk_dim; ++d) {
    int low = 0;
    sums[0] += StoreCode(part + KCodeAt(layout, t, d), layout.k_planes, layout.k_plane,
                         codes.k[token * shape.qk_dim + d], &low);
    sums[1] += low;
  }
  for (int plane = 0; plane < layout.k_planes; ++plane) {
    const int32_t first_sum = -64 * sums[plane];
    std::memcpy(part + layout.first_sum + 4 * (plane * kPageTokens + t), &first_sum, 4);
  }
  const int not_finite = layout.v_planes == 2 ? kNotFiniteCode * kHighDigit : kNotFiniteCode;
  uint8_t marks = 0;
  for (int d = 0; d < shape.v_dim; ++d) {
    const int code = codes.v[token * shape.v_dim + d];
    int low = 0;
    StoreCode(part + VCodeAt(layout, t, d), layout.v_planes, layout.v_plane, code, &low);
    if (code == not_finite) marks |= kValueMark;
  }
  float k_scale = codes.k_scale[token];
  if (std::isnan(k_scale)) {
    marks |= kKeyMark;
    k_scale = 0.0f;
  }
  std::memcpy(part + layout.k_scale + 4 * t, &k_scale, 4);
  std::memcpy(part + layout.v_scale + 4 * t, codes.v_scale + token, 4);
  part[layout.marks + t] = marks;
  if (marks != 0) part[layout.any_marks] = 1;
}

}  // namespace

Status KvCache::Restore(const KvCacheShape& shape, int64_t length, const CacheHeadReader& read,
                        std::unique_ptr<KvCache>* out) try {
  if (shape.form == CacheForm::kFloat32) {
    return {StatusCode::kUnsupported, "a cache of float32 has no codes"};
  }
  std::unique_ptr<KvCache> cache;
  const Status made = Create(shape, length, &cache);
  if (!made.ok()) return made;
  const PageLayout layout = LayoutOf(shape);
  const auto tokens = static_cast<size_t>(length);
  std::vector<int16_t> k(tokens * static_cast<size_t>(shape.qk_dim));
  std::vector<int16_t> v(tokens * static_cast<size_t>(shape.v_dim));
  std::vector<float> k_scale(tokens), v_scale(tokens);
  for (int64_t head = 0; length > 0 && head < shape.batch * shape.kv_heads; ++head) {
    const CacheCodes codes = {k.data(), k_scale.data(), cache->k_mean_.data() + head * shape.qk_dim,
                              v.data(), v_scale.data()};
    const Status status = read(head / shape.kv_heads, head % shape.kv_heads, codes);
    if (!status.ok()) return status;
    for (int64_t token = 0; token < length; ++token) {
      uint8_t* page = cache->pages_->list[static_cast<size_t>(token / kPageTokens)];
      StoreHead(shape, layout, codes, token, static_cast<int>(token % kPageTokens),
                page + head * layout.head_bytes);
    }
  }
  cache->length_ = length;
  *out = std::move(cache);
  return Status::Ok();
} catch (const std::bad_alloc&) {
  return {StatusCode::kOutOfMemory, "no memory for the cache"};
}

}  // namespace sage
