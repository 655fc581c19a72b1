#include "tensorflow_cache_kernels.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "buffers.h"
#include "cache_registry.h"
#include "float_mode.h"
#include "tensorflow_call.h"
#include "tensorflow_trace.h"

namespace sage_node::tensorflow {
namespace {

using sage::KvCacheShape;
using sage::MaskKind;
using sage::Problem;

template <bool kOnGpu>
using CacheOn = std::conditional_t<kOnGpu, sage::CudaHostCache, sage::KvCache>;

template <bool kOnGpu>
std::shared_ptr<CacheOn<kOnGpu>> CacheOf(int64_t number) {
  auto cache = FindCache<CacheOn<kOnGpu>>(number);
  if (cache == nullptr) Refuse("call: there is no such cache on this device");
  return cache;
}

// Refuses a tensor that is not [B,heads,n,dim]; n.
int64_t TokensOf(const Tensor& tensor, int64_t batch, int64_t heads, int64_t dim,
                 const char* name) {
  const std::vector<int64_t> shape = tensor.shape();
  if (shape.size() != 4 || shape[0] != batch || shape[1] != heads || shape[3] != dim) {
    Refuse(std::string(name) + ": its shape is not that of the cache");
  }
  return shape[2];
}

template <bool kOnGpu>
void Append(TF_OpKernelContext* context) {
  GuardKernel(context, "SageKvCacheAppend", [context] {
    const Tensor call = Input(context, 0);
    if (call.type() != kInt32 || call.elements() != kAppendWords) {
      Refuse("call: expected int32 [" + std::to_string(kAppendWords) + "]");
    }
    int64_t number = 0;
    int32_t settings[2];
    std::memcpy(&number, call.data(), sizeof(number));
    std::memcpy(settings, static_cast<const char*>(call.data()) + sizeof(number), sizeof(settings));
    const sage::EngineOptions options = ReadSettings(settings[0], settings[1]);
    const auto cache = CacheOf<kOnGpu>(number);
    const KvCacheShape& shape = cache->shape();
    const Tensor k = FloatInput(context, 1, 0, "k"), v = FloatInput(context, 2, 0, "v");
    const int64_t tokens = TokensOf(k, shape.batch, shape.kv_heads, shape.qk_dim, "k");
    if (TokensOf(v, shape.batch, shape.kv_heads, shape.v_dim, "v") != tokens) {
      Refuse("v: it has not the tokens of k");
    }
    Output(context, 0, {0});
    const char* order = "";
    if constexpr (kOnGpu) {
      order = RunOnGpu(context, 0, [&](void*, void* stream) {
        return cache->AppendInStream(k.floats(), v.floats(), tokens, stream);
      });
    } else {
      const DefaultFloatMode mode;
      ThrowUnlessOk(cache->Append(k.floats(), v.floats(), tokens, options));
    }
    NoteCall(context, kOnGpu ? "GPU" : "CPU", order, k.data(), nullptr);
  });
}

template <bool kOnGpu>
void Attend(TF_OpKernelContext* context) {
  GuardKernel(context, "SageKvCacheAttend", [context] {
    int64_t number = 0;
    const Call call = ReadCall(context, &number);
    const auto cache = CacheOf<kOnGpu>(number);
    const Problem& p = call.problem;
    const bool masked = api.TF_NumInputs(context) > 2;
    const bool with_lse = api.TF_NumOutputs(context) > 1;
    if (masked != (p.mask_kind != MaskKind::kNone)) Refuse("mask: this op is not the problem's");
    if (with_lse != p.want_lse) Refuse("lse: this op is not the problem's");
    const Tensor q =
        FloatInput(context, 1, RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim), "q");
    if (TokensOf(q, p.batch, p.q_heads, p.qk_dim, "q") != p.q_len) {
      Refuse("q: its shape is not that of the problem");
    }
    const std::vector<int64_t> o_shape = {p.batch, p.q_heads, p.q_len, p.v_dim};
    if (RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim) >
        Elements({RowCount(p), p.v_dim})) {
      Refuse("o: its strides reach beyond its shape");
    }
    // Some reference must be held: of q, when there is no mask.
    const Tensor mask = Input(context, masked ? 2 : 1);
    sage::ForwardBuffers buffers = {};
    buffers.q = q.floats();
    if (masked) buffers.mask = MaskData(mask, p);
    const Tensor o = Output(context, 0, o_shape);
    buffers.o = o.floats();
    std::unique_ptr<Tensor> lse;
    if (with_lse) {
      lse = std::make_unique<Tensor>(Output(context, 1, {p.batch, p.q_heads, p.q_len}));
      buffers.lse = lse->floats();
    }
    const char* order = "";
    if constexpr (kOnGpu) {
      order = RunOnGpu(context, 0, [&](void*, void* stream) {
        return cache->AttendInStream(p, buffers, stream);
      });
    } else {
      const DefaultFloatMode mode;
      ThrowUnlessOk(cache->Attend(p, buffers, call.options));
    }
    NoteCall(context, kOnGpu ? "GPU" : "CPU", order, buffers.q, buffers.o);
  });
}

}  // namespace

void AppendOnCpu(void*, TF_OpKernelContext* context) { Append<false>(context); }
void AppendOnGpu(void*, TF_OpKernelContext* context) { Append<true>(context); }
void AttendOnCpu(void*, TF_OpKernelContext* context) { Attend<false>(context); }
void AttendOnGpu(void*, TF_OpKernelContext* context) { Attend<true>(context); }

}  // namespace sage_node::tensorflow
