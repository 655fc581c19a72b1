// The quantisers of docs/numerics.md 4 on a block of rows in float32, in plain C++ that the
// compiler vectorises.
//
// Rows lie in x[row * dims + d], padded with zeros. Every quantiser replaces the values by their
// codes (integers as floats, or code · group scale for nvfp4) and writes one scale per row.
// Bit-exact against src/numerics/quantize.ts: single float32 operations, no contraction, no
// reordered sums.
#ifndef SAGE_CPU_FORWARD_QUANTIZE_ROWS_H_
#define SAGE_CPU_FORWARD_QUANTIZE_ROWS_H_

#include <math.h>
#include <string.h>

#include "cpu/forward/integer_scale.h"
#include "cpu/forward/plan.h"
#include "formats/formats.h"
#include "formats/token_group.h"

namespace sage {
namespace {

SAGE_INLINE void RoundRow(float* x, int dims, float inverse, Rounding rounding) {
  if (rounding == Rounding::kEven) {
    RoundCodes(x, dims, inverse);
  } else {
    for (int d = 0; d < dims; ++d) x[d] = RoundHalfAway(x[d] * inverse);
  }
}

// Largest magnitude of each row; finite values only.
SAGE_INLINE void RowMaxima(const float* x, int rows, int dims, float* most) {
  int t = 0;
  for (; t + kLanes <= rows; t += kLanes) {
    F32 row[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const float* values = x + (t + r) * dims;
      row[r] = Zero();
      int d = 0;
      for (; d + kLanes <= dims; d += kLanes) row[r] = MaxMagnitude(row[r], LoadU(values + d));
      if (d < dims) row[r] = MaxMagnitude(row[r], LoadFirst(values + d, dims - d));
    }
    StoreU(most + t, MaxEach(row));
  }
  for (; t + 6 <= rows; t += 6) {
    F32 row[6];
    for (int r = 0; r < 6; ++r) {
      const float* values = x + (t + r) * dims;
      row[r] = Zero();
      int d = 0;
      for (; d + kLanes <= dims; d += kLanes) row[r] = MaxMagnitude(row[r], LoadU(values + d));
      if (d < dims) row[r] = MaxMagnitude(row[r], LoadFirst(values + d, dims - d));
    }
    alignas(64) float all[kLanes];
    Store(all, MaxOfSix(row));
    memcpy(most + t, all, 6 * sizeof(float));
  }
  for (; t < rows; ++t) most[t] = BitsToFloat(static_cast<uint32_t>(MaxBits(x + t * dims, dims)));
}

// Scales of int8 and int4 (4.2) for rows that share none: ScaleOf without branches, so that several
// divisions go together.
SAGE_INLINE void TokenScales(const float* x, int rows, int dims, float top, float* scale,
                             float* inverse) {
  float most[kBlock];
  RowMaxima(x, rows, dims, most);
  const float tiny = BitsToFloat(static_cast<uint32_t>(kTinyBits));
  for (int t = 0; t < rows; ++t) {
    scale[t] = most[t] < tiny ? 0.0f : most[t] / top;
    inverse[t] = most[t] < tiny ? 0.0f : top / most[t];
  }
}

// Scales of int8 and int4 (4.2) for up to 128 rows.
SAGE_NOINLINE void IntegerScales(const float* x, int rows, int dims, float top, TokenGroup kind,
                                 float* scale, float* inverse) {
  if (kind == TokenGroup::kToken) {
    TokenScales(x, rows, dims, top, scale, inverse);
    return;
  }
  float row_most[kBlock];
  RowMaxima(x, rows, dims, row_most);
  int32_t most[kBlock] = {};
  for (int t = 0; t < rows; ++t) {
    const int32_t bits = MagnitudeBits(row_most[t]);
    int32_t& group = most[GroupInBlock(kind, t)];
    group = bits > group ? bits : group;
  }
  for (int t = 0; t < rows; ++t) {
    const ScalePair pair = ScaleOf(most[GroupInBlock(kind, t)], top);
    scale[t] = pair.scale;
    inverse[t] = pair.inverse;
  }
}

// Codes and error of one group of 16 under one scale (4.5).
SAGE_INLINE float Nvfp4Candidate(const float* x, float sf, float* value) {
  const float inverse = sf == 0.0f ? 0.0f : 1.0f / sf;
  for (int i = 0; i < 16; ++i) value[i] = RoundE2m1(x[i] * inverse) * sf;
  float error = 0.0f;
  for (int i = 0; i < 16; ++i) {
    const float d = x[i] - value[i];
    error = error + d * d;
  }
  return error;
}

// One group of 16 values, in place: code · scale.
SAGE_INLINE void QuantizeNvfp4Group(float* x, bool four_six) {
  const int32_t bits = MaxBits(x, 16);
  const float amax = BitsToFloat(static_cast<uint32_t>(bits));
  float best[16];
  float least = Nvfp4Candidate(x, RoundUe4m3(amax / 6.0f), best);
  if (four_six) {
    constexpr float kOtherScales[] = {1.0f / 4.0f, 2.0f / 13.0f};
    for (const float factor : kOtherScales) {
      float tried[16];
      const float error = Nvfp4Candidate(x, RoundUe4m3(amax * factor), tried);
      if (!(error < least)) continue;
      least = error;
      for (int i = 0; i < 16; ++i) best[i] = tried[i];
    }
  }
  for (int i = 0; i < 16; ++i) x[i] = best[i];
}

// 2^e in front of nvfp4: brings the largest input into [16, 32), which leaves e4m3 scales nine
// binades below it and five above (smoothing at most doubles a value, a rotation of 512 multiplies
// it by at most 22.7).
SAGE_INLINE float HeadPower(float amax) {
  if (amax == 0.0f) return 1.0f;
  const int e = 4 - ilogbf(amax);
  return ldexpf(1.0f, e > 100 ? 100 : e);
}

// Fast Walsh-Hadamard transform in blocks of `size`, orthonormal (4.5).
SAGE_INLINE void RotateRow(float* x, int dims, int size) {
  const float norm = static_cast<float>(1.0 / sqrt(static_cast<double>(size)));
  for (int b = 0; b < dims; b += size) {
    float* y = x + b;
    for (int h = 1; h < size; h *= 2) {
      for (int i = 0; i < size; i += 2 * h) {
        for (int j = i; j < i + h; ++j) {
          const float a = y[j], c = y[j + h];
          y[j] = a + c;
          y[j + h] = a - c;
        }
      }
    }
    for (int i = 0; i < size; ++i) y[i] = y[i] * norm;
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_QUANTIZE_ROWS_H_
