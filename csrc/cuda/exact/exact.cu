// Whole calls of the `exact` recipe: which kernels, how the keys are cut, and where the workspace
// lies. Everything here runs on the host.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/exact/plan.h"

namespace sage::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr double kLog2EDouble = 1.44269504088896340736;

// Hands out the workspace piece by piece; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<uint8_t*>(base)) {}
  template <typename T>
  T* Take(int64_t count) {
    T* out = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return out;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

SplitSource SourceOf(const float* values, const TokenStrides& strides, int64_t batch, int64_t heads,
                     int64_t tokens, int64_t dim, bool poisons_row, Workspace* workspace) {
  SplitSource source = {};
  source.values = values;
  source.strides = strides;
  source.rows = batch * heads * tokens;
  source.heads = static_cast<int>(heads);
  source.tokens = static_cast<int>(tokens);
  source.dim = static_cast<int>(dim);
  source.poisons_row = poisons_row;
  source.out.padded = static_cast<int>(CeilDivide(dim, 16) * 16);
  source.out.halves = workspace->Take<__half>(source.rows * 2 * source.out.padded);
  source.out.scale = workspace->Take<float>(source.rows);
  return source;
}

// Q, K and V, in this order.
SplitJob JobOf(const Problem& p, const float* q, const float* k, const float* v,
               Workspace* workspace) {
  SplitJob job = {};
  job.count = 3;
  job.sources[0] = SourceOf(q, p.q, p.batch, p.q_heads, p.q_len, p.qk_dim, true, workspace);
  job.sources[1] = SourceOf(k, p.k, p.batch, p.kv_heads, p.kv_len, p.qk_dim, true, workspace);
  job.sources[2] = SourceOf(v, p.v, p.batch, p.kv_heads, p.kv_len, p.v_dim, false, workspace);
  return job;
}

bool IsMultiple(const TokenStrides& s, int64_t of) {
  return s.batch % of == 0 && s.head % of == 0 && s.token % of == 0;
}
bool IsAligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Dims of a row of the tensor-core kernels' tiles.
int64_t PitchOf(const Problem& p) { return p.qk_dim <= 64 && p.v_dim <= 64 ? 64 : 128; }

// How many parts the keys are cut into so that `blocks` of them fill the device.
struct Cut {
  int64_t parts, a_part;  // units a part
};
Cut CutOf(int64_t units, int64_t blocks, int64_t wanted, int64_t least) {
  int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, blocks));
  parts = std::min(parts, std::max<int64_t>(1, units / least));
  const int64_t a_part = std::max<int64_t>(1, CeilDivide(units, parts));
  return {std::max<int64_t>(1, CeilDivide(units, a_part)), a_part};
}

bool IsDecode(const Problem& p) { return p.q_len * p.group() <= kMaxDecodeRows; }

constexpr int kDecodeKeys = 64;

// Enough blocks for eight a multiprocessor, each with 256 keys at least.
Cut DecodeCut(const Problem& p) {
  return CutOf(CeilDivide(p.kv_len, kDecodeKeys), p.batch * p.kv_heads, 8 * Multiprocessors(), 4);
}
// Which forward kernel: Hopper's own, or the one for every device.
struct ForwardTiles {
  bool sm90;
  int64_t queries, keys;
};
ForwardTiles TilesOf(const Problem& p) {
#ifdef SAGE_WITH_EXACT_SM90
  if (ComputeCapability() == 90 && p.qk_dim <= 128 && p.v_dim <= 128)
    return {true, kSm90Queries, kSm90Keys};
#else
  (void)p;
#endif
  return {false, kForwardQueries, kForwardKeys};
}

// Half a wave of blocks and more is left alone; less is cut, down to 512 keys a part.
Cut ForwardCut(const Problem& p, const ForwardTiles& tiles) {
  const int64_t blocks =
      p.batch * p.q_heads * CeilDivide(p.q_len, tiles.queries) * CeilDivide(p.v_dim, PitchOf(p));
  return CutOf(CeilDivide(p.kv_len, tiles.keys), blocks, 2 * Multiprocessors(), 512 / tiles.keys);
}

PartialOutputs TakePartial(const Problem& p, int64_t parts, Workspace* workspace) {
  const int64_t rows = parts * p.batch * p.q_heads * p.q_len;
  PartialOutputs partial = {};
  partial.o = workspace->Take<float>(rows * p.v_dim);
  partial.top = workspace->Take<float>(rows);
  partial.sum = workspace->Take<float>(rows);
  return partial;
}

