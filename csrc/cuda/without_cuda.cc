// The CUDA engine's functions in a build without CUDA: nothing is available, and the reason says
// why.
#include "sage/cuda_attention.h"

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

}  // namespace sage
