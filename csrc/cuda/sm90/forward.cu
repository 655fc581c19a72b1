// Entry of int8_fp8 on Hopper: what is supported, the workspace, and the order of launches.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/sm90/forward.h"
#include "cuda/sm90/launch.h"

namespace sage {
namespace {

constexpr int64_t kLongest = int64_t{1} << 30;  // tokens; indices inside a head are 32-bit
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

int64_t Tiles(int64_t tokens) { return (tokens + sm90::kTile - 1) / sm90::kTile; }

const char* RecipeReason(const Recipe& r) {
  if (r.precision != Precision::kInt8Fp8 || r.qk != QkFormat::kInt8 || r.pv != PvFormat::kE4m3) {
    return "the Hopper kernels compute the recipe int8_fp8 only";
  }
  if (r.q_group != TokenGroup::kToken || r.k_group != TokenGroup::kConsecutive32) {
    return "the Hopper kernels have one scale per query and per 32 keys (int8_fp8's default "
           "granularity)";
  }
  if (r.rounding != Rounding::kEven) {
    return "the Hopper kernels compute the tuned form of int8_fp8";
  }
  if (r.smooth_q != 0) return "the Hopper kernels do not smooth q";
  if (r.pv_accumulator != PvAccumulator::kFp32Fp32 || r.v_scale != VScale::kChannel ||
      r.row_sum != RowSum::kExact || r.p_top != 448.0f || r.v_top != 448.0f || r.balance ||
      r.rotate || r.four_six || r.head_exponent || (r.smooth_v != 0 && r.smooth_v != sm90::kTile)) {
    return "the Hopper kernels accumulate P·V in two levels (fp32+fp32), v scaled per channel";
  }
  return nullptr;
}

const char* ShapeReason(const Problem& p) {
  if (p.qk_dim < 1 || p.qk_dim > 256 || p.v_dim < 1 || p.v_dim > 256) {
    return "the Hopper kernels serve head_dim 1 to 256";
  }
  if (p.q_len > kLongest || p.kv_len > kLongest) {
    return "the Hopper kernels serve at most 2^30 queries and keys";
  }
  if (p.batch * p.q_heads * Tiles(p.q_len) + p.batch * p.kv_heads * Tiles(p.kv_len) > kMostBlocks) {
    return "too many heads and tokens for one launch of the Hopper kernels";
  }
  if (!std::isfinite(static_cast<float>(std::fabs(p.scale) * 1.4426950408889634))) {
    return "the scale does not fit in float32";
  }
  return nullptr;
}

const char* DeviceReason() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return "no CUDA device answers";
  }
  return major == 9 && minor == 0 ? nullptr : "the device is not Hopper (compute capability 9.0)";
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
    // Operand tiles are copied in bulk; swizzled rows repeat after 1024 bytes.
    constexpr int64_t kAlignment = 1024;
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
};

}  // namespace