Destination DestinationOf(const Problem& p, const ForwardBuffers& buffers) {
  return {buffers.o, p.o, buffers.lse,
          p.v_dim % 2 == 0 && IsMultiple(p.o, 2) && IsAligned(buffers.o, 8)};
}

void Merge(const Problem& p, const PartialOutputs& partial, int parts, const Destination& out,
           void* stream) {
  MergePlan plan = {};
  plan.partial = partial;
  plan.parts = parts;
  plan.rows = p.batch * p.q_heads * p.q_len;
  plan.q_heads = static_cast<int>(p.q_heads);
  plan.q_len = static_cast<int>(p.q_len);
  plan.v_dim = static_cast<int>(p.v_dim);
  plan.out = out;
  LaunchMerge(plan, stream);
}

void Decode(const Problem& p, const ForwardBuffers& buffers, Workspace workspace, void* stream) {
  const Cut cut = DecodeCut(p);
  DecodePlan plan = {};
  plan.q = buffers.q;
  plan.k = buffers.k;
  plan.v = buffers.v;
  plan.q_strides = p.q;
  plan.k_strides = p.k;
  plan.v_strides = p.v;
  plan.visibility = Visibility::Of(p, buffers.mask);
  plan.out = DestinationOf(p, buffers);
  plan.partial = TakePartial(p, cut.parts, &workspace);
  plan.parts = static_cast<int>(cut.parts);
  plan.keys_a_part = static_cast<int>(cut.a_part * kDecodeKeys);
  plan.q_heads = static_cast<int>(p.q_heads);
  plan.kv_heads = static_cast<int>(p.kv_heads);
  plan.group = static_cast<int>(p.group());
  plan.batch = p.batch;
  plan.qk_dim = static_cast<int>(p.qk_dim);
  plan.v_dim = static_cast<int>(p.v_dim);
  plan.vectors = p.qk_dim % 4 == 0 && p.v_dim % 4 == 0 && IsMultiple(p.k, 4) &&
                 IsMultiple(p.v, 4) && IsAligned(buffers.k, 16) && IsAligned(buffers.v, 16);
  plan.scale = static_cast<float>(p.scale * kLog2EDouble);
  LaunchDecode(plan, stream);
  Merge(p, plan.partial, plan.parts, plan.out, stream);
}

}  // namespace

int64_t ExactForwardWorkspace(const Problem& p) {
  Workspace workspace(nullptr);
  if (p.group() == 0 || p.q_len == 0) return 0;
  if (IsDecode(p)) {
    TakePartial(p, DecodeCut(p).parts, &workspace);
    return workspace.used();
  }
  JobOf(p, nullptr, nullptr, nullptr, &workspace);
  const Cut cut = ForwardCut(p, TilesOf(p));
  if (cut.parts > 1) TakePartial(p, cut.parts, &workspace);
  return workspace.used();
}

void ExactForward(const Problem& p, const ForwardBuffers& buffers, void* memory, void* stream) {
  if (p.batch * p.q_heads * p.q_len == 0) return;
  Workspace workspace(memory);
  if (IsDecode(p)) return Decode(p, buffers, workspace, stream);

  const SplitJob job = JobOf(p, buffers.q, buffers.k, buffers.v, &workspace);
  LaunchSplitRows(job, stream);
  const ForwardTiles tiles = TilesOf(p);
  const Cut cut = ForwardCut(p, tiles);
  const int64_t pitch = PitchOf(p);
  ForwardPlan plan = {};
  plan.q = job.sources[0].out;
  plan.k = job.sources[1].out;
  plan.v = job.sources[2].out;
  plan.visibility = Visibility::Of(p, buffers.mask);
  plan.out = DestinationOf(p, buffers);
  plan.parts = static_cast<int>(cut.parts);
  plan.tiles_a_part = static_cast<int>(cut.a_part);
  if (cut.parts > 1) plan.partial = TakePartial(p, cut.parts, &workspace);
  plan.v_source = buffers.v;
  plan.v_strides = p.v;
  plan.q_heads = static_cast<int>(p.q_heads);
  plan.group = static_cast<int>(p.group());
  plan.heads = p.batch * p.q_heads;
  plan.v_dim = static_cast<int>(p.v_dim);
  plan.query_tiles = static_cast<int>(CeilDivide(p.q_len, tiles.queries));
  plan.qk_chunks = static_cast<int>(CeilDivide(p.qk_dim, pitch));
  plan.v_chunks = static_cast<int>(CeilDivide(p.v_dim, pitch));
  plan.scale = static_cast<float>(p.scale * kLog2EDouble);
#ifdef SAGE_WITH_EXACT_SM90
  const auto launch = tiles.sm90    ? LaunchForwardSm90
                      : pitch == 64 ? LaunchForward64
                                    : LaunchForward128;
#else
  const auto launch = pitch == 64 ? LaunchForward64 : LaunchForward128;
#endif
  launch(plan, stream);
  if (cut.parts > 1) Merge(p, plan.partial, plan.parts, plan.out, stream);
}

