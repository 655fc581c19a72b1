// Balance of channels in front of nvfp4 (docs/numerics.md 4.5): a channel that is wide in k and
// narrow in q moves a power of two from one to the other, so that a score stays what it is.
//
//   spread of a block = max - min where a mean is taken out later, else the largest |x|
//   e[d] = round(log2((Sk[d] / max Sk) / (Sq[d] / max Sq)) / 2), -3 to 3, from the sums S of blocks
#ifndef SAGE_CPU_FORWARD_CHANNEL_BALANCE_H_
#define SAGE_CPU_FORWARD_CHANNEL_BALANCE_H_

#include <math.h>

#include "cpu/forward/load_rows.h"
#include "cpu/forward/plan.h"

namespace sage {
namespace {

// spread[d] = the larger of itself and the spread of the rows' finite values.
SAGE_NOINLINE void RaiseSpreads(const Source& rows, bool centred, float* spread) {
  for (int d = 0; d < rows.dim; ++d) {
    float low = INFINITY, high = -INFINITY;
    for (int t = 0; t < rows.rows; ++t) {
      float x = rows.base[t * rows.stride + d];
      if (!IsFiniteValue(x)) continue;
      if (!centred) x = fabsf(x);
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    if (!centred) low = 0.0f;
    if (high > low && high - low > spread[d]) spread[d] = high - low;
  }
}

// Sums of the spreads of `count` blocks, [count][dim], in float64 in their order.
SAGE_INLINE float SumOfSpreads(const float* spreads, int64_t count, int64_t dim, int64_t d) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(spreads[i * dim + d]);
  return static_cast<float>(sum);
}

// 2^e, of x = Sk[d] max Sq and y = Sq[d] max Sk: exact in float64 unless a spread is beyond
// float32.
SAGE_INLINE float BalancePower(double x, double y) {
  if (x == 0.0 || y == 0.0 || x * y * 0.0 != 0.0) return 1.0f;
  const double wide = x >= y ? x : y, narrow = x >= y ? y : x;
  const int e = (wide >= 2.0 * narrow) + (wide >= 8.0 * narrow) + (wide >= 32.0 * narrow);
  return ldexpf(1.0f, x >= y ? e : -e);
}

// The powers of a head's channels from its blocks' spreads.
SAGE_NOINLINE void BalanceHead(const Plan& plan, Head* head) {
  const int64_t dim = plan.problem->qk_dim;
  float widest_k = 0.0f, widest_q = 0.0f;
  for (int64_t d = 0; d < dim; ++d) {
    const float k = SumOfSpreads(head->k_spread, plan.blocks, dim, d);
    const float q = SumOfSpreads(head->q_spread, plan.group * plan.q_blocks, dim, d);
    widest_k = k > widest_k ? k : widest_k;
    widest_q = q > widest_q ? q : widest_q;
    head->k_balance[d] = k;
    head->q_balance[d] = q;
  }
  for (int64_t d = 0; d < dim; ++d) {
    const double x = static_cast<double>(head->k_balance[d]) * static_cast<double>(widest_q);
    const double y = static_cast<double>(head->q_balance[d]) * static_cast<double>(widest_k);
    const float power = BalancePower(x, y);
    head->q_balance[d] = power;
    head->k_balance[d] = 1.0f / power;
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_CHANNEL_BALANCE_H_
