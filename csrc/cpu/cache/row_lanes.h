// Products of few float32 rows of q and p with rows of k and v that lie as the caller stored them:
// rows of q lie in the lanes, so a key needs no transposition and its score no sum over lanes.
//
//   rows of a task  ->  blocks of 1, 2, 4, .. kLanes rows ("lanes" of a block)
//   q of a block    [dim / group][row][dim of the group], group = kLanes / lanes: a vector
//   LaneScores      8 or 16 keys x one vector (or about half as many x two vectors, two blocks):
//                     s[key][row] += k[key][dims of the group, for every row] * q
//                   then the dims of a group are added: s[key][lanes]
//   LaneOutputs     o[row][dim] = alpha o + p[key][row] v[key][dim]: up to 12 rows x vectors of v
//
// Each line of k and v is read from memory once. It is asked for a little ahead of the products, in
// the order of addresses (LineCursor) and spread evenly between them: of many requests at once some
// are dropped, and the products wait for the others.
#ifndef SAGE_CPU_CACHE_ROW_LANES_H_
#define SAGE_CPU_CACHE_ROW_LANES_H_

#include <cstdint>

#include "cpu/cache/decode_plan.h"
#include "cpu/simd/keep_addresses.h"
#include "cpu/simd/simd_groups.h"

namespace sage {
namespace {

struct FloatRows {
  const float* base;
  int64_t stride;
};

// Lines of memory that will be needed, in the order of their addresses.
struct LineCursor {
  const float* row;
  int64_t stride;    // from row to row
  int64_t at, end;   // within a row
  bool near;         // into L1, else L2
  int passes, turn;  // so many passes over the same keys ask for lines in turns

  LineCursor(const FloatRows& rows, int64_t dim, bool into_l1, int passes_over_keys)
      : row(rows.base),
        stride(rows.stride),
        at(0),
        // Rows without gaps are one row.
        end(rows.stride == dim ? INT64_MAX : dim),
        near(into_l1),
        passes(passes_over_keys),
        turn(0) {}

