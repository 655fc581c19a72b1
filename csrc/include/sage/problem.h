// One attention call as plain data: the same fields in the same order as src/problem.ts and
// src/numerics/recipes.ts, and what only callers from C++ may ask for (`input`). Buffers travel
// beside it. The rules behind every recipe field are in docs/numerics.md.
#ifndef SAGE_PROBLEM_H_
#define SAGE_PROBLEM_H_

#include <cstdint>

#include "sage/status.h"

namespace sage {

enum class Causal : int8_t { kNone, kTopLeft, kBottomRight };
enum class MaskKind : int8_t { kNone, kBoolean, kAdditive };

// Elements of q, k and v in memory. Everything else is float32 whatever they are (a boolean mask:
// bytes). 16-bit inputs give the result of the same values in float32, code for code.
enum class InputType : int8_t { kFloat32, kFloat16, kBfloat16 };
constexpr char kFloat32InputOnly[] = "these kernels take q, k and v in float32 only";

enum class Precision : int8_t {
  kExact,
  kInt16,
  kInt8Int16,
  kInt8Bf16,
  kInt8Fp16,
  kInt8Fp8,
  kInt8,
  kInt4Fp8,
  kFp4,
  kFp4Fp8
};
enum class Variant : int8_t { kTuned, kPaper };
enum class QkFormat : int8_t { kFloat32, kInt16, kInt8Pair, kInt8, kInt4, kNvfp4 };
enum class PvFormat : int8_t { kFloat32, kInt16, kBf16, kFp16, kE4m3, kInt8, kNvfp4 };
enum class TokenGroup : int8_t {
  kToken,
  kWarp32,
  kThread32,
  kBlock128,
  kConsecutive32,
  kWarp64,
  kThread64,
  kBlock64
};
enum class VScale : int8_t { kNone, kChannel, kBlock64 };
enum class Rounding : int8_t { kEven, kAway };
enum class RowSum : int8_t { kExact, kQuantized };
enum class PvAccumulator : int8_t { kFp32, kFp16, kFp16Fp32, kFp32Fp32, kFp32Fp16 };

// Element strides of batch, head and token; the last axis has stride 1.
struct TokenStrides {
  int64_t batch, head, token;
};

// Element strides of the mask in [B,H,Nq,Nk]; 0 where it is broadcast.
struct MaskStrides {
  int64_t batch, head, query, key;
};

struct Recipe {
  Precision precision;
  Variant variant;
  QkFormat qk;
  PvFormat pv;
  bool smooth_k;
  int32_t smooth_q;  // rows per mean, 0 = off
  int32_t smooth_v;  // tokens per mean, 0 = off
  TokenGroup q_group, k_group;
  VScale v_scale;
  Rounding rounding;
  bool balance, rotate, four_six, head_exponent;
  RowSum row_sum;
  float p_top;  // code of p = 1
  float v_top;  // largest code value of v, 0 = none
  PvAccumulator pv_accumulator;
};

struct Problem {
  int64_t batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim;
  TokenStrides q, k, v, o;
  double scale;  // natural-log domain
  Causal causal;
  int64_t window_left, window_right;  // -1 = no limit; window_right is 0 when causal
  MaskKind mask_kind;
  MaskStrides mask;
  bool want_lse;
  Recipe recipe;
  // Some CUDA kernels take 16 bits; all others refuse with kUnsupported. DecodeProblem: float32.
  InputType input = InputType::kFloat32;

  // Query heads per key/value head.
  int64_t group() const { return kv_heads > 0 ? q_heads / kv_heads : 0; }
  // Query i stands opposite key i + offset().
  int64_t offset() const { return causal == Causal::kBottomRight ? kv_len - q_len : 0; }
  // First key and one past the last key that query i may see by causality and window.
  int64_t FirstKey(int64_t i) const {
    if (window_left < 0) return 0;
    const int64_t first = i + offset() - window_left;
    return first > 0 ? first : 0;
  }
  int64_t EndKey(int64_t i) const {
    if (window_right < 0) return kv_len;
    const int64_t end = i + offset() + window_right + 1;
    return end < 0 ? 0 : end < kv_len ? end : kv_len;
  }
};

// Number of float64 words of an encoded problem, and the version in word 0 (src/problem.ts).
constexpr int kProblemWords = 49;
constexpr int kProblemVersion = 2;

// Reads the words that src/problem.ts `encodeProblem` wrote, and checks that every field is in
// range.
Status DecodeProblem(const double* words, int64_t count, Problem* problem);

// Elements that a buffer with these strides must have (0 when any size is 0).
int64_t RequiredElements(const TokenStrides& strides, int64_t batch, int64_t heads, int64_t tokens,
                         int64_t dim);
int64_t RequiredMaskElements(const Problem& problem);

}  // namespace sage

#endif  // SAGE_PROBLEM_H_
