// The CUDA engine's functions in a build without CUDA: nothing is available, and the reason says
// why.
#include "sage/cuda_attention.h"
#include "sage/cuda_host.h"
#include "sage/cuda_host_cache.h"

namespace sage {
namespace {

constexpr char kReason[] = "this build of the addon has no CUDA kernels";

Status NoCuda() { return {StatusCode::kUnsupported, kReason}; }

}  // namespace

const CudaInfo& DetectCuda() {
  static constexpr CudaInfo info = {false, false, kReason, 0, 0, 0, "", 0, 0, ""};
  return info;
}

bool CudaSupports(const Problem&, const char** reason) {
  if (reason != nullptr) *reason = kReason;
  return false;
}

int64_t CudaForwardWorkspace(const Problem&) { return 0; }
int64_t CudaBackwardWorkspace(const Problem&) { return 0; }

Status CudaForward(const Problem&, const ForwardBuffers&, void*, void*) { return NoCuda(); }
Status CudaBackward(const Problem&, const BackwardBuffers&, void*, void*) { return NoCuda(); }

void* CudaOwnStream() { return nullptr; }
Status CudaSynchronizeDevice() { return NoCuda(); }
Status CudaSynchronizeStream(void*) { return NoCuda(); }
Status CudaOrderStreams(void*, void*) { return NoCuda(); }

int ListCudaDevices(CudaDevice*, int) { return 0; }
Status ChooseCudaDevice(const char*) { return NoCuda(); }
CudaHostState GetCudaHostState() { return {false, kReason, -1, false, 0, 0, 0}; }
void SetCudaMemoryLimit(int64_t) {}
int64_t ReleaseCudaMemory() { return 0; }
Status CudaHostSupports(const Problem&) { return NoCuda(); }
Status CudaHostForward(const Problem&, const ForwardBuffers&, const CudaHostOptions&) {
  return NoCuda();
}
Status CudaHostBackward(const Problem&, const BackwardBuffers&, const CudaHostOptions&) {
  return NoCuda();
}
Status TimeCudaForward(const Problem&, const ForwardBuffers&, int, float*) { return NoCuda(); }

struct CudaHostCacheState {};

Status CudaHostCacheSupports(const KvCacheShape&) { return NoCuda(); }

CudaHostCache::CudaHostCache() = default;
CudaHostCache::~CudaHostCache() = default;
Status CudaHostCache::Create(const KvCacheShape&, int64_t, std::unique_ptr<CudaHostCache>*) {
  return NoCuda();
}
Status CudaHostCache::Append(const float*, const float*, int64_t, const CudaHostOptions&) {
  return NoCuda();
}
Status CudaHostCache::Attend(const Problem&, const ForwardBuffers&, const CudaHostOptions&) {
  return NoCuda();
}
Status CudaHostCache::AppendInStream(const float*, const float*, int64_t, void*) {
  return NoCuda();
}
Status CudaHostCache::AttendInStream(const Problem&, const ForwardBuffers&, void*) {
  return NoCuda();
}
Status CudaHostCache::Truncate(int64_t) { return NoCuda(); }
Status CudaHostCache::Fork(std::unique_ptr<CudaHostCache>*) { return NoCuda(); }
Status CudaHostCache::ToHost(std::unique_ptr<KvCache>*) const { return NoCuda(); }
Status CudaHostCache::Inspect(int64_t, int64_t, const CacheCodes&) const { return NoCuda(); }
const KvCacheShape& CudaHostCache::shape() const {
  static constexpr KvCacheShape none = {};
  return none;
}
int64_t CudaHostCache::length() const { return 0; }
int64_t CudaHostCache::bytes() const { return 0; }
int64_t CudaHostCache::exclusive_bytes() const { return 0; }

}  // namespace sage
