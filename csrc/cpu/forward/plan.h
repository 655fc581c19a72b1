// The plan of one forward call: sizes, padding, workspace layout. Computed once, read by every
// phase and task.
//
// Work runs in waves of key/value heads so that the packed operands of a wave stay inside a fixed
// budget whatever B·H·N is. Rows: the query heads of a group share K and V, so row r of a key/value
// head is query i = r / group of head g = r % group.
#ifndef SAGE_CPU_FORWARD_PLAN_H_
#define SAGE_CPU_FORWARD_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "cpu/forward/forward.h"
#include "cpu/simd/simd.h"
#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/quantize.h"

namespace sage {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr double kLn2 = 0.693147180559945309417;

// Tokens per block of every prepass phase: the largest group of docs/numerics.md, so that no group
// crosses a block.
constexpr int kBlock = 128;

// Rows per tile. Registers: 6 rows x 4 vectors = 24 accumulators of AVX-512's 32 registers, 6 x 2 =
// 12 of AVX2's 16. AMX: two tiles of 16 rows (cpu/amx/score_tiles.h).
#if defined(SAGE_ISA_AMX)
constexpr int kRows = 32;
#else
constexpr int kRows = 6;
#endif

// Rows whose sums end together. The last products of a register tile go by pairs of rows, so that
// what becomes of the sums of one pair (conversions, maxima, stores: other units than the products)
// runs beside the products of the next. After all products it waited for room in the schedulers.
constexpr int kRowsAtEnd = 2;
static_assert(kRows % kRowsAtEnd == 0, "whole pairs");

// Rows of a group that are computed, of `left` that the task still has: the last group of a task
// may be short, and kernels that can (kShortGroups) leave out its padding, pair by pair.
template <class Kernels>
SAGE_INLINE int ActiveRows(int64_t left) {
  if (!Kernels::kShortGroups || left >= kRows) return kRows;
  return static_cast<int>((left + kRowsAtEnd - 1) / kRowsAtEnd * kRowsAtEnd);
}

// Keys of one softmax step, and the row length of the score tile. 256 measured better than 128 at
// head_dim 64 and 128 on AVX2 and AVX-512: fewer passes over the accumulators outweigh K and V
// leaving L1 for L2.
constexpr int kScoreStride = 256;

// Not finite: exponent field all ones.
constexpr int32_t kInfBits = 0x7f800000;

// Keys of a tile are computed in whole register tiles and whole groups of 16 (nvfp4): K and V are
// packed up to this multiple.
template <class Kernels>
constexpr int kKeyMultiple = Kernels::kKeyTile > 16 ? Kernels::kKeyTile : 16;

// Tokens of K and V that are loaded, quantised and packed together: their float32 values (4 KiB at
// head_dim 64) are still in L1 at each step. AMX packs whole blocks.
#if defined(SAGE_ISA_AMX)
constexpr int kPackTokens = kBlock;
#else
constexpr int kPackTokens = 16;
#endif

SAGE_INLINE int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
SAGE_INLINE int64_t MinOf(int64_t a, int64_t b) { return a < b ? a : b; }
SAGE_INLINE int64_t MaxOf(int64_t a, int64_t b) { return a > b ? a : b; }

struct Plan {
  const Problem* problem;
  const ForwardBuffers* buffers;
  const InspectionBuffers* inspect;  // null unless operands are recorded
  const std::atomic<bool>* cancelled;

  int64_t group;      // query heads per key/value head
  int64_t rows;       // group * q_len
  int64_t blocks;     // 128-token blocks of K and V
  int64_t keys;       // blocks * 128
  int64_t q_blocks;   // 128-row blocks of one query head
  int64_t row_block;  // rows per attention task, an even number
  int64_t row_space;  // the same in whole groups of kRows
  int64_t row_blocks;

  int qk_dims;    // head_dim as quantised: padded with zeros
  int code_dims;  // the part of it that the format itself asks for (QuantizedDims); the rest is the
                  // kernels'
  int pack_dims;  // dims of a packed row: qk_dims, and head_dim more when the Q mean rides along
                  // (tile_float.h)
  int v_dims;     // v_dim padded to whole vectors
  int rotation;   // block size of the Hadamard rotation, 0 = none
  int pack_tokens;  // tokens packed at a time: kPackTokens, or a block where scales span tokens

