// Sums and largest magnitudes of the columns (channels) of a block of rows, four vectors of columns
// at a time, so that every line of memory is read once and all running values stay in registers.
//
//   sum[d]  = x[0][d] + x[1][d] + ... in float64, row after row (docs/numerics.md 3)
//   most[d] = the bits of the largest |x[t][d]|
#ifndef SAGE_CPU_FORWARD_COLUMN_STATISTICS_H_
#define SAGE_CPU_FORWARD_COLUMN_STATISTICS_H_

#include <string.h>

#include "cpu/simd/simd_shuffle.h"
#include "formats/float_bits.h"

namespace sage {
namespace {

constexpr int kHalfLanes = kLanes / 2;
typedef float HalfFloats __attribute__((vector_size(sizeof(float) * kHalfLanes)));
typedef double Doubles __attribute__((vector_size(sizeof(double) * kHalfLanes)));

// Adds kHalfLanes floats to as many doubles.
SAGE_INLINE void AddFloats(const float* x, Doubles* total) {
  // Of the conversion at the end GCC 12 makes several and puts the parts together, on AVX2 through
  // memory.
#if defined(SAGE_ISA_AVX512)
  *total += reinterpret_cast<Doubles>(_mm512_cvtps_pd(_mm256_loadu_ps(x)));
#elif defined(SAGE_ISA_AVX2)
  *total += reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm_loadu_ps(x)));
#else
  HalfFloats half;
  memcpy(&half, x, sizeof(half));
  *total += __builtin_convertvector(half, Doubles);
#endif
}

// Columns [0, kVectors * kLanes) at `base`; returns `most` with their magnitudes (kMagnitudes).
template <int kVectors, bool kMagnitudes>
SAGE_INLINE F32 SumSomeColumns(const float* base, int64_t stride, int rows, double* sum, F32 most) {
  Doubles total[2 * kVectors] = {};
  for (int t = 0; t < rows; ++t) {
    const float* row = base + t * stride;
    if (kMagnitudes) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) most = MaxMagnitude(most, LoadU(row + i * kLanes));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kVectors; ++i) {
      AddFloats(row + i * kHalfLanes, &total[i]);
    }
  }
  memcpy(sum, total, sizeof(total));
  return most;
}

// sum[0, dim) of rows * dim values; returns the bits of the largest magnitude of all (at least
// Infinity's: some are not finite, and the sums are of no use).
SAGE_NOINLINE int32_t SumColumns(const float* base, int64_t stride, int rows, int dim,
                                 double* sum) {
  F32 most = Zero();
  int d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    most = SumSomeColumns<4, true>(base + d, stride, rows, sum + d, most);
  }
  for (; d + kLanes <= dim; d += kLanes) {
    most = SumSomeColumns<1, true>(base + d, stride, rows, sum + d, most);
  }
  int32_t bits = ReduceMaxBits(most);
  for (; d < dim; ++d) {
    double total = 0.0;
    for (int t = 0; t < rows; ++t) {
      const float value = base[t * stride + d];
      const int32_t magnitude = MagnitudeBits(value);
      bits = magnitude > bits ? magnitude : bits;
      total += static_cast<double>(value);
    }
    sum[d] = total;
  }
  return bits;
}

// The sums alone, false where some value is not finite (they are of no use then). Sums of 128
// float32 stay far below the largest float64, so they are finite where all their values are.
SAGE_NOINLINE bool SumFiniteColumns(const float* base, int64_t stride, int rows, int dim,
                                    double* sum) {
  int d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    SumSomeColumns<4, false>(base + d, stride, rows, sum + d, Zero());
  }
  for (; d + kLanes <= dim; d += kLanes) {
    SumSomeColumns<1, false>(base + d, stride, rows, sum + d, Zero());
  }
  for (; d < dim; ++d) {
    double total = 0.0;
    for (int t = 0; t < rows; ++t) total += static_cast<double>(base[t * stride + d]);
    sum[d] = total;
  }
  // Times 0: 0 where a sum is finite, else NaN, which stays.
  Doubles zeros = {};
  for (d = 0; d + kHalfLanes <= dim; d += kHalfLanes) {
    Doubles some;
    memcpy(&some, sum + d, sizeof(some));
    zeros += some * 0.0;
  }
  double zero = 0.0;
  for (int i = 0; i < kHalfLanes; ++i) zero += zeros[i];
  for (; d < dim; ++d) zero += sum[d] * 0.0;
  return zero == 0.0;
}

// Means of kHalfLanes columns (0 of none), from sums and counts of blocks that lie `stride` apart.
SAGE_INLINE void MeansOfChannels(const double* sums, const double* counts, int64_t stride,
                                 int64_t blocks, float* mean) {
  Doubles sum = {}, count = {};
  for (int64_t block = 0; block < blocks; ++block, sums += stride, counts += stride) {
    Doubles here;
    memcpy(&here, sums, sizeof(here));
    sum += here;
    memcpy(&here, counts, sizeof(here));
    count += here;
  }
  const HalfFloats means = __builtin_convertvector(sum / count, HalfFloats);
  for (int i = 0; i < kHalfLanes; ++i) mean[i] = count[i] > 0.0 ? means[i] : 0.0f;
}

template <int kVectors>
SAGE_INLINE F32 MaximaOfSomeColumns(const float* base, int64_t stride, int rows, int32_t* most) {
  F32 column[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) column[i] = Zero();
  for (int t = 0; t < rows; ++t) {
    const float* row = base + t * stride;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      column[i] = MaxMagnitude(column[i], LoadU(row + i * kLanes));
    }
  }
  F32 all = Zero();
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    memcpy(most + i * kLanes, &column[i], sizeof(column[i]));
    all = MaxMagnitude(all, column[i]);
  }
  return all;
}

// most[0, dim) of rows * dim values, as bits; returns the largest of all.
SAGE_NOINLINE int32_t ColumnMaxima(const float* base, int64_t stride, int rows, int dim,
                                   int32_t* most) {
  int32_t bits = 0;
  int d = 0;
  for (; d < dim;) {
    int32_t here = 0;
    if (d + 4 * kLanes <= dim) {
      here = ReduceMaxBits(MaximaOfSomeColumns<4>(base + d, stride, rows, most + d));
      d += 4 * kLanes;
    } else if (d + kLanes <= dim) {
      here = ReduceMaxBits(MaximaOfSomeColumns<1>(base + d, stride, rows, most + d));
      d += kLanes;
    } else {
      for (int t = 0; t < rows; ++t) {
        const int32_t magnitude = MagnitudeBits(base[t * stride + d]);
        here = magnitude > here ? magnitude : here;
      }
      most[d] = here;
      ++d;
    }
    bits = here > bits ? here : bits;
  }
  return bits;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_COLUMN_STATISTICS_H_
