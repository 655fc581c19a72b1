// From float32 rows of q, k and v as the caller laid them out straight to tiles: quantised in
// registers, in two passes over 16 rows (4 KiB at head_dim 64) that stay in L1 meanwhile. The same
// operations on the same values as the general path of csrc/cpu/forward, hence the same codes.
//
//   pass 1   largest |x - mean| of each row, 16 rows by one transposing reduction; their scales
//            and inverses in one vector
//   pass 2   round((x - mean) · inverse), 64 codes to a vector of bytes, to tiles
//
// They return false, having written nothing that counts, where a value is not finite: the general
// path knows what to do.
#ifndef SAGE_CPU_AMX_PACK_ROWS_H_
#define SAGE_CPU_AMX_PACK_ROWS_H_

#include "cpu/amx/score_tiles.h"
#include "cpu/amx/transpose.h"
#include "cpu/amx/value_tiles.h"
#include "cpu/forward/integer_scale.h"
#include "cpu/forward/load_rows.h"

namespace sage {
namespace {

// Int8 scales of 16 rows with the largest magnitudes `most` (ScaleOf for each).
struct RowScales {
  __m512 scale, inverse;
};
SAGE_INLINE RowScales ScalesOf(__m512i most) {
  const __m512 top = _mm512_set1_ps(127.0f), amax = _mm512_castsi512_ps(most);
  const __mmask16 some = _mm512_cmpge_epi32_mask(most, _mm512_set1_epi32(kTinyBits));
  return {_mm512_maskz_div_ps(some, amax, top), _mm512_maskz_div_ps(some, top, amax)};
}

// Four vectors from row + d on, less the means where there are any.
template <bool kMean>
SAGE_INLINE void LoadChunk(const float* row, const float* mean, F32 x[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = LoadU(row + 16 * i);
    if (kMean) x[i] = Sub(x[i], LoadU(mean + 16 * i));
  }
}

// Largest magnitudes of 16 rows, as bits (MaxMagnitude: not below kInfBits where not finite).
template <bool kMean>
SAGE_INLINE __m512i MagnitudesOfRows(const float* const rows[16], int dims, const float* mean) {
  F32 most[16];
  for (int t = 0; t < 16; ++t) {
    F32 even = Zero(), odd = Zero();
    for (int d = 0; d < dims; d += kDimChunk) {
      F32 x[4];
      LoadChunk<kMean>(rows[t] + d, kMean ? mean + d : nullptr, x);
      even = MaxMagnitude(MaxMagnitude(even, x[0]), x[2]);
      odd = MaxMagnitude(MaxMagnitude(odd, x[1]), x[3]);
    }
    most[t] = MaxMagnitude(even, odd);
  }
  return _mm512_castps_si512(ReduceRows<MaxBitsLanes>(most).r);
}

template <bool kMean>
SAGE_INLINE __m512i ChunkCodes(const float* row, const float* mean, float inverse) {
  F32 x[4];
  LoadChunk<kMean>(row, mean, x);
  const F32 by = Set1(inverse);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) x[i] = Mul(x[i], by);
  return CodesToBytes(x);
}

// One panel of 16 keys of K, and their scales times `sign`. Rows from `count` on are padding.
template <bool kMean>
SAGE_INLINE bool PackKeyPanel(const float* base, int64_t stride, int count, int dims,
                              const float* mean, float sign, uint8_t* out, float* k_scale) {
  const float* rows[16];
  for (int t = 0; t < 16; ++t) rows[t] = base + MinOf(t, count - 1) * stride;
  const __m512i most = MagnitudesOfRows<kMean>(rows, dims, mean);
  if (_mm512_cmpge_epi32_mask(most, _mm512_set1_epi32(kInfBits)) != 0) return false;
  const RowScales scales =
      ScalesOf(_mm512_maskz_mov_epi32(static_cast<__mmask16>((1u << count) - 1), most));
  alignas(64) float inverse[16];
  _mm512_store_ps(inverse, scales.inverse);
  _mm512_store_ps(k_scale, _mm512_mul_ps(scales.scale, _mm512_set1_ps(sign)));
  for (int d = 0; d < dims; d += kDimChunk) {
    __m512i line[16];
#pragma GCC unroll 16
    // The inverse of padding is 0.
    for (int t = 0; t < 16; ++t)
      line[t] = ChunkCodes<kMean>(rows[t] + d, kMean ? mean + d : nullptr, inverse[t]);
    Transpose(line);
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) _mm512_storeu_si512(out + 64 * t, line[t]);
    out += kTileBytes;
  }
  return true;
}

