// Float32 rows of k and v, in a tensor or in the pages of a cache, as operands of attend_rows.h:
// each is read once, where it lies, and nothing is packed unless more than four rows share it.
#ifndef SAGE_CPU_CACHE_FLOAT_OPERANDS_H_
#define SAGE_CPU_CACHE_FLOAT_OPERANDS_H_

#include <string.h>

#include "cpu/cache/cache_functions.h"
#include "cpu/cache/decode_plan.h"
#include "cpu/cache/float_products.h"
#include "cpu/cache/store_tokens.h"

namespace sage {
namespace {

struct FloatOperands {
  const CacheView* cache;  // null: rows of a tensor
  PageLayout layout;
  const Problem* problem;
  const ForwardBuffers* buffers;
  int64_t head;
  FloatRows k, v;
  bool transposed;

  static constexpr bool kReadsUserMemory = true;

  static int RowBytes(const DecodePlan& plan, const PageLayout&) { return plan.qk_dims * 4; }

  void Begin(int64_t head_index) { head = head_index; }

  bool PrepareRow(const DecodePlan& plan, const float* q, float* x, uint8_t* row, float* c) const {
    const Problem& p = *plan.problem;
    const int dim = static_cast<int>(p.qk_dim);
    const bool finite = CenterRow(q, nullptr, dim, x);
    const float factor = static_cast<float>(p.scale * 1.44269504088896340736);
    float* out = reinterpret_cast<float*>(row);
    for (int d = 0; d < dim; ++d) out[d] = x[d] * factor;
    for (int d = dim; d < plan.qk_dims; ++d) out[d] = 0.0f;
    *c = 1.0f;
    return finite;
  }

  // Rows of k and v from token j on, as far as they lie together.
  FloatRows KeysAt(int64_t j) const {
    const Problem& p = *problem;
    if (cache != nullptr) {
      const uint8_t* part = cache->pages[j / kStep] + head * layout.head_bytes;
      return {reinterpret_cast<const float*>(part) + j % kStep * p.qk_dim, p.qk_dim};
    }
    return {
        buffers->k + head / p.kv_heads * p.k.batch + head % p.kv_heads * p.k.head + j * p.k.token,
        p.k.token};
  }
  FloatRows ValuesAt(int64_t j) const {
    const Problem& p = *problem;
    if (cache != nullptr) {
      const uint8_t* part = cache->pages[j / kStep] + head * layout.head_bytes + layout.v;
      return {reinterpret_cast<const float*>(part) + j % kStep * p.v_dim, p.v_dim};
    }
    return {
        buffers->v + head / p.kv_heads * p.v.batch + head % p.kv_heads * p.v.head + j * p.v.token,
        p.v.token};
  }

  void BeginStep(const DecodePlan& plan, int64_t step, int64_t /*end_step*/,
                 const DecodeScratch& scratch, bool careful) {
    const Problem& p = *problem;
    const int count = static_cast<int>(MinOf(kStep, p.kv_len - step * kStep));
    k = KeysAt(step * kStep);
    v = ValuesAt(step * kStep);
    if (careful) {
      k = Scrub(k, count, static_cast<int>(p.qk_dim), scratch.k_copy);
      v = Scrub(v, count, static_cast<int>(p.v_dim), scratch.v_copy);
    }
    transposed = plan.rows > kDirectRows;
    if (transposed) TransposeKeys(k, count, static_cast<int>(p.qk_dim), scratch.k_tile);
  }

  // Finite values as they are, 0 for the others.
  FloatRows Scrub(const FloatRows& rows, int count, int dim, float* copy) {
    for (int t = 0; t < count; ++t) {
      for (int d = 0; d < dim; ++d) {
        const float x = rows.base[t * rows.stride + d];
        copy[t * dim + d] = MagnitudeBits(x) < kNotFiniteBits ? x : 0.0f;
      }
    }
    return {copy, dim};
  }

  void Scores(const DecodePlan& plan, int64_t r0, int rows, int count,
              const DecodeScratch& scratch) const {
    const int dim = static_cast<int>(problem->qk_dim);
    const float* q = reinterpret_cast<const float*>(scratch.q + r0 * plan.row_bytes);
    if (transposed) {
      TransposedScores(q, plan.qk_dims, rows, scratch.k_tile, count, dim, scratch.s, kStep);
    } else {
      DirectScores(q, plan.qk_dims, rows, k, count, dim, scratch.s, kStep);
    }
  }

  // p needs no further form.
  float Weigh(int /*r*/, int /*count*/, const DecodeScratch&) const { return 1.0f; }

  void Accumulate(const DecodePlan& plan, int64_t r0, int rows, int count, const float* alpha,
                  const float* /*factor*/, const DecodeScratch& scratch) const {
    FloatOutput(scratch.s, kStep, rows, v, count, static_cast<int>(problem->v_dim), alpha,
                scratch.results.o + r0 * plan.v_dims, plan.v_dims);
  }

  const float* KeyMean() const { return nullptr; }

  // Found out on the way.
  bool HasMarks(const DecodePlan&) const { return false; }
  // Looks at the values themselves: only called once something was found not to be finite.
  bool AnyMarks(int64_t) const { return true; }
  uint8_t MarksOf(int64_t j) const {
    const FloatRows key = KeysAt(j), value = ValuesAt(j);
    const bool bad_key = MaxBits(key.base, static_cast<int>(problem->qk_dim)) >= kNotFiniteBits;
    const bool bad_value = MaxBits(value.base, static_cast<int>(problem->v_dim)) >= kNotFiniteBits;
    return static_cast<uint8_t>((bad_key ? kKeyMark : 0) | (bad_value ? kValueMark : 0));
  }
  bool ValueIsBad(int64_t j, int d) const {
    return MagnitudeBits(ValuesAt(j).base[d]) >= kNotFiniteBits;
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_FLOAT_OPERANDS_H_
