// P·V by tile products: 32 queries x 32 dims at a time, tiles 0 and 1 of P, 2 and 3 of V, 4 to 7 of
// O. A half supplies what a format needs:
//
//   kBytes per element of P and V, kStep keys of one product
//   PackValues   V to [panel of 32 dims][keys/step][2][16 lines][16 dims][4 bytes]: a product reads
//                two tiles, 2 KiB in one piece, and the next product the next 2 KiB
//   Row          the softmax of one row, in place: element j of P overwrites what was read of S,
//                so scores and probabilities share one buffer of 32 KiB and both stay in L1
//   Accumulate   o = alpha o + p v; o = p v for the first keys of a group, whatever o holds
#ifndef SAGE_CPU_AMX_VALUE_TILES_H_
#define SAGE_CPU_AMX_VALUE_TILES_H_

#include <immintrin.h>
#include <string.h>

#include "cpu/amx/score_tiles.h"
#include "cpu/amx/tiles.h"

namespace sage {
namespace {

// 2^x, relative error 7.5e-5: the polynomial of Exp2Coarse moved to [0, 1). vscalefps rounds the
// exponent down by itself and x may be -Infinity, so neither the whole part nor a comparison is
// needed. The clamp keeps out denormals, each of which would cost some 250 cycles to make.
// kHidden: what is clamped becomes 0, since a hidden key's value may be of any size.
template <bool kHidden>
SAGE_INLINE F32 Exp2Floor(F32 x) {
  const __m512 least = _mm512_set1_ps(-125.0f);
  const __mmask16 counts = kHidden ? _mm512_cmp_ps_mask(x.r, least, _CMP_NLE_UQ) : 0xffff;
  x = Max({least}, x);
  // Fraction above the next lower integer, no exception flags.
  const __m512 f = _mm512_reduce_ps(x.r, 0x09);
  F32 p = Set1(7.8024520e-2f);
  p = Fma(p, {f}, Set1(2.2606717e-1f));
  p = Fma(p, {f}, Set1(6.9583351e-1f));
  p = Fma(p, {f}, Set1(9.9992521e-1f));
  return {_mm512_maskz_scalef_ps(counts, p.r, x.r)};
}

// Rows of one panel: tiles of O from memory or zero, products over the keys, back to memory. Dots
// supplies the product; kPair is 32 dims or 16.
template <class Dots, bool kBoth, bool kPair>
SAGE_INLINE void ValuePanel(const uint8_t* p, const uint8_t* v, int64_t v_stride, int steps,
                            uint8_t* o, int64_t o_stride, bool from_memory) {
  uint8_t* o1 = o + 16 * o_stride;
  if (from_memory) {
    LoadTile<4>(o, o_stride);
    if (kPair) LoadTile<5>(o + 64, o_stride);
    if (kBoth) LoadTile<6>(o1, o_stride);
    if (kBoth && kPair) LoadTile<7>(o1 + 64, o_stride);
  } else {
    ZeroTile<4>();
    if (kPair) ZeroTile<5>();
    if (kBoth) ZeroTile<6>();
    if (kBoth && kPair) ZeroTile<7>();
  }
  for (int step = 0; step < steps; ++step) {
    LoadTile<0>(p, kScoreBytes);
    LoadPassingTile<2>(v, 64);
    Dots::template Dot<4, 0, 2>();
    if (kPair) {
      LoadPassingTile<3>(v + kTileBytes, 64);
      Dots::template Dot<5, 0, 3>();
    }
    if (kBoth) {
      LoadTile<1>(p + 16 * kScoreBytes, kScoreBytes);
      Dots::template Dot<6, 1, 2>();
      if (kPair) Dots::template Dot<7, 1, 3>();
    }
    p += 64;
    v += v_stride;
  }
  StoreTile<4>(o, o_stride);
  if (kPair) StoreTile<5>(o + 64, o_stride);
  if (kBoth) StoreTile<6>(o1, o_stride);
  if (kBoth && kPair) StoreTile<7>(o1 + 64, o_stride);
}

// fn(first tile, tiles) for each panel: pairs of tiles, and a last one alone.
template <class Fn>
SAGE_INLINE void ForEachValuePanel(int v_dims, const Fn& fn) {
  const int tiles = v_dims / 16;
  for (int t = 0; t < tiles; t += 2) fn(t, t + 2 <= tiles ? 2 : 1);
}

// All panels: sums over keys [j0, j0 + count) into o (float or int32), [rows][v_dims], on top of
// what it holds or instead.
template <class Values, bool kBoth>
SAGE_INLINE void ValuePanels(const Plan& plan, const Head& head, const float* p, int64_t j0,
                             int count, void* o, bool from_memory) {
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(p);
  const int64_t o_stride = int64_t{plan.v_dims} * 4;
  const int steps = count / Values::kStep;
  ForEachValuePanel(plan.v_dims, [&](int t, int width) {
    const uint8_t* panel = head.v + (t * plan.keys + j0 * width) * 16 * Values::kBytes;
    uint8_t* out = static_cast<uint8_t*>(o) + 64 * t;
    if (width == 2) {
      ValuePanel<Values, kBoth, true>(weights, panel, 2 * kTileBytes, steps, out, o_stride,
                                      from_memory);
    } else {
      ValuePanel<Values, kBoth, false>(weights, panel, kTileBytes, steps, out, o_stride,
                                       from_memory);
    }
  });
}

// P and V in bf16, O summed in float32 across blocks of keys.
struct ValuesBf16 {
  static constexpr int kBytes = 2;
  static constexpr int kStep = 32;
  static constexpr bool kRoundedSum = false;

