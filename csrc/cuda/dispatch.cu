// Which kernels serve a problem. A recipe is one row of kRecipes; what no row takes is refused with
// a reason.
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/exact/plan.h"
#include "cuda/int8/forward.h"
#include "sage/cuda_attention.h"
#ifdef SAGE_WITH_FP4
#include "cuda/sm120/forward.h"
#endif
#ifdef SAGE_WITH_SM90
#include "cuda/sm90/forward.h"
#endif

namespace sage {
namespace {

constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxLength = int64_t{1} << 30;

// What a recipe's kernels offer. The gradient is the same for all of them: exact arithmetic from
// the saved o and lse.
struct RecipeKernels {
  Precision precision;
  // Whether this device and problem are served; if not, `reason` says why, and otherwise what is
  // special about it ("" = nothing).
  bool (*supports)(const Problem& problem, const char** reason);
  int64_t (*workspace)(const Problem& problem);
  Status (*forward)(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                    void* stream);
};

Status StatusOf(cudaError_t error) {
  if (error == cudaSuccess) return Status::Ok();
  return {StatusCode::kInternal, cudaGetErrorString(error)};
}

bool ServesFloat32(const Problem& problem, const char** reason) {
  const bool served = problem.input == InputType::kFloat32;
  *reason = served ? "" : kFloat32InputOnly;
  return served;
}

Status RunExact(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                void* stream) {
  cudaGetLastError();  // an earlier failure of somebody else's is not ours
  cuda::ExactForward(problem, buffers, workspace, stream);
  return StatusOf(cudaGetLastError());
}

#ifdef SAGE_WITH_SM90
Status RunSm90(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
               void* stream) {
  return Sm90Forward(problem, buffers, workspace, static_cast<cudaStream_t>(stream));
}
#endif

Status RunInt8(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
               void* stream) {
  return cuda::Int8Forward(problem, buffers, workspace, static_cast<cudaStream_t>(stream));
}

// The first row that supports a problem serves it.
constexpr RecipeKernels kRecipes[] = {
    {Precision::kExact, ServesFloat32, cuda::ExactForwardWorkspace, RunExact},
#ifdef SAGE_WITH_SM90
    {Precision::kInt8Fp8, Sm90Supports, Sm90Workspace, RunSm90},
#endif
    {Precision::kInt8Fp16, cuda::Int8Supports, cuda::Int8Workspace, RunInt8},
    {Precision::kInt8Fp8, cuda::Int8Supports, cuda::Int8Workspace, RunInt8},
    {Precision::kInt4Fp8, cuda::Int8Supports, cuda::Int8Workspace, RunInt8},
#ifdef SAGE_WITH_FP4
    {Precision::kFp4, Fp4Supports, Fp4Workspace, Fp4Forward},
    {Precision::kFp4Fp8, Fp4Supports, Fp4Workspace, Fp4Forward},
#endif
};

const RecipeKernels* KernelsOf(const Problem& problem, const char** reason) {
  if (!cuda::CurrentDeviceServes(reason)) return nullptr;
  if (problem.qk_dim < 1 || problem.v_dim < 1 || problem.qk_dim > kMaxHeadDim ||
      problem.v_dim > kMaxHeadDim) {
    *reason = "the CUDA kernels take a head_dim of 1 to 512";
    return nullptr;
  }
  if (problem.q_len >= kMaxLength || problem.kv_len >= kMaxLength) {
    *reason = "the CUDA kernels take fewer than 2^30 tokens";
    return nullptr;
  }
  *reason = "the CUDA kernels have no code for this recipe";
  for (const RecipeKernels& kernels : kRecipes) {
    if (kernels.precision != problem.recipe.precision) continue;
    if (kernels.supports(problem, reason)) return &kernels;
  }
  return nullptr;
}

}  // namespace

bool CudaSupports(const Problem& problem, const char** reason) {
  const char* why = nullptr;
  const bool supported = KernelsOf(problem, &why) != nullptr;
  if (reason != nullptr) *reason = why;
  return supported;
}

int64_t CudaForwardWorkspace(const Problem& problem) {
  const char* reason = nullptr;
  const RecipeKernels* kernels = KernelsOf(problem, &reason);
  return kernels == nullptr ? 0 : kernels->workspace(problem);
}

int64_t CudaBackwardWorkspace(const Problem& problem) {
  return cuda::ExactBackwardWorkspace(problem);
}

Status CudaForward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                   void* stream) {
  const char* reason = nullptr;
  const RecipeKernels* kernels = KernelsOf(problem, &reason);
  if (kernels == nullptr) return {StatusCode::kUnsupported, reason};
  return kernels->forward(problem, buffers, workspace, stream);
}

Status CudaBackward(const Problem& problem, const BackwardBuffers& buffers, void* workspace,
                    void* stream) {
  const char* reason = nullptr;
  Problem exact = problem;
  exact.recipe.precision = Precision::kExact;
  if (KernelsOf(exact, &reason) == nullptr) return {StatusCode::kUnsupported, reason};
  if (buffers.d_mask != nullptr && problem.mask_kind != MaskKind::kAdditive) {
    return Status::Invalid("only an additive mask has a gradient");
  }
  cudaGetLastError();
  cuda::ExactBackward(problem, buffers, workspace, stream);
  return StatusOf(cudaGetLastError());
}

}  // namespace sage