namespace sm90 {

// Tiles of work of one head, where they are the largest.
static int64_t WorkTiles(const Problem& p) { return (p.q_len + kMostRows - 1) / kMostRows; }

static int DimOf(const Problem& p) {
  const int64_t dim = std::max(p.qk_dim, p.v_dim);
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

PartsPlan PlanParts(const Problem& p) {
  // Of an H100 or H200; fixed, so that results do not depend on the device.
  constexpr int64_t kMultiprocessors = 132;
  constexpr int64_t kLeastTiles = 4;  // of keys of a part: fewer cost more to merge than they save
  PartsPlan plan = {};
  plan.shared_rows = p.q_len <= kSharedRows;
  int64_t tiles = Tiles(p.kv_len);
  if (p.window_left >= 0 && p.window_right >= 0) {
    const int64_t rows = std::min<int64_t>(p.q_len, kPartRows);
    tiles = std::min(tiles, (p.window_left + p.window_right + rows) / kTile + 2);
  }
  const int64_t work = p.batch * p.q_heads * ((p.q_len + kPartRows - 1) / kPartRows);
  const int64_t most = std::max<int64_t>(1, tiles / kLeastTiles);
  plan.parts = static_cast<int>(
      std::min(most, std::max<int64_t>(1, kMultiprocessors / std::max<int64_t>(1, work))));
  // What the merge costs, in tiles of keys that no block walks for it.
  constexpr int64_t kLeastSaved = 6;
  if (!plan.shared_rows && tiles - tiles / plan.parts < kLeastSaved) plan.parts = 1;
  // With all of the device at work, halving a block's tiles pays where there are many of them.
  constexpr int64_t kManyTiles = 64;
  if (DimOf(p) < 256 && plan.parts == 1 && !(plan.shared_rows && tiles >= kManyTiles)) plan = {};
  return plan;
}

Workspace LayOut(const Problem& p, void* base, const PartsPlan& plan) {
  Workspace w = {};
  const int64_t q_heads = p.batch * p.q_heads, kv_heads = p.batch * p.kv_heads;
  w.dim = DimOf(p);
  w.plan = plan;
  w.rounds_queries = plan.parts == 0 && !p.want_lse;
  w.tiles = static_cast<int>(Tiles(p.kv_len));
  w.mean_groups = (w.tiles + kMeanTiles - 1) / kMeanTiles;
  w.q_rows = static_cast<int>(Tiles(WorkTiles(p) * kMostRows) * kTile);
  const int64_t tiles = kv_heads * w.tiles, channels = kv_heads * w.dim;
  Carver carver = {static_cast<uint8_t*>(base), 0};
  w.schedule = carver.Take<uint32_t>(2);
  w.ticket = carver.Take<uint32_t>(1);
  w.arrived = carver.Take<uint32_t>(kv_heads);
  w.ready = carver.Take<uint32_t>(kv_heads);
  w.not_finite = carver.Take<uint32_t>(kv_heads);
  w.v_largest = carver.Take<uint32_t>(channels);
  w.marks = carver.Take<uint8_t>(tiles * kTile);
  w.zeroed_bytes = carver.used;
  w.k_sum = carver.Take<double>(tiles * w.dim);
  w.k_count = carver.Take<int32_t>(tiles * w.dim);
  w.k_mean = carver.Take<float>(channels);
  w.v_mean = carver.Take<float>(tiles * w.dim);
  w.v_scale = carver.Take<float>(channels);
  w.v_inverse = carver.Take<float>(channels);
  w.q_scale = carver.Take<float>(q_heads * w.q_rows);
  w.lse_shift = carver.Take<float>(p.want_lse ? q_heads * w.q_rows : 0);
  w.k_scale = carver.Take<float>(tiles * 4);
  w.mean_image = carver.Take<float>(kv_heads * w.mean_groups * kMeanTiles * w.dim);
  w.q_codes = carver.Take<uint8_t>(q_heads * w.q_rows * w.dim);
  w.k_codes = carver.Take<uint8_t>(tiles * kTile * w.dim);
  w.v_codes = carver.Take<uint8_t>(tiles * kTile * w.dim);
  // What waits in memory: in the kernel of head_dim 128 without a mask, and in that of parts, sums
  // of spans where there are more keys than one has; in the former row sums where there are several
  // groups.
  const bool in_parts = plan.parts > 0;
  const bool waits = in_parts || (w.dim == 128 && p.mask_kind == MaskKind::kNone);
  const int64_t pieces = in_parts ? q_heads * ((p.q_len + kPartRows - 1) / kPartRows) * plan.parts
                                  : q_heads * WorkTiles(p);
  const int64_t warps = waits ? std::min<int64_t>(kMostBlocks, pieces) * (kMostRows / 16) : 0;
  w.spans = carver.Take<float>(w.tiles > kMarkGroups * kMeanTiles ? warps * 16 * w.dim : 0);
  w.sums = carver.Take<uint32_t>(
      in_parts || w.tiles <= kMeanTiles ? 0 : warps * KeptWords(w.mean_groups));
  const int64_t merged = plan.parts > 1 ? plan.parts * q_heads * p.q_len : 0;  // rows of all parts
  w.part_sums = carver.Take<float>(merged * w.dim);
  w.part_ends = carver.Take<float>(merged * 2);
  w.bytes = carver.used;
  return w;
}

}  // namespace sm90

bool Sm90Supports(const Problem& problem, const char** reason) {
  const char* found = RecipeReason(problem.recipe);
  if (found == nullptr) found = ShapeReason(problem);
  if (found == nullptr) found = DeviceReason();
  *reason = found != nullptr ? found : "int8_fp8 on Hopper's tensor cores";
  return found == nullptr;
}

int64_t Sm90Workspace(const Problem& problem) { return sm90::LayOut(problem, nullptr).bytes; }

Status Sm90Forward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                   cudaStream_t stream) {
  const char* reason = nullptr;
  if (!Sm90Supports(problem, &reason)) return {StatusCode::kUnsupported, reason};
  if (problem.batch == 0 || problem.q_heads == 0 || problem.q_len == 0) return Status::Ok();
  cudaGetLastError();  // an earlier failure of somebody else's is not ours
  if (problem.kv_len == 0 || problem.kv_heads == 0) {
    return StatusOf(sm90::WriteEmptyRows(problem, buffers, stream));
  }
  const sm90::Workspace space = sm90::LayOut(problem, workspace);
  const cudaError_t error = sm90::Prepass(problem, buffers, space, stream);
  if (error != cudaSuccess) return StatusOf(error);
  return StatusOf(sm90::Attend(problem, buffers, space, stream));
}

}  // namespace sage
