// What minds values that are not finite (docs/numerics.md 2): sums and maxima of the others, rows
// with zeros in their place, and marks of the tokens that have them.
#ifndef SAGE_CPU_FORWARD_FINITE_ROWS_H_
#define SAGE_CPU_FORWARD_FINITE_ROWS_H_

#include <math.h>

#include "cpu/forward/load_rows.h"

namespace sage {
namespace {

// Values that are not finite become 0 (after smoothing, so that they take no part in any scale).
SAGE_NOINLINE void ScrubRows(const Source& source, int dims, float* x) {
  for (int t = 0; t < source.rows; ++t) {
    for (int d = 0; d < source.dim; ++d) {
      if (!IsFiniteValue(source.base[t * source.stride + d])) x[t * dims + d] = 0.0f;
    }
  }
}

// Largest finite magnitude of the rows, when LoadRows met others.
SAGE_NOINLINE float LargestFinite(const Source& source) {
  float most = 0.0f;
  for (int t = 0; t < source.rows; ++t) {
    for (int d = 0; d < source.dim; ++d) {
      const float value = fabsf(source.base[t * source.stride + d]);
      if (IsFiniteValue(value) && value > most) most = value;
    }
  }
  return most;
}

// Sums over finite values in float64, row after row (docs/numerics.md 3), and how many they were.
SAGE_INLINE void SumRows(const Source& source, bool finite, double* sum, double* count) {
  for (int d = 0; d < source.dim; ++d) {
    sum[d] = 0.0;
    count[d] = finite ? source.rows : 0.0;
  }
  for (int t = 0; t < source.rows; ++t) {
    const float* row = source.base + t * source.stride;
    if (finite) {
      for (int d = 0; d < source.dim; ++d) sum[d] += static_cast<double>(row[d]);
      continue;
    }
    for (int d = 0; d < source.dim; ++d) {
      if (!IsFiniteValue(row[d])) continue;
      sum[d] += static_cast<double>(row[d]);
      count[d] += 1.0;
    }
  }
}

// Marks the tokens whose rows have such values with `bit`, and in `any` that there are some.
SAGE_NOINLINE void MarkTokens(const Source& source, uint8_t bit, uint8_t* marks, int* any) {
  for (int t = 0; t < source.rows; ++t) {
    for (int d = 0; d < source.dim; ++d) {
      if (!IsFiniteValue(source.base[t * source.stride + d])) marks[t] |= bit;
    }
  }
  __atomic_fetch_or(any, bit, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FINITE_ROWS_H_
