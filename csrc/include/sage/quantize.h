// Inspection of the quantised operands: what the forward pass multiplies, for tests against
// src/numerics and for debugging.
#ifndef SAGE_QUANTIZE_H_
#define SAGE_QUANTIZE_H_

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// head_dim of the quantised q and k: padded with zeros as the recipe's format asks
// (docs/numerics.md 4).
int64_t QuantizedDims(const Problem& problem);

// Outputs, all float32 and contiguous. Codes are integers or, for nvfp4, code · group scale; e4m3,
// bf16, fp16: the rounded value before its scale. Any pointer may be null.
struct InspectionBuffers {
  float* q_codes;  // [B, Hq, Nq, dims]
  float* q_scale;  // [B, Hq, Nq]
  float* k_codes;  // [B, Hkv, Nk, dims]
  float* k_scale;  // [B, Hkv, Nk]
  float* v_codes;  // [B, Hkv, Nk, v_dim]
  float* v_scale;  // [B, Hkv, v_dim], per channel
};

// Runs the forward pass of the given instruction set (buffers.o is written too) and records its
// quantised operands.
Status InspectForward(const Problem& problem, const ForwardBuffers& buffers,
                      const InspectionBuffers& out, const EngineOptions& options);

}  // namespace sage

#endif  // SAGE_QUANTIZE_H_