  template <int kC, int kA, int kB>
  SAGE_INLINE void Dot() {
    DotBf16<kC, kA, kB>();
  }

  // One tile column: `keys` rows of 16 dims, x[key * stride], to tiles v_stride bytes apart.
  SAGE_INLINE void PackValues(const float* x, int stride, int keys, int64_t v_stride,
                              uint8_t* out) {
    for (int j = 0; j < keys; j += 2) {
      // The values are bf16 already: their upper halves.
      const __m512i low = _mm512_castps_si512(_mm512_loadu_ps(x + j * stride));
      const __m512i high = _mm512_castps_si512(_mm512_loadu_ps(x + (j + 1) * stride));
      const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(low, 16), high);
      _mm512_storeu_si512(out + j / kStep * v_stride + j % kStep / 2 * 64, pair);
    }
  }

  // 16 dims of two keys, in float32, to one line of a tile.
  static constexpr int kGroup = 2;
  SAGE_INLINE __m512i Group(const F32 x[2], const float* /*inverse*/) {
    alignas(64) static constexpr uint16_t kInterleave[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh pair = _mm512_cvtne2ps_pbh(x[1].r, x[0].r);
    __m512i words;
    memcpy(&words, &pair, 64);
    return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), words);
  }

  // Keys [first, end) of one row, some of them hidden or none; the sum of the unrounded p by lane.
  template <bool kHidden>
  SAGE_INLINE F32 Row(float* s, int first, int end, float c, float m, F32* /*exact*/) {
    const F32 factor = Set1(c), shift = Set1(m);
    uint8_t* p = reinterpret_cast<uint8_t*>(s);
    F32 sum0 = Zero(), sum1 = Zero();
    for (int j = first; j < end; j += 32) {
      const F32 e0 = Exp2Floor<kHidden>(Fms(Load(s + j), factor, shift));
      const F32 e1 = Exp2Floor<kHidden>(Fms(Load(s + j + 16), factor, shift));
      sum0 = Add(sum0, e0);
      sum1 = Add(sum1, e1);
      const __m512bh pair = _mm512_cvtne2ps_pbh(e1.r, e0.r);
      memcpy(p + 2 * j, &pair, 64);
    }
    return Add(sum0, sum1);
  }

  template <bool kBoth>
  SAGE_NOINLINE void Accumulate(const Plan& plan, const Head& head, const float* p, int64_t j0,
                                int count, bool fresh, float* o, const float* alpha,
                                float* /*partial*/) {
    const int v_dims = plan.v_dims;
    for (int r0 = 0; !fresh && r0 < (kBoth ? 32 : 16); r0 += 16) {
      // The maximum of most rows stands after a few blocks.
      unsigned moved =
          _mm512_cmp_ps_mask(_mm512_load_ps(alpha + r0), _mm512_set1_ps(1.0f), _CMP_NEQ_UQ);
      for (; moved != 0; moved &= moved - 1) {
        const int r = r0 + __builtin_ctz(moved);
        const F32 a = Set1(alpha[r]);
        float* row = o + r * v_dims;
        for (int d = 0; d < v_dims; d += 16) Store(row + d, Mul(a, Load(row + d)));
      }
    }
    ValuePanels<ValuesBf16, kBoth>(plan, head, p, j0, count, o, !fresh);
  }
};

