// Float32 rows of k and v, in a tensor or in the pages of a cache, as operands of attend_rows.h:
// each is read once, where it lies, and nothing is packed.
#ifndef SAGE_CPU_CACHE_FLOAT_OPERANDS_H_
#define SAGE_CPU_CACHE_FLOAT_OPERANDS_H_

#include <string.h>

#include "cpu/cache/cache_functions.h"
#include "cpu/cache/decode_plan.h"
#include "cpu/cache/float_steps.h"
#include "cpu/cache/row_lanes.h"
#include "cpu/cache/store_tokens.h"

namespace sage {
namespace {

struct FloatOperands {
  const CacheView* cache;  // null: rows of a tensor
  PageLayout layout;
  const Problem* problem;
  const ForwardBuffers* buffers;
  int64_t head;

  static int RowBytes(const DecodePlan& plan, const PageLayout&) { return plan.qk_dims * 4; }

  static void CarveSteps(const DecodePlan& plan, Carver* carver, DecodeScratch* scratch) {
    CarveFloatSteps(plan, carver, scratch);
  }

  void Begin(int64_t head_index) { head = head_index; }

  bool PrepareRow(const DecodePlan& plan, const float* q, float* x, uint8_t* row, float* c) const {
    const Problem& p = *plan.problem;
    const int dim = static_cast<int>(p.qk_dim);
    const bool finite = CenterRow(q, nullptr, dim, x);
    const float factor = static_cast<float>(p.scale * 1.44269504088896340736);
    float* out = reinterpret_cast<float*>(row);
    for (int d = 0; d < dim; ++d) out[d] = x[d] * factor;
    *c = 1.0f;
    return finite;
  }

  // Rows of k and v of head `h` from token j on, as far as they lie together.
  FloatRows KeysAt(int64_t h, int64_t j) const {
    const Problem& p = *problem;
    if (cache != nullptr) {
      const uint8_t* part = cache->pages[j / kStep] + h * layout.head_bytes;
      return {reinterpret_cast<const float*>(part) + j % kStep * p.qk_dim, p.qk_dim};
    }
    return {buffers->k + h / p.kv_heads * p.k.batch + h % p.kv_heads * p.k.head + j * p.k.token,
            p.k.token};
  }
  FloatRows ValuesAt(int64_t h, int64_t j) const {
    const Problem& p = *problem;
    if (cache != nullptr) {
      const uint8_t* part = cache->pages[j / kStep] + h * layout.head_bytes + layout.v;
      return {reinterpret_cast<const float*>(part) + j % kStep * p.v_dim, p.v_dim};
    }
    return {buffers->v + h / p.kv_heads * p.v.batch + h % p.kv_heads * p.v.head + j * p.v.token,
            p.v.token};
  }

  // False where values that are not finite were met: call it again, carefully.
  bool AttendSteps(const DecodePlan& plan, int64_t row0, int64_t rows, int64_t step, int64_t end,
                   const DecodeScratch& scratch, bool careful) const {
    return AttendFloatSteps(plan, *this, head, row0, rows, step, end, scratch, careful);
  }

  const float* KeyMean() const { return nullptr; }

  // Found out on the way.
  bool HasMarks(const DecodePlan&) const { return false; }
  // Looks at the values themselves: only called once something was found not to be finite.
  bool AnyMarks(int64_t) const { return true; }
  uint8_t MarksOf(int64_t j) const {
    const FloatRows key = KeysAt(head, j), value = ValuesAt(head, j);
    const bool bad_key = MaxBits(key.base, static_cast<int>(problem->qk_dim)) >= kNotFiniteBits;
    const bool bad_value = MaxBits(value.base, static_cast<int>(problem->v_dim)) >= kNotFiniteBits;
    return static_cast<uint8_t>((bad_key ? kKeyMark : 0) | (bad_value ? kValueMark : 0));
  }
  bool ValueIsBad(int64_t j, int d) const {
    return MagnitudeBits(ValuesAt(head, j).base[d]) >= kNotFiniteBits;
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_FLOAT_OPERANDS_H_
