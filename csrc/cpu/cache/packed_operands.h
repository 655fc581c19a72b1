// The pages of a cache in 8 bits (v also in 16) as operands of attend_rows.h.
#ifndef SAGE_CPU_CACHE_PACKED_OPERANDS_H_
#define SAGE_CPU_CACHE_PACKED_OPERANDS_H_

#include <math.h>

#include "cpu/cache/cache_functions.h"
#include "cpu/cache/decode_plan.h"
#include "cpu/cache/digits.h"
#include "cpu/cache/packed_steps.h"
#include "cpu/cache/store_tokens.h"

namespace sage {
namespace {

// How far ahead of the products codes are asked for: half as much is up to 30 % slower, half again
// as much level. Rows of several groups go over the whole of a page one after the other: then it is
// a page.
constexpr int64_t kAheadBytes = 8192;
// Lines for each vector of a softmax.
constexpr int kSoftmaxLines = 4;

struct PackedOperands {
  const CacheView* cache;
  PageLayout layout;
  int64_t head;
  const uint8_t* part;              // of the head in the page of this step
  CodeCursor ahead;                 // goes on from step to step
  int score_passes, output_passes;  // over the codes of a page

  static int RowBytes(const DecodePlan&, const PageLayout& layout) {
    return static_cast<int>(RoundUp(2 * layout.k_dims, 64));
  }

  static void CarveSteps(const DecodePlan&, Carver* carver, DecodeScratch* scratch) {
    scratch->s = carver->Take<float>(kGroupRows * kStep);
    scratch->digits = carver->Take<uint8_t>(kGroupRows * 2 * kStep);
  }

  void Begin(int64_t head_index) {
    head = head_index;
    ahead = {};
  }

  // Digits of a row of q, and the factor from sums to scores in the log2 domain; whether it was
  // finite.
  bool PrepareRow(const DecodePlan& plan, const float* q, float* x, uint8_t* row, float* c) const {
    const Problem& p = *plan.problem;
    const int dim = static_cast<int>(p.qk_dim);
    const bool finite = CenterRow(q, nullptr, dim, x);
    const float scale = RoundToCodes(x, dim, kQTop);
    // The sign of the scale goes with q, so that the largest sum is the largest score.
    const float sign = p.scale < 0 ? -1.0f : 1.0f;
    for (int d = dim; d < layout.k_dims; ++d) x[d] = 0.0f;
    for (int d = 0; d < layout.k_dims; ++d) {
      const int32_t code = static_cast<int32_t>(sign * x[d]) + kQOffset;
      row[d] = static_cast<uint8_t>(code >> 7);
      row[layout.k_dims + d] = static_cast<uint8_t>(code & 127);
    }
    *c = scale * static_cast<float>(fabs(p.scale) * 1.44269504088896340736);
    return finite;
  }

  // Codes are finite: there is nothing to be careful about.
  bool AttendSteps(const DecodePlan& plan, int64_t row0, int64_t rows, int64_t step, int64_t end,
                   const DecodeScratch& scratch, bool /*careful*/) {
    AttendPackedSteps(plan, this, head, row0, rows, step, end, scratch);
    return true;
  }

  // Passes over a tile or a panel, `most` rows at a time, all groups of rows together.
  static int PassesOf(int64_t rows, int most) {
    int passes = 0;
    for (int64_t r0 = 0; r0 < rows; r0 += kGroupRows) {
      passes += (static_cast<int>(MinOf(kGroupRows, rows - r0)) + most - 1) / most;
    }
    return passes;
  }

  // The part of this head in the next page of a chunk that ends before `end`; behind the last, the
  // first of the task that this thread takes next if all are equally fast.
  const uint8_t* PartAfter(const DecodePlan& plan, int64_t step, int64_t end) const {
    if (step + 1 < end) return cache->pages[step + 1] + head * layout.head_bytes;
    const int64_t task = head * plan.chunks + step / plan.chunk + plan.threads;
    if (task >= plan.heads * plan.chunks) return part;
    return cache->pages[task % plan.chunks * plan.chunk] + task / plan.chunks * layout.head_bytes;
  }

  void BeginStep(const DecodePlan& plan, int64_t step, int64_t end, int64_t rows) {
    part = cache->pages[step] + head * layout.head_bytes;
    const uint8_t* next = PartAfter(plan, step, end);
    const bool one_group = rows <= kGroupRows;
    const int64_t codes = layout.k_scale;
    score_passes = PassesOf(rows, kScoreRows);
    output_passes = PassesOf(rows, kOutputRows);
    ahead.near = plan.fetch_near;
    ahead.BeginStep(part, codes, next, one_group ? MinOf(kAheadBytes, codes) : codes);
    // What lies behind the codes is needed among them.
    for (int64_t at = codes; at < layout.head_bytes; at += kLineBytes) {
      PrefetchLine(next + at, plan.fetch_near);
    }
  }

  // The softmax of each row asks for lines too, up to 64 in a step, 128 by vectors of 8.
  void BeginSoftmax(int64_t rows) { ahead.SetPasses(static_cast<int>((rows + 1) / 2)); }
  void AskInSoftmax() {
    if (ahead.near) ahead.Ask<kSoftmaxLines>();
  }

