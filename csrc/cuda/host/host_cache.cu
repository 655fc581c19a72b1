// The device cache behind host arrays: k, v, q and mask are staged to the device, o and lse back;
// the tokens themselves never leave it. Calls on device memory are enqueued where the caller works,
// and later calls in other streams wait for them.
#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "cuda/host/block_pool.h"
#include "cuda/host/host_device.h"
#include "cuda/host/staging.h"
#include "sage/cuda_host_cache.h"
#include "sage/cuda_kv_cache.h"

namespace sage {
namespace cuda {
namespace {

// Blocks up to this size are kept for later caches, as those of calls are; larger ones go.
constexpr int64_t kKeptBytes = int64_t{1} << 20;

Status NoHostMemory() { return {StatusCode::kOutOfMemory, "no memory for the cache"}; }
Status NoDeviceMemory() {
  return {StatusCode::kOutOfMemory, "the limit of device memory, or the device, has no room left"};
}

// Caches share the limit with calls.
class PoolMemory : public DeviceMemory {
 public:
  void* Take(int64_t bytes) override { return HostDevice::Get().memory().Take(bytes); }
  void Give(void* memory) override {
    HostDevice& device = HostDevice::Get();
    if (device.Check().ok()) device.memory().Give(memory, kKeptBytes);
  }
};

PoolMemory* Memory() {
  static PoolMemory* const memory = new PoolMemory;
  return memory;
}

// What one call on host arrays has of the device.
class CallMemory {
 public:
  CallMemory(HostDevice& device, int64_t bytes)
      : device_(device),
        stream_(device.TakeStream()),
        data_(static_cast<char*>(device.memory().Take(std::max<int64_t>(bytes, 1)))) {}
  ~CallMemory() {
    device_.memory().Give(data_);
    if (stream_ != nullptr) device_.GiveStream(stream_);
  }
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  bool ok() const { return stream_ != nullptr && data_ != nullptr; }
  cudaStream_t stream() const { return stream_; }
  char* data() const { return data_; }
  template <class T>
  T* At(int64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  HostDevice& device_;
  cudaStream_t stream_;
  char* data_;
};

StridedBox RowOf(int64_t elements, int64_t bytes) {
  return {{1, 1, 1, elements}, {0, 0, 0, 1}, bytes};
}

TokenStrides Dense(int64_t heads, int64_t tokens, int64_t dim) {
  return {heads * tokens * dim, tokens * dim, dim};
}

}  // namespace
}  // namespace cuda

using cuda::CallMemory;
using cuda::DeviceScope;
using cuda::HostDevice;

struct CudaHostCacheState {
  std::unique_ptr<CudaKvCache> cache;
  KvCacheShape shape;
  int64_t length = 0;
  // The end of what was enqueued and not waited for, null when there is nothing.
  cudaEvent_t pending = nullptr;
  cudaStream_t pending_stream = nullptr;

  ~CudaHostCacheState() {
    HostDevice& device = HostDevice::Get();
    if (!device.Check().ok()) {
      // The device's memory went with it, or belongs to another process.
      (void)cache.release();
      return;
    }
    const DeviceScope scope(device.index());
    cache.reset();
    if (pending != nullptr) device.GiveEvent(pending);
  }