// P = round(255 p) unsigned, V int8: 255 · 127 · 256 keys < 2^24, exact in int32 and in float32.
struct ValuesBytes {
  static constexpr int kBytes = 1;
  static constexpr int kStep = 64;
  static constexpr bool kRoundedSum = true;

  template <int kC, int kA, int kB>
  SAGE_INLINE void Dot() {
    DotUint8<kC, kA, kB>();
  }

  SAGE_INLINE void PackValues(const float* x, int stride, int keys, int64_t v_stride,
                              uint8_t* out) {
    const __m512i byte = _mm512_set1_epi32(255);
    for (int j = 0; j < keys; j += 4) {
      __m512i quad = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int e = 0; e < 4; ++e) {
        const __m512i code = _mm512_cvtps_epi32(_mm512_loadu_ps(x + (j + e) * stride));
        quad = _mm512_or_si512(
            quad, _mm512_slli_epi32(_mm512_and_si512(code, byte), static_cast<unsigned>(8 * e)));
      }
      _mm512_storeu_si512(out + j / kStep * v_stride + j % kStep / 4 * 64, quad);
    }
  }

  // 16 dims of four keys, rounded to the codes of their channels, to one line of a tile.
  static constexpr int kGroup = 4;
  SAGE_INLINE __m512i Group(const F32 x[4], const float* inverse) {
    const F32 by = Load(inverse);
    __m512i code[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) code[e] = _mm512_cvtps_epi32(Mul(x[e], by).r);
    // Each 128 bits now hold four dims of the four keys; a dim's four go together.
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]),
                                             _mm512_packs_epi32(code[2], code[3]));
    return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                          0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  }

  // Sums of the rounded p, and of the unrounded in *exact where that is wanted; both in units of
  // 1 / 255. The same powers as on AVX-512, so that the codes are the same.
  template <bool kHidden>  // of no concern: codes of hidden keys round to 0
  SAGE_INLINE F32 Row(float* s, int first, int end, float c, float m, F32* exact) {
    constexpr float kLog2Of255 = 7.99435343685885793f;
    const F32 factor = Set1(c), shift = Set1(m - kLog2Of255);
    uint8_t* p = reinterpret_cast<uint8_t*>(s);
    __m512i sum = _mm512_setzero_si512();
    F32 unrounded = Zero();
    for (int j = first; j < end; j += 16) {
      const F32 e = Exp2Coarse(Fms(Load(s + j), factor, shift));
      const __m512i codes = _mm512_cvtps_epi32(e.r);
      sum = _mm512_add_epi32(sum, codes);
      unrounded = Add(unrounded, e);
      const __m128i bytes = _mm512_cvtusepi32_epi8(codes);
      memcpy(p + j, &bytes, 16);
    }
    *exact = Add(*exact, unrounded);
    return {_mm512_cvtepi32_ps(sum)};
  }

  template <bool kBoth>
  SAGE_NOINLINE void Accumulate(const Plan& plan, const Head& head, const float* p, int64_t j0,
                                int count, bool fresh, float* o, const float* alpha,
                                float* partial) {
    const int v_dims = plan.v_dims;
    ValuePanels<ValuesBytes, kBoth>(plan, head, p, j0, count, partial, false);
    for (int r = 0; r < (kBoth ? 32 : 16); ++r) {
      const F32 a = Set1(alpha[r]);
      float* row = o + r * v_dims;
      const float* sums = partial + r * v_dims;
      for (int d = 0; d < v_dims; d += 16) {
        const F32 sum = {_mm512_cvtepi32_ps(_mm512_load_si512(sums + d))};
        Store(row + d, fresh ? sum : Fma(a, Load(row + d), sum));
      }
    }
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_AMX_VALUE_TILES_H_
