// A few rows of q against float32 rows of k and v, decoding and what drafts a few tokens ahead:
// nothing but memory counts, so these loops hold as little as they can besides loads, and ask for
// all lines in the order in which they will be used.
//
//   rows      in slots of a vector of s: 1, 2, 4 or 8, of which the last may be empty
//   Scores    kLanes / slots keys at a time, one after the other:
//               a[key][row] = sum over vectors of k[key] q[row]        k[key] is read once
//               each four of them are added up as soon as they are there (Sum4)
//             s[key][slot] = JoinFours(a)
//   Outputs   o[row] = alpha[row] o[row] + sum over keys of s[key][row] v[key], in panels of dims
//             whose o stay in registers; some keys for all panels, then the next
//
//   lines     k of a step, then its v, then k of the next step, AheadRows ahead: each load of a
//             line is followed by a request for another
//
// The loops of any number of rows (row_lanes.h) read a line of k in parts, with some ten
// instructions a line, and ask for k of the next step before v of this one. Shares of a plain read
// without requests on a Zen 5, these and those: 94 to 98 and 74 to 85 % with one row, 85 to 90 and
// 79 to 83 % with two to four, 82 and 74 % with five and six.
#ifndef SAGE_CPU_CACHE_FEW_ROWS_H_
#define SAGE_CPU_CACHE_FEW_ROWS_H_

#include "cpu/cache/decode_plan.h"
#include "cpu/cache/row_lanes.h"

namespace sage {
namespace {

// Vectors of o in registers at once.
#if defined(SAGE_ISA_AVX512)
constexpr int kOutputRegisters = 16;
#else
constexpr int kOutputRegisters = 12;
#endif

// The slots of so many rows.
constexpr int SlotsOf(int rows) { return rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : 8; }

// How far ahead lines are asked for: 4 KiB with one row, 6 to 8 with more. Other distances from 4
// to 16 KiB are up to 10 % slower.
constexpr int AheadRows(int rows, int dims) {
  const int row_bytes = dims * static_cast<int>(sizeof(float));
  if (rows == 1) return dims <= 64 ? 16 : dims <= 128 ? 8 : 4;
  return dims == 96 ? 16 : 8192 / row_bytes;
}

// Vectors of v in registers at once: as many as divide a row of v and leave room for o.
constexpr int PanelVectors(int rows, int vectors) {
  int most = 1;
  for (int n = 1; n <= vectors; ++n) {
    if (vectors % n == 0 && n * rows <= kOutputRegisters) most = n;
  }
  return most;
}

// Asks for the lines of vector `n` of a row: one vector of several asks for a line they share.
SAGE_INLINE void FetchLineOf(const float* row, int n) {
  constexpr int kLine = 16;
  if (n * kLanes % kLine == 0) PrefetchNear(row + n * kLanes);
}

// Scores of `count` keys, whole tiles of kKeyTile; behind the last of them comes `next`. Returns a
// sum that is 0 if all scores are finite.
template <int R, int kDims>
SAGE_NOINLINE F32 FewScoresOf(const float* q, const FloatRows& k, const FloatRows& next, int count,
                              float* s) {
  constexpr int kVectors = kDims / kLanes, kAhead = AheadRows(R, kDims), kSlots = SlotsOf(R);
  constexpr int kKeys = kLanes / kSlots;
  // Keys between two looks at where the lines ahead lie.
  constexpr int kTogether = kKeys < 4 ? kKeys : 4;
  static_assert(kDims % kLanes == 0 && kAhead % kTogether == 0, "whole vectors, whole tiles");
  F32 bad = Zero();
  const float* row = k.base;
  for (int j = 0; j < count; j += kKeys) {
    F32 a[kLanes];
    Fours sums[kLanes / 4];
    const float* ahead = nullptr;
    int64_t ahead_stride = 0;
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) {
      if (i % kTogether == 0) {
        const int behind = j + i + kAhead - count;
        ahead = behind < 0 ? row + kAhead * k.stride : next.base + behind * next.stride;
        ahead_stride = behind < 0 ? k.stride : next.stride;
      }
      F32 sum[R];
#pragma GCC unroll 32
      for (int n = 0; n < kVectors; ++n) {
        const F32 x = LoadArriving(row + n * kLanes);
        FetchLineOf(ahead, n);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const F32 y = Load(q + r * kDims + n * kLanes);
          sum[r] = n == 0 ? Mul(x, y) : Fma(x, y, sum[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kSlots; ++r) {
        a[i * kSlots + r] = r < R ? sum[r % R] : Zero();
      }
#pragma GCC unroll 4
      for (int t = 0; t < kLanes / 4; ++t) {
        const int last = 4 * t + 3;
        if (last / kSlots == i) sums[t] = Sum4(a + 4 * t);
      }
      row += k.stride;
      ahead += ahead_stride;
      KeepAddresses(row, ahead);  // else each row gets a pointer, and registers run out
    }
    const F32 scores = JoinFours(sums);
    bad = Fma(scores, Zero(), bad);
    Store(s + j * kSlots, scores);
  }
  return bad;
}

template <int R, int kDims>
SAGE_NOINLINE void FewOutputsOf(const float* s, const FloatRows& v, const FloatRows& next,
                                int count, const float* alpha, float* o) {
  constexpr int kVectors = kDims / kLanes, kAhead = AheadRows(R, kDims), kSlots = SlotsOf(R);
  constexpr int kWidth = PanelVectors(R, kVectors), kPanels = kVectors / kWidth;
  // Keys for all panels before the next ones, which are asked for meanwhile.
  constexpr int kChunk = kAhead < 16 ? kAhead : 16, kTogether = 4;
  F32 acc[R][kWidth];
  const auto load = [&](int panel, bool first) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
      for (int n = 0; n < kWidth; ++n) {
        const F32 x = Load(o + r * kDims + (panel * kWidth + n) * kLanes);
        acc[r][n] = first ? Mul(Set1(alpha[r]), x) : x;
      }
    }
  };
  const auto store = [&](int panel) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
      for (int n = 0; n < kWidth; ++n) {
        Store(o + r * kDims + (panel * kWidth + n) * kLanes, acc[r][n]);
      }
    }
  };
  // One key of a panel; so many vectors of v as it has are asked for, from vector `at` on. The
  // weights of all rows stay in registers, or where those are too few, the panel's part of v.
  constexpr int kRegisters = kOutputRegisters == 12 ? 16 : 32;
  constexpr bool kKeepsWeights = R * kWidth + R + 1 <= kRegisters || kWidth >= R;
  const auto add_key = [&](const float* row, const float* p, const float* ahead, int at)
      __attribute__((always_inline)) {
    F32 weight[R], x[kWidth];
    if (kKeepsWeights) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) weight[r] = Set1(p[r]);
    }
