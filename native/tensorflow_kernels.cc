#include "tensorflow_kernels.h"

#include <cstring>

#include "buffers.h"
#include "float_mode.h"
#include "sage/attention.h"
#include "sage/cuda_attention.h"
#include "tensorflow_call.h"
#include "tensorflow_tensors.h"
#include "tensorflow_trace.h"

namespace sage_node::tensorflow {
namespace {

using sage::MaskKind;
using sage::Problem;
using sage::RequiredElements;

int64_t QElements(const Problem& p) {
  return RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim);
}
int64_t KElements(const Problem& p) {
  return RequiredElements(p.k, p.batch, p.kv_heads, p.kv_len, p.qk_dim);
}
int64_t VElements(const Problem& p) {
  return RequiredElements(p.v, p.batch, p.kv_heads, p.kv_len, p.v_dim);
}
int64_t OElements(const Problem& p) {
  return RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim);
}

// The shape of q with v's head_dim; its elements are exactly those that the engines write.
std::vector<int64_t> OutputShape(const Tensor& q, const Problem& p) {
  std::vector<int64_t> shape = q.shape();
  const size_t rank = shape.size();
  if (rank < 2 || rank > 4 || q.elements() != Elements({RowCount(p), p.qk_dim}) ||
      shape[rank - 1] != p.qk_dim) {
    Refuse("q: its shape is not that of the problem");
  }
  shape[rank - 1] = p.v_dim;
  if (OElements(p) > Elements({RowCount(p), p.v_dim})) {
    Refuse("o: its strides reach beyond its shape");
  }
  return shape;
}

// [B,H,Nq], or its last axes by the rank of q.
std::vector<int64_t> LseShape(const Tensor& q, const Problem& p) {
  const std::vector<int64_t> full = {p.batch, p.q_heads, p.q_len};
  std::vector<int64_t> shape(full.begin() + (4 - q.rank()), full.end());
  int64_t rows = 1;
  for (const int64_t size : shape) rows *= size;
  if (rows != RowCount(p)) Refuse("q: its rank is too low for the problem");
  return shape;
}

template <bool kOnGpu>
void Forward(TF_OpKernelContext* context) {
  GuardKernel(context, "SageAttention", [context] {
    const Call call = ReadCall(context, nullptr);
    const Problem& p = call.problem;
    const bool masked = api.TF_NumInputs(context) > 4;
    const bool with_lse = api.TF_NumOutputs(context) > 1;
    if (masked != (p.mask_kind != MaskKind::kNone)) Refuse("mask: this op is not the problem's");
    if (with_lse != p.want_lse) Refuse("lse: this op is not the problem's");
    const Tensor q = FloatInput(context, 1, QElements(p), "q");
    const Tensor k = FloatInput(context, 2, KElements(p), "k");
    const Tensor v = FloatInput(context, 3, VElements(p), "v");
    // Some reference must be held: of q, when there is no mask.
    const Tensor mask = Input(context, masked ? 4 : 1);
    sage::ForwardBuffers buffers = {q.floats(), k.floats(), v.floats(), nullptr, nullptr, nullptr};
    if (masked) buffers.mask = MaskData(mask, p);
    const Tensor o = Output(context, 0, OutputShape(q, p));
    buffers.o = o.floats();
    std::unique_ptr<Tensor> lse;
    if (with_lse) {
      lse = std::make_unique<Tensor>(Output(context, 1, LseShape(q, p)));
      buffers.lse = lse->floats();
    }
    const char* order = "";
    if constexpr (kOnGpu) {
      order = RunOnGpu(context, sage::CudaForwardWorkspace(p), [&](void* workspace, void* stream) {
        return sage::CudaForward(p, buffers, workspace, stream);
      });
    } else {
      const DefaultFloatMode mode;
      ThrowUnlessOk(sage::AttentionForward(p, buffers, call.options));
    }
    NoteCall(context, kOnGpu ? "GPU" : "CPU", order, buffers.q, buffers.o);
  });
}

