// Float32 tile kernels: recipe `exact` at full speed, and every other recipe by exact emulation.
//
// Emulation: Q and K hold the dequantised values (code · scale, one rounding), V the code values,
// and P is rounded to the recipe's format between the two products. Sums run in float32, as they do
// behind the low-bit products of the hardware the recipe is made for. Where Q's block mean was
// taken out, its term mean·k' rides along as further dims: q = [codes, mean], k = [codes, k'].
//
// Layouts (T = keys of a register tile, W = lanes of a panel):
//   K  [key tile][dim][T]        Q  [row][dim]        V  [panel of <= kPanel
//   vectors][key][W]
// Register tile of scores: 6 rows x T keys; of outputs: 6 rows x W dims.
#ifndef SAGE_CPU_FORWARD_TILE_FLOAT_H_
#define SAGE_CPU_FORWARD_TILE_FLOAT_H_

#include <string.h>

#include <type_traits>

#include "cpu/forward/fetch_lines.h"
#include "cpu/forward/plan.h"
#include "cpu/forward/round_p.h"
#include "cpu/simd/keep_addresses.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// Vectors per register tile: 6 x 4 accumulators on AVX-512's 32 registers, 6 x 2 on 16.
#if defined(SAGE_ISA_AVX512)
constexpr int kFloatVectors = 4;
#elif defined(SAGE_ISA_AVX2) || defined(SAGE_ISA_NEON)
constexpr int kFloatVectors = 2;
#else
constexpr int kFloatVectors = 1;
#endif

// Keys of P·V between two pauses in which lines are fetched; 0: none are fetched there. (Of
// AVX-512's loop GCC 12 makes worse code with pauses: 2 % at N = 128.)
#if defined(SAGE_ISA_AVX2)
constexpr int kFetchKeys = 16;
#else
constexpr int kFetchKeys = 0;
#endif

// Calls fn(first key, vectors of keys) for every register tile of `count` keys, a multiple of 16;
// the last may have fewer vectors than the others.
template <int kKeyTile, class Fn>
SAGE_INLINE void ForEachKeyTile(int count, const Fn& fn) {
  int j = 0;
  for (; j + kKeyTile <= count; j += kKeyTile) {
    fn(j, std::integral_constant<int, kKeyTile / kLanes>());
  }
  if constexpr (kKeyTile > 16) {
    static_assert(kLanes == 16 && kKeyTile == 64, "the cases below");
    switch (count - j) {
      case 16:
        return fn(j, std::integral_constant<int, 1>());
      case 32:
        return fn(j, std::integral_constant<int, 2>());
      case 48:
        return fn(j, std::integral_constant<int, 3>());
      default:
        return;
    }
  }
}

// Calls fn(std::integral_constant<int, rows>) for what ActiveRows returns.
template <class Fn>
SAGE_INLINE void WithRows(int rows, const Fn& fn) {
  static_assert(kRows == 3 * kRowsAtEnd, "the cases below");
  switch (rows) {
    case kRowsAtEnd:
      return fn(std::integral_constant<int, kRowsAtEnd>());
    case 2 * kRowsAtEnd:
      return fn(std::integral_constant<int, 2 * kRowsAtEnd>());
    default:
      return fn(std::integral_constant<int, kRows>());
  }
}

// Scores of kActive rows and the first kVectors * kLanes keys of a tile of K.
template <int kVectors, int kActive>
SAGE_INLINE void FloatScoreTile(const float* q, const float* k, int dims, float* s,
                                F32 most[kRows]) {
  const int64_t stride = dims;
  constexpr int kTile = kFloatVectors * kLanes;
  F32 acc[kActive][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kVectors; ++t) acc[r][t] = Zero();
  }
  // The last dims go by pairs of rows (kRowsAtEnd).
  const int end = dims > 4 ? dims - 4 : 0, left = dims - end;
#pragma GCC unroll 4
  for (int d = 0; d < end; ++d) {
    F32 key[kVectors];
#pragma GCC unroll 4
    for (int t = 0; t < kVectors; ++t) key[t] = Load(k + t * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kActive; ++r) {
      const F32 a = Set1(q[r * stride]);
#pragma GCC unroll 4
      for (int t = 0; t < kVectors; ++t) acc[r][t] = Fma(a, key[t], acc[r][t]);
    }
    k += kTile;
    ++q;
  }
