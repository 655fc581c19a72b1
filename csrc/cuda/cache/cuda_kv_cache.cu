// The device form of the key/value cache: what its calls launch, and what it refuses.
#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cuda/cache/cache_memory.h"
#include "cuda/cache/cache_plan.h"
#include "cuda/device.h"
#include "sage/cuda_attention.h"
#include "sage/cuda_kv_cache.h"

namespace sage {
namespace {

using cuda::PagesFor;
using cuda::StatusOf;

constexpr int64_t kMostTokens = int64_t{1} << 30;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

// CUDA's own allocator.
class PlainMemory : public DeviceMemory {
 public:
  void* Take(int64_t bytes) override {
    void* memory = nullptr;
    if (cudaMalloc(&memory, static_cast<size_t>(bytes)) == cudaSuccess) return memory;
    cudaGetLastError();
    return nullptr;
  }
  void Give(void* memory) override { cudaFree(memory); }
};

// Rows of whole 16-byte vectors.
bool HasVectors(const float* data, const TokenStrides& s, int64_t dim) {
  return dim % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && s.batch % 4 == 0 &&
         s.head % 4 == 0 && s.token % 4 == 0;
}

Status NoHostMemory() { return {StatusCode::kOutOfMemory, "no memory for the cache"}; }

const char* ShapeReason(const KvCacheShape& shape) {
  if (shape.form != CacheForm::kInt8) return "a cache in device memory holds int8 codes only";
  if (shape.qk_dim < 1 || shape.qk_dim > cuda::kCacheDims || shape.v_dim < 1 ||
      shape.v_dim > cuda::kCacheDims) {
    return "a cache in device memory takes a head_dim of 1 to 256";
  }
  if (shape.batch < 0 || shape.kv_heads < 1 ||
      (shape.batch > 0 && shape.kv_heads > (int64_t{1} << 24) / shape.batch)) {
    return "batch or kv_heads is out of range";
  }
  return nullptr;
}

}  // namespace

bool CudaKvCacheSupports(const KvCacheShape& shape, const char** reason) {
  const char* found = nullptr;
  // Asked of the device that is current, which need not be the first.
  if (cuda::CurrentDeviceServes(&found)) found = ShapeReason(shape);
  if (reason != nullptr) *reason = found != nullptr ? found : "int8 codes in device memory";
  return found == nullptr;
}

CudaKvCache::CudaKvCache(const KvCacheShape& shape) : shape_(shape), memory_(new CudaCacheMemory) {}

CudaKvCache::~CudaKvCache() = default;

Status CudaKvCache::Create(const KvCacheShape& shape, int64_t capacity, DeviceMemory* memory,
                           std::unique_ptr<CudaKvCache>* out) try {
  static PlainMemory plain;
  const char* reason = nullptr;
  if (!CudaKvCacheSupports(shape, &reason)) return {StatusCode::kUnsupported, reason};
  if (capacity < 0 || capacity > kMostTokens) return Status::Invalid("capacity is out of range");
  std::unique_ptr<CudaKvCache> cache(new CudaKvCache(shape));
  CudaCacheMemory& held = *cache->memory_;
  held.source = memory != nullptr ? memory : &plain;
  held.heads = shape.batch * shape.kv_heads;
  held.layout = cuda::CachePageLayout::Of(shape);
  held.blocks.reserve(cuda::kMostSlabs);
  Status status = held.TakeMean();
  if (status.ok() && capacity > 0) status = held.Grow(PagesFor(capacity), nullptr);
  if (status.ok()) *out = std::move(cache);
  return status;
} catch (const std::bad_alloc&) {
  return NoHostMemory();
}

Status CudaKvCache::Append(const float* k, const TokenStrides& k_strides, const float* v,
                           const TokenStrides& v_strides, int64_t tokens, void* stream) try {
  if (tokens < 0) return Status::Invalid("a negative number of tokens");
  const int64_t heads = shape_.batch * shape_.kv_heads;
  if (tokens == 0 || heads == 0) {
    length_ += tokens;
    return Status::Ok();
  }
  if (tokens > kMostTokens - length_ || heads * (tokens / 32 + 2) > kMostBlocks) {
    return {StatusCode::kUnsupported, "more tokens than a cache in device memory takes"};
  }
  const auto in = static_cast<cudaStream_t>(stream);
  Status status = memory_->MakeWritable(length_, length_ + tokens, in);
  // The mean that forks read stays as it is.
  if (status.ok() && length_ == 0 && memory_->mean.use_count() > 1) status = memory_->TakeMean();
  if (!status.ok()) return status;
  cudaGetLastError();  // an earlier failure of somebody else's is not ours
  cuda::StorePlan plan = {};
  plan.slabs = memory_->slabs;
  plan.layout = memory_->layout;
  plan.k = k;
  plan.v = v;
  plan.k_strides = k_strides;
  plan.v_strides = v_strides;
  plan.heads = heads;
  plan.kv_heads = static_cast<int>(shape_.kv_heads);
  plan.qk_dim = static_cast<int>(shape_.qk_dim);
  plan.v_dim = static_cast<int>(shape_.v_dim);
  plan.first = static_cast<int>(length_);
  plan.count = static_cast<int>(tokens);
  plan.k_vectors = HasVectors(k, k_strides, shape_.qk_dim);
  plan.v_vectors = HasVectors(v, v_strides, shape_.v_dim);
  plan.k_mean = memory_->k_mean();
  plan.arrived = memory_->arrived();
  cudaError_t error = cudaSuccess;
  if (length_ == 0) error = cuda::LaunchFreezeMean(plan, in);
  if (error == cudaSuccess) error = cuda::LaunchStoreTokens(plan, in);
  if (error != cudaSuccess) return StatusOf(error);
  length_ += tokens;
  return Status::Ok();
} catch (const std::bad_alloc&) {
  return NoHostMemory();
}

Status CudaKvCache::Attend(const Problem& problem, const ForwardBuffers& buffers, void* stream) {
  if (problem.batch != shape_.batch || problem.kv_heads != shape_.kv_heads ||
      problem.kv_len != length_ || problem.qk_dim != shape_.qk_dim ||
      problem.v_dim != shape_.v_dim || problem.q_heads % shape_.kv_heads != 0) {
    return Status::Invalid("the problem is not of the cache's sizes");
  }
  if (problem.input != InputType::kFloat32) return {StatusCode::kUnsupported, kFloat32InputOnly};
  if (problem.batch == 0 || problem.q_heads == 0 || problem.q_len == 0) return Status::Ok();
  const int64_t heads = shape_.batch * shape_.kv_heads, rows = problem.group() * problem.q_len;
  constexpr char kTooMany[] = "more queries than a cache in device memory takes at once";
  if (rows > kMostTokens) return {StatusCode::kUnsupported, kTooMany};
  cudaGetLastError();
  cuda::AttendPlan plan = {};
  plan.slabs = memory_->slabs;
  plan.layout = memory_->layout;
  plan.visibility = cuda::Visibility::Of(problem, buffers.mask);
  plan.q = buffers.q;
  plan.q_strides = problem.q;
  plan.o_strides = problem.o;
  plan.o = buffers.o;
  plan.lse = problem.want_lse ? buffers.lse : nullptr;
  plan.k_mean = memory_->k_mean();
  plan.scale = problem.scale;
  plan.heads = heads;
  plan.kv_heads = static_cast<int>(shape_.kv_heads);
  plan.group = static_cast<int>(problem.group());
  plan.qk_dim = static_cast<int>(shape_.qk_dim);
  plan.v_dim = static_cast<int>(shape_.v_dim);
  plan.rows = static_cast<int>(rows);
  // Limits grow with the query: the union of what all rows see.
  plan.first_page = static_cast<int>(problem.FirstKey(0) / cuda::kPageTokens);
  const int64_t end_page = PagesFor(problem.EndKey(problem.q_len - 1));
  // Where nothing is seen, one page that no row reads: zeros are written all the same.
  plan.pages = static_cast<int>(std::max<int64_t>(1, end_page - plan.first_page));
  if (!cuda::AttendFits(plan)) return {StatusCode::kUnsupported, kTooMany};
  const int64_t counters = cuda::AttendMostUnits();
  const Status held = memory_->HoldScratch(counters, cuda::AttendPartialFloats(plan));
  if (!held.ok()) return held;
  plan.taken = static_cast<uint32_t*>(memory_->scratch->data);
  plan.partial = reinterpret_cast<float*>(plan.taken + (counters + 63) / 64 * 64);
  return StatusOf(cuda::LaunchAttendPages(plan, static_cast<cudaStream_t>(stream)));
}

Status CudaKvCache::Truncate(int64_t length) {
  if (length < 0 || length > length_) return Status::Invalid("truncate to more tokens than held");
  length_ = length;
  return Status::Ok();
}

Status CudaKvCache::Fork(std::unique_ptr<CudaKvCache>* out) try {
  std::unique_ptr<CudaKvCache> fork(new CudaKvCache(shape_));
  fork->memory_->blocks.reserve(cuda::kMostSlabs);
  memory_->ShareWith(length_, fork->memory_.get());
  fork->length_ = length_;
  *out = std::move(fork);
  return Status::Ok();
} catch (const std::bad_alloc&) {
  return NoHostMemory();
}

Status CudaKvCache::Inspect(int64_t batch, int64_t kv_head, const CacheCodes& out) const {
  if (batch < 0 || batch >= shape_.batch || kv_head < 0 || kv_head >= shape_.kv_heads) {
    return Status::Invalid("no such head");
  }
  const cuda::CachePageLayout& layout = memory_->layout;
  const int64_t head = batch * shape_.kv_heads + kv_head;
  cudaError_t error = cudaDeviceSynchronize();
  std::vector<uint8_t> page(static_cast<size_t>(layout.PageBytes()));
  const auto scale_at = [&](int part, int t) {
    return BitsToFloat(static_cast<uint32_t>(page[part + layout.ScaleAt(t)]) |
                       static_cast<uint32_t>(page[part + layout.ScaleAt(t) + 1]) << 8 |
                       static_cast<uint32_t>(page[part + layout.ScaleAt(t) + 2]) << 16 |
                       static_cast<uint32_t>(page[part + layout.ScaleAt(t) + 3]) << 24);
  };
  for (int64_t n = 0; n < PagesFor(length_) && error == cudaSuccess; ++n) {
    error = cudaMemcpy(page.data(), memory_->slabs.Page(layout, head, static_cast<int>(n)),
                       page.size(), cudaMemcpyDeviceToHost);
    const int64_t j0 = n * cuda::kPageTokens;
    const int count = static_cast<int>(std::min<int64_t>(cuda::kPageTokens, length_ - j0));
    for (int t = 0; t < count; ++t) {
      for (int d = 0; out.k != nullptr && d < shape_.qk_dim; ++d) {
        out.k[(j0 + t) * shape_.qk_dim + d] = static_cast<int8_t>(page[layout.KCodeAt(t, d)]);
      }
      for (int d = 0; out.v != nullptr && d < shape_.v_dim; ++d) {
        out.v[(j0 + t) * shape_.v_dim + d] = static_cast<int8_t>(page[layout.VCodeAt(t, d)]);
      }
      if (out.k_scale != nullptr) out.k_scale[j0 + t] = scale_at(layout.KScales(), t);
      if (out.v_scale != nullptr) {
        const float scale = scale_at(layout.VScales(), t);
        out.v_scale[j0 + t] = scale < 0.0f ? -scale : scale;
      }
    }
  }
  if (error == cudaSuccess && out.k_mean != nullptr) {
    error = cudaMemcpy(out.k_mean, memory_->k_mean() + head * layout.k_dims,
                       static_cast<size_t>(shape_.qk_dim) * sizeof(float), cudaMemcpyDeviceToHost);
  }
  return StatusOf(error);
}

int64_t CudaKvCache::capacity() const { return memory_->pages() * cuda::kPageTokens; }
int64_t CudaKvCache::bytes() const { return memory_->Bytes(false); }
int64_t CudaKvCache::exclusive_bytes() const { return memory_->Bytes(true); }

}  // namespace sage