  // The next kLines lines, for FetchPart between the products of the caller. Null if another pass
  // has its turn, or if they do not lie together: then they are asked for here.
  template <int kLines>
  const float* Take() {
    constexpr int kFloats = kLines * 16;
    if (++turn < passes) return nullptr;
    turn = 0;
    if (end - at < kFloats) {
      FetchApart(kLines);
      return nullptr;
    }
    const float* from = row + at;
    at += kFloats;
    if (at >= end) NextRow();
    return from;
  }
  // A function of its own, so that loops of products keep their registers for themselves.
  __attribute__((noinline, cold)) void FetchApart(int lines) {
    for (int n = 0; n < lines; ++n) {
      PrefetchLine(row + at, near);
      at += 16;
      if (at >= end) NextRow();
    }
  }
  void NextRow() {
    at = 0;
    row += stride;
  }
};

// Asks for part `part` of kParts of the kLines lines from `lines` on, if not null.
template <int kLines, int kParts>
SAGE_INLINE void FetchPart(const float* lines, bool near, int part) {
  if (lines == nullptr) return;
  const int first = part * kLines / kParts, end = (part + 1) * kLines / kParts;
  if (near) {
#pragma GCC unroll 16
    for (int n = first; n < end; ++n) PrefetchNear(lines + n * 16);
  } else {
#pragma GCC unroll 16
    for (int n = first; n < end; ++n) Prefetch(lines + n * 16);
  }
}

// Keys that all rows meet before the next; those of them in registers at once with one vector of
// rows, and with two; the most rows of a tile of outputs: 16 to 24 accumulators on AVX-512's 32
// registers, 8 to 12 on 16. Eight do not keep two products a cycle going.
#if defined(SAGE_ISA_AVX512)
constexpr int kKeyTile = 16, kSingleKeys = 16, kOutputTile = 12;
constexpr int kPairKeys[] = {8, 8};
#elif defined(SAGE_ISA_AVX2)
constexpr int kKeyTile = 16, kSingleKeys = 8, kOutputTile = 6;
constexpr int kPairKeys[] = {6, 6, 4};
#else
constexpr int kKeyTile = 8, kSingleKeys = 8, kOutputTile = 6;
constexpr int kPairKeys[] = {4, 4};
#endif
static_assert(kStep % kKeyTile == 0, "tiles fill steps and vectors");

// Rows [first, first + rows) of a task; the q of other lanes is 0.
struct RowBlock {
  int first, rows, lanes;
};

// Whole ones, an odd one of them in halves, and what is left over in powers of two.
constexpr int kMostBlocks = kFloatTaskRows / kLanes + 4;
struct RowBlocks {
  RowBlock block[kMostBlocks];
  int count;
};

SAGE_INLINE RowBlocks BlocksOf(int rows) {
  RowBlocks blocks;
  blocks.count = 0;
  for (int first = 0; first < rows;) {
    const int left = rows - first;
    int lanes = kLanes;
    while (lanes > left) lanes /= 2;
    // A quarter of the lanes empty costs less than another pass over the keys.
    if (lanes < kLanes && 2 * left >= 3 * lanes) lanes *= 2;
    if (lanes == kLanes && left > kOutputTile && left <= kLanes && first / kLanes % 2 == 0) {
      // One whole block alone would load a value of k for each product: two halves share them.
      const int half = kLanes / 2;
      blocks.block[blocks.count++] = {first, half, half};
      blocks.block[blocks.count++] = {first + half, left - half, half};
      break;
    }
    const int here = left < lanes ? left : lanes;
    blocks.block[blocks.count++] = {first, here, lanes};
    first += here;
  }
  return blocks;
}

// Floats of q of a block: whole groups of dims, then single ones.
SAGE_INLINE int64_t LaneFloats(int dim, int lanes) {
  const int group = kLanes / lanes;
  return int64_t{dim / group + dim % group} * kLanes;
}

// q of a block from its rows, `stride` floats apart.
SAGE_NOINLINE void SpreadRows(const RowBlock& block, const float* q, int64_t stride, int dim,
                              float* out) {
  const int group = kLanes / block.lanes, whole = dim / group;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int row = lane / group, at = lane % group;
    const float* from = q + row * stride;
    const bool used = row < block.rows;
    for (int n = 0; n < whole; ++n) out[n * kLanes + lane] = used ? from[n * group + at] : 0.0f;
    // A single dim is broadcast to the whole group: one lane of it counts.
    for (int d = whole * group; d < dim; ++d) {
      out[(whole + d - whole * group) * kLanes + lane] = used && at == 0 ? from[d] : 0.0f;
    }
  }
}

// A tile of keys, four to a pointer: each address is then a pointer and one of three strides.
template <int kKeys>
struct KeyPointers {
  static constexpr int kPointers = (kKeys + 3) / 4;
  const float* of[kPointers];
  int64_t stride, three;