#pragma GCC unroll 6
  for (int r0 = 0; r0 < kActive; r0 += kRowsAtEnd) {
    KeepAddresses(q, k, s, most);
    for (int d = 0; d < left; ++d) {
      F32 key[kVectors];
#pragma GCC unroll 4
      for (int t = 0; t < kVectors; ++t) key[t] = Load(k + d * kTile + t * kLanes);
#pragma GCC unroll 6
      for (int r = r0; r < r0 + kRowsAtEnd; ++r) {
        const F32 a = Set1(q[r * stride + d]);
#pragma GCC unroll 4
        for (int t = 0; t < kVectors; ++t) acc[r][t] = Fma(a, key[t], acc[r][t]);
      }
    }
#pragma GCC unroll 6
    for (int r = r0; r < r0 + kRowsAtEnd; ++r) {
      F32 top = acc[r][0];
      Store(s + r * kScoreStride, acc[r][0]);
#pragma GCC unroll 4
      for (int t = 1; t < kVectors; ++t) {
        Store(s + r * kScoreStride + t * kLanes, acc[r][t]);
        top = Max(top, acc[r][t]);
      }
      most[r] = Max(most[r], top);
    }
  }
}

// o[kActive][width] = alpha o + p v (p v without alpha) over `count` keys; one panel of kCount
// vectors.
template <int kCount, int kActive>
SAGE_NOINLINE void FloatOutputTile(const float* p, const float* v, int count, float* o,
                                   int64_t o_stride, const float* alpha, const OutputRows* out,
                                   int64_t first, [[maybe_unused]] FetchLines* fetch) {
  F32 acc[kActive][kCount];
#pragma GCC unroll 6
  for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) acc[r][t] = Zero();
  }
  if (alpha != nullptr) {
#pragma GCC unroll 6
    for (int r = 0; r < kActive; ++r) {
      const F32 a = Set1(alpha[r]);
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) acc[r][t] = Mul(a, Load(o + r * o_stride + t * kLanes));
    }
  }
  const auto add_key = [&]() __attribute__((always_inline)) {
    F32 value[kCount];
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) value[t] = Load(v + t * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kActive; ++r) {
      const F32 a = Set1(p[r * kScoreStride]);
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) acc[r][t] = Fma(a, value[t], acc[r][t]);
    }
    v += kCount * kLanes;
    ++p;
  };
  int left = count;
  if constexpr (kFetchKeys > 0) {
    for (; left >= kFetchKeys; left -= kFetchKeys) {
      FetchStep(fetch);
#pragma GCC unroll 4
      for (int j = 0; j < kFetchKeys; ++j) add_key();
    }
  }
#pragma GCC unroll 4
  for (; left > 0; --left) add_key();
  if (out != nullptr) {
#pragma GCC unroll 6
    for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) WriteOutputs(*out, r, first + t * kLanes, acc[r][t]);
    }
    return;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) Store(o + r * o_stride + t * kLanes, acc[r][t]);
  }
}

// Calls fn(first vector, vectors) for every panel of v_dims.
template <int kMost, class Fn>
SAGE_INLINE void ForEachPanel(int v_dims, const Fn& fn) {
  const int vectors = v_dims / kLanes;
  for (int first = 0; first < vectors; first += kMost)
    fn(first, vectors - first < kMost ? vectors - first : kMost);
}

struct FloatKernels {
  static constexpr int kKeyTile = kFloatVectors * kLanes;
  static constexpr int kDimsMultiple = 1;
  static constexpr bool kRoundsCodes = false;
  static constexpr bool kBeginsOutputs = true;  // Accumulate without alpha sets o
  static constexpr bool kSoftmaxAhead = false;
  static constexpr int kSoftmaxKeys = 16;
  static constexpr bool kShortGroups = true;
  static constexpr bool kWritesOutputs = true;

  static int64_t KBytes(const Plan& plan) { return plan.keys * plan.pack_dims * 4; }
  static int64_t VBytes(const Plan& plan) { return plan.keys * plan.v_dims * 4; }
  static int64_t QBytes(const Plan& plan) { return plan.row_space * plan.pack_dims * 4; }
  static int64_t PBytes() { return 64; }  // P overwrites the scores
  // Pauses of a tile in which lines are fetched: after a tile of scores, after the softmax of a
  // row, and in P·V.
  static int64_t FetchSteps(const Plan& plan, int64_t keys) {
    const int64_t outside = keys / kKeyTile + kRows;
    if constexpr (kFetchKeys > 0) return outside + plan.v_dims / kKeyTile * (keys / kFetchKeys);
    return outside;
  }

