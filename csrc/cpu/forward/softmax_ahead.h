// The softmax of a tile between the products P·V of the tile before it.
//
//   scores(t + 1), maxima(t + 1)
//   for each 4 dwords of keys of tile t:      o += p v       the multipliers
//     a unit of P of tile t + 1               p = 2^(s c - m) mostly the adders and shuffles
//
// Alone, a softmax leaves the multipliers idle for a third of its time, and its first instructions
// wait for the scores' last ones; between products both are hidden, and only its multiplications
// cost time. A unit is as many keys as one vector of P holds. It may use 8 registers: the others
// hold the outputs, so its constants stay in memory.
#ifndef SAGE_CPU_FORWARD_SOFTMAX_AHEAD_H_
#define SAGE_CPU_FORWARD_SOFTMAX_AHEAD_H_

#include "cpu/forward/plan.h"

namespace sage {
namespace {

// What is left to do: `rows` rows of `count` keys, the first one from key `at` on. Pointers are
// those of the first row.
struct SoftmaxAhead {
  const float* s;       // [row][kScoreStride]
  uint8_t* p;           // [row][kScoreStride * bytes]
  const float* factor;  // p = 2^(s factor - shift)
  const float* shift;
  F32* sum;  // sums of P by lanes, as the format sums them
  int at, count, rows;
};

// One unit, if there is one left.
template <class Pv>
SAGE_INLINE void SoftmaxUnit(SoftmaxAhead* ahead) {
  if (ahead->rows == 0) return;
  Pv::Unit(ahead->s + ahead->at, ahead->p + ahead->at * Pv::kProbabilityBytes, ahead->factor,
           ahead->shift, ahead->sum);
  ahead->at += Pv::kUnitKeys;
  if (ahead->at < ahead->count) return;
  ahead->at = 0;
  --ahead->rows;
  ahead->s += kScoreStride;
  ahead->p += kScoreStride * Pv::kProbabilityBytes;
  ++ahead->factor;
  ++ahead->shift;
  ++ahead->sum;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_SOFTMAX_AHEAD_H_
