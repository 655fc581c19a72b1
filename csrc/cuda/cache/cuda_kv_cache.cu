// The device form of the key/value cache: its memory, and what it refuses.
#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "cuda/cache/cache_plan.h"
#include "sage/cuda_attention.h"
#include "sage/cuda_kv_cache.h"

namespace sage {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 30;
constexpr int64_t kLeastSlabPages = 8;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

Status StatusOf(cudaError_t error) {
  if (error == cudaSuccess) return Status::Ok();
  cudaGetLastError();
  return {error == cudaErrorMemoryAllocation ? StatusCode::kOutOfMemory : StatusCode::kInternal,
          cudaGetErrorString(error)};
}

int64_t PagesFor(int64_t tokens) { return (tokens + cuda::kPageTokens - 1) / cuda::kPageTokens; }

// Rows of whole 16-byte vectors.
bool HasVectors(const float* data, const TokenStrides& s, int64_t dim) {
  return dim % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && s.batch % 4 == 0 &&
         s.head % 4 == 0 && s.token % 4 == 0;
}

// Zeroed: codes and scales of tokens not yet there are read, never used. The clearing is done when
// this returns, in whatever stream the caller works.
cudaError_t AllocateZeroed(int64_t bytes, void** out) {
  cudaError_t error = cudaMalloc(out, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (error != cudaSuccess) return error;
  error = cudaMemset(*out, 0, static_cast<size_t>(bytes));
  if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
  if (error == cudaSuccess) return error;
  cudaFree(*out);
  *out = nullptr;
  return error;
}

}  // namespace

struct CudaCacheMemory {
  cuda::CachePageLayout layout = {};
  cuda::CacheSlabs slabs = {};
  float* k_mean = nullptr;      // [heads][k_dims]
  uint32_t* arrived = nullptr;  // [heads] of FreezeMean
  uint32_t* taken = nullptr;    // of AttendPages
  float* partial = nullptr;
  int64_t partial_floats = 0;
  int64_t bytes = 0;

  ~CudaCacheMemory() {
    cudaDeviceSynchronize();
    for (int n = 0; n < slabs.count; ++n) cudaFree(slabs.base[n]);
    cudaFree(k_mean);
    cudaFree(arrived);
    cudaFree(taken);
    cudaFree(partial);
    cudaGetLastError();
  }

  int64_t pages() const { return slabs.count == 0 ? 0 : slabs.first_page[slabs.count]; }

  template <class T>
  cudaError_t Take(int64_t count, T** out) {
    void* memory = nullptr;
    const int64_t size = count * static_cast<int64_t>(sizeof(T));
    const cudaError_t error = AllocateZeroed(size, &memory);
    if (error != cudaSuccess) return error;
    *out = static_cast<T*>(memory);
    bytes += size;
    return cudaSuccess;
  }

  // At least `floats` for the parts of units. Freeing waits for the device, so that no kernel still
  // uses what goes; a step like the last one finds what it needs.
  cudaError_t HoldPartial(int64_t floats) {
    if (floats <= partial_floats) return cudaSuccess;
    bytes -= partial_floats * static_cast<int64_t>(sizeof(float));
    partial_floats = 0;
    cudaFree(partial);
    partial = nullptr;
    const cudaError_t error = Take(floats, &partial);
    if (error == cudaSuccess) partial_floats = floats;
    return error;
  }