  static void PackK(const Plan& plan, const Head& head, int64_t first, int rows, int padded,
                    const float* x, const float* copy, const float* /*factor*/) {
    const int dims = plan.qk_dims, extra = plan.pack_dims - plan.qk_dims;
    const float* scale = head.k_scale + first;
    const int whole = dims / kLanes * kLanes;
    for (int t = 0; t < padded; t += kLanes) {
      const int64_t at = (first + t) % kKeyTile;
      float* tile = reinterpret_cast<float*>(head.k) + (first + t - at) * plan.pack_dims + at;
      for (int d = 0; d < whole; d += kLanes) {
        F32 part[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const int row = t + i;
          part[i] = Mul(LoadU(x + row * dims + d), Set1(row < rows ? scale[row] : 0.0f));
        }
        Transpose(part);
        for (int i = 0; i < kLanes; ++i) Store(tile + (d + i) * kKeyTile, part[i]);
      }
      for (int i = 0; i < kLanes; ++i) {
        const int row = t + i;
        const float factor = row < rows ? scale[row] : 0.0f;
        for (int d = whole; d < dims; ++d) tile[d * kKeyTile + i] = x[row * dims + d] * factor;
        for (int d = 0; d < extra; ++d) {
          tile[(dims + d) * kKeyTile + i] = row < rows ? copy[row * dims + d] * plan.k_sign : 0.0f;
        }
      }
    }
  }

  static void PackV(const Plan& plan, const Head& head, int64_t first, int padded, const float* x) {
    float* v = reinterpret_cast<float*>(head.v);
    ForEachPanel<kFloatVectors>(plan.v_dims, [&](int vector, int count) {
      float* panel = v + (vector * plan.keys + first * count) * kLanes;
      for (int j = 0; j < padded; ++j) {
        const float* row = x + j * plan.v_dims + vector * kLanes;
        for (int t = 0; t < count; ++t) Store(panel + t * kLanes, LoadU(row + t * kLanes));
        panel += count * kLanes;
      }
    });
  }

  // Row r of the task: codes in x, their scale, the mean that rides along (or null); the softmax
  // factor is folded in.
  static float PackQ(const Plan& plan, uint8_t* q, int64_t r, const float* x, float /*factor*/,
                     float scale, const float* mean) {
    float* out = reinterpret_cast<float*>(q) + r * plan.pack_dims;
    for (int d = 0; d < plan.qk_dims; ++d) out[d] = (x[d] * scale) * plan.q_factor;
    for (int d = plan.qk_dims; d < plan.pack_dims; ++d) {
      out[d] = mean[d - plan.qk_dims] * plan.q_factor;
    }
    return 1.0f;
  }

  // Scores of `active` rows of group `g` against keys [j0, j0 + count), count a multiple of 16.
  SAGE_NOINLINE void Scores(const Plan& plan, const Head& head, uint8_t* q, int64_t g, int active,
                            int64_t j0, int count, float* s, F32 most[kRows], FetchLines* fetch) {
    const float* rows = reinterpret_cast<const float*>(q) + g * kRows * plan.pack_dims;
    const float* k = reinterpret_cast<const float*>(head.k) + j0 * plan.pack_dims;
    WithRows(active, [&](auto active_rows) {
      ForEachKeyTile<kKeyTile>(count, [&](int j, auto vectors) {
        FloatScoreTile<decltype(vectors)::value, decltype(active_rows)::value>(
            rows, k + j * plan.pack_dims, plan.pack_dims, s + j, most);
        FetchStep(fetch);
      });
    });
  }

  // p = 2^(s c - m) of a row in place, and sums by lanes. Whole vectors of 16 keys go together: one
  // after the other each waits for itself.
  SAGE_INLINE void Powers(float* row, int count, float c, float m, F32* first, F32* second) {
    constexpr int kStep = kLanes < 16 ? 16 / kLanes : 1;
    const F32 factor = Set1(c), shift = Set1(m);
    for (int half = 0; half * kBlock < count; ++half) {
      const int end = count < (half + 1) * kBlock ? count : (half + 1) * kBlock;
      F32 sum = Zero();
      for (int j = half * kBlock; j < end; j += kStep * kLanes) {
        F32 x[kStep];
#pragma GCC unroll 4
        for (int i = 0; i < kStep; ++i) x[i] = Fms(Load(row + j + i * kLanes), factor, shift);
        Exp2Together<false>(x);
        F32 part = x[0];
        Store(row + j, x[0]);
#pragma GCC unroll 4
        for (int i = 1; i < kStep; ++i) {
          part = Add(part, x[i]);
          Store(row + j + i * kLanes, x[i]);
        }
        sum = Add(sum, part);
      }
      *(half == 0 ? first : second) = sum;
    }
  }