  bool scales_by_norm;  // formats that norms limit, 16 tokens at a time: norm_rows.h serves Q and K
  bool packs_rows;      // whether the ways of DirectRows (prepass.h) give what the recipe asks for

  bool q_stats, kv_stats;  // whether means, channel maxima or head exponents are needed first
  bool softmax_scaled;     // scores carry the mask: they are scaled before the softmax
  float q_factor;          // |scale| · log2(e)
  float k_sign;            // sign of scale, carried by K so that row maxima stay maxima

  int64_t offset;  // query i stands opposite key i + offset
};

// Whether rows in groups of this kind may be rounded to codes while they are packed: int8 with a
// scale for each row, and nobody wants to see the codes.
SAGE_INLINE bool RoundedByPacking(const Plan& plan, TokenGroup group) {
  const Recipe& recipe = plan.problem->recipe;
  return recipe.qk == QkFormat::kInt8 && group == TokenGroup::kToken &&
         recipe.rounding == Rounding::kEven && plan.inspect == nullptr;
}

// First key and one past the last key that query i may see by causality and window. (Here and not
// in problem.h: a function that another translation unit could share must not be called from code
// compiled for one instruction set.)
SAGE_INLINE int64_t FirstKey(const Plan& plan, int64_t i) {
  const int64_t left = plan.problem->window_left;
  return left < 0 ? 0 : MaxOf(0, i + plan.offset - left);
}
SAGE_INLINE int64_t EndKey(const Plan& plan, int64_t i) {
  const Problem& p = *plan.problem;
  return p.window_right < 0 ? p.kv_len
                            : MinOf(p.kv_len, MaxOf(0, i + plan.offset + p.window_right + 1));
}

// Bits of tokens whose values are not all finite.
constexpr uint8_t kNotFiniteK = 1, kNotFiniteV = 2;

// Packed operands and statistics of one key/value head of the wave.
struct Head {
  int64_t batch, kv_head;
  uint8_t* k;  // layout of the kernels
  uint8_t* v;
  float* k_scale;          // [keys]
  float* k_mean;           // [qk_dim]
  float* v_scale;          // [v_dims]
  float* v_inverse;        // [v_dims]
  float* v_mean;           // [blocks][v_dims]
  double* k_sum;           // [blocks][qk_dim]
  double* k_count;         // [blocks][qk_dim]
  float* v_max;            // [blocks][v_dims]
  float* block_max;        // [blocks][2]: largest |k| and |v|
  uint8_t* not_finite;     // [keys]: kNotFiniteK, kNotFiniteV
  int any_not_finite;      // same bits, of any token; of V as soon as its statistics are taken
  float k_power, v_power;  // 2^e of nvfp4
  float* q_mean;           // [group][ceil(q_len / R)][qk_dim]
  float* q_scale;          // [group][q_blocks * 128]
  float* q_inverse;        // [group][q_blocks * 128]
  float* q_max;            // [group][q_blocks]
  float* q_power;          // [group]
  float* k_spread;         // [blocks][qk_dim], of the recipes that balance channels
  float* q_spread;         // [group][q_blocks][qk_dim]
  float* k_balance;        // [qk_dims], 2^-e; 1 where nothing is balanced
  float* q_balance;        // [qk_dims], 2^e
};

// Rows of outputs that a tile writes to the caller's memory: sums times the row's factor and the
// channels' scales.
struct OutputRows {
  float* row[kRows];
  alignas(64) float factor[(kRows + kLanes - 1) / kLanes * kLanes];
  const float* v_scale;
};

// A vector of sums of row r, dims from d on.
SAGE_INLINE void WriteOutputs(const OutputRows& out, int r, int64_t d, F32 sum) {
  StoreU(out.row[r] + d, Mul(sum, Mul(Set1(out.factor[r]), Load(out.v_scale + d))));
}

// Hands out aligned pieces of the workspace; with a null base it only measures.
struct Carver {
  uint8_t* base;
  size_t used;
  template <class T>
  T* Take(int64_t count) {
    T* out = reinterpret_cast<T*>(base + used);
    used += static_cast<size_t>(RoundUp(count * static_cast<int64_t>(sizeof(T)), 64));
    return base == nullptr ? nullptr : out;
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_PLAN_H_
