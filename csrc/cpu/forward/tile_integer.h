// Tile kernels with integer (or bf16) products, put together from a Q·K half and a P·V half of one
// instruction set.
//
// Scores: integer dot · k_scale per key; the row's own factor waits for the softmax. Row maxima are
// taken on the way. A Qk half supplies: kKeyTile, kDims (padding of head_dim), kBytes per element,
// kOffset (K is stored unsigned as code + kOffset),
//   kRounds (whether the stores take values and what multiplies them to codes, or codes),
//   QueryBytes (of a packed row), StoreKeys (16 of them), StoreQuery, Tile.   A Pv half supplies:
//   kBytes, kProbabilityBytes, kUnitKeys (keys of a step of the softmax), StoreValues, Row
//   (softmax), Panel<vectors>.   Where products fetch lines: FetchSteps (pauses of a Tile),
//   kFetchKeys (keys between two of a Panel).
#ifndef SAGE_CPU_FORWARD_TILE_INTEGER_H_
#define SAGE_CPU_FORWARD_TILE_INTEGER_H_

#include "cpu/forward/plan.h"
#include "cpu/forward/softmax_ahead.h"
#include "cpu/forward/tile_float.h"

namespace sage {
namespace {

template <class Qk, class Pv>
struct IntegerKernels {
  static constexpr int kKeyTile = Qk::kKeyTile;
  static constexpr int kDimsMultiple = Qk::kDims;
  static constexpr bool kRoundsCodes = Qk::kRounds;
  static constexpr bool kBeginsOutputs = true;  // Accumulate without alpha sets o

  static int64_t KBytes(const Plan& plan) { return plan.keys * plan.qk_dims * Qk::kBytes; }
  static int64_t VBytes(const Plan& plan) { return plan.keys * plan.v_dims * Pv::kBytes; }
  // Codes, then the corrections of the unsigned K: Qk::Corrections(dims) words for each row.
  static int64_t QBytes(const Plan& plan) {
    return RoundUp(plan.row_space * Qk::QueryBytes(plan.qk_dims), 64) +
           plan.row_space * Qk::Corrections(plan.qk_dims) * 4;
  }
  static constexpr bool kSoftmaxAhead = Pv::kSoftmaxAhead;
  static constexpr int kSoftmaxKeys = Pv::kUnitKeys;
  static constexpr bool kShortGroups = Qk::kShortGroups;
  static constexpr bool kWritesOutputs = true;
  static constexpr int64_t kTilePBytes = kRows * kScoreStride * Pv::kProbabilityBytes;
  // Pauses of a tile in which lines are fetched, at least: in the products, or after a tile of
  // scores and the softmax of a row.
  static int64_t FetchSteps(const Plan& plan, int64_t keys) {
    if constexpr (kSoftmaxAhead) {
      const int64_t panels = plan.v_dims / (Pv::kPanel * kLanes);
      return (keys + kKeyTile - 1) / kKeyTile * Qk::FetchSteps(plan.qk_dims) +
             panels * (keys / Pv::kFetchKeys - 1);
    }
    return keys / kKeyTile + kRows;
  }
  // Of two tiles, where the softmax of one goes ahead of the outputs of the other.
  static int64_t PBytes() { return (kSoftmaxAhead ? 2 : 1) * kTilePBytes; }

  SAGE_INLINE int32_t* CorrectionsOf(const Plan& plan, uint8_t* q) {
    return reinterpret_cast<int32_t*>(q +
                                      RoundUp(plan.row_space * Qk::QueryBytes(plan.qk_dims), 64));
  }

  static void PackK(const Plan& plan, const Head& head, int64_t first, int /*rows*/, int padded,
                    const float* x, const float* /*copy*/, [[maybe_unused]] const float* factor) {
    for (int t = 0; t < padded; t += 16) {
      const int64_t at = (first + t) % kKeyTile;
      uint8_t* tile = head.k + (first + t - at) * plan.qk_dims * Qk::kBytes;
      const float* rows = x + t * plan.qk_dims;
      if constexpr (kRoundsCodes) {
        Qk::StoreKeys(rows, plan.qk_dims, static_cast<int>(at), tile,
                      factor == nullptr ? nullptr : factor + t);
      } else {
        Qk::StoreKeys(rows, plan.qk_dims, static_cast<int>(at), tile);
      }
    }
  }

  static void PackV(const Plan& plan, const Head& head, int64_t first, int padded, const float* x) {
    ForEachPanel<Pv::kPanel>(plan.v_dims, [&](int vector, int count) {
      uint8_t* panel = head.v + (vector * plan.keys + first * count) * kLanes * Pv::kBytes;
      Pv::StoreValues(x + vector * kLanes, plan.v_dims, count, padded, panel);
    });
  }

  static float PackQ(const Plan& plan, uint8_t* q, int64_t r, const float* x,
                     [[maybe_unused]] float factor, float scale, const float* /*mean*/) {
    uint8_t* group = q + r / kRows * kRows * Qk::QueryBytes(plan.qk_dims);
    int32_t* corrections =
        CorrectionsOf(plan, q) + r / kRows * kRows * Qk::Corrections(plan.qk_dims);
    const int row = static_cast<int>(r % kRows);
    if constexpr (kRoundsCodes) {
      Qk::StoreQuery(x, plan.qk_dims, row, group, corrections, factor);
    } else {
      Qk::StoreQuery(x, plan.qk_dims, row, group, corrections);
    }
    return scale * plan.q_factor;
  }

