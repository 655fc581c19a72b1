// What the backward pass takes from the code of one instruction set: entry points, and the plan
// that both sides read.
//
// Per batch and query head (FlashAttention, section 3.1 and appendix B), with
// S = scale·q·k + mask, P = exp(S - lse) and delta = rowsum(dO∘O) - dLse:
//   dV = P^T dO             dQ = scale dS K
//   dP = dO V^T             dK = scale dS^T Q
//   dS = P∘(dP - delta)     dMask = dS, summed over the axes that the mask is broadcast along
#ifndef SAGE_CPU_BACKWARD_H_
#define SAGE_CPU_BACKWARD_H_

#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"

namespace sage {

// Where the gradient of the mask goes.
enum class MaskGradient : int8_t {
  kNone,
  kElements,  // the mask has a query axis: added to d_mask by whoever computes the rows of dQ
  kColumns,   // broadcast over queries: summed per head and key in mask_columns by whoever computes
              // dK
};

struct BackwardPlan {
  const Problem* problem;
  const BackwardBuffers* buffers;
  int64_t group;   // query heads per key/value head
  int64_t offset;  // query i stands opposite key i + offset
  MaskGradient mask_gradient;
  float* delta;         // [B,H,Nq]
  float* mask_columns;  // [B,H,Nk], zeroed; null unless kColumns
  // Polled between tiles.
  bool (*cancelled)(const void* context);
  const void* cancelled_context;
};

// Heads and rows of one task; no two tasks that may run together write the same element.
struct BackwardRange {
  int64_t batch_begin, batch_end;
  int64_t kv_begin, kv_end;      // key/value heads
  int64_t head_begin, head_end;  // query heads within the group
  int64_t row_begin, row_end;    // keys of RunKeys, queries of RunQueries
};

struct BackwardKernels {
  int64_t query_rows, key_rows;  // rows of a tile: what a task of RunQueries or RunKeys should get
  // Working memory of one worker, in floats; it must start at a multiple of 64 bytes.
  int64_t (*scratch_floats)(const Problem& problem);
  // delta of the rows [begin, end) of [B,H,Nq] counted as one axis.
  void (*delta)(const BackwardPlan& plan, int64_t begin, int64_t end);
  // dQ, dK and dV of whole heads in five products per tile. head and row ranges are ignored.
  void (*heads)(const BackwardPlan& plan, const BackwardRange& range, float* scratch);
  // dK and dV of some keys (four products), and dQ of some queries (three): more work than `heads`,
  // but any number of tasks.
  void (*keys)(const BackwardPlan& plan, const BackwardRange& range, float* scratch);
  void (*queries)(const BackwardPlan& plan, const BackwardRange& range, float* scratch);
};

const BackwardKernels* BackwardKernels_portable();
// These exist where the compiler knows the instruction set (SAGE_WITH_<ISA>).
const BackwardKernels* BackwardKernels_avx2();
const BackwardKernels* BackwardKernels_avx512();
const BackwardKernels* BackwardKernels_avx512_bf16();
const BackwardKernels* BackwardKernels_neon();
const BackwardKernels* BackwardKernels_neon_dot();

}  // namespace sage

#endif  // SAGE_CPU_BACKWARD_H_
