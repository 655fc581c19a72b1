// Halves of the integer tile kernels on NEON.
//
//   int8   sdot: four products of signed bytes are added to a 32-bit lane (dotprod extension)
//   words  smlal: products of 16-bit words, for codes of 8 and of 16 bits
// Register tile: 6 rows x 16 keys (or dims) = 24 accumulators of 32 registers; q takes 2, k 4.
// Layouts: K int8 [tile][dims/4][16][4], words [tile][dims][16]; Q [group][dims/4][6][4],
// [group][dims][6]; V [panel of 1 or 2 vectors][keys][vectors][8].
#ifndef SAGE_CPU_FORWARD_TILE_NEON_H_
#define SAGE_CPU_FORWARD_TILE_NEON_H_

#include <arm_neon.h>
#include <string.h>

#include "cpu/forward/tile_integer.h"

namespace sage {
namespace {

// Scores of one row against 16 keys.
SAGE_INLINE void StoreScores(const int32x4_t acc[4], const float* k_scale, float* s, F32* most) {
#pragma GCC unroll 2
  for (int t = 0; t < 2; ++t) {
    const F32 sums = {vcvtq_f32_s32(acc[2 * t]), vcvtq_f32_s32(acc[2 * t + 1])};
    const F32 score = Mul(sums, Load(k_scale + 8 * t));
    Store(s + 8 * t, score);
    *most = Max(*most, score);
  }
}

#if defined(SAGE_ISA_NEON_DOT)

struct QkBytesDot {
  static constexpr int kKeyTile = 16;
  static constexpr int kDims = 4;
  static constexpr bool kShortGroups = false;
  static constexpr bool kRounds = false;
  static constexpr int kBytes = 1;
  static constexpr int Corrections(int /*dims*/) { return 0; }

  SAGE_INLINE void StoreFour(const float* x, uint8_t* out) {
    int8_t codes[4];
    for (int e = 0; e < 4; ++e) codes[e] = static_cast<int8_t>(static_cast<int>(x[e]));
    memcpy(out, codes, 4);
  }

  static constexpr int QueryBytes(int dims) { return dims; }

  static void StoreKeys(const float* x, int dims, int /*key*/, uint8_t* tile) {
    for (int t = 0; t < 16; ++t) {
      for (int d = 0; d < dims; d += 4) StoreFour(x + t * dims + d, tile + d / 4 * 64 + t * 4);
    }
  }

  static void StoreQuery(const float* x, int dims, int r, uint8_t* group,
                         int32_t* /*corrections*/) {
    for (int d = 0; d < dims; d += 4) StoreFour(x + d, group + d / 4 * 4 * kRows + r * 4);
  }

  template <int kVectors>
  SAGE_INLINE void Tile(const uint8_t* q, const int32_t* /*corrections*/, const uint8_t* k,
                        int dims, const float* k_scale, float* s, F32 most[kRows]) {
    static_assert(kRows == 6, "four rows in one register of q, two in another");
    static_assert(kVectors * kLanes == kKeyTile, "16 keys, never fewer");
    int32x4_t acc[kRows][4];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) acc[r][t] = vdupq_n_s32(0);
    }
    for (int d = 0; d < dims; d += 4) {
      const int8_t* query = reinterpret_cast<const int8_t*>(q) + d * kRows;
      const int8_t* keys = reinterpret_cast<const int8_t*>(k) + d * 16;
      const int8x16_t first = vld1q_s8(query);
      const int8x8_t last = vld1_s8(query + 16);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const int8x16_t key = vld1q_s8(keys + 16 * t);
        acc[0][t] = vdotq_laneq_s32(acc[0][t], key, first, 0);
        acc[1][t] = vdotq_laneq_s32(acc[1][t], key, first, 1);
        acc[2][t] = vdotq_laneq_s32(acc[2][t], key, first, 2);
        acc[3][t] = vdotq_laneq_s32(acc[3][t], key, first, 3);
        acc[4][t] = vdotq_lane_s32(acc[4][t], key, last, 0);
        acc[5][t] = vdotq_lane_s32(acc[5][t], key, last, 1);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) StoreScores(acc[r], k_scale, s + r * kScoreStride, &most[r]);
  }
};

#endif  // SAGE_ISA_NEON_DOT

struct QkWordsNeon {
  static constexpr int kKeyTile = 16;
  static constexpr int kDims = 4;
  static constexpr bool kShortGroups = false;
  static constexpr bool kRounds = false;
  static constexpr int kBytes = 2;
  static constexpr int Corrections(int /*dims*/) { return 0; }

  SAGE_INLINE int16_t Word(float x) { return static_cast<int16_t>(static_cast<int>(x)); }

  static constexpr int QueryBytes(int dims) { return 2 * dims; }

  static void StoreKeys(const float* x, int dims, int /*key*/, uint8_t* tile) {
    int16_t* words = reinterpret_cast<int16_t*>(tile);
    for (int t = 0; t < 16; ++t) {
      for (int d = 0; d < dims; ++d) words[d * 16 + t] = Word(x[t * dims + d]);
    }
  }

  static void StoreQuery(const float* x, int dims, int r, uint8_t* group,
                         int32_t* /*corrections*/) {
    int16_t* words = reinterpret_cast<int16_t*>(group);
    for (int d = 0; d < dims; ++d) words[d * kRows + r] = Word(x[d]);
  }