  // One more slab, of at least `more` pages.
  Status Grow(int64_t heads, int64_t more) {
    if (slabs.count == cuda::kMostSlabs) {
      return {StatusCode::kOutOfMemory, "the cache has grown too often"};
    }
    const int64_t count = slabs.count == 0 ? more : std::max({more, kLeastSlabPages, pages() / 2});
    uint8_t* base = nullptr;
    const cudaError_t error = Take(heads * count * layout.PageBytes(), &base);
    if (error != cudaSuccess) return StatusOf(error);
    slabs.base[slabs.count] = base;
    slabs.first_page[slabs.count + 1] = slabs.first_page[slabs.count] + static_cast<int>(count);
    ++slabs.count;
    return Status::Ok();
  }
};

bool CudaKvCacheSupports(const KvCacheShape& shape, const char** reason) {
  const CudaInfo& info = DetectCuda();
  const char* found = nullptr;
  if (!info.available) {
    found = info.reason;
  } else if (shape.form != CacheForm::kInt8) {
    found = "a cache in device memory holds int8 codes only";
  } else if (shape.qk_dim < 1 || shape.qk_dim > cuda::kCacheDims || shape.v_dim < 1 ||
             shape.v_dim > cuda::kCacheDims) {
    found = "a cache in device memory takes a head_dim of 1 to 256";
  } else if (shape.batch < 0 || shape.kv_heads < 1 ||
             (shape.batch > 0 && shape.kv_heads > (int64_t{1} << 24) / shape.batch)) {
    found = "batch or kv_heads is out of range";
  }
  if (reason != nullptr) *reason = found != nullptr ? found : "int8 codes in device memory";
  return found == nullptr;
}

CudaKvCache::CudaKvCache(const KvCacheShape& shape) : shape_(shape), memory_(new CudaCacheMemory) {}

CudaKvCache::~CudaKvCache() = default;

Status CudaKvCache::Create(const KvCacheShape& shape, int64_t capacity,
                           std::unique_ptr<CudaKvCache>* out) {
  const char* reason = nullptr;
  if (!CudaKvCacheSupports(shape, &reason)) return {StatusCode::kUnsupported, reason};
  if (capacity < 0 || capacity > kMostTokens) return Status::Invalid("capacity is out of range");
  std::unique_ptr<CudaKvCache> cache;
  try {
    cache.reset(new CudaKvCache(shape));
  } catch (const std::bad_alloc&) {
    return {StatusCode::kOutOfMemory, "no memory for the cache"};
  }
  CudaCacheMemory& memory = *cache->memory_;
  memory.layout = cuda::CachePageLayout::Of(shape);
  const int64_t heads = shape.batch * shape.kv_heads;
  cudaError_t error = memory.Take(heads * memory.layout.k_dims, &memory.k_mean);
  if (error == cudaSuccess) error = memory.Take(heads, &memory.arrived);
  if (error == cudaSuccess) error = memory.Take(cuda::AttendMostUnits(), &memory.taken);
  if (error != cudaSuccess) return StatusOf(error);
  if (capacity > 0) {
    const Status status = memory.Grow(heads, PagesFor(capacity));
    if (!status.ok()) return status;
  }
  *out = std::move(cache);
  return Status::Ok();
}

Status CudaKvCache::Append(const float* k, const TokenStrides& k_strides, const float* v,
                           const TokenStrides& v_strides, int64_t tokens, void* stream) {
  if (tokens < 0) return Status::Invalid("a negative number of tokens");
  const int64_t heads = shape_.batch * shape_.kv_heads;
  if (tokens == 0 || heads == 0) {
    length_ += tokens;
    return Status::Ok();
  }
  if (tokens > kMostTokens - length_ || heads * (tokens / 32 + 2) > kMostBlocks) {
    return {StatusCode::kUnsupported, "more tokens than a cache in device memory takes"};
  }
  const int64_t pages = PagesFor(length_ + tokens);
  if (pages > memory_->pages()) {
    const Status status = memory_->Grow(heads, pages - memory_->pages());
    if (!status.ok()) return status;
  }
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
  plan.k_mean = memory_->k_mean;
  plan.arrived = memory_->arrived;
  const auto in = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (length_ == 0) error = cuda::LaunchFreezeMean(plan, in);
  if (error == cudaSuccess) error = cuda::LaunchStoreTokens(plan, in);
  if (error != cudaSuccess) return StatusOf(error);
  length_ += tokens;
  return Status::Ok();
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
  plan.k_mean = memory_->k_mean;
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
  const cudaError_t held = memory_->HoldPartial(cuda::AttendPartialFloats(plan));
  if (held != cudaSuccess) return StatusOf(held);
  plan.partial = memory_->partial;
  plan.taken = memory_->taken;
  return StatusOf(cuda::LaunchAttendPages(plan, static_cast<cudaStream_t>(stream)));
}

Status CudaKvCache::Truncate(int64_t length) {
  if (length < 0 || length > length_) return Status::Invalid("truncate to more tokens than held");
  length_ = length;
  return Status::Ok();
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
    error = cudaMemcpy(out.k_mean, memory_->k_mean + head * layout.k_dims,
                       static_cast<size_t>(shape_.qk_dim) * sizeof(float), cudaMemcpyDeviceToHost);
  }
  return StatusOf(error);
}

int64_t CudaKvCache::capacity() const { return memory_->pages() * cuda::kPageTokens; }
int64_t CudaKvCache::bytes() const { return memory_->bytes; }

}  // namespace sage