namespace {

// Q, K, V and dO, and delta.
SplitJob BackwardJobOf(const Problem& p, const BackwardBuffers& buffers, Workspace* workspace) {
  SplitJob job = JobOf(p, buffers.q, buffers.k, buffers.v, workspace);
  job.count = 4;
  job.sources[3] =
      SourceOf(buffers.d_o, p.o, p.batch, p.q_heads, p.q_len, p.v_dim, false, workspace);
  job.o = buffers.o;
  job.d_lse = buffers.d_lse;
  job.delta = workspace->Take<float>(p.batch * p.q_heads * p.q_len);
  return job;
}

}  // namespace

int64_t ExactBackwardWorkspace(const Problem& p) {
  Workspace workspace(nullptr);
  BackwardJobOf(p, BackwardBuffers{}, &workspace);
  return workspace.used();
}

void ExactBackward(const Problem& p, const BackwardBuffers& buffers, void* memory, void* stream) {
  Workspace workspace(memory);
  const SplitJob job = BackwardJobOf(p, buffers, &workspace);
  LaunchSplitRows(job, stream);
  const int64_t pitch = PitchOf(p);
  BackwardPlan plan = {};
  plan.q = job.sources[0].out;
  plan.k = job.sources[1].out;
  plan.v = job.sources[2].out;
  plan.d_o = job.sources[3].out;
  plan.visibility = Visibility::Of(p, buffers.mask);
  plan.lse = buffers.lse;
  plan.delta = job.delta;
  plan.d_o_source = buffers.d_o;
  plan.d_o_strides = p.o;
  plan.d_q = buffers.d_q;
  plan.d_k = buffers.d_k;
  plan.d_v = buffers.d_v;
  plan.q_strides = p.q;
  plan.k_strides = p.k;
  plan.v_strides = p.v;
  plan.q_heads = static_cast<int>(p.q_heads);
  plan.kv_heads = static_cast<int>(p.kv_heads);
  plan.group = static_cast<int>(p.group());
  plan.batch = p.batch;
  plan.qk_dim = static_cast<int>(p.qk_dim);
  plan.v_dim = static_cast<int>(p.v_dim);
  plan.qk_chunks = static_cast<int>(CeilDivide(p.qk_dim, pitch));
  plan.v_chunks = static_cast<int>(CeilDivide(p.v_dim, pitch));
  plan.scale = static_cast<float>(p.scale);
  (pitch == 64 ? LaunchQueryGradient64 : LaunchQueryGradient128)(plan, stream);
  (pitch == 64 ? LaunchKeyValueGradient64 : LaunchKeyValueGradient128)(plan, stream);

  if (buffers.d_mask == nullptr || p.batch * p.q_heads * p.q_len * p.kv_len == 0) return;
  MaskGradientPlan mask = {};
  mask.q = buffers.q;
  mask.k = buffers.k;
  mask.v = buffers.v;
  mask.d_o = buffers.d_o;
  mask.lse = buffers.lse;
  mask.delta = job.delta;
  mask.q_strides = p.q;
  mask.k_strides = p.k;
  mask.v_strides = p.v;
  mask.d_o_strides = p.o;
  mask.visibility = plan.visibility;
  mask.d_mask = buffers.d_mask;
  mask.q_heads = plan.q_heads;
  mask.group = plan.group;
  mask.batch = p.batch;
  mask.qk_dim = plan.qk_dim;
  mask.v_dim = plan.v_dim;
  mask.scale = plan.scale;
  LaunchMaskGradient(mask, stream);
}

}  // namespace sage::cuda
