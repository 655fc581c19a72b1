// One row of q against float32 rows of k and v, the decoding of one token: nothing but memory
// counts, so these loops hold as little as they can besides loads.
//
//   OneRowScores   kLanes keys at a time:
//                    a[key] = sum over vectors of k[key] q;  s[keys] = SumGroups(a)
//   OneRowOutputs  o = alpha o + sum over keys of s[key] v[key], all of o in registers
//
// Each load is followed by a request for the line AheadRows rows further. The loops of any number
// of rows (row_lanes.h) ask for the same lines from cursors, with ten instructions a line instead
// of two; then fewer lines are on their way while the products wait: on a Zen 5 74 to 82 % of a
// plain read against 93 to 99 %.
#ifndef SAGE_CPU_CACHE_ONE_ROW_H_
#define SAGE_CPU_CACHE_ONE_ROW_H_

#include "cpu/cache/row_lanes.h"

namespace sage {
namespace {

// 3 to 4 KiB ahead: contiguous rows do as well with 2 on a Zen 5, rows with gaps on a Xeon better
// with 4; with 8 and 16 they are up to 6 and 12 % slower.
constexpr int AheadRows(int dims) { return dims <= 64 ? 16 : dims <= 128 ? 8 : 4; }

// Asks for the lines of vector `n` of a row: one vector of several asks for a line they share.
SAGE_INLINE void FetchLineOf(const float* row, int n) {
  constexpr int kLine = 16;
  if (n * kLanes % kLine == 0) PrefetchNear(row + n * kLanes);
}

// Scores of `count` keys, whole tiles of kLanes; behind the last of them come those from `next` on.
// Returns a sum that is 0 if all scores are finite.
template <int kDims>
SAGE_NOINLINE F32 OneRowScoresOf(const float* q, const FloatRows& k, const FloatRows& next,
                                 int count, float* s) {
  constexpr int kVectors = kDims / kLanes, kAhead = AheadRows(kDims);
  constexpr int kTogether = kAhead < kLanes ? kAhead : kLanes;
  static_assert(kDims % kLanes == 0 && kLanes % kTogether == 0, "whole vectors, whole tiles");
  F32 bad = Zero();
  const float* row = k.base;
  for (int j = 0; j < count; j += kLanes) {
    F32 key[kLanes];
#pragma GCC unroll 8
    for (int t = 0; t < kLanes; t += kTogether) {
      const int behind = j + t + kAhead - count;
      const bool here = behind < 0;
      const float* ahead = here ? row + kAhead * k.stride : next.base + behind * next.stride;
      const int64_t ahead_stride = here ? k.stride : next.stride;
#pragma GCC unroll 16
      for (int i = 0; i < kTogether; ++i) {
        // Two sums: one would make the products of a key wait for each other.
        F32 sum[2] = {Zero(), Zero()};
#pragma GCC unroll 32
        for (int n = 0; n < kVectors; ++n) {
          sum[n % 2] = Fma(LoadU(row + n * kLanes), Load(q + n * kLanes), sum[n % 2]);
          FetchLineOf(ahead, n);
        }
        key[t + i] = Add(sum[0], sum[1]);
        row += k.stride;
        ahead += ahead_stride;
        KeepAddresses(row, ahead);  // else each row gets a pointer, and registers run out
      }
    }
    const F32 sums = SumGroups<kLanes>(key);
    bad = Fma(sums, Zero(), bad);
    Store(s + j, sums);
  }
  return bad;
}

template <int kDims>
SAGE_NOINLINE void OneRowOutputsOf(const float* s, const FloatRows& v, const FloatRows& next,
                                   int count, float alpha, float* o) {
  constexpr int kVectors = kDims / kLanes, kAhead = AheadRows(kDims);
  F32 acc[kVectors];
#pragma GCC unroll 32
  for (int n = 0; n < kVectors; ++n) acc[n] = Mul(Set1(alpha), Load(o + n * kLanes));
  const float* row = v.base;
  const auto add_key = [&](int j, const float* ahead) __attribute__((always_inline)) {
    const F32 p = Set1(s[j]);
#pragma GCC unroll 32
    for (int n = 0; n < kVectors; ++n) {
      acc[n] = Fma(p, LoadU(row + n * kLanes), acc[n]);
      if (ahead != nullptr) FetchLineOf(ahead, n);
    }
    row += v.stride;
  };
  int j = 0;
  for (; j + kAhead <= count; j += kAhead) {
    const bool here = j + 2 * kAhead <= count;
    const float* ahead = here ? row + kAhead * v.stride : next.base;
    const int64_t ahead_stride = here ? v.stride : next.stride;
#pragma GCC unroll 16
    for (int i = 0; i < kAhead; ++i) {
      add_key(j + i, ahead);
      ahead += ahead_stride;
      KeepAddresses(row, ahead);
    }
  }
  for (; j < count; ++j) add_key(j, nullptr);
#pragma GCC unroll 32
  for (int n = 0; n < kVectors; ++n) Store(o + n * kLanes, acc[n]);
}

#define SAGE_ONE_ROW_DIMS(X) X(64) X(96) X(128) X(256)

// Registers for all of o and some besides; o in panels was slower than the loops of any rows.
constexpr bool HoldsOutputs(int64_t dims) { return dims / kLanes <= (kLanes == 16 ? 24 : 12); }

// Whether there are loops for so many dims.
SAGE_INLINE bool HasOneRowScores(int64_t dims) {
#define SAGE_ONE_ROW_CASE(DIMS) \
  if (dims == DIMS) return true;
  SAGE_ONE_ROW_DIMS(SAGE_ONE_ROW_CASE)
#undef SAGE_ONE_ROW_CASE
  return false;
}
SAGE_INLINE bool HasOneRowOutputs(int64_t dims) {
  return HasOneRowScores(dims) && HoldsOutputs(dims);
}

SAGE_INLINE F32 OneRowScores(int64_t dims, const float* q, const FloatRows& k,
                             const FloatRows& next, int count, float* s) {
#define SAGE_ONE_ROW_CASE(DIMS) \
  if (dims == DIMS) return OneRowScoresOf<DIMS>(q, k, next, count, s);
  SAGE_ONE_ROW_DIMS(SAGE_ONE_ROW_CASE)
#undef SAGE_ONE_ROW_CASE
  return Zero();
}

SAGE_INLINE void OneRowOutputs(int64_t dims, const float* s, const FloatRows& v,
                               const FloatRows& next, int count, float alpha, float* o) {
#define SAGE_ONE_ROW_CASE(DIMS)                                                  \
  if constexpr (HoldsOutputs(DIMS)) {                                            \
    if (dims == DIMS) return OneRowOutputsOf<DIMS>(s, v, next, count, alpha, o); \
  }
  SAGE_ONE_ROW_DIMS(SAGE_ONE_ROW_CASE)
#undef SAGE_ONE_ROW_CASE
}

#undef SAGE_ONE_ROW_DIMS

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_ONE_ROW_H_
