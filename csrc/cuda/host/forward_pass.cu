// Forward calls on host arrays. In: q, k, v, and the mask unless all pieces share it. Out: o, lse.
#include "cuda/host/pass.h"
#include "sage/cuda_attention.h"

namespace sage {
namespace cuda {
namespace {

class ForwardPass : public Pass {
 public:
  ForwardPass(const Problem& problem, const ForwardBuffers& buffers)
      : Pass(problem, buffers.mask), buffers_(buffers) {}

  bool backward() const override { return false; }
  bool Supported(const char** reason) const override {
    *reason = kFloat32InputOnly;
    return problem_.input == InputType::kFloat32 && CudaSupports(problem_, reason);
  }

  Work Describe(const Piece& piece) const override {
    Work work;
    Pass::Begin(piece, kMask, &work);
    Problem& p = work.problem;
    const Problem& whole = problem_;
    const auto rows = [&](const float* host, const TokenStrides& from, bool queries, int64_t dim,
                          Area* area, TokenStrides* strides) {
      return AddRows(piece, host, from, queries, dim, area, strides);
    };
    work.at_in[kQ] = rows(buffers_.q, whole.q, true, p.qk_dim, &work.in, &p.q);
    work.at_in[kK] = rows(buffers_.k, whole.k, false, p.qk_dim, &work.in, &p.k);
    work.at_in[kV] = rows(buffers_.v, whole.v, false, p.v_dim, &work.in, &p.v);
    work.at_out[kO] = rows(buffers_.o, whole.o, true, p.v_dim, &work.out, &p.o);
    p.want_lse = buffers_.lse != nullptr;
    if (p.want_lse) work.at_out[kLse] = AddValues(piece, buffers_.lse, &work.out);
    work.workspace = CudaForwardWorkspace(p);
    return work;
  }

  Status Launch(const Work& work, char* in, char* out, void* workspace, const char* mask,
                cudaStream_t stream) const override {
    const auto at = [](char* area, int64_t offset) {
      return reinterpret_cast<float*>(area + offset);
    };
    ForwardBuffers device = {};
    device.q = at(in, work.at_in[kQ]);
    device.k = at(in, work.at_in[kK]);
    device.v = at(in, work.at_in[kV]);
    device.mask = MaskOf(work, kMask, in, mask);
    device.o = at(out, work.at_out[kO]);
    device.lse = work.problem.want_lse ? at(out, work.at_out[kLse]) : nullptr;
    return CudaForward(work.problem, device, workspace, stream);
  }

 private:
  enum Input { kQ, kK, kV, kMask };
  enum Output { kO, kLse };
  const ForwardBuffers& buffers_;
};

// Without keys every row attends to nothing.
void WriteEmptyRows(const Problem& p, const ForwardBuffers& buffers) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h) {
      for (int64_t i = 0; i < p.q_len; ++i) {
        float* row = buffers.o + b * p.o.batch + h * p.o.head + i * p.o.token;
        for (int64_t d = 0; d < p.v_dim; ++d) row[d] = 0.0f;
        if (buffers.lse != nullptr) buffers.lse[(b * p.q_heads + h) * p.q_len + i] = -INFINITY;
      }
    }
  }
}

}  // namespace
}  // namespace cuda

Status CudaHostForward(const Problem& problem, const ForwardBuffers& buffers,
                       const CudaHostOptions& options) {
  if (problem.batch <= 0 || problem.q_heads <= 0 || problem.q_len <= 0) return Status::Ok();
  if (problem.kv_len <= 0 || problem.kv_heads <= 0) {
    cuda::WriteEmptyRows(problem, buffers);
    return Status::Ok();
  }
  return cuda::RunPass(cuda::ForwardPass(problem, buffers), options);
}

Status TimeCudaForward(const Problem& problem, const ForwardBuffers& buffers, int repeats,
                       float* milliseconds) {
  if (problem.batch <= 0 || problem.kv_heads <= 0 || problem.q_len <= 0 || problem.kv_len <= 0) {
    return Status::Invalid("there is nothing to time in an empty problem");
  }
  return cuda::TimePass(cuda::ForwardPass(problem, buffers), repeats, milliseconds);
}

}  // namespace sage