  // The calls below run on a device that is there and current.
  Status Wait(cudaStream_t stream) {
    if (pending_stream == nullptr || pending_stream == stream) return Status::Ok();
    return Checked(cudaStreamWaitEvent(stream, pending, 0));
  }
  Status Note(cudaStream_t stream) {
    if (pending == nullptr) pending = HostDevice::Get().TakeEvent();
    if (pending == nullptr) return Checked(cudaErrorMemoryAllocation);
    const Status status = Checked(cudaEventRecord(pending, stream));
    if (status.ok()) pending_stream = stream;
    return status;
  }
  static Status Checked(cudaError_t error) {
    return error == cudaSuccess ? Status::Ok() : HostDevice::Get().Fail(error);
  }
  // A status of the cache itself.
  static Status Checked(const Status& status) {
    return status.code == StatusCode::kInternal ? HostDevice::Get().Recheck(status) : status;
  }
};

namespace {

// Runs `call` with the device current.
template <class Call>
Status OnDevice(const Call& call) try {
  HostDevice& device = HostDevice::Get();
  const Status ready = device.Check();
  if (!ready.ok()) return ready;
  const DeviceScope scope(device.index());
  return scope.error() == cudaSuccess ? call(device) : device.Fail(scope.error());
} catch (const std::bad_alloc&) {
  return cuda::NoHostMemory();
}

// Runs `call` on the caller's device, which must be that of the caches.
template <class Call>
Status OnCallersDevice(const Call& call) try {
  HostDevice& device = HostDevice::Get();
  const Status ready = device.Check();
  if (!ready.ok()) return ready;
  int current = -1;
  if (cudaGetDevice(&current) != cudaSuccess || current != device.index()) {
    cudaGetLastError();
    return {StatusCode::kUnsupported, "the tensors lie on another device than the cache"};
  }
  return call(device);
} catch (const std::bad_alloc&) {
  return cuda::NoHostMemory();
}

}  // namespace

Status CudaHostCacheSupports(const KvCacheShape& shape) {
  return OnDevice([&](HostDevice&) -> Status {
    const char* reason = nullptr;
    if (CudaKvCacheSupports(shape, &reason)) return Status::Ok();
    return {StatusCode::kUnsupported, reason};
  });
}

CudaHostCache::CudaHostCache() : state_(new CudaHostCacheState) {}
CudaHostCache::~CudaHostCache() = default;

Status CudaHostCache::Create(const KvCacheShape& shape, int64_t capacity,
                             std::unique_ptr<CudaHostCache>* out) {
  return OnDevice([&](HostDevice&) {
    std::unique_ptr<CudaHostCache> cache(new CudaHostCache);
    cache->state_->shape = shape;
    const Status status =
        CudaKvCache::Create(shape, capacity, cuda::Memory(), &cache->state_->cache);
    if (status.ok()) *out = std::move(cache);
    return CudaHostCacheState::Checked(status);
  });
}

Status CudaHostCache::Append(const float* k, const float* v, int64_t tokens,
                             const CudaHostOptions& options) {
  return OnDevice([&](HostDevice& device) {
    CudaHostCacheState& state = *state_;
    const KvCacheShape& shape = state.shape;
    const int64_t rows = shape.batch * shape.kv_heads * std::max<int64_t>(tokens, 0);
    cuda::Area area;
    const int64_t k_at = area.Add(cuda::RowOf(rows * shape.qk_dim, 4), k);
    const int64_t v_at = area.Add(cuda::RowOf(rows * shape.v_dim, 4), v);
    const CallMemory memory(device, area.bytes);
    if (!memory.ok()) return cuda::NoDeviceMemory();
    cuda::Staging staging(device, options.threads);
    Status status = state.Wait(memory.stream());
    if (status.ok() && rows > 0) {
      status = state.Checked(staging.Upload(area, memory.data(), memory.stream()));
    }
    if (status.ok()) {
      status = state.Checked(state.cache->Append(
          memory.At<float>(k_at), cuda::Dense(shape.kv_heads, tokens, shape.qk_dim),
          memory.At<float>(v_at), cuda::Dense(shape.kv_heads, tokens, shape.v_dim), tokens,
          memory.stream()));
    }
    const cudaError_t end = cudaStreamSynchronize(memory.stream());
    if (status.ok()) status = state.Checked(end);
    if (status.ok()) state.length += tokens;
    return status;
  });
}

Status CudaHostCache::Attend(const Problem& problem, const ForwardBuffers& buffers,
                             const CudaHostOptions& options) {
  return OnDevice([&](HostDevice& device) {
    CudaHostCacheState& state = *state_;
    Problem p = problem;
    const int64_t rows = p.batch * p.q_heads * p.q_len;
    if (rows <= 0) return Status::Ok();
    cuda::Area in, out;
    const int64_t q_at = in.Add(
        cuda::RowOf(RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim), 4), buffers.q);
    int64_t mask_at = 0;
    if (p.mask_kind != MaskKind::kNone) {
      mask_at =
          in.Add(cuda::RowOf(RequiredMaskElements(p), p.mask_kind == MaskKind::kAdditive ? 4 : 1),
                 buffers.mask);
    }
    const int64_t o_at =
        out.Add({{p.batch, p.q_heads, p.q_len, p.v_dim}, {p.o.batch, p.o.head, p.o.token, 1}, 4},
                buffers.o);
    p.o = cuda::Dense(p.q_heads, p.q_len, p.v_dim);
    p.want_lse = p.want_lse && buffers.lse != nullptr;
    const int64_t lse_at = p.want_lse ? out.Add(cuda::RowOf(rows, 4), buffers.lse) : 0;
    const CallMemory memory(device, in.bytes + out.bytes);
    if (!memory.ok()) return cuda::NoDeviceMemory();
    char* outputs = memory.data() + in.bytes;
    ForwardBuffers on_device = {};
    on_device.q = memory.At<float>(q_at);
    on_device.mask = p.mask_kind == MaskKind::kNone ? nullptr : memory.At<char>(mask_at);
    on_device.o = reinterpret_cast<float*>(outputs + o_at);
    on_device.lse = p.want_lse ? reinterpret_cast<float*>(outputs + lse_at) : nullptr;
    cuda::Staging staging(device, options.threads);
    Status status = state.Wait(memory.stream());
    if (status.ok()) status = state.Checked(staging.Upload(in, memory.data(), memory.stream()));
    if (status.ok()) status = state.Checked(state.cache->Attend(p, on_device, memory.stream()));
    if (status.ok()) status = state.Checked(staging.Download(out, outputs, memory.stream()));
    if (status.ok()) status = state.Checked(staging.Finish());
    if (!status.ok()) {
      cudaStreamSynchronize(memory.stream());
      cudaGetLastError();
    } else if (options.cancelled != nullptr && options.cancelled->load(std::memory_order_relaxed)) {
      return Status{StatusCode::kCancelled, "the call was cancelled"};
    }
    return status;
  });
}

Status CudaHostCache::AppendInStream(const float* k, const float* v, int64_t tokens, void* stream) {
  return OnCallersDevice([&](HostDevice&) {
    CudaHostCacheState& state = *state_;
    const KvCacheShape& shape = state.shape;
    const auto in = static_cast<cudaStream_t>(stream);
    Status status = state.Wait(in);
    if (status.ok()) {
      status = state.Checked(
          state.cache->Append(k, cuda::Dense(shape.kv_heads, tokens, shape.qk_dim), v,
                              cuda::Dense(shape.kv_heads, tokens, shape.v_dim), tokens, stream));
    }
    if (!status.ok()) return status;
    state.length += tokens;
    return state.Note(in);
  });
}

Status CudaHostCache::AttendInStream(const Problem& problem, const ForwardBuffers& buffers,
                                     void* stream) {
  return OnCallersDevice([&](HostDevice&) {
    CudaHostCacheState& state = *state_;
    const auto in = static_cast<cudaStream_t>(stream);
    Status status = state.Wait(in);
    if (status.ok()) status = state.Checked(state.cache->Attend(problem, buffers, stream));
    return status.ok() ? state.Note(in) : status;
  });
}

Status CudaHostCache::Truncate(int64_t length) {
  const Status status = state_->cache->Truncate(length);
  if (status.ok()) state_->length = length;
  return status;
}

Status CudaHostCache::Fork(std::unique_ptr<CudaHostCache>* out) {
  return OnDevice([&](HostDevice&) {
    std::unique_ptr<CudaHostCache> fork(new CudaHostCache);
    CudaHostCacheState& to = *fork->state_;
    to.shape = state_->shape;
    to.length = state_->length;
    Status status = state_->cache->Fork(&to.cache);
    if (status.ok() && state_->pending_stream != nullptr) status = to.Note(state_->pending_stream);
    if (status.ok()) *out = std::move(fork);
    return status;
  });
}

Status CudaHostCache::ToHost(std::unique_ptr<KvCache>* out) const {
  const auto restore = [&] {
    return KvCache::Restore(
        state_->shape, state_->length,
        [&](int64_t batch, int64_t head, const CacheCodes& codes) {
          return state_->cache->Inspect(batch, head, codes);
        },
        out);
  };
  if (state_->length == 0) return restore();
  return OnDevice([&](HostDevice&) { return CudaHostCacheState::Checked(restore()); });
}

Status CudaHostCache::Inspect(int64_t batch, int64_t kv_head, const CacheCodes& out) const {
  return OnDevice([&](HostDevice&) {
    return CudaHostCacheState::Checked(state_->cache->Inspect(batch, kv_head, out));
  });
}

const KvCacheShape& CudaHostCache::shape() const { return state_->shape; }
int64_t CudaHostCache::length() const { return state_->length; }
int64_t CudaHostCache::bytes() const { return state_->cache->bytes(); }
int64_t CudaHostCache::exclusive_bytes() const { return state_->cache->exclusive_bytes(); }

}  // namespace sage
