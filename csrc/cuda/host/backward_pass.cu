// Backward calls on host arrays. In: q, k, v, o, lse, dO, dLse, and the mask unless all pieces
// share it. Out: dQ, dK, dV, dMask. Query heads that share a key/value head are in one piece, so dK
// and dV come whole; dMask is added up on the host, in the order of the pieces, where they share
// the mask.
#include <cstring>

#include "cuda/host/pass.h"
#include "sage/cuda_attention.h"

namespace sage {
namespace cuda {
namespace {

void ZeroBox(const StridedBox& box, float* values) {
  if (values == nullptr) return;
  BoxRuns(box).ForEach(0, box.bytes(), [&](int64_t offset, int64_t, int64_t bytes) {
    std::memset(reinterpret_cast<char*>(values) + offset, 0, static_cast<size_t>(bytes));
  });
}

class BackwardPass : public Pass {
 public:
  BackwardPass(const Problem& problem, const BackwardBuffers& buffers)
      : Pass(problem, buffers.mask), buffers_(buffers) {}

  bool backward() const override { return true; }
  // Gradients are exact arithmetic, whatever the recipe was.
  bool Supported(const char** reason) const override {
    Problem exact = problem_;
    exact.recipe.precision = Precision::kExact;
    return CudaSupports(exact, reason);
  }

  void Begin() const override {
    MaskStrides compact;
    ZeroBox(MaskBox(problem_, problem_.batch, problem_.q_heads, &compact), buffers_.d_mask);
  }

  Work Describe(const Piece& piece) const override {
    Work work;
    Pass::Begin(piece, kMask, &work);
    Problem& p = work.problem;
    const Problem& whole = problem_;
    const BackwardBuffers& b = buffers_;
    const auto rows = [&](const float* host, const TokenStrides& from, bool queries, int64_t dim,
                          Area* area, TokenStrides* strides) {
      return AddRows(piece, host, from, queries, dim, area, strides);
    };
    work.at_in[kQ] = rows(b.q, whole.q, true, p.qk_dim, &work.in, &p.q);
    work.at_in[kK] = rows(b.k, whole.k, false, p.qk_dim, &work.in, &p.k);
    work.at_in[kV] = rows(b.v, whole.v, false, p.v_dim, &work.in, &p.v);
    work.at_in[kO] = rows(b.o, whole.o, true, p.v_dim, &work.in, &p.o);
    work.at_in[kDo] = rows(b.d_o, whole.o, true, p.v_dim, &work.in, &p.o);
    work.at_in[kLse] = AddValues(piece, b.lse, &work.in);
    if (b.d_lse != nullptr) work.at_in[kDlse] = AddValues(piece, b.d_lse, &work.in);
    work.at_out[kDq] = rows(b.d_q, whole.q, true, p.qk_dim, &work.out, &p.q);
    work.at_out[kDk] = rows(b.d_k, whole.k, false, p.qk_dim, &work.out, &p.k);
    work.at_out[kDv] = rows(b.d_v, whole.v, false, p.v_dim, &work.out, &p.v);
    if (b.d_mask != nullptr) AddMaskGradient(piece, &work);
    work.workspace = CudaBackwardWorkspace(p);
    return work;
  }

  Status Launch(const Work& work, char* in, char* out, void* workspace, const char* mask,
                cudaStream_t stream) const override {
    const auto at = [](char* area, int64_t offset) {
      return reinterpret_cast<float*>(area + offset);
    };
    BackwardBuffers device = {};
    device.q = at(in, work.at_in[kQ]);
    device.k = at(in, work.at_in[kK]);
    device.v = at(in, work.at_in[kV]);
    device.o = at(in, work.at_in[kO]);
    device.d_o = at(in, work.at_in[kDo]);
    device.lse = at(in, work.at_in[kLse]);
    device.d_lse = buffers_.d_lse != nullptr ? at(in, work.at_in[kDlse]) : nullptr;
    device.mask = MaskOf(work, kMask, in, mask);
    device.d_q = at(out, work.at_out[kDq]);
    device.d_k = at(out, work.at_out[kDk]);
    device.d_v = at(out, work.at_out[kDv]);
    device.d_mask = buffers_.d_mask != nullptr ? at(out, work.at_out[kDmask]) : nullptr;
    return CudaBackward(work.problem, device, workspace, stream);
  }

 private:
  enum Input { kQ, kK, kV, kMask, kO, kDo, kLse, kDlse };
  enum Output { kDq, kDk, kDv, kDmask };

  // The kernels write it with the strides of the piece's mask. Those of a shared mask are compact
  // for a piece as well: only one of its two outer axes is not broadcast.
  void AddMaskGradient(const Piece& piece, Work* work) const {
    const Problem& p = work->problem;
    MaskStrides compact;
    const StridedBox box = MaskBox(problem_, p.batch, p.q_heads, &compact);
    const int64_t offset =
        piece.batch * problem_.mask.batch + piece.head * problem_.group() * problem_.mask.head;
    work->at_out[kDmask] = work->out.Add(box, buffers_.d_mask + offset, true);
  }

  const BackwardBuffers& buffers_;
};

// Without queries or keys nothing depends on anything.
void WriteNoGradients(const Problem& p, const BackwardBuffers& buffers) {
  TokenStrides compact;
  ZeroBox(TokenBox(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim, &compact), buffers.d_q);
  ZeroBox(TokenBox(p.k, p.batch, p.kv_heads, p.kv_len, p.qk_dim, &compact), buffers.d_k);
  ZeroBox(TokenBox(p.v, p.batch, p.kv_heads, p.kv_len, p.v_dim, &compact), buffers.d_v);
  MaskStrides mask;
  ZeroBox(MaskBox(p, p.batch, p.q_heads, &mask), buffers.d_mask);
}

}  // namespace
}  // namespace cuda

Status CudaHostBackward(const Problem& problem, const BackwardBuffers& buffers,
                        const CudaHostOptions& options) {
  if (problem.batch <= 0 || problem.kv_heads <= 0 || problem.q_len <= 0 || problem.kv_len <= 0) {
    cuda::WriteNoGradients(problem, buffers);
    return Status::Ok();
  }
  if (buffers.d_mask != nullptr && problem.mask_kind != MaskKind::kAdditive) {
    return Status::Invalid("only an additive mask has a gradient");
  }
  return cuda::RunPass(cuda::BackwardPass(problem, buffers), options);
}

}  // namespace sage
