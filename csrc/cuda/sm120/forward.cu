// Entry of fp4 and fp4_fp8: what is supported, and the order of launches.
#include <atomic>

#include "cuda/device.h"
#include "cuda/sm120/forward.h"
#include "cuda/sm120/launch.cuh"

namespace sage {
namespace sm120 {

extern template cudaError_t LaunchAttend<64, false>(const AttendArguments&, bool, int,
                                                    cudaStream_t);
extern template cudaError_t LaunchAttend<64, true>(const AttendArguments&, bool, int, cudaStream_t);
extern template cudaError_t LaunchAttend<128, false>(const AttendArguments&, bool, int,
                                                     cudaStream_t);
extern template cudaError_t LaunchAttend<128, true>(const AttendArguments&, bool, int,
                                                    cudaStream_t);
extern template cudaError_t LaunchAttend<256, false>(const AttendArguments&, bool, int,
                                                     cudaStream_t);
extern template cudaError_t LaunchAttend<256, true>(const AttendArguments&, bool, int,
                                                    cudaStream_t);

cudaError_t Attend(const Problem& p, const ForwardBuffers& buffers, const Workspace& space,
                   cudaStream_t stream) {
  const AttendArguments a = PlanAttend(p, buffers, space);
  const bool masked = p.mask_kind != MaskKind::kNone, fp8 = p.recipe.pv == PvFormat::kE4m3;
  const int multiprocessors = cuda::Multiprocessors();
  if (space.dim == 64) {
    return fp8 ? LaunchAttend<64, true>(a, masked, multiprocessors, stream)
               : LaunchAttend<64, false>(a, masked, multiprocessors, stream);
  }
  if (space.dim == 128) {
    return fp8 ? LaunchAttend<128, true>(a, masked, multiprocessors, stream)
               : LaunchAttend<128, false>(a, masked, multiprocessors, stream);
  }
  return fp8 ? LaunchAttend<256, true>(a, masked, multiprocessors, stream)
             : LaunchAttend<256, false>(a, masked, multiprocessors, stream);
}

}  // namespace sm120

namespace {

// Asked once per device.
bool HasCodeHere() {
  constexpr int kMaxDevices = 64;
  static std::atomic<int8_t> known[kMaxDevices];  // 0 = not asked, 1 = yes, 2 = no
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return false;
  int8_t answer = known[device].load(std::memory_order_relaxed);
  if (answer == 0) {
    answer = sm120::HasCode() ? 1 : 2;
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer == 1;
}

}  // namespace

bool Fp4Supports(const Problem& problem, const char** reason) {
  const char* refusal = sm120::RefusalOf(problem);
  if (refusal == nullptr && !HasCodeHere()) {
    refusal = "this build has no FP4 kernels for this device";
  }
  const int capability = cuda::ComputeCapability();
  *reason = refusal != nullptr ? refusal
            : capability >= 120
                ? "FP4 products of the tensor cores"
                : "FP4 products by exact emulation: this device has no FP4 tensor cores";
  return refusal == nullptr;
}

int64_t Fp4Workspace(const Problem& problem) { return sm120::LayOut(problem, nullptr).bytes; }

Status Fp4Forward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                  void* stream) {
  const char* reason = nullptr;
  if (!Fp4Supports(problem, &reason)) return {StatusCode::kUnsupported, reason};
  if (problem.batch == 0 || problem.q_heads == 0 || problem.q_len == 0) return Status::Ok();
  cudaGetLastError();  // an earlier failure of somebody else's is not ours
  const sm120::Workspace space = sm120::LayOut(problem, workspace);
  const cudaStream_t in = static_cast<cudaStream_t>(stream);
  cudaError_t error = sm120::Prepass(problem, buffers, space, in);
  if (error == cudaSuccess) error = sm120::Attend(problem, buffers, space, in);
  if (error == cudaSuccess) return Status::Ok();
  return {error == cudaErrorMemoryAllocation ? StatusCode::kOutOfMemory : StatusCode::kInternal,
          cudaGetErrorString(error)};
}

}  // namespace sage