  SAGE_NOINLINE void Scores(const Plan& plan, const Head& head, uint8_t* q, int64_t g,
                            [[maybe_unused]] int active, int64_t j0, int count, float* s,
                            F32 most[kRows], FetchLines* fetch) {
    const uint8_t* rows = q + g * kRows * Qk::QueryBytes(plan.qk_dims);
    const int32_t* corrections = CorrectionsOf(plan, q) + g * kRows * Qk::Corrections(plan.qk_dims);
    const uint8_t* k = head.k + j0 * plan.qk_dims * Qk::kBytes;
    if constexpr (kKeyTile == 16) {
      // Always whole tiles. Through the function below, GCC 12 spills accumulators of words.
      for (int j = 0; j < count; j += kKeyTile) {
        Qk::template Tile<kKeyTile / kLanes>(rows, corrections, k + j * plan.qk_dims * Qk::kBytes,
                                             plan.qk_dims, head.k_scale + j0 + j, s + j, most);
        FetchStep(fetch);
      }
    } else {
      WithRows(active, [&](auto active_rows) {
        ForEachKeyTile<kKeyTile>(count, [&](int j, auto vectors) {
          Qk::template Tile<decltype(vectors)::value, decltype(active_rows)::value>(
              rows, corrections, k + j * plan.qk_dims * Qk::kBytes, plan.qk_dims,
              head.k_scale + j0 + j, s + j, most, fetch);
        });
      });
    }
  }

  SAGE_INLINE void Softmax(const Plan& plan, float* s, uint8_t* p, int r, int count, float c,
                           float m, F32* first, F32* second, F32* exact) {
    const float* row = s + r * kScoreStride;
    uint8_t* out = p + r * kScoreStride * Pv::kProbabilityBytes;
    // Only V's means, one per 128 keys, need the sums apart.
    const bool apart = plan.problem->recipe.smooth_v > 0 && count > kBlock;
    *first = Pv::Row(row, out, 0, apart ? kBlock : count, c, m, exact);
    if (apart) *second = Pv::Row(row, out, kBlock, count, c, m, exact);
  }

  // The same softmax for SoftmaxUnit: `ahead` for the whole tile, sums into sum[kRows].
  SAGE_INLINE SoftmaxAhead BeginSoftmax(const float* s, uint8_t* p, int active, int count,
                                        const float* factor, float* shift, F32* sum) {
    Store(shift, Sub(Load(shift), Set1(Pv::kLog2OfTop)));
    for (int r = 0; r < kRows; ++r) sum[r] = Zero();
    return {s, p, factor, shift, sum, 0, count, active};
  }

  // What is left of it.
  SAGE_NOINLINE void EndSoftmax(SoftmaxAhead ahead, F32* sum) {
    while (ahead.rows > 0) SoftmaxUnit<Pv>(&ahead);
    for (int r = 0; r < kRows; ++r) sum[r] = Pv::FinishSum(sum[r]);
  }

  SAGE_INLINE void Accumulate(const Plan& plan, const Head& head, const float* /*s*/,
                              const uint8_t* p, int active, int64_t j0, int count, float* o,
                              const float* alpha, float* /*scratch*/, FetchLines* fetch) {
    SoftmaxAhead none = {};
    AccumulateAnd(plan, head, p, active, j0, count, o, alpha, nullptr, &none, fetch);
  }

  // The same to the caller's rows.
  SAGE_INLINE bool AccumulateTo(const Plan& plan, const Head& head, const float* /*s*/,
                                const uint8_t* p, int active, int64_t j0, int count, float* o,
                                const float* alpha, const OutputRows& out, FetchLines* fetch) {
    SoftmaxAhead none = {};
    AccumulateAnd(plan, head, p, active, j0, count, o, alpha, &out, &none, fetch);
    return true;
  }

  SAGE_NOINLINE void AccumulateAnd(const Plan& plan, const Head& head, const uint8_t* p,
                                   [[maybe_unused]] int active, int64_t j0, int count, float* o,
                                   const float* alpha, const OutputRows* rows_out,
                                   [[maybe_unused]] SoftmaxAhead* ahead,
                                   [[maybe_unused]] FetchLines* fetch) {
    ForEachPanel<Pv::kPanel>(plan.v_dims, [&](int first, int vectors) {
      const uint8_t* panel = head.v + (first * plan.keys + j0 * vectors) * kLanes * Pv::kBytes;
      float* out = o + first * kLanes;
      // Padding of the key count is hidden (p = 0) up to a multiple of 16, which every grouping of
      // keys divides.
      const auto run = [&](auto count_of_vectors) {
        constexpr int kVectors = decltype(count_of_vectors)::value;
        if constexpr (kSoftmaxAhead) {
          WithRows(active, [&](auto rows) {
            Pv::template Panel<kVectors, decltype(rows)::value>(
                p, panel, count, out, plan.v_dims, alpha, rows_out, first * kLanes, ahead, fetch);
          });
        } else {
          Pv::template Panel<kVectors>(p, panel, count, out, plan.v_dims, alpha, rows_out,
                                       first * kLanes);
        }
      };
      if (vectors == Pv::kPanel) {
        run(std::integral_constant<int, Pv::kPanel>());
      } else if (vectors == 1) {
        run(std::integral_constant<int, 1>());
      } else if (vectors == 2) {
        run(std::integral_constant<int, 2>());
      } else if constexpr (Pv::kPanel > 3) {
        run(std::integral_constant<int, 3>());
      }
    });
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_TILE_INTEGER_H_
