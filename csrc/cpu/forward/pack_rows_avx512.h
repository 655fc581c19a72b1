// Rows of Q, K and V straight from the caller's memory to the operands of tile_avx512.h: int8 with
// a scale for each row of Q and K, int8 with one for each channel or bf16 of V. Whole chunks of 64
// dims of Q and K, and finite values; the rest takes the general path (prepass.h, attend.h) and
// gives the same codes.
//
//   scale = max |x| / 127, code = round(x · (127 / max |x|))      docs/numerics.md 4.2
//
// Two passes over the rows, of which the second finds them in L1: largest magnitudes, then codes
// in registers, 64 dims of a row in one. What the general path costs besides is the way through
// memory as float32 and one row's steps waiting for each other.
#ifndef SAGE_CPU_FORWARD_PACK_ROWS_AVX512_H_
#define SAGE_CPU_FORWARD_PACK_ROWS_AVX512_H_

#include <immintrin.h>
#include <string.h>

#include "cpu/forward/attend.h"
#include "cpu/forward/prepass.h"
#include "cpu/forward/tile_avx512.h"
#include "cpu/simd/dot_avx512.h"
#include "cpu/simd/simd_shuffle.h"
#include "formats/float_bits.h"

namespace sage {
namespace {

// Dims of one register of codes.
constexpr int kChunkDims = 64;

// Keys that are packed together, a tile of both kernels: 16 at a time would wait for their scales.
// Of 64 dims they stay in L1.
constexpr int kKeyTokens = 64;

// Sixteens of queries whose factors are found together.
constexpr int kQueryParts = 3;

// The dims of a chunk as the packing instructions leave them: each 128 bits hold four dims of each
// vector of 16, so dword w of the row is in lane w % 4 * 4 + w / 4.
SAGE_INLINE __m512i PackCodes(const F32 x[4], F32 by) {
  __m512i code[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) code[i] = _mm512_cvtps_epi32(Mul(x[i], by).r);
  return _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]),
                            _mm512_packs_epi32(code[2], code[3]));
}

SAGE_INLINE bool AllFinite(F32 magnitudes) {
  const __m512i infinity = _mm512_set1_epi32(kInfBits);
  return _mm512_cmpge_epi32_mask(_mm512_castps_si512(magnitudes.r), infinity) == 0;
}

// Where 16 keys lie, of which `count` are there; the others are null.
SAGE_INLINE void KeyRows(const float* rows, int64_t stride, int count, const float* row[16]) {
  for (int t = 0; t < 16; ++t) row[t] = t < count ? rows + t * stride : nullptr;
}

// 16 dims of a key less a mean; a key that is not there is one of zeros, less no mean.
SAGE_INLINE F32 KeyDims(const float* row, int d, F32 shift) {
  return row == nullptr ? Zero() : Sub(LoadU(row + d), shift);
}

// The scales of up to 16 keys less a mean, and what multiplies them to codes. False where some
// value is not finite.
SAGE_NOINLINE bool KeyScales(const float* rows, int64_t stride, int count, int dims,
                             const float* mean, float sign, float* scale, float* by) {
  const float* row[16];
  KeyRows(rows, stride, count, row);
  F32 most[16];
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) most[t] = Zero();
  for (int d = 0; d < dims; d += 16) {
    const F32 shift = mean == nullptr ? Zero() : LoadU(mean + d);
    if (count == 16) {
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) most[t] = MaxMagnitude(most[t], Sub(LoadU(row[t] + d), shift));
    } else {
      for (int t = 0; t < 16; ++t) most[t] = MaxMagnitude(most[t], KeyDims(row[t], d, shift));
    }
  }
  F32 all = most[0];
#pragma GCC unroll 16
  for (int t = 1; t < 16; ++t) all = MaxMagnitude(all, most[t]);
  if (!AllFinite(all)) return false;
  F32 row_scale, inverse;
  ScalesOf(MaxEach(most), 127.0f, &row_scale, &inverse);
  Store(scale, Mul(row_scale, Set1(sign)));
  Store(by, inverse);
  return true;
}