  // p = 2^(s c - m) in place, then rounded to the recipe's format; sums by lanes of what the row
  // sum counts, of the first 128 keys and of the others, and of the unrounded p into `exact` where
  // it is wanted and they differ.
  SAGE_INLINE void Softmax(const Plan& plan, float* s, uint8_t* /*p*/, int r, int count, float c,
                           float m, F32* first, F32* second, F32* exact) {
    const Recipe& recipe = plan.problem->recipe;
    float* row = s + r * kScoreStride;
    Powers(row, count, c, m, first, second);
    if (recipe.pv == PvFormat::kFloat32) return;
    RoundProbabilities(recipe, row, count);
    if (recipe.row_sum == RowSum::kExact) return;
    if (exact != nullptr) *exact = Add(*first, *second);
    for (int half = 0; half * kBlock < count; ++half) {
      const int end = count < (half + 1) * kBlock ? count : (half + 1) * kBlock;
      F32 sum = Zero();
      for (int j = half * kBlock; j < end; j += kLanes) sum = Add(sum, Load(row + j));
      *(half == 0 ? first : second) = sum;
    }
  }

  template <int kActive>
  static void OutputPanels(const Plan& plan, const Head& head, const float* p, int64_t j0,
                           int count, float* o, const float* alpha, const OutputRows* rows,
                           FetchLines* fetch) {
    const float* v = reinterpret_cast<const float*>(head.v);
    ForEachPanel<kFloatVectors>(plan.v_dims, [&](int vector, int vectors) {
      const int64_t first = vector * kLanes;
      const float* panel = v + first * plan.keys + j0 * vectors * kLanes;
      const auto run = [&](auto count_of_vectors) {
        FloatOutputTile<decltype(count_of_vectors)::value, kActive>(
            p, panel, count, o + first, plan.v_dims, alpha, rows, first, fetch);
      };
      switch (vectors) {
        case 1:
          return run(std::integral_constant<int, 1>());
#if defined(SAGE_ISA_AVX2) || defined(SAGE_ISA_AVX512) || defined(SAGE_ISA_NEON)
        case 2:
          return run(std::integral_constant<int, 2>());
#endif
#if defined(SAGE_ISA_AVX512)
        case 3:
          return run(std::integral_constant<int, 3>());
        case 4:
          return run(std::integral_constant<int, 4>());
#endif
        default:
          return;
      }
    });
  }

  // o = alpha o + P V to the caller's rows; false where the recipe asks for another accumulator.
  SAGE_NOINLINE bool AccumulateTo(const Plan& plan, const Head& head, const float* s,
                                  const uint8_t* /*p*/, int active, int64_t j0, int count, float* o,
                                  const float* alpha, const OutputRows& out, FetchLines* fetch) {
    if (ModelOf(plan.problem->recipe).step != 0) return false;
    WithRows(active, [&](auto rows) {
      OutputPanels<decltype(rows)::value>(plan, head, s, j0, count, o, alpha, &out, fetch);
    });
    return true;
  }

  // o = alpha o + P V, with the accumulator the recipe asks for (docs/numerics.md 5).
  SAGE_NOINLINE void Accumulate(const Plan& plan, const Head& head, const float* s,
                                const uint8_t* /*p*/, int active, int64_t j0, int count, float* o,
                                const float* alpha, float* scratch, FetchLines* fetch) {
    const AccumulatorModel model = ModelOf(plan.problem->recipe);
    if (model.step == 0) {
      WithRows(active, [&](auto rows) {
        OutputPanels<decltype(rows)::value>(plan, head, s, j0, count, o, alpha, nullptr, fetch);
      });
      return;
    }
    static const float kKeep[kRows] = {1, 1, 1, 1, 1, 1};
    const int64_t size = kRows * plan.v_dims;
    for (int r = 0; r < kRows; ++r) {
      float* row = o + r * plan.v_dims;
      for (int d = 0; d < plan.v_dims; ++d) row[d] = alpha == nullptr ? 0.0f : row[d] * alpha[r];
    }
    if (!model.per_64_keys) RoundAccumulator(model, o, size);
    for (int first = 0; first < count; first += 64) {
      float* target = o;
      if (model.per_64_keys) {
        target = scratch;
        memset(target, 0, sizeof(float) * static_cast<size_t>(size));
      }
      for (int j = first; j < first + 64 && j < count; j += model.step) {
        const int keys = count - j < model.step ? count - j : model.step;
        OutputPanels<kRows>(plan, head, s + j, j0 + j, keys, target, kKeep, nullptr, fetch);
        RoundAccumulator(model, target, size);
      }
      if (model.per_64_keys) {
        for (int64_t i = 0; i < size; ++i) o[i] += target[i];
      }
    }
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_TILE_FLOAT_H_