  KeyPointers(const float* k, int64_t key_stride) : stride(key_stride), three(3 * key_stride) {
#pragma GCC unroll 4
    for (int n = 0; n < kPointers; ++n) of[n] = k + 4 * n * key_stride;
  }
  void Advance(int dims) {
#pragma GCC unroll 4
    for (int n = 0; n < kPointers; ++n) of[n] += dims;
    // Else the compiler makes a pointer of each sum, and has no registers for them.
    if constexpr (kPointers == 4) {
      KeepAddresses(of[0], of[1], of[2], of[3]);
    } else if constexpr (kPointers == 2) {
      KeepAddresses(of[0], of[1]);
    } else {
      KeepAddress(of[0]);
    }
  }
  const float* At(int t) const {
    const int64_t offset = t % 4 == 0 ? 0 : t % 4 == 1 ? stride : t % 4 == 2 ? 2 * stride : three;
    return of[t / 4] + offset;
  }
};

// Products of the next kGroup dims.
template <int kGroup, int kVectors, int kKeys>
SAGE_INLINE void AddProducts(const float* q, int64_t q_block, KeyPointers<kKeys>* k,
                             F32 (&acc)[kVectors][kKeys]) {
  F32 row[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) row[v] = Load(q + v * q_block);
#pragma GCC unroll 16
  for (int t = 0; t < kKeys; ++t) {
    const F32 x = BroadcastGroup<kGroup>(k->At(t));
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[v][t] = Fma(x, row[v], acc[v][t]);
  }
  k->Advance(kGroup);
}

// Sums over dims of kKeys keys; as many lines as these keys have are brought into the cache by
// `ahead`, if not null.
template <int kGroup, int kVectors, int kKeys>
SAGE_INLINE void MultiplyKeys(const float* q, int64_t q_block, const float* k, int64_t stride,
                              LineCursor* ahead, int dim, F32 (&acc)[kVectors][kKeys]) {
  // Dims of a line of memory, and of a pass of the loop: of as many lines as come out whole.
  constexpr int kLine = 16, kDims = (kKeys % 4 == 0 ? 4 : 8) * kGroup;
  constexpr int kPass = kDims < kLine ? kDims : kLine, kLines = kKeys * kPass / kLine;
  static_assert(kLines * kLine == kKeys * kPass, "whole lines");
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int t = 0; t < kKeys; ++t) acc[v][t] = Zero();
  }
  KeyPointers<kKeys> keys(k, stride);
  const bool near = ahead != nullptr && ahead->near;
  int d = 0;
  for (; d + kLine <= dim; d += kLine) {
    for (int e = 0; e < kLine; e += kPass) {
      const float* lines = ahead == nullptr ? nullptr : ahead->Take<kLines>();
#pragma GCC unroll 8
      for (int n = 0; n < kPass / kGroup; ++n) {
        FetchPart<kLines, kPass / kGroup>(lines, near, n);
        AddProducts<kGroup, kVectors>(q, q_block, &keys, acc);
        q += kLanes;
      }
    }
  }
  if (d < dim && ahead != nullptr) FetchPart<kKeys, 1>(ahead->Take<kKeys>(), near, 0);
  for (; d + kGroup <= dim; d += kGroup) {
    AddProducts<kGroup, kVectors>(q, q_block, &keys, acc);
    q += kLanes;
  }
  if constexpr (kGroup > 1) {
    for (; d < dim; ++d) {
      AddProducts<1, kVectors>(q, q_block, &keys, acc);
      q += kLanes;
    }
  }
}

// Scores of kKeys keys with kVectors blocks, whose q lie q_block floats apart and whose s lie
// s_block apart. Returns a sum that is 0 if all scores are finite.
template <int kGroup, int kVectors, int kKeys>
SAGE_NOINLINE F32 LaneScoresOf(const float* q, int64_t q_block, const float* k, int64_t stride,
                               LineCursor* ahead, int dim, float* s, int64_t s_block) {
  F32 acc[kVectors][kKeys];
  // With few rows memory counts for more than the products: few keys at a time are nearly in its
  // order, unless there are gaps between them.
  constexpr int kTogether = kVectors == 1 && kGroup >= 4 ? 4 : kKeys;
  if (kTogether >= kKeys || stride != dim) {
    MultiplyKeys<kGroup>(q, q_block, k, stride, ahead, dim, acc);
  } else {
#pragma GCC unroll 4
    for (int t = 0; t < kKeys; t += kTogether) {
      F32 some[1][kTogether];
      MultiplyKeys<kGroup>(q, q_block, k + t * stride, stride, ahead, dim, some);
#pragma GCC unroll 8
      for (int i = 0; i < kTogether; ++i) acc[0][t + i] = some[0][i];
    }
  }
  F32 bad = Zero();
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int t = 0; t < kKeys; t += kGroup) {
      const F32 sums = SumGroups<kGroup>(acc[v] + t);
      bad = Fma(sums, Zero(), bad);
      Store(s + v * s_block + t / kGroup * kLanes, sums);
    }
  }
  return bad;
}