// Up to 16 keys to columns of a tile of 64 (4 keys' bytes apart: 256), as code + 128; `tile` is
// that of the first key. Keys from `count` to 16 are zeros.
SAGE_NOINLINE void PackKeyRows(const float* rows, int64_t stride, int count, int dims,
                               const float* mean, const float* by, uint8_t* tile) {
  const float* row[16];
  KeyRows(rows, stride, count, row);
  const __m512i offset = _mm512_set1_epi8(-128);
  for (int d = 0; d < dims; d += kChunkDims, tile += 16 * 256) {
    F32 shift[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) shift[i] = mean == nullptr ? Zero() : LoadU(mean + d + 16 * i);
    F32 line[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      F32 x[4];
      if (count == 16) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) x[i] = Sub(LoadU(row[t] + d + 16 * i), shift[i]);
      } else {
        for (int i = 0; i < 4; ++i) x[i] = KeyDims(row[t], d + 16 * i, shift[i]);
      }
      // Of 8 bits, adding 128 and turning the sign bit over are the same.
      const __m512i codes = _mm512_xor_si512(PackCodes(x, Set1(by[t])), offset);
      line[t].r = _mm512_castsi512_ps(codes);
    }
    Transpose(line);
#pragma GCC unroll 16
    for (int w = 0; w < 16; ++w) {
      _mm512_store_ps(tile + w * 256, line[w % 4 * 4 + w / 4].r);
    }
  }
}

// The scales of 16 queries and what multiplies them to codes. False where some value is not finite.
SAGE_NOINLINE bool QueryScales(const float* const row[16], int dims, F32* scale, F32* inverse) {
  F32 most[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) most[r] = Zero();
  for (int d = 0; d < dims; d += 16) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) most[r] = MaxMagnitude(most[r], LoadU(row[r] + d));
  }
  // Before MaxEach, which may leave out a NaN.
  F32 all = most[0];
#pragma GCC unroll 16
  for (int r = 1; r < 16; ++r) all = MaxMagnitude(all, most[r]);
  ScalesOf(MaxEach(most), 127.0f, scale, inverse);
  return AllFinite(all);
}

// A group of 6 queries to lines of 64 dims, [line][6][64], by what multiplies them to codes, and
// what starts their sums of products with code + 128 keys: -128 times the sum of their codes.
SAGE_NOINLINE void PackQueryRows(const float* const row[6], int dims, const float by[6],
                                 uint8_t* group, int32_t corrections[6]) {
  alignas(64) static constexpr int32_t kOrder[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                     2, 6, 10, 14, 3, 7, 11, 15};
  const __m512i order = _mm512_load_si512(kOrder), ones = _mm512_set1_epi8(1);
  __m512i sum[6];
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) sum[r] = _mm512_setzero_si512();
  for (int d = 0; d < dims; d += kChunkDims, group += 6 * kChunkDims) {
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      F32 x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) x[i] = LoadU(row[r] + d + 16 * i);
      const __m512i codes = PackCodes(x, Set1(by[r]));
      sum[r] = DotBytes(sum[r], ones, codes);
      _mm512_store_si512(group + r * kChunkDims, _mm512_permutexvar_epi32(order, codes));
    }
  }
  // 127 · 512 dims is exact in float32.
  F32 sums[6];
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) sums[r].r = _mm512_cvtepi32_ps(sum[r]);
  const F32 start = Mul(SumOfSix(sums), Set1(-128.0f));
  _mm512_mask_storeu_epi32(corrections, 0x3f, _mm512_cvtps_epi32(start.r));
}

#if defined(SAGE_ISA_AVX512_BF16)
// Up to 16 keys, `padded` with zeros, to one panel of kCount vectors of V in pairs of keys;
// `magnitudes` collects the largest by lane.
template <int kCount>
SAGE_INLINE void PackValuePanel(const float* rows, int64_t stride, int count, int padded,
                                uint8_t* panel, F32* magnitudes) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kInterleave);
  F32 most[2] = {*magnitudes, *magnitudes};
  for (int j = 0; j < padded; j += 2, rows += 2 * stride, panel += kCount * 64) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 low = j < count ? LoadU(rows + 16 * t) : Zero();
      const F32 high = j + 1 < count ? LoadU(rows + stride + 16 * t) : Zero();
      most[0] = MaxMagnitude(most[0], low);
      most[1] = MaxMagnitude(most[1], high);
      const __m512bh pair = _mm512_cvtne2ps_pbh(high.r, low.r);
      __m512i words;
      memcpy(&words, &pair, sizeof(words));
      _mm512_store_si512(panel + t * 64, _mm512_permutexvar_epi16(order, words));
    }
  }
  *magnitudes = MaxMagnitude(most[0], most[1]);
}
#endif

