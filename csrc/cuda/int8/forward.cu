// Entry of the int8 kernels: what is supported, which instance serves, the workspace, the order of
// launches.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/device.h"
#include "cuda/int8/attend_plan.h"
#include "cuda/int8/forward.h"
#include "cuda/int8/images.h"
#include "cuda/int8/plan.h"

namespace sage::cuda {
namespace int8 {
namespace {

constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
// k and v of the heads that run together: half of the smallest L2 cache of the family (sm_80 has
// 40 MiB; smaller devices hold fewer blocks, so fewer heads are under way).
constexpr int64_t kCachedBytes = int64_t{16} << 20;

int64_t Tiles(int64_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

bool GroupsAreServed(const Recipe& r) {
  const bool q = r.q_group == TokenGroup::kToken || r.q_group == TokenGroup::kWarp32 ||
                 r.q_group == TokenGroup::kThread32 || r.q_group == TokenGroup::kBlock128;
  const bool k = r.k_group == TokenGroup::kToken || r.k_group == TokenGroup::kConsecutive32 ||
                 r.k_group == TokenGroup::kWarp64 || r.k_group == TokenGroup::kThread64 ||
                 r.k_group == TokenGroup::kBlock64;
  return q && k;
}

const char* RecipeReason(const Recipe& r) {
  const bool halves = r.pv == PvFormat::kFp16, bytes = r.pv == PvFormat::kE4m3;
  if ((r.qk != QkFormat::kInt8 && r.qk != QkFormat::kInt4) || !(halves || bytes)) {
    return "the int8 kernels compute int8_fp16, int8_fp8 and int4_fp8";
  }
  if (!GroupsAreServed(r)) return "the int8 kernels do not know this granularity";
  if (r.rotate || r.four_six || r.head_exponent || r.row_sum != RowSum::kExact ||
      r.v_scale != VScale::kChannel || (r.smooth_v != 0 && r.smooth_v != kTileTokens) ||
      (r.smooth_q != 0 && r.smooth_q != 32 && r.smooth_q != kTileTokens)) {
    return "the int8 kernels do not know this form of the recipe";
  }
  if (r.p_top != (bytes ? 448.0f : 1.0f)) return "the int8 kernels do not know this scale of P";
  const PvAccumulator a = r.pv_accumulator;
  const bool known = halves ? a == PvAccumulator::kFp32 || a == PvAccumulator::kFp16 ||
                                  a == PvAccumulator::kFp16Fp32
                            : a == PvAccumulator::kFp32 || a == PvAccumulator::kFp32Fp32 ||
                                  a == PvAccumulator::kFp32Fp16;
  if (!known) return "the int8 kernels do not know this accumulator of P·V";
  if (bytes && a != PvAccumulator::kFp32Fp32) {
#ifdef SAGE_WITH_E4M3
    if (ComputeCapability() < 89) {
      return "accumulators of e4m3 products need compute capability 8.9; 'fp32+fp32' runs by "
             "halves";
    }
    if (CUDART_VERSION < 12080 && a == PvAccumulator::kFp32Fp16) {
      return "this build has no e4m3 products with fp16 accumulators (CUDA 12.8)";
    }
#else
    return "this build has no e4m3 products; 'fp32+fp32' runs by halves";
#endif
  }
  return nullptr;
}

const char* ShapeReason(const Problem& p) {
  if (p.qk_dim < 1 || p.qk_dim > kMostDim || p.v_dim < 1 || p.v_dim > kMostDim) {
    return "the int8 kernels serve head_dim 1 to 256";
  }
  if (p.batch * p.q_heads * Tiles(p.q_len) * 4 + p.batch * p.kv_heads * Tiles(p.kv_len) * 3 >
      kMostBlocks) {
    return "too many heads and tokens for one launch of the int8 kernels";
  }
  if (!std::isfinite(static_cast<float>(std::fabs(p.scale) * 1.4426950408889634))) {
    return "the scale does not fit in float32";
  }
  return nullptr;
}

Status StatusOf(cudaError_t error) {
  if (error == cudaSuccess) return Status::Ok();
  return {error == cudaErrorMemoryAllocation ? StatusCode::kOutOfMemory : StatusCode::kInternal,
          cudaGetErrorString(error)};
}

// Hands out aligned pieces of the workspace.
struct Carver {
  uint8_t* base;
  int64_t used;
  template <class T>
  T* Take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
};

// There are no keys: o = 0 and lse = -Infinity everywhere. One thread per element of [B, Hq, Nq,
// Dv].
__global__ void EmptyRows(float* o, TokenStrides strides, float* lse, int64_t elements, int q_heads,
                          int q_len, int v_dim) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < elements;
       n += step) {
    const int64_t row = n / v_dim, head = row / q_len;
    o[head / q_heads * strides.batch + head % q_heads * strides.head + row % q_len * strides.token +
      n % v_dim] = 0.0f;
    if (lse != nullptr && n % v_dim == 0) lse[row] = -INFINITY;
  }
}

}  // namespace

Form FormOf(const Problem& p) {
  const Recipe& r = p.recipe;
  const int capability = ComputeCapability();
  Form form = {};
  const int64_t dim = std::max(p.qk_dim, p.v_dim);
  form.dim = dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
  form.v_parts = p.v_dim <= kPartDim ? 1 : 2;
  if (r.pv == PvFormat::kFp16) {
    form.values = r.pv_accumulator == PvAccumulator::kFp32   ? Values::kHalf
                  : r.pv_accumulator == PvAccumulator::kFp16 ? Values::kHalfSums
                                                             : Values::kHalfBy64;
  } else {
    form.values = Values::kE4m3InHalf;
#ifdef SAGE_WITH_E4M3
    if (capability >= 89) {
      form.values = r.pv_accumulator == PvAccumulator::kFp32       ? Values::kE4m3
                    : r.pv_accumulator == PvAccumulator::kFp32Fp32 ? Values::kE4m3TwoLevel
                                                                   : Values::kE4m3HalfSums;
    }
#endif
  }
  // From sm_90 on there are no int4 products; elsewhere rare forms multiply the same codes as int8.
  form.int4 = r.qk == QkFormat::kInt4 && capability < 90 &&
              (form.values == Values::kE4m3InHalf || form.values == Values::kE4m3TwoLevel);
  if (form.values == Values::kHalfSums || form.values == Values::kE4m3)
    form.dim = std::max(form.dim, 128);
  return form;
}

Workspace LayOut(const Problem& p, const Form& form, void* base) {
  Workspace w = {};
  const int64_t q_heads = p.batch * p.q_heads, kv_heads = p.batch * p.kv_heads, dim = form.dim;
  w.tiles = static_cast<int>(Tiles(p.kv_len));
  w.q_rows = static_cast<int>(Tiles(p.q_len) * kTileTokens);
  const int64_t tiles = kv_heads * w.tiles, tokens = tiles * kTileTokens;
  const int64_t channels = kv_heads * dim, rows = q_heads * w.q_rows;
  const int64_t code_bytes = form.int4 ? dim / 2 : dim;
  const int64_t v_channels = std::min<int64_t>(dim, kPartDim) * form.v_parts;
  const bool means = p.recipe.smooth_q > 0;
  Carver carver = {static_cast<uint8_t*>(base), 0};
  w.arrived = carver.Take<uint32_t>(kv_heads);
  w.not_finite = carver.Take<uint32_t>(kv_heads);
  w.k_scale_most = carver.Take<uint32_t>(kv_heads);
  w.v_largest = carver.Take<uint32_t>(channels);
  w.zeroed_bytes = carver.used;
  w.k_sum = carver.Take<double>(tiles * dim);
  w.k_count = carver.Take<int32_t>(tiles * dim);
  w.v_count = carver.Take<int32_t>(tiles * dim);
  w.k_mean = carver.Take<float>(channels);
  w.v_mean = carver.Take<float>(tiles * dim);
  w.v_back = carver.Take<float>(tiles * v_channels);
  w.v_scale = carver.Take<float>(channels);
  w.v_inverse = carver.Take<float>(channels);
  w.q_scale = carver.Take<float>(rows);
  w.lse_shift = carver.Take<float>(p.want_lse ? rows : 0);
  w.k_scale = carver.Take<float>(tokens);
  w.k_table = carver.Take<float>(tokens / kStepTokens * 4);
  w.mean_scale = carver.Take<float>(means ? rows / kTileTokens * kMostMeans : 0);
  w.k_halves_scale = carver.Take<float>(means ? tokens : 0);
  w.k_marks = carver.Take<uint8_t>(tokens);
  w.v_marks = carver.Take<uint8_t>(tokens * form.v_parts);
  w.q_codes = carver.Take<uint8_t>(rows * code_bytes);
  w.k_codes = carver.Take<uint8_t>(tokens * code_bytes);
  w.v_codes = carver.Take<uint8_t>(tokens * v_channels * (ValuesAreBytes(form.values) ? 1 : 2));
  // As kMeanImageBytes and kKHalvesImageBytes of images.h.
  w.mean_image = carver.Take<uint8_t>(means ? rows / kTileTokens * dim * 16 : 0);
  w.k_halves = carver.Take<uint8_t>(means ? tokens * dim * 4 : 0);
  w.bytes = carver.used;
  return w;
}

cudaError_t Attend(const Problem& p, const Form& form, const ForwardBuffers& buffers,
                   const Workspace& space, cudaStream_t stream) {
  AttendPlan plan = {};
  plan.see = Visibility::Of(p, buffers.mask);
  plan.space = space;
  plan.v = {buffers.v, p.v, p.input};
  plan.o = buffers.o;
  plan.o_strides = p.o;
  plan.o_pairs = p.v_dim % 2 == 0 && reinterpret_cast<uintptr_t>(buffers.o) % 8 == 0 &&
                 p.o.batch % 2 == 0 && p.o.head % 2 == 0 && p.o.token % 2 == 0;
  plan.lse = p.want_lse ? buffers.lse : nullptr;
  plan.q_heads = static_cast<int>(p.q_heads);
  plan.group = static_cast<int>(p.group());
  plan.v_dim = static_cast<int>(p.v_dim);
  plan.v_parts = form.v_parts;
  plan.heads = p.batch * p.q_heads * form.v_parts;
  const int64_t head_bytes = static_cast<int64_t>(space.tiles) * kTileTokens * form.dim *
                             (ValuesAreBytes(form.values) ? 2 : 3);
  plan.heads_at_once = static_cast<int>(std::clamp<int64_t>(
      kCachedBytes / std::max<int64_t>(1, head_bytes) * p.group() * form.v_parts, 1,
      std::min<int64_t>(plan.heads, 1 << 20)));
  plan.smooth_q = p.recipe.smooth_q;
  plan.smooth_v = p.recipe.smooth_v > 0;
  plan.key_scales = p.recipe.k_group == TokenGroup::kToken;
  plan.scale = static_cast<float>(std::fabs(p.scale) * 1.4426950408889634);
  switch (form.values) {
    case Values::kHalf:
      LaunchHalf(form, plan, stream);
      break;
    case Values::kHalfBy64:
    case Values::kHalfSums:
      LaunchHalfSums(form, plan, stream);
      break;
    case Values::kE4m3InHalf:
      LaunchE4m3InHalf(form, plan, stream);
      break;
#ifdef SAGE_WITH_E4M3
    case Values::kE4m3TwoLevel:
      LaunchE4m3TwoLevel(form, plan, stream);
      break;
    case Values::kE4m3:
    case Values::kE4m3HalfSums:
      LaunchE4m3(form, plan, stream);
      break;
#else
    default:
      return cudaErrorNotSupported;
#endif
  }
  return cudaGetLastError();
}

}  // namespace int8

