// The CPU engine: forward and backward attention on plain buffers. Knows neither Node nor
// TensorFlow.
#ifndef SAGE_ATTENTION_H_
#define SAGE_ATTENTION_H_

#include <atomic>
#include <cstdint>

#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

struct ForwardBuffers {
  const float* q;  // q, k, v: where problem.input says so, addresses of 16-bit elements
  const float* k;
  const float* v;
  const void* mask;  // float or uint8_t by problem.mask_kind, null when none
  float* o;
  float* lse;  // [B,H,Nq] contiguous, null unless problem.want_lse
};

struct BackwardBuffers {
  const float* q;
  const float* k;
  const float* v;
  const void* mask;
  const float* o;
  const float* lse;
  const float* d_o;
  const float* d_lse;  // null = zero
  float* d_q;
  float* d_k;
  float* d_v;
  float* d_mask;  // strides of the mask; null = not wanted; zeroed here
};

// Instruction sets of the CPU engine, each a superset of those before it.
enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx, kNeon, kNeonDot };
constexpr int kIsaCount = 7;
const char* IsaName(Isa isa);

// What this processor and its operating system can run.
Isa DetectIsa();

struct EngineOptions {
  Isa isa;
  int threads;                                   // >= 1
  const std::atomic<bool>* cancelled = nullptr;  // polled between tiles
};

// o (and lse) in full; inputs are never changed. Working memory is O(N) per head and bounded over
// heads.
Status AttentionForward(const Problem& problem, const ForwardBuffers& buffers,
                        const EngineOptions& options);

// Gradients by exact float32 arithmetic from the saved o and lse; working memory O(N).
Status AttentionBackward(const Problem& problem, const BackwardBuffers& buffers,
                         const EngineOptions& options);

}  // namespace sage

#endif  // SAGE_ATTENTION_H_