// A gradient of the shape of an input. Elements between the strides, which the engines leave alone,
// are 0.
template <bool kOnGpu>
Tensor Gradient(TF_OpKernelContext* context, int index, const Tensor& like, int64_t written) {
  Tensor gradient = Output(context, index, like.shape());
  if (gradient.elements() == written) return gradient;
  if (kOnGpu) throw KernelFailure{kUnimplemented, "gradients with gaps in their strides"};
  std::memset(gradient.data(), 0, static_cast<size_t>(gradient.elements()) * sizeof(float));
  return gradient;
}

int64_t MaskElementsWritten(const Problem& p) {
  const auto size = [](int64_t stride, int64_t count) { return stride == 0 ? 1 : count; };
  return Elements({size(p.mask.batch, p.batch), size(p.mask.head, p.q_heads),
                   size(p.mask.query, p.q_len), size(p.mask.key, p.kv_len)});
}

template <bool kOnGpu>
void Backward(TF_OpKernelContext* context) {
  GuardKernel(context, "SageAttentionGrad", [context] {
    const Call call = ReadCall(context, nullptr);
    const Problem& p = call.problem;
    const bool with_mask = api.TF_NumOutputs(context) > 3;
    if (with_mask && p.mask_kind != MaskKind::kAdditive) {
      Refuse("dMask: only an additive mask has a gradient");
    }
    const Tensor q = FloatInput(context, 1, QElements(p), "q");
    const Tensor k = FloatInput(context, 2, KElements(p), "k");
    const Tensor v = FloatInput(context, 3, VElements(p), "v");
    const Tensor mask = Input(context, 4);
    const Tensor o = FloatInput(context, 5, OElements(p), "o");
    const Tensor lse = FloatInput(context, 6, RowCount(p), "lse");
    const Tensor d_o = FloatInput(context, 7, OElements(p), "dO");
    const Tensor d_lse = FloatInput(context, 8, 0, "dLse");
    const bool has_d_lse = d_lse.elements() != 0;
    if (has_d_lse && d_lse.elements() < RowCount(p)) Refuse("dLse: too short for the problem");
    sage::BackwardBuffers buffers = {};
    buffers.q = q.floats();
    buffers.k = k.floats();
    buffers.v = v.floats();
    buffers.mask = MaskData(mask, p);
    buffers.o = o.floats();
    buffers.lse = lse.floats();
    buffers.d_o = d_o.floats();
    buffers.d_lse = has_d_lse ? d_lse.floats() : nullptr;
    const int64_t k_rows = Elements({p.batch, p.kv_heads, p.kv_len});
    const Tensor d_q = Gradient<kOnGpu>(context, 0, q, Elements({RowCount(p), p.qk_dim}));
    const Tensor d_k = Gradient<kOnGpu>(context, 1, k, Elements({k_rows, p.qk_dim}));
    const Tensor d_v = Gradient<kOnGpu>(context, 2, v, Elements({k_rows, p.v_dim}));
    buffers.d_q = d_q.floats();
    buffers.d_k = d_k.floats();
    buffers.d_v = d_v.floats();
    std::unique_ptr<Tensor> d_mask;
    if (with_mask) {
      d_mask = std::make_unique<Tensor>(Gradient<kOnGpu>(context, 3, mask, MaskElementsWritten(p)));
      buffers.d_mask = d_mask->floats();
    }
    const char* order = "";
    if constexpr (kOnGpu) {
      order = RunOnGpu(context, sage::CudaBackwardWorkspace(p), [&](void* workspace, void* stream) {
        return sage::CudaBackward(p, buffers, workspace, stream);
      });
    } else {
      const DefaultFloatMode mode;
      ThrowUnlessOk(sage::AttentionBackward(p, buffers, call.options));
    }
    NoteCall(context, kOnGpu ? "GPU" : "CPU", order, buffers.q, buffers.d_q);
  });
}

}  // namespace

// A kernel has no state: TensorFlow keeps one for each op, device and type of mask.
void* CreateKernel(TF_OpKernelConstruction*) {
  NoteKernel();
  return nullptr;
}

void ForwardOnCpu(void*, TF_OpKernelContext* context) { Forward<false>(context); }
void ForwardOnGpu(void*, TF_OpKernelContext* context) { Forward<true>(context); }
void BackwardOnCpu(void*, TF_OpKernelContext* context) { Backward<false>(context); }
void BackwardOnGpu(void*, TF_OpKernelContext* context) { Backward<true>(context); }

}  // namespace sage_node::tensorflow
