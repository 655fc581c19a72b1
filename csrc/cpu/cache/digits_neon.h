// Products of digits (digits.h) by sdot, and digits of p on NEON: digits of 7 bits are signed bytes
// as well.
#ifndef SAGE_CPU_CACHE_DIGITS_NEON_H_
#define SAGE_CPU_CACHE_DIGITS_NEON_H_

#include <arm_neon.h>

#include "cpu/cache/digits_operands.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// Digits of kLanes values in [0, 16383], rounded to nearest even.
SAGE_INLINE void StoreDigits(F32 x, uint8_t* high, uint8_t* low) {
  const uint16x8_t code =
      vcombine_u16(vmovn_u32(vcvtnq_u32_f32(x.low)), vmovn_u32(vcvtnq_u32_f32(x.high)));
  vst1_u8(high, vshrn_n_u16(code, 7));
  vst1_u8(low, vmovn_u16(vandq_u16(code, vdupq_n_u16(127))));
}

#if defined(SAGE_ISA_NEON_DOT)

constexpr int kScoreRows = 2;
constexpr int kOutputRows = 1;

SAGE_INLINE int8x16_t BroadcastDigits(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  return vreinterpretq_s8_u32(vdupq_n_u32(word));
}

// 16 tokens at a time: 16 accumulators for two rows.
template <int R>
SAGE_NOINLINE void ScoreTile(const ScoreOperands& a, float* s, int64_t s_stride) {
  CodeCursor ahead = *a.ahead;
  for (int token = 0; token < kTileTokens; token += 16) {
    int32x4_t high[R][4], low[R][4];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        high[r][t] = vld1q_s32(a.first_sum + token + 4 * t);
        low[r][t] = vdupq_n_s32(0);
      }
    }
    for (int d = 0; d < a.dims; d += 4) {
      const uint8_t* at = a.k + d * kTileTokens + 4 * token;
      ahead.Ask<1>();
      int8x16_t k[4];
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) k[t] = vreinterpretq_s8_u8(vld1q_u8(at + 16 * t));
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const uint8_t* q = a.q + r * a.q_stride + d;
        const int8x16_t q_high = BroadcastDigits(q), q_low = BroadcastDigits(q + a.dims);
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) {
          high[r][t] = vdotq_s32(high[r][t], k[t], q_high);
          low[r][t] = vdotq_s32(low[r][t], k[t], q_low);
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const int32x4_t sum = vaddq_s32(vshlq_n_s32(high[r][t], 7), low[r][t]);
        vst1q_f32(s + r * s_stride + token + 4 * t,
                  vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(a.scale + token + 4 * t)));
      }
    }
  }
  *a.ahead = ahead;
}

// 16 dims at a time, 8 accumulators.
template <int R, int C>
SAGE_NOINLINE void OutputPanel(const OutputOperands& a) {
  static_assert(R == 1, "one row");
  CodeCursor ahead = *a.ahead;
  for (int vector = 0; vector < C; ++vector) {
    int32x4_t high[4], low[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) high[t] = low[t] = vdupq_n_s32(0);
    for (int j = 0; j < a.groups; ++j) {
      const int at = (j * C + vector) * 64;
      ahead.Ask<1>();
      const int8x16_t p_high = BroadcastDigits(a.p + 4 * j);
      const int8x16_t p_low = BroadcastDigits(a.p + kPageTokens + 4 * j);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(a.v + at + 16 * t));
        high[t] = vdotq_s32(high[t], v, p_high);
        low[t] = vdotq_s32(low[t], v, p_low);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      float* o = a.o + 16 * vector + 4 * t;
      const float32x4_t sum = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high[t], 7), low[t]));
      const float32x4_t old = vmulq_n_f32(vld1q_f32(o), a.alpha[0]);
      vst1q_f32(o, vfmaq_n_f32(old, sum, a.factor[0]));
    }
  }
  *a.ahead = ahead;
}

#endif  // SAGE_ISA_NEON_DOT

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_DIGITS_NEON_H_
