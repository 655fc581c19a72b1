// Entry of the forward pass: outputs of empty problems, and the instruction set to run.
#include <cstdlib>
#include <cstring>
#include <limits>

#include "cpu/cache/cache_functions.h"
#include "cpu/forward/forward.h"
#include "cpu/large_pages.h"
#include "sage/attention.h"
#include "sage/quantize.h"

namespace sage {
namespace {

// What a thread keeps between calls; larger buffers go back after the call, and the next one pays
// for new pages. Room for a wave of heads and the scratch of each of its workers (schedule.h).
constexpr size_t kKeptBytes = size_t{24} << 20;
constexpr size_t kKeptBytesPerThread = size_t{3} << 20;

ForwardFunction FunctionOf(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return Forward_portable;
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx2:
      return Forward_avx2;
    case Isa::kAvx512:
      return Forward_avx512;
    case Isa::kAvx512Bf16:
      return Forward_avx512_bf16;
    case Isa::kAmx:
#if defined(SAGE_WITH_AMX)
      return Forward_amx;
#else
      return Forward_avx512_bf16;
#endif
#endif
#if defined(SAGE_WITH_NEON)
    case Isa::kNeon:
      return Forward_neon;
#endif
#if defined(SAGE_WITH_NEON_DOT)
    case Isa::kNeonDot:
      return Forward_neon_dot;
#endif
    default:
      break;
  }
  return Forward_portable;
}

// Rows that attend to nothing because there are no keys: o = 0, lse = -Infinity.
void WriteEmptyRows(const Problem& p, const ForwardBuffers& buffers) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h) {
      for (int64_t i = 0; i < p.q_len; ++i) {
        float* o = buffers.o + b * p.o.batch + h * p.o.head + i * p.o.token;
        for (int64_t d = 0; d < p.v_dim; ++d) o[d] = 0.0f;
        if (buffers.lse != nullptr) {
          buffers.lse[(b * p.q_heads + h) * p.q_len + i] = -std::numeric_limits<float>::infinity();
        }
      }
    }
  }
}

Status Run(const Problem& problem, const ForwardBuffers& buffers, const InspectionBuffers* inspect,
           const EngineOptions& options) {
  if (problem.input != InputType::kFloat32) return {StatusCode::kUnsupported, kFloat32InputOnly};
  if (problem.batch == 0 || problem.q_heads == 0 || problem.q_len == 0) return Status::Ok();
  if (problem.kv_len == 0 || problem.kv_heads == 0) {
    WriteEmptyRows(problem, buffers);
    return Status::Ok();
  }
  PrepareResults(buffers.o, problem.o, problem.batch, problem.q_heads, problem.q_len, problem.v_dim,
                 options.threads);
  static thread_local Workspace workspace;
  const Status status =
      inspect == nullptr && IsDecoding(problem, options.isa)
          ? CacheFunctionsOf(options.isa).decode(problem, buffers, options, &workspace)
          : FunctionOf(options.isa)(problem, buffers, inspect, options, &workspace);
  workspace.Trim(options.threads);
  return status;
}

}  // namespace

uint8_t* Workspace::Reserve(size_t bytes) {
  if (bytes <= size_) return data_;
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
  constexpr size_t kAlignment = 64;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
  if (data_ != nullptr) size_ = rounded;
  return data_;
}

void Workspace::Trim(int threads) {
  const size_t kept = kKeptBytesPerThread * static_cast<size_t>(threads);
  if (size_ <= (kept > kKeptBytes ? kept : kKeptBytes)) return;
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
}

Workspace::~Workspace() { std::free(data_); }

Status AttentionForward(const Problem& problem, const ForwardBuffers& buffers,
                        const EngineOptions& options) {
  return Run(problem, buffers, nullptr, options);
}

Status InspectForward(const Problem& problem, const ForwardBuffers& buffers,
                      const InspectionBuffers& out, const EngineOptions& options) {
  return Run(problem, buffers, &out, options);
}

int64_t QuantizedDims(const Problem& problem) {
  int64_t multiple = 1;
  switch (problem.recipe.qk) {
    case QkFormat::kInt16:
    case QkFormat::kInt8Pair:
      multiple = 32;
      break;
    case QkFormat::kNvfp4:
      multiple = 16;
      break;
    default:
      break;
  }
  return (problem.qk_dim + multiple - 1) / multiple * multiple;
}

}  // namespace sage