// Up to 16 keys, `padded` with zeros, rounded to the codes of their channels, to one panel of
// kCount vectors of V in fours of keys.
template <int kCount>
SAGE_INLINE void PackBytePanel(const float* rows, int64_t stride, int count, int padded,
                               const float* inverse, uint8_t* panel) {
  // Each 128 bits hold four dims of the four keys; a dim's four go together.
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int j = 0; j < padded; j += 4, rows += 4 * stride, panel += kCount * 64) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 by = Load(inverse + 16 * t);
      __m512i code[4];
#pragma GCC unroll 4
      for (int e = 0; e < 4; ++e) {
        const F32 x = j + e < count ? LoadU(rows + e * stride + 16 * t) : Zero();
        code[e] = _mm512_cvtps_epi32(Mul(x, by).r);
      }
      const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]),
                                               _mm512_packs_epi32(code[2], code[3]));
      _mm512_store_si512(panel + t * 64, _mm512_shuffle_epi8(bytes, order));
    }
  }
}

// Whether there is a direct way for V of a P·V half, and what it is.
template <class Pv>
struct DirectValues {
  static constexpr bool kKnown = false;
};
template <>
struct DirectValues<PvBytes512> {
  static constexpr bool kKnown = true;
  template <int kCount>
  SAGE_INLINE void Panel(const float* rows, const Source& v, int padded, const float* inverse,
                         uint8_t* panel, F32* /*magnitudes*/) {
    PackBytePanel<kCount>(rows, v.stride, v.rows, padded, inverse, panel);
  }
};
#if defined(SAGE_ISA_AVX512_BF16)
template <>
struct DirectValues<PvBf16> {
  static constexpr bool kKnown = true;
  template <int kCount>
  SAGE_INLINE void Panel(const float* rows, const Source& v, int padded, const float* /*inverse*/,
                         uint8_t* panel, F32* magnitudes) {
    PackValuePanel<kCount>(rows, v.stride, v.rows, padded, panel, magnitudes);
  }
};
#endif

// Up to 16 tokens of V from `first` on, all panels. False where some value is not finite.
template <class Pv>
SAGE_INLINE bool PackValuePanels(const Plan& plan, const Head& head, const Source& v, int64_t first,
                                 int padded) {
  if (head.any_not_finite & kNotFiniteV) return false;
  F32 magnitudes = Zero();
  ForEachPanel<Pv::kPanel>(plan.v_dims, [&](int vector, int count) {
    const float* rows = v.base + vector * kLanes;
    const float* inverse = head.v_inverse + vector * kLanes;
    uint8_t* panel = head.v + (vector * plan.keys + first * count) * kLanes * Pv::kBytes;
    using Direct = DirectValues<Pv>;
    switch (count) {
      case 1:
        return Direct::template Panel<1>(rows, v, padded, inverse, panel, &magnitudes);
      case 2:
        return Direct::template Panel<2>(rows, v, padded, inverse, panel, &magnitudes);
      case 3:
        return Direct::template Panel<3>(rows, v, padded, inverse, panel, &magnitudes);
      default:
        return Direct::template Panel<4>(rows, v, padded, inverse, panel, &magnitudes);
    }
  });
  return AllFinite(magnitudes);
}