#pragma GCC unroll 32
    for (int n = 0; n < kWidth; ++n) {
      x[n] = LoadArriving(row + n * kLanes);
      if (ahead != nullptr) FetchLineOf(ahead - at * kLanes, at + n);
      if (kKeepsWeights) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][n] = Fma(weight[r], x[n], acc[r][n]);
      }
    }
    if (!kKeepsWeights) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F32 of_row = Set1(p[r]);
#pragma GCC unroll 32
        for (int n = 0; n < kWidth; ++n) acc[r][n] = Fma(of_row, x[n], acc[r][n]);
      }
    }
  };
  if (kPanels == 1) load(0, true);
  int j = 0;
  for (; j + kChunk <= count; j += kChunk) {
    const int behind = j + kAhead - count;
    const FloatRows from = behind < 0 ? FloatRows{v.base + (j + kAhead) * v.stride, v.stride}
                                      : FloatRows{next.base + behind * next.stride, next.stride};
    const float* ahead = from.base;
    int part = 0;  // of the row that is asked for
#pragma GCC unroll 1
    for (int panel = 0; panel < kPanels; ++panel) {
      const float *row = v.base + j * v.stride + panel * kWidth * kLanes, *p = s + j * kSlots;
      if (kPanels > 1) load(panel, j == 0);
#pragma GCC unroll 1
      for (int i = 0; i < kChunk; i += kTogether) {
#pragma GCC unroll 4
        for (int t = 0; t < kTogether; ++t) {
          add_key(row, p, ahead, t * kWidth);
          row += v.stride;
          p += kSlots;
          ahead += kWidth * kLanes;
          if (++part == kPanels) {
            part = 0;
            ahead += from.stride - kDims;
          }
          KeepAddresses(row, ahead);
        }
      }
      if (kPanels > 1) store(panel);
    }
  }
  for (int panel = 0; panel < kPanels; ++panel) {
    if (kPanels > 1) load(panel, j == 0);
    for (int i = j; i < count; ++i) {
      add_key(v.base + i * v.stride + panel * kWidth * kLanes, s + i * kSlots, nullptr, 0);
    }
    store(panel);
  }
}

#define SAGE_FEW_ROWS(X, D) X(1, D) X(2, D) X(3, D) X(4, D) X(6, D)
#define SAGE_FEW_ROWS_DIMS(X) X(64) X(96) X(128) X(256)

// Whether there are loops for so many dims.
SAGE_INLINE bool HasFewRowLoops(int64_t dims) {
#define SAGE_FEW_ROWS_CASE(D) \
  if (dims == D) return true;
  SAGE_FEW_ROWS_DIMS(SAGE_FEW_ROWS_CASE)
#undef SAGE_FEW_ROWS_CASE
  return false;
}

// The rows that are computed: q of those beyond `rows` must be zeros, o must have room for them.
SAGE_INLINE int ComputedRows(int rows) { return rows > 4 ? rows + rows % 2 : rows; }

SAGE_INLINE F32 FewScores(int rows, int64_t dims, const float* q, const FloatRows& k,
                          const FloatRows& next, int count, float* s) {
  const int64_t key = dims * 16 + ComputedRows(rows);
  switch (key) {
#define SAGE_FEW_ROWS_CASE(R, D) \
  case D * 16 + R:               \
    return FewScoresOf<R, D>(q, k, next, count, s);
#define SAGE_FEW_ROWS_OF(D) SAGE_FEW_ROWS(SAGE_FEW_ROWS_CASE, D)
    SAGE_FEW_ROWS_DIMS(SAGE_FEW_ROWS_OF)
#undef SAGE_FEW_ROWS_CASE
    default:
      return Zero();
  }
}

SAGE_INLINE void FewOutputs(int rows, int64_t dims, const float* s, const FloatRows& v,
                            const FloatRows& next, int count, const float* alpha, float* o) {
  const int64_t key = dims * 16 + ComputedRows(rows);
  switch (key) {
#define SAGE_FEW_ROWS_CASE(R, D) \
  case D * 16 + R:               \
    return FewOutputsOf<R, D>(s, v, next, count, alpha, o);
    SAGE_FEW_ROWS_DIMS(SAGE_FEW_ROWS_OF)
#undef SAGE_FEW_ROWS_CASE
    default:
      return;
  }
}

#undef SAGE_FEW_ROWS_OF
#undef SAGE_FEW_ROWS
#undef SAGE_FEW_ROWS_DIMS

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_FEW_ROWS_H_
