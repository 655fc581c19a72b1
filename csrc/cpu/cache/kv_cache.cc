// Pages, their sharing between forks, and the instruction set to run.
#include "sage/kv_cache.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "cpu/cache/cache_functions.h"
#include "cpu/cache/cache_pages.h"
#include "cpu/large_pages.h"
#include "cpu/thread_pool.h"

namespace sage {
namespace {

// Elements of k and v from which on several threads store them.
constexpr int64_t kParallelElements = int64_t{1} << 17;

// 64-byte aligned, zeroed: codes, scales and marks of tokens not yet there are read, never used.
uint8_t* AllocatePage(size_t bytes) {
  const size_t rounded = (bytes + 63) / 64 * 64;
  auto* page = static_cast<uint8_t*>(std::aligned_alloc(64, rounded));
  if (page != nullptr) std::memset(page, 0, rounded);
  return page;
}

// How many caches read a page lies in front of it, on a cache line of its own.
constexpr size_t kHeader = 64;
std::atomic<int>* ReferencesOf(uint8_t* page) {
  return reinterpret_cast<std::atomic<int>*>(page - kHeader);
}

uint8_t* NewPage(size_t bytes) {
  uint8_t* memory = AllocatePage(bytes + kHeader);
  if (memory == nullptr) return nullptr;
  new (memory) std::atomic<int>(1);
  return memory + kHeader;
}

bool IsShared(uint8_t* page) { return ReferencesOf(page)->load(std::memory_order_acquire) > 1; }

// Whether the system would give so much at all. Pages are written one by one, and a machine that
// promises more memory than it has ends the process instead of refusing one of them.
bool MayHold(size_t page_bytes, size_t pages) {
  const size_t bytes = page_bytes + kHeader;
  if (pages > std::numeric_limits<size_t>::max() / 2 / bytes) return false;
  void* volatile whole =
      std::malloc(pages * bytes);  // volatile: compilers leave out what is unused
  const bool there = whole != nullptr;
  std::free(whole);
  return there;
}

// A code from its one or two planes.
int16_t CodeAt(const uint8_t* at, int planes, int64_t plane) {
  const int high = static_cast<int8_t>(at[0]);
  if (planes == 1) return static_cast<int16_t>(high);
  return static_cast<int16_t>(high * kHighDigit + static_cast<int8_t>(at[plane]));
}

int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

void ReleasePage(uint8_t* page) {
  if (ReferencesOf(page)->fetch_sub(1, std::memory_order_acq_rel) == 1) std::free(page - kHeader);
}

CacheFunctions CacheFunctionsOf(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return CacheFunctions_portable();
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx2:
      return CacheFunctions_avx2();
    case Isa::kAvx512:
      return CacheFunctions_avx512();
    case Isa::kAvx512Bf16:
    case Isa::kAmx:
      return CacheFunctions_avx512_bf16();
#endif
#if defined(SAGE_WITH_NEON)
    case Isa::kNeon:
      return CacheFunctions_neon();
#endif
#if defined(SAGE_WITH_NEON_DOT)
    case Isa::kNeonDot:
      return CacheFunctions_neon_dot();
#endif
    default:
      break;
  }
  return CacheFunctions_portable();
}

KvCache::KvCache(const KvCacheShape& shape) : shape_(shape), pages_(new CachePages) {}

KvCache::~KvCache() = default;

Status KvCache::Create(const KvCacheShape& shape, int64_t capacity, std::unique_ptr<KvCache>* out) {
  constexpr int64_t kMostDim = 512, kMostHeads = int64_t{1} << 24;
  const auto fits = [](int64_t x, int64_t least, int64_t most) { return x >= least && x <= most; };
  if (!fits(shape.qk_dim, 1, kMostDim) || !fits(shape.v_dim, 1, kMostDim)) {
    return Status::Invalid("head_dim is not in 1 to 512");
  }
  if (!fits(shape.batch, 0, kMostHeads) || !fits(shape.kv_heads, 1, kMostHeads) ||
      shape.batch * shape.kv_heads > kMostHeads) {
    return Status::Invalid("batch or kv_heads is out of range");
  }
  if (!fits(capacity, 0, int64_t{1} << 40)) return Status::Invalid("capacity is out of range");
  try {
    std::unique_ptr<KvCache> cache(new KvCache(shape));
    cache->k_mean_.resize(static_cast<size_t>(shape.batch * shape.kv_heads * shape.qk_dim));
    const size_t page_bytes = static_cast<size_t>(LayoutOf(shape).page_bytes);
    const int64_t pages = PagesFor(capacity);
    if (pages > 0 && !MayHold(page_bytes, static_cast<size_t>(pages))) {
      return {StatusCode::kOutOfMemory, "no memory for the cache"};
    }
    cache->pages_->list.reserve(static_cast<size_t>(pages));
    for (int64_t n = 0; n < pages; ++n) {
      uint8_t* page = NewPage(page_bytes);
      if (page == nullptr) return {StatusCode::kOutOfMemory, "no memory for the cache"};
      cache->pages_->list.push_back(page);
    }
    *out = std::move(cache);
  } catch (const std::bad_alloc&) {
    return {StatusCode::kOutOfMemory, "no memory for the cache"};
  }
  return Status::Ok();
}

Status KvCache::Append(const float* k, const float* v, int64_t tokens,
                       const EngineOptions& options) {
  if (tokens < 0) return Status::Invalid("a negative number of tokens");
  if (tokens == 0) return Status::Ok();
  const int64_t heads = shape_.batch * shape_.kv_heads;
  const size_t page_bytes = static_cast<size_t>(LayoutOf(shape_).page_bytes);
  std::vector<uint8_t*>& list = pages_->list;
  const size_t first = static_cast<size_t>(length_ / kPageTokens);
  const size_t end = static_cast<size_t>(PagesFor(length_ + tokens));
  const size_t held = list.size();
  const auto fail = [&]() -> Status {
    // What there was is needed elsewhere, if only to attend to the tokens that are held.
    for (size_t n = held; n < list.size(); ++n) ReleasePage(list[n]);
    list.resize(held);
    return {StatusCode::kOutOfMemory, "no memory for more tokens"};
  };
  try {
    // Pages that a fork reads too are copied before they are written. The tokens do not change by
    // that, so a failure half-way leaves the cache as it was.
    for (size_t n = first; n < end; ++n) {
      if (n < list.size() && !IsShared(list[n])) continue;
      if (list.size() == list.capacity()) list.reserve(2 * list.size() + 1);
      uint8_t* page = NewPage(page_bytes);
      if (page == nullptr) return fail();
      if (n == list.size()) {
        list.push_back(page);
      } else {
        std::memcpy(page, list[n], page_bytes);
        ReleasePage(list[n]);
        list[n] = page;
      }
    }
  } catch (const std::bad_alloc&) {
    return fail();
  }
  const CacheFunctions functions = CacheFunctionsOf(options.isa);
  const NewTokens added = {k, v, length_, tokens};
  if (length_ == 0 && shape_.form != CacheForm::kFloat32) {
    functions.freeze_mean(shape_, added, k_mean_.data());
  }
  const CacheView view = {&shape_, list.data(), k_mean_.data()};
  const bool large = heads * tokens * (shape_.qk_dim + shape_.v_dim) >= kParallelElements;
  ParallelFor(heads, large ? options.threads : 1,
              [&](int64_t head, int /*worker*/) { functions.store(view, added, head); });
  length_ += tokens;
  return Status::Ok();
}

Status KvCache::Truncate(int64_t length) {
  if (length < 0 || length > length_) return Status::Invalid("truncate to more tokens than held");
  std::vector<uint8_t*>& list = pages_->list;
  const size_t used = static_cast<size_t>(PagesFor(length_));
  const size_t kept = static_cast<size_t>(PagesFor(length));
  // Pages that were filled go; those held in reserve behind them stay.
  for (size_t n = kept; n < used; ++n) ReleasePage(list[n]);
  list.erase(list.begin() + static_cast<std::ptrdiff_t>(kept),
             list.begin() + static_cast<std::ptrdiff_t>(used));
  length_ = length;
  return Status::Ok();
}

Status KvCache::Fork(std::unique_ptr<KvCache>* out) const {
  try {
    std::unique_ptr<KvCache> fork(new KvCache(shape_));
    const size_t used = static_cast<size_t>(PagesFor(length_));
    fork->k_mean_ = k_mean_;
    fork->pages_->list.reserve(used);
    for (size_t n = 0; n < used; ++n) {
      ReferencesOf(pages_->list[n])->fetch_add(1, std::memory_order_relaxed);
      fork->pages_->list.push_back(pages_->list[n]);
    }
    fork->length_ = length_;
    *out = std::move(fork);
  } catch (const std::bad_alloc&) {
    return {StatusCode::kOutOfMemory, "no memory for the fork"};
  }
  return Status::Ok();
}

Status KvCache::Attend(const Problem& problem, const ForwardBuffers& buffers,
                       const EngineOptions& options) const {
  if (problem.batch != shape_.batch || problem.kv_heads != shape_.kv_heads ||
      problem.kv_len != length_ || problem.qk_dim != shape_.qk_dim ||
      problem.v_dim != shape_.v_dim || problem.q_heads % shape_.kv_heads != 0) {
    return Status::Invalid("the problem is not of the cache's sizes");
  }
  if (problem.input != InputType::kFloat32) return {StatusCode::kUnsupported, kFloat32InputOnly};
  if (problem.batch == 0 || problem.q_heads == 0 || problem.q_len == 0) return Status::Ok();
  if (length_ == 0) return AttentionForward(problem, buffers, options);
  PrepareResults(buffers.o, problem.o, problem.batch, problem.q_heads, problem.q_len, problem.v_dim,
                 options.threads);
  static thread_local Workspace workspace;
  const CacheView view = {&shape_, pages_->list.data(), k_mean_.data()};
  const Status status =
      CacheFunctionsOf(options.isa).attend(view, problem, buffers, options, &workspace);
  workspace.Trim(options.threads);
  return status;
}

Status KvCache::Inspect(int64_t batch, int64_t kv_head, const CacheCodes& out) const {
  if (shape_.form == CacheForm::kFloat32) {
    return {StatusCode::kUnsupported, "a cache of float32 has no codes"};
  }
  if (batch < 0 || batch >= shape_.batch || kv_head < 0 || kv_head >= shape_.kv_heads) {
    return Status::Invalid("no such head");
  }
  const PageLayout layout = LayoutOf(shape_);
  const int64_t head = batch * shape_.kv_heads + kv_head;
  for (int64_t j = 0; j < length_; ++j) {
    const int t = static_cast<int>(j % kPageTokens);
    const uint8_t* part =
        pages_->list[static_cast<size_t>(j / kPageTokens)] + head * layout.head_bytes;
    for (int d = 0; out.k != nullptr && d < shape_.qk_dim; ++d) {
      out.k[j * shape_.qk_dim + d] =
          CodeAt(part + KCodeAt(layout, t, d), layout.k_planes, layout.k_plane);
    }
    for (int d = 0; out.v != nullptr && d < shape_.v_dim; ++d) {
      out.v[j * shape_.v_dim + d] =
          CodeAt(part + VCodeAt(layout, t, d), layout.v_planes, layout.v_plane);
    }
    if (out.k_scale != nullptr) {
      std::memcpy(out.k_scale + j, part + layout.k_scale + 4 * t, 4);
    }
    if (out.v_scale != nullptr) {
      std::memcpy(out.v_scale + j, part + layout.v_scale + 4 * t, 4);
    }
  }
  if (out.k_mean != nullptr) {
    std::memcpy(out.k_mean, k_mean_.data() + head * shape_.qk_dim,
                static_cast<size_t>(shape_.qk_dim) * sizeof(float));
  }
  return Status::Ok();
}

int64_t KvCache::bytes() const {
  return static_cast<int64_t>(pages_->list.size()) * LayoutOf(shape_).page_bytes;
}

int64_t KvCache::exclusive_bytes() const {
  int64_t pages = 0;
  for (uint8_t* page : pages_->list) pages += IsShared(page) ? 0 : 1;
  return pages * LayoutOf(shape_).page_bytes;
}

bool IsDecoding(const Problem& p, Isa isa) {
  if (p.recipe.precision != Precision::kExact || p.kv_heads == 0) return false;
  const int64_t rows = p.q_heads / p.kv_heads * p.q_len;
  if (rows <= 48 && p.kv_len >= 4 * p.q_len) return true;
  // Measured: beyond, AVX2 is level at best, and so is AVX-512 with 192 rows.
  return (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16 || isa == Isa::kAmx) && rows <= 128 &&
         p.kv_len >= 8 * p.q_len;
}

}  // namespace sage