// Packs the groups of a task: what makes rows codes for 48 of them, then their codes, which wait
// for maxima and divisions. 48 rows are whole groups and stay in L1. find(rows[part][16], parts,
// scale, by) gives scales and kFactors numbers a row by which pack(rows, group, by) makes codes,
// and returns a bit for each part with a value that is not finite. A bit for each group that is
// packed; the others are left.
template <int kFactors, class Find, class Pack>
SAGE_INLINE uint64_t PackQueries(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                                 int64_t groups, const AttendScratch& scratch, const Find& find,
                                 const Pack& pack) {
  constexpr int64_t kTogether = kQueryParts * kLanes;
  static_assert(kTogether % kRows == 0, "whole groups");
  // Room for a whole vector from the last group's first row on.
  alignas(64) float scale[kTogether + kLanes], by[kFactors][kTogether + kLanes];
  uint64_t left = 0, packed = 0;
  for (int64_t first = 0; first < groups * kRows; first += kTogether) {
    const int64_t end = MinOf(first + kTogether, groups * kRows), there = MinOf(end, rows);
    const float* row[kQueryParts][kLanes];
    int parts = 0;
    for (int64_t r0 = first; r0 < there; r0 += kLanes) {
      GroupRows<kLanes>(plan, head, row0, rows, r0, row[parts++]);
    }
    float* at[kFactors];
    for (int i = 0; i < kFactors; ++i) at[i] = by[i];
    if (const int odd = find(row, parts, scale, at); odd != 0) {
      for (int64_t r = first; r < there; ++r) {
        if (odd >> (r - first) / kLanes & 1) left |= uint64_t{1} << (r / kRows);
      }
    }
    // Rows of padding repeat the last one.
    for (int64_t r = MaxOf(rows, first); r < end; ++r) {
      const int64_t last = rows - 1 - first;
      scale[r - first] = scale[last];
      for (int i = 0; i < kFactors; ++i) by[i][r - first] = by[i][last];
    }
    for (int64_t g = first / kRows; g * kRows < end; ++g) {
      if (left >> g & 1) continue;
      packed |= uint64_t{1} << g;
      StoreFactors(scratch, g, Mul(LoadU(scale + g * kRows - first), Set1(plan.q_factor)));
      for (int i = 0; i < kFactors; ++i) at[i] = by[i] + g * kRows - first;
      const float* group[kRows];
      GroupRows(plan, head, row0, rows, g * kRows, group);
      pack(group, g, at);
    }
  }
  return packed;
}

// For the kernels with symmetric bytes in Q·K.
template <class Pv>
struct DirectRows<IntegerKernels<QkBytes512<128>, Pv>> {
  using Kernels = IntegerKernels<QkBytes512<128>, Pv>;
  static constexpr bool kKeys = true;
  static constexpr bool kValues = DirectValues<Pv>::kKnown;

  static constexpr int kTokens = kKeyTokens;
  static bool Keys(const Plan& plan, const Head& head, const Source& k, const float* mean,
                   int64_t first) {
    alignas(64) float by[kKeyTokens];
    const auto each = [&](const auto& fn) {
      for (int t = 0; t < k.rows; t += 16) {
        fn(k.base + t * k.stride, static_cast<int>(MinOf(16, k.rows - t)), t);
      }
    };
    bool finite = true;
    each([&](const float* rows, int count, int t) {
      finite = finite && KeyScales(rows, k.stride, count, plan.qk_dims, mean, plan.k_sign,
                                   head.k_scale + first + t, by + t);
    });
    if (!finite) return false;
    uint8_t* tile = head.k + first * plan.qk_dims;
    each([&](const float* rows, int count, int t) {
      PackKeyRows(rows, k.stride, count, plan.qk_dims, mean, by + t, tile + t * 4);
    });
    return true;
  }

  static bool Values([[maybe_unused]] const Plan& plan, [[maybe_unused]] const Head& head,
                     [[maybe_unused]] const Source& v, [[maybe_unused]] int64_t first,
                     [[maybe_unused]] int padded) {
    if constexpr (kValues) return PackValuePanels<Pv>(plan, head, v, first, padded);
    return false;
  }

  static constexpr bool kScalesFirst = true;

  static uint64_t Groups(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                         int64_t groups, const AttendScratch& scratch) {
    return PackQueries<1>(
        plan, head, row0, rows, groups, scratch,
        [&](const float* const(*row)[16], int parts, float* scale, float* const* by)
            __attribute__((always_inline)) {
              int odd = 0;
              for (int n = 0; n < parts; ++n) {
                F32 found, inverse;
                odd |= QueryScales(row[n], plan.qk_dims, &found, &inverse) ? 0 : 1 << n;
                Store(scale + 16 * n, found);
                Store(by[0] + 16 * n, inverse);
              }
              return odd;
            },
        [&](const float* const row[6], int64_t g, float* by[1]) __attribute__((always_inline)) {
          PackQueryRows(row, plan.qk_dims, by[0],
                        scratch.q + g * kRows * QkBytes512<128>::QueryBytes(plan.qk_dims),
                        Kernels::CorrectionsOf(plan, scratch.q) + g * kRows);
        });
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_PACK_ROWS_AVX512_H_