  // Scores of rows [r0, r0 + rows), to be multiplied by the rows' factors.
  void Scores(const DecodePlan& plan, int64_t r0, int rows, int count,
              const DecodeScratch& scratch) {
    ScorePlane(plan, r0, rows, count, scratch, 0, scratch.s);
    if (layout.k_planes == 1) return;
    alignas(64) float low[kGroupRows * kStep];
    ScorePlane(plan, r0, rows, count, scratch, 1, low);
    const int padded = static_cast<int>(RoundUp(count, kTileTokens));
    for (int r = 0; r < rows; ++r) {
      float* s = scratch.s + r * kStep;
      for (int j = 0; j < padded; j += kLanes) {
        Store(s + j, Fma(Load(s + j), Set1(kHighDigit), Load(low + r * kStep + j)));
      }
    }
  }

  void ScorePlane(const DecodePlan& plan, int64_t r0, int rows, int count,
                  const DecodeScratch& scratch, int plane, float* s) {
    const uint8_t* codes = part + plane * layout.k_plane;
    const uint8_t* sums = part + layout.first_sum + plane * kPageTokens * 4;
    const int parts = (rows + kScoreRows - 1) / kScoreRows;
    ahead.SetPasses(score_passes);
    for (int tile = 0; tile * kTileTokens < count; ++tile) {
      const int64_t tile_bytes = int64_t{kTileTokens} * layout.k_dims;
      ScoreOperands a;
      a.ahead = &ahead;
      a.q_stride = plan.row_bytes;
      a.k = codes + tile * tile_bytes;
      a.first_sum = reinterpret_cast<const int32_t*>(sums) + tile * kTileTokens;
      a.scale = reinterpret_cast<const float*>(part + layout.k_scale) + tile * kTileTokens;
      a.dims = layout.k_dims;
      for (int n = 0; n < parts; ++n) {
        const int first = rows * n / parts, end = rows * (n + 1) / parts;
        a.q = scratch.q + (r0 + first) * plan.row_bytes;
        ScoreRows(end - first, a, s + first * kStep + tile * kTileTokens, kStep);
      }
    }
  }

  // Row r of the group: p in scratch.s becomes digits relative to the largest p · V scale; returns
  // what a digit sum is multiplied by.
  float Weigh(int r, int count, const DecodeScratch& scratch) const {
    float* p = scratch.s + r * kStep;
    const float* scale = reinterpret_cast<const float*>(part + layout.v_scale);
    F32 most = Zero();
    for (int j = 0; j < count; j += kLanes) {
      const F32 w = Mul(Load(p + j), Load(scale + j));
      Store(p + j, w);
      most = Max(w, most);
    }
    const float top = ReduceMax(most);
    const bool tiny = !(MagnitudeBits(top) >= kTinyBits);
    const F32 inverse = Set1(tiny ? 0.0f : kPTop / top);
    uint8_t* high = scratch.digits + r * 2 * kStep;
    for (int j = 0; j < count; j += kLanes) {
      StoreDigits(Min(Mul(Load(p + j), inverse), Set1(kPTop)), high + j, high + kStep + j);
    }
    return tiny ? 0.0f : top / kPTop;
  }

  // o = alpha o + p v for rows [r0, r0 + rows), over `count` keys (a multiple of 16).
  void Accumulate(const DecodePlan& plan, int64_t r0, int rows, int count, const float* alpha,
                  const float* factor, const DecodeScratch& scratch) {
    const int parts = (rows + kOutputRows - 1) / kOutputRows;
    ahead.SetPasses(output_passes);
    const float ones[3] = {1.0f, 1.0f, 1.0f};
    static_assert(kOutputRows <= 3, "a one for each row of a panel");
    // The high plane brings o to the new maximum; the low one is added to that.
    for (int plane = 0; plane < layout.v_planes; ++plane) {
      const bool last = plane + 1 == layout.v_planes;
      for (int d = 0; d < layout.v_dims; d += kPanelDims) {
        const int width = layout.v_dims - d < kPanelDims ? layout.v_dims - d : kPanelDims;
        OutputOperands a;
        a.ahead = &ahead;
        a.groups = count / 4;
        a.o_stride = plan.v_dims;
        a.v = part + layout.v + plane * layout.v_plane + int64_t{d} * kPageTokens;
        for (int n = 0; n < parts; ++n) {
          const int first = rows * n / parts, end = rows * (n + 1) / parts;
          a.p = scratch.digits + first * 2 * kStep;
          a.o = scratch.results.o + (r0 + first) * plan.v_dims + d;
          a.alpha = plane == 0 ? alpha + first : ones;
          float scaled[kGroupRows];
          for (int r = first; r < end; ++r) {
            scaled[r - first] = last ? factor[r] : factor[r] * kHighDigit;
          }
          a.factor = scaled;
          OutputRows(end - first, width / kVectorDims, a);
        }
      }
    }
  }

  // Mean of this head's keys, which the codes lack.
  const float* KeyMean() const { return cache->k_mean + head * cache->shape->qk_dim; }

  // Whether this head holds values that were not finite.
  bool HasMarks(const DecodePlan& plan) const {
    for (int64_t step = 0; step < plan.steps; ++step) {
      if (AnyMarks(step)) return true;
    }
    return false;
  }
  // Marks of token j, and whether channel d of its v was not finite.
  bool AnyMarks(int64_t step) const {
    return cache->pages[step][head * layout.head_bytes + layout.any_marks] != 0;
  }
  uint8_t MarksOf(int64_t j) const {
    return cache->pages[j / kStep][head * layout.head_bytes + layout.marks + j % kStep];
  }
  bool ValueIsBad(int64_t j, int d) const {
    const uint8_t code = cache->pages[j / kStep][head * layout.head_bytes +
                                                 VCodeAt(layout, static_cast<int>(j % kStep), d)];
    return static_cast<int8_t>(code) == kNotFiniteCode;
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_PACKED_OPERANDS_H_
