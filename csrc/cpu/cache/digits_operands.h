// Operands of the products of digits (digits.h).
#ifndef SAGE_CPU_CACHE_DIGITS_OPERANDS_H_
#define SAGE_CPU_CACHE_DIGITS_OPERANDS_H_

#include <cstdint>

#include "cpu/cache/code_cursor.h"
#include "cpu/cache/page_layout.h"

namespace sage {
namespace {

constexpr float kQTop = 8191.0f;
constexpr int kQOffset = 8192;
constexpr float kPTop = 16383.0f;

// Digits of a row of q: [2][k_dims] bytes, high first. Of a row of p: [2][128].
struct ScoreOperands {
  const uint8_t* q;  // of the first row
  int64_t q_stride;  // bytes from row to row
  const uint8_t* k;  // tile of 64 tokens
  const int32_t* first_sum;
  const float* scale;
  int dims;
  CodeCursor* ahead;  // as many lines as the tile has are asked for
};

struct OutputOperands {
  const uint8_t* p;
  const uint8_t* v;  // panel
  int groups;        // of 4 tokens
  float* o;
  int64_t o_stride;
  const float* alpha;
  const float* factor;
  CodeCursor* ahead;
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_DIGITS_OPERANDS_H_
