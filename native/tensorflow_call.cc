#include "tensorflow_call.h"

#include <cstring>

#include "sage/capabilities.h"
#include "tensorflow_kernels.h"

namespace sage_node::tensorflow {

using sage::MaskKind;
using sage::Problem;

void Refuse(const std::string& message) { throw KernelFailure{kInvalidArgument, message}; }

sage::EngineOptions ReadSettings(int32_t isa, int32_t threads) {
  if (isa < 0 || isa >= sage::kIsaCount || !sage::CanRun(static_cast<sage::Isa>(isa))) {
    Refuse("call: this machine cannot run instruction set number " + std::to_string(isa));
  }
  if (threads < 1 || threads > sage::MaxThreads()) {
    Refuse("call: threads must be an integer from 1 to " + std::to_string(sage::MaxThreads()));
  }
  return {static_cast<sage::Isa>(isa), threads, nullptr};
}

Call ReadCall(TF_OpKernelContext* context, int64_t* cache) {
  const Tensor tensor = Input(context, 0);
  const int words_wanted = cache == nullptr ? kCallWords : kCacheCallWords;
  if (tensor.type() != kInt32 || tensor.elements() != words_wanted) {
    Refuse("call: expected int32 [" + std::to_string(words_wanted) + "]");
  }
  // A copy, since the words need the alignment of float64.
  double words[sage::kProblemWords];
  int32_t settings[2];
  const char* data = static_cast<const char*>(tensor.data());
  std::memcpy(words, data, sizeof(words));
  std::memcpy(settings, data + sizeof(words), sizeof(settings));
  if (cache != nullptr) {
    std::memcpy(cache, data + sizeof(words) + sizeof(settings), sizeof(*cache));
  }
  Call call = {};
  ThrowUnlessOk(sage::DecodeProblem(words, sage::kProblemWords, &call.problem));
  call.options = ReadSettings(settings[0], settings[1]);
  return call;
}

// Data of the mask, null when the problem has none.
const void* MaskData(const Tensor& mask, const Problem& p) {
  if (p.mask_kind == MaskKind::kNone) {
    if (mask.elements() != 0) Refuse("mask: the problem has none");
    return nullptr;
  }
  const bool additive = p.mask_kind == MaskKind::kAdditive;
  if (mask.type() != (additive ? kFloat : kBool)) {
    Refuse(additive ? "mask: expected float32" : "mask: expected bool");
  }
  if (mask.elements() < sage::RequiredMaskElements(p)) {
    Refuse("mask: the tensor is too short for the problem");
  }
  return mask.data();
}

}  // namespace sage_node::tensorflow
