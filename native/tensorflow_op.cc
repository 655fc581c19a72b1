#include "tensorflow_op.h"

#include <mutex>
#include <string_view>

#include "sage/capabilities.h"
#include "sage/cuda_attention.h"
#include "tensorflow_api.h"
#include "tensorflow_cache_kernels.h"
#include "tensorflow_kernels.h"
#include "tensorflow_library.h"
#include "tensorflow_stream.h"
#include "tensorflow_tensors.h"

namespace sage_node::tensorflow {
namespace {

// Whether an op of this name exists: in the serialised list its name is field 1 (tag 0x0a), then
// one byte of length, then the text. Registering a name twice would end the process.
bool OpExists(const std::string& name) {
  TF_Buffer* list = api.TF_GetAllOpList();
  const std::string field = std::string("\x0a") + static_cast<char>(name.size()) + name;
  const std::string_view bytes(static_cast<const char*>(list->data), list->length);
  const bool found = bytes.find(field) != std::string_view::npos;
  api.TF_DeleteBuffer(list);
  return found;
}

// Shapes follow from `call`, whose values a graph does not know before it runs.
void InferNothing(TF_ShapeInferenceContext* context, TF_Status* status) {
  api.TF_ShapeInferenceContextSetUnknownShape(context, status);
}

using Arguments = std::vector<const char*>;

void RegisterOp(const std::string& name, const Arguments& inputs, const Arguments& outputs,
                bool masked, TensorflowStatus* status) {
  if (!status->ok()) return;
  TF_OpDefinitionBuilder* builder = api.TF_NewOpDefinitionBuilder(name.c_str());
  for (const char* input : inputs) api.TF_OpDefinitionBuilderAddInput(builder, input);
  for (const char* output : outputs) api.TF_OpDefinitionBuilderAddOutput(builder, output);
  // TensorFlow infers it from the input, so that calls send no attributes.
  if (masked) api.TF_OpDefinitionBuilderAddAttr(builder, "M: {float, bool}");
  api.TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, &InferNothing);
  api.TF_RegisterOpDefinition(builder, status->get());  // frees the builder
}

void RegisterKernel(const std::string& op, const char* device, ComputeFunction compute,
                    TensorflowStatus* status) {
  if (!status->ok()) return;
  TF_KernelBuilder* builder =
      api.TF_NewKernelBuilder(op.c_str(), device, &CreateKernel, compute, nullptr);
  // Without an effect on a CPU.
  api.TF_KernelBuilder_HostMemory(builder, "call");
  const std::string label = op + device;
  api.TF_RegisterKernelBuilder(label.c_str(), builder, status->get());  // frees the builder
}

void RegisterCacheOps(bool gpu, TensorflowStatus* status) {
  const OpNames& names = GetOpNames();
  RegisterKernel(names.cache_append, "CPU", &AppendOnCpu, status);
  if (gpu) RegisterKernel(names.cache_append, "GPU", &AppendOnGpu, status);
  RegisterOp(names.cache_append, {"call: int32", "k: float", "v: float"}, {"done: float"}, false,
             status);
  for (const bool masked : {true, false}) {
    for (const bool with_lse : {true, false}) {
      const std::string& name = names.cache_attend[masked][with_lse];
      RegisterKernel(name, "CPU", &AttendOnCpu, status);
      if (gpu) RegisterKernel(name, "GPU", &AttendOnGpu, status);
      Arguments inputs = {"call: int32", "q: float"};
      if (masked) inputs.push_back("mask: M");
      Arguments outputs = {"o: float"};
      if (with_lse) outputs.push_back("lse: float");
      RegisterOp(name, inputs, outputs, masked, status);
    }
  }
}

// Kernels before ops, and the plainest op last: another copy of the addon that finds it finds all.
void RegisterAll(bool gpu, TensorflowStatus* status) {
  const OpNames& names = GetOpNames();
  const std::string* const forward[] = {&names.forward[1][1], &names.forward[1][0],
                                        &names.forward[0][1], &names.forward[0][0]};
  for (const std::string* name : forward) {
    RegisterKernel(*name, "CPU", &ForwardOnCpu, status);
    if (gpu) RegisterKernel(*name, "GPU", &ForwardOnGpu, status);
  }
  for (const std::string& name : names.backward) {
    RegisterKernel(name, "CPU", &BackwardOnCpu, status);
    if (gpu) RegisterKernel(name, "GPU", &BackwardOnGpu, status);
  }
  RegisterCacheOps(gpu, status);
  for (const bool with_mask : {true, false}) {
    Arguments outputs = {"d_q: float", "d_k: float", "d_v: float"};
    if (with_mask) outputs.push_back("d_mask: float");
    RegisterOp(names.backward[with_mask],
               {"call: int32", "q: float", "k: float", "v: float", "mask: M", "o: float",
                "lse: float", "d_o: float", "d_lse: float"},
               outputs, true, status);
  }
  for (const bool masked : {true, false}) {
    for (const bool with_lse : {true, false}) {
      Arguments inputs = {"call: int32", "q: float", "k: float", "v: float"};
      if (masked) inputs.push_back("mask: M");
      Arguments outputs = {"o: float"};
      if (with_lse) outputs.push_back("lse: float");
      RegisterOp(names.forward[masked][with_lse], inputs, outputs, masked, status);
    }
  }
}

Registration Register() {
  using State = Registration::State;
  Registration result;
  Library library = FindLibrary();
  if (library.handle == nullptr) return result;
  result.library = library.name;
  if (!library.missing.empty()) {
    result.state = State::kMissingSymbols;
    result.missing = std::move(library.missing);
    return result;
  }
  result.version = api.TF_Version();
  result.gpu = sage::DetectCuda().available;
  SetStreamLibrary(library.handle);
  const RegistrationLock lock;
  if (OpExists(GetOpNames().forward[0][0])) {
    result.state = State::kRegisteredByOther;
    return result;
  }
  TensorflowStatus status;
  RegisterAll(result.gpu, &status);
  result.state = status.ok() ? State::kRegistered : State::kFailed;
  result.message = status.message();
  return result;
}

// Names of ops are letters, digits and underscores. That of the package's version keeps two
// versions in one process apart.
std::string NameSuffix() {
  std::string suffix = "V" + std::to_string(kCallVersion) + "_";
  for (const char* c = sage::BuildVersion(); *c != '\0'; ++c) {
    const bool plain =
        (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z');
    suffix += plain ? *c : '_';
  }
  return suffix;
}

}  // namespace

const OpNames& GetOpNames() {
  static const OpNames* const names = [] {
    auto* made = new OpNames;
    const std::string suffix = NameSuffix();
    made->forward[0][0] = "SageAttention" + suffix;
    made->forward[0][1] = "SageAttentionLse" + suffix;
    made->forward[1][0] = "SageAttentionMasked" + suffix;
    made->forward[1][1] = "SageAttentionMaskedLse" + suffix;
    made->cache_append = "SageKvCacheAppend" + suffix;
    made->cache_attend[0][0] = "SageKvCacheAttend" + suffix;
    made->cache_attend[0][1] = "SageKvCacheAttendLse" + suffix;
    made->cache_attend[1][0] = "SageKvCacheAttendMasked" + suffix;
    made->cache_attend[1][1] = "SageKvCacheAttendMaskedLse" + suffix;
    made->backward[0] = "SageAttentionGrad" + suffix;
    made->backward[1] = "SageAttentionGradMask" + suffix;
    return made;
  }();
  return *names;
}

Registration RegisterOps() {
  static std::mutex mutex;
  static bool done = false;
  static Registration result;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!done) {
    result = Register();
    done = result.state != Registration::State::kNoLibrary;
  }
  return result;
}

}  // namespace sage_node::tensorflow