// o[r] = alpha[r] o[r] + sum over keys of p[key][r] v[key], C vectors wide (alpha null: 1); kPart:
// the last of them holds only `last` dims. As many lines as these dims of the keys have are brought
// into the cache by `ahead`, if not null.
template <int R, int C, bool kPart>
SAGE_NOINLINE void LaneOutputTile(const float* p, int p_stride, const float* v, int64_t stride,
                                  int count, LineCursor* ahead, int last, const float* alpha,
                                  float* o, int64_t o_stride) {
  F32 acc[R][C];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < C; ++t) acc[r][t] = Load(o + r * o_stride + t * kLanes);
  }
  if (alpha != nullptr) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const F32 a = Set1(alpha[r]);
#pragma GCC unroll 8
      for (int t = 0; t < C; ++t) acc[r][t] = Mul(a, acc[r][t]);
    }
  }
  const auto add_key = [&]() __attribute__((always_inline)) {
    F32 value[C];
#pragma GCC unroll 8
    for (int t = 0; t < C; ++t) {
      const float* at = v + t * kLanes;
      value[t] = kPart && t == C - 1 ? LoadFirst(at, last) : R <= 4 ? LoadArriving(at) : LoadU(at);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const F32 a = Set1(p[r]);
#pragma GCC unroll 8
      for (int t = 0; t < C; ++t) acc[r][t] = Fma(a, value[t], acc[r][t]);
    }
    v += stride;
    p += p_stride;
  };
  const bool near = ahead != nullptr && ahead->near;
  constexpr int kTogether = 4, kLines = kTogether * C * kLanes / 16;
  int left = count;
  for (; left >= kTogether; left -= kTogether) {
    const float* lines = ahead == nullptr ? nullptr : ahead->Take<kLines>();
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) {
      FetchPart<kLines, kTogether>(lines, near, j);
      add_key();
    }
  }
  for (; left > 0; --left) add_key();
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < C; ++t) Store(o + r * o_stride + t * kLanes, acc[r][t]);
  }
}

// Vectors of v in registers at once beside `rows` rows: as many as the accumulators leave room for.
constexpr int OutputVectors(int rows) {
  const int even = rows + rows % 2;
  return rows == 1 ? 8 : even * 4 <= 2 * kOutputTile ? 4 : even * 3 <= 2 * kOutputTile ? 3 : 2;
}

// One panel of R rows; `width` dims from v on, at most OutputVectors(R) vectors.
template <int R>
SAGE_INLINE void LaneOutputs(const float* p, int p_stride, const float* v, int64_t stride,
                             int count, LineCursor* ahead, int width, const float* alpha, float* o,
                             int64_t o_stride) {
  constexpr int kMost = OutputVectors(R);
  const int vectors = (width + kLanes - 1) / kLanes, last = width - (vectors - 1) * kLanes;
#define SAGE_PANEL(C)                                                                          \
  if constexpr (C <= kMost) {                                                                  \
    if (vectors == C && last == kLanes) {                                                      \
      return LaneOutputTile<R, C, false>(p, p_stride, v, stride, count, ahead, last, alpha, o, \
                                         o_stride);                                            \
    }                                                                                          \
    if (vectors == C) {                                                                        \
      return LaneOutputTile<R, C, true>(p, p_stride, v, stride, count, ahead, last, alpha, o,  \
                                        o_stride);                                             \
    }                                                                                          \
  }
  SAGE_PANEL(1)
  SAGE_PANEL(2) SAGE_PANEL(3) SAGE_PANEL(4) SAGE_PANEL(5) SAGE_PANEL(6) SAGE_PANEL(7) SAGE_PANEL(8)
#undef SAGE_PANEL
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_ROW_LANES_H_