// `count` keys of K, `padded` with padding.
SAGE_NOINLINE bool PackKeyRows(const float* base, int64_t stride, int count, int padded, int dims,
                               const float* mean, float sign, uint8_t* out, float* k_scale) {
  for (int j = 0; j < padded; j += 16) {
    uint8_t* panel = out + j * dims;
    const int here = static_cast<int>(MinOf(16, count - j));
    if (here <= 0) {
      memset(panel, 0, static_cast<size_t>(16 * dims));
      _mm512_store_ps(k_scale + j, _mm512_setzero_ps());
      continue;
    }
    const float* from = base + j * stride;
    const bool finite =
        mean == nullptr
            ? PackKeyPanel<false>(from, stride, here, dims, mean, sign, panel, k_scale + j)
            : PackKeyPanel<true>(from, stride, here, dims, mean, sign, panel, k_scale + j);
    if (!finite) return false;
  }
  return true;
}

// 16 rows of Q, one pointer each, to out[row][dims], and their scales.
SAGE_NOINLINE bool PackQueryRows(const float* const rows[16], int dims, uint8_t* out,
                                 __m512* scale) {
  const __m512i most = MagnitudesOfRows<false>(rows, dims, nullptr);
  if (_mm512_cmpge_epi32_mask(most, _mm512_set1_epi32(kInfBits)) != 0) return false;
  const RowScales scales = ScalesOf(most);
  alignas(64) float inverse[16];
  _mm512_store_ps(inverse, scales.inverse);
  for (int t = 0; t < 16; ++t) {
    for (int d = 0; d < dims; d += kDimChunk) {
      _mm512_storeu_si512(out + t * dims + d, ChunkCodes<false>(rows[t] + d, nullptr, inverse[t]));
    }
  }
  *scale = scales.scale;
  return true;
}

// `count` keys of V, `padded` with padding, all panels; `inverse` holds those of the channels.
// Values::kGroup rows share a group of 4 bytes.
template <class Values>
SAGE_NOINLINE bool PackValueRows(const float* base, int64_t stride, int count, int padded,
                                 int v_dims, int64_t plan_keys, int64_t first, const float* inverse,
                                 uint8_t* out) {
  constexpr int kGroup = Values::kGroup;
  F32 most = Zero();
  for (int j = 0; j < padded; j += kGroup) {
    // Padding repeats the last row; its probabilities are 0.
    const float* rows[kGroup];
    for (int e = 0; e < kGroup; ++e) rows[e] = base + MinOf(j + e, count - 1) * stride;
    ForEachValuePanel(v_dims, [&](int t, int width) {
      uint8_t* line = out + (t * plan_keys + first * width) * 16 * Values::kBytes +
                      j / Values::kStep * width * kTileBytes + j % Values::kStep / kGroup * 64;
      for (int i = 0; i < width; ++i) {
        const int d = 16 * (t + i);
        F32 x[kGroup];
#pragma GCC unroll 4
        for (int e = 0; e < kGroup; ++e) {
          x[e] = LoadU(rows[e] + d);
          most = MaxMagnitude(most, x[e]);
        }
        _mm512_storeu_si512(line + i * kTileBytes, Values::Group(x, inverse + d));
      }
    });
  }
  return ReduceMaxBits(most) < kInfBits;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_AMX_PACK_ROWS_H_
