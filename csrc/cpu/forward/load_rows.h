// From rows of q, k or v as the caller laid them out to x[row * dims + d], padded with zeros, in
// one pass over memory: copied, less a mean, or as integer codes. What they return tells on the way
// whether every value was finite.
#ifndef SAGE_CPU_FORWARD_LOAD_ROWS_H_
#define SAGE_CPU_FORWARD_LOAD_ROWS_H_

#include <string.h>

#include "cpu/forward/integer_scale.h"
#include "cpu/forward/plan.h"
#include "cpu/simd/keep_addresses.h"

namespace sage {
namespace {

// Rows of one operand that a phase works on: (t, d) at base[t * stride + d].
struct Source {
  const float* base;
  int64_t stride;
  int rows;
  int dim;
};

// Up to `most` tokens from `first` on; none where that is padding.
SAGE_INLINE Source KSource(const Plan& plan, const Head& head, int64_t first, int64_t most) {
  const Problem& p = *plan.problem;
  return {plan.buffers->k + head.batch * p.k.batch + head.kv_head * p.k.head + first * p.k.token,
          p.k.token, static_cast<int>(MaxOf(0, MinOf(most, p.kv_len - first))),
          static_cast<int>(p.qk_dim)};
}

SAGE_INLINE Source VSource(const Plan& plan, const Head& head, int64_t first, int64_t most) {
  const Problem& p = *plan.problem;
  return {plan.buffers->v + head.batch * p.v.batch + head.kv_head * p.v.head + first * p.v.token,
          p.v.token, static_cast<int>(MaxOf(0, MinOf(most, p.kv_len - first))),
          static_cast<int>(p.v_dim)};
}

SAGE_INLINE Source QSource(const Plan& plan, const Head& head, int64_t g, int64_t first,
                           int64_t rows) {
  const Problem& p = *plan.problem;
  const int64_t q_head = head.kv_head * plan.group + g;
  return {plan.buffers->q + head.batch * p.q.batch + q_head * p.q.head + first * p.q.token,
          p.q.token, static_cast<int>(rows), static_cast<int>(p.qk_dim)};
}

// Rows of a task one after the other, as query i of query head g of the group (a division for each
// row would cost as much as copying it).
struct RowWalk {
  int64_t i, g;
  void Next(const Plan& plan) {
    if (++g < plan.group) return;
    g = 0;
    ++i;
  }
};

// The query of row `row` of a key/value head.
SAGE_INLINE int64_t QueryOf(const Plan& plan, int64_t row) {
  return plan.group == 1 ? row : row / plan.group;
}

SAGE_INLINE RowWalk WalkFrom(const Plan& plan, int64_t row) {
  if (plan.group == 1) return {row, 0};  // two divisions less for each tile
  return {row / plan.group, row % plan.group};
}

// kCount rows at one distance, of which the first `there` exist; padding repeats the last of these.
// One after the other: the compiler would multiply all distances as a vector, which takes longer.
template <class Float, int kCount>
SAGE_INLINE void StepRows(Float* base, int64_t stride, int64_t there, Float* (&row)[kCount]) {
  for (int r = 0; r < kCount; ++r) {
    KeepAddress(base);
    row[r] = base;
    base = r + 1 < there ? base + stride : base;
  }
}

SAGE_INLINE bool IsFiniteValue(float value) { return MagnitudeBits(value) < kInfBits; }

// out[0, dims) = fn(row[d], d) for d < dim, then zeros; returns the largest magnitude of the row
// and of `most` in each lane (MaxMagnitude). fn takes vectors (the last one filled up with zeros)
// and their first index; nothing beyond out[dims) or row[dim) is touched.
template <class Fn>
SAGE_INLINE F32 LoadRow(const float* row, int dim, int dims, F32 most, float* out, const Fn& fn) {
  int d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    const F32 value = LoadU(row + d);
    most = MaxMagnitude(most, value);
    StoreU(out + d, fn(value, d, kLanes));
  }
  if (d == dims) return most;
  if (d < dim) {
    const F32 value = LoadFirst(row + d, dim - d);
    most = MaxMagnitude(most, value);
    alignas(64) float last[kLanes];
    Store(last, fn(value, d, dim - d));
    for (int i = 0; d < dim; ++i, ++d) out[d] = last[i];
  }
  for (; d < dims; ++d) out[d] = 0.0f;
  return most;
}

// x = the rows, less `mean` where there is one; returns the bits of the largest magnitude of the
// rows themselves (at least kInfBits: not all are finite).
SAGE_INLINE int32_t LoadRows(const Source& source, int dims, float* x,
                             const float* mean = nullptr) {
  F32 most = Zero();
  const auto copy = [](F32 value, int, int) { return value; };
  const auto subtract = [mean](F32 value, int d, int count) {
    return Sub(value, count == kLanes ? LoadU(mean + d) : LoadFirst(mean + d, count));
  };
  for (int t = 0; t < source.rows; ++t) {
    const float* row = source.base + t * source.stride;
    most = mean == nullptr ? LoadRow(row, source.dim, dims, most, x + t * dims, copy)
                           : LoadRow(row, source.dim, dims, most, x + t * dims, subtract);
  }
  return ReduceMaxBits(most);
}

// x = the rows' codes, value · inverse of its channel rounded to the nearest integer, and zeros for
// rows up to `padded`; returns as LoadRows does.
SAGE_INLINE int32_t LoadCodes(const Source& source, int dims, const float* inverse, int padded,
                              float* x) {
  F32 most = Zero();
  // dims and `inverse` are whole vectors.
  const auto round = [inverse](F32 value, int d, int) {
    return RoundCodes(Mul(value, Load(inverse + d)));
  };
  for (int t = 0; t < source.rows; ++t) {
    const float* row = source.base + t * source.stride;
    most = LoadRow(row, source.dim, dims, most, x + t * dims, round);
  }
  memset(x + source.rows * dims, 0,
         sizeof(float) * static_cast<size_t>((padded - source.rows) * dims));
  return ReduceMaxBits(most);
}

SAGE_INLINE void SubtractMean(float* x, int rows, int dim, int dims, const float* mean) {
  for (int t = 0; t < rows; ++t) {
    float* row = x + t * dims;
    int d = 0;
    for (; d + kLanes <= dim; d += kLanes) StoreU(row + d, Sub(LoadU(row + d), LoadU(mean + d)));
    for (; d < dim; ++d) row[d] = row[d] - mean[d];
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_LOAD_ROWS_H_