  template <int kVectors>
  SAGE_INLINE void Tile(const uint8_t* q, const int32_t* /*corrections*/, const uint8_t* k,
                        int dims, const float* k_scale, float* s, F32 most[kRows]) {
    static_assert(kRows == 6, "four rows in one register of q, two in another");
    static_assert(kVectors * kLanes == kKeyTile, "16 keys, never fewer");
    int32x4_t acc[kRows][4];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) acc[r][t] = vdupq_n_s32(0);
    }
    const int16_t* query = reinterpret_cast<const int16_t*>(q);
    const int16_t* keys = reinterpret_cast<const int16_t*>(k);
    for (int d = 0; d < dims; ++d, query += kRows, keys += 16) {
      const int16x4_t first = vld1_s16(query);
      uint32_t pair;
      memcpy(&pair, query + 4, 4);
      const int16x4_t last = vreinterpret_s16_u32(vdup_n_u32(pair));
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const int16x4_t key = vld1_s16(keys + 4 * t);
        acc[0][t] = vmlal_lane_s16(acc[0][t], key, first, 0);
        acc[1][t] = vmlal_lane_s16(acc[1][t], key, first, 1);
        acc[2][t] = vmlal_lane_s16(acc[2][t], key, first, 2);
        acc[3][t] = vmlal_lane_s16(acc[3][t], key, first, 3);
        acc[4][t] = vmlal_lane_s16(acc[4][t], key, last, 0);
        acc[5][t] = vmlal_lane_s16(acc[5][t], key, last, 1);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) StoreScores(acc[r], k_scale, s + r * kScoreStride, &most[r]);
  }
};

// P in 13 bits, V in 12 (docs/numerics.md 4.6): 8192 · 2047 · 128 keys < 2^31. kFine: a power of
// two whose error is far below a step of P, for 16-bit scores; with 8-bit ones half a step more at
// the row's maximum is nothing.
template <bool kFine>
struct PvWordsNeon {
  static constexpr int kPanel = 2;
  static constexpr int kBytes = 2;
  static constexpr int kProbabilityBytes = 2;
  static constexpr bool kSoftmaxAhead = false;
  static constexpr int kUnitKeys = 16;

  static void StoreValues(const float* x, int stride, int count, int keys, uint8_t* panel) {
    int16_t* words = reinterpret_cast<int16_t*>(panel);
    for (int j = 0; j < keys; ++j) {
      for (int t = 0; t < count; ++t, words += 8) {
        const F32 codes = LoadU(x + j * stride + 8 * t);
        vst1q_s16(words, Narrow(vcvtnq_s32_f32(codes.low), vcvtnq_s32_f32(codes.high)));
      }
    }
  }

  SAGE_INLINE int16x8_t Narrow(int32x4_t low, int32x4_t high) {
    return vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
  }

  SAGE_INLINE F32 Power(F32 x) { return kFine ? Exp2Medium(x) : Exp2Coarse(x); }

  SAGE_INLINE F32 Row(const float* s, uint8_t* p, int first, int end, float c, float m,
                      F32* exact) {
    const F32 factor = Set1(c), shift = Set1(m - 13.0f);  // 2^13 = 8192
    int32x4_t sum_low = vdupq_n_s32(0), sum_high = vdupq_n_s32(0);
    F32 unrounded = Zero();
    for (int j = first; j < end; j += kLanes) {
      const F32 power = Power(Fms(Load(s + j), factor, shift));
      const int32x4_t low = vcvtnq_s32_f32(power.low), high = vcvtnq_s32_f32(power.high);
      sum_low = vaddq_s32(sum_low, low);
      sum_high = vaddq_s32(sum_high, high);
      if (exact != nullptr) unrounded = Add(unrounded, power);
      vst1q_s16(reinterpret_cast<int16_t*>(p) + j, Narrow(low, high));
    }
    if (exact != nullptr) *exact = Add(*exact, Mul(unrounded, Set1(1.0f / 8192.0f)));
    return {vcvtq_f32_s32(sum_low), vcvtq_f32_s32(sum_high)};
  }

  template <int kCount>
  SAGE_NOINLINE void Panel(const uint8_t* p, const uint8_t* v, int count, float* o, int64_t stride,
                           const float* alpha, const OutputRows* out, int64_t dim) {
    const int16_t* weights = reinterpret_cast<const int16_t*>(p);
    for (int first = 0; first < count; first += kBlock) {
      const int end = count < first + kBlock ? count : first + kBlock;
      int32x4_t acc[kRows][2 * kCount];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int t = 0; t < 2 * kCount; ++t) acc[r][t] = vdupq_n_s32(0);
      }
      const int16_t* values = reinterpret_cast<const int16_t*>(v) + first * kCount * 8;
      for (int j = first; j < end; ++j, values += kCount * 8) {
        int16x4_t value[2 * kCount];
#pragma GCC unroll 4
        for (int t = 0; t < 2 * kCount; ++t) value[t] = vld1_s16(values + 4 * t);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const int16x4_t weight = vld1_dup_s16(weights + r * kScoreStride + j);
#pragma GCC unroll 4
          for (int t = 0; t < 2 * kCount; ++t) {
            acc[r][t] = vmlal_s16(acc[r][t], value[t], weight);
          }
        }
      }
      const OutputRows* to = end == count ? out : nullptr;
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const bool fresh = first == 0 && alpha == nullptr;
        const F32 a = Set1(first > 0 || fresh ? 1.0f : alpha[r]);
#pragma GCC unroll 2
        for (int t = 0; t < kCount; ++t) {
          float* before = o + r * stride + 8 * t;
          F32 sums = {vcvtq_f32_s32(acc[r][2 * t]), vcvtq_f32_s32(acc[r][2 * t + 1])};
          if (!fresh) sums = Fma(a, Load(before), sums);
          if (to != nullptr) {
            WriteOutputs(*to, r, dim + 8 * t, sums);
          } else {
            Store(before, sums);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_TILE_NEON_H_