bool Int8Supports(const Problem& problem, const char** reason) {
  const char* found = int8::RecipeReason(problem.recipe);
  if (found == nullptr) found = int8::ShapeReason(problem);
  *reason = found != nullptr ? found : "int8 products of the tensor cores";
  return found == nullptr;
}

int64_t Int8Workspace(const Problem& problem) {
  return int8::LayOut(problem, int8::FormOf(problem), nullptr).bytes;
}

Status Int8Forward(const Problem& p, const ForwardBuffers& buffers, void* workspace,
                   cudaStream_t stream) {
  using namespace int8;
  const char* reason = nullptr;
  if (!Int8Supports(p, &reason)) return {StatusCode::kUnsupported, reason};
  if (p.batch == 0 || p.q_heads == 0 || p.q_len == 0) return Status::Ok();
  cudaGetLastError();  // an earlier failure of somebody else's is not ours
  if (p.kv_len == 0 || p.kv_heads == 0) {
    const int64_t elements = p.batch * p.q_heads * p.q_len * p.v_dim;
    const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((elements + 255) / 256, 4096));
    EmptyRows<<<blocks, 256, 0, stream>>>(buffers.o, p.o, p.want_lse ? buffers.lse : nullptr,
                                          elements, static_cast<int>(p.q_heads),
                                          static_cast<int>(p.q_len), static_cast<int>(p.v_dim));
    return StatusOf(cudaGetLastError());
  }
  const Form form = FormOf(p);
  const Workspace space = LayOut(p, form, workspace);
  const cudaError_t error = Prepass(p, form, buffers, space, stream);
  if (error != cudaSuccess) return StatusOf(error);
  return StatusOf(Attend(p, form, buffers, space, stream));
}

}  // namespace sage::cuda
