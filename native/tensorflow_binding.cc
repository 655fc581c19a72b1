// The op inside TensorFlow as JavaScript sees it: its registration, and what tests need.
#include <napi.h>

#include <string>

#include "addon_state.h"
#include "buffers.h"
#include "sage/cuda_attention.h"
#include "tensorflow_kernels.h"
#include "tensorflow_op.h"
#include "tensorflow_stream.h"
#include "tensorflow_trace.h"

namespace sage_node {
namespace {

using tensorflow::Registration;

const char* StateName(Registration::State state) {
  switch (state) {
    case Registration::State::kRegistered:
      return "registered";
    case Registration::State::kRegisteredByOther:
      return "registered-by-other";
    case Registration::State::kNoLibrary:
      return "no-library";
    case Registration::State::kMissingSymbols:
      return "missing-symbols";
    case Registration::State::kFailed:
      return "failed";
  }
  return "failed";
}

Napi::Value Pointer(Napi::Env env, uintptr_t address) {
  return Napi::BigInt::New(env, static_cast<uint64_t>(address));
}

// The text of a string argument; throws and is false for anything else.
bool ReadText(Napi::Env env, napi_value value, std::string* text) {
  const Napi::Value given(env, value);
  if (given.IsString()) {
    *text = given.As<Napi::String>();
    return true;
  }
  ThrowStatus(env, sage::Status::Invalid("expected a string"));
  return false;
}

}  // namespace

// registerTensorflowOp(): an object, see TensorflowRegistration in src/runtime/native_addon.ts.
napi_value RegisterTensorflowOp(napi_env raw_env, napi_callback_info) {
  const Napi::Env env(raw_env);
  const Registration registration = tensorflow::RegisterOps();
  const tensorflow::OpNames& names = tensorflow::GetOpNames();
  Napi::Object result = Napi::Object::New(env);
  result.Set("state", StateName(registration.state));
  result.Set("library", registration.library);
  result.Set("version", registration.version);
  result.Set("message", registration.message);
  Napi::Array missing = Napi::Array::New(env);
  for (const std::string& name : registration.missing) missing.Set(missing.Length(), name);
  result.Set("missing", missing);
  result.Set("gpu", registration.gpu);
  result.Set("callWords", tensorflow::kCallWords);
  Napi::Object ops = Napi::Object::New(env);
  ops.Set("plain", names.forward[0][0]);
  ops.Set("lse", names.forward[0][1]);
  ops.Set("masked", names.forward[1][0]);
  ops.Set("maskedLse", names.forward[1][1]);
  ops.Set("grad", names.backward[0]);
  ops.Set("gradMask", names.backward[1]);
  Napi::Object cache = Napi::Object::New(env);
  cache.Set("append", names.cache_append);
  cache.Set("plain", names.cache_attend[0][0]);
  cache.Set("lse", names.cache_attend[0][1]);
  cache.Set("masked", names.cache_attend[1][0]);
  cache.Set("maskedLse", names.cache_attend[1][1]);
  ops.Set("cache", cache);
  result.Set("ops", ops);
  return result;
}

// tensorflowTrace(): what the kernels of this copy of the addon did last, for tests.
napi_value TensorflowTrace(napi_env raw_env, napi_callback_info) {
  const Napi::Env env(raw_env);
  const tensorflow::Trace trace = tensorflow::GetTrace();
  Napi::Object result = Napi::Object::New(env);
  result.Set("calls", static_cast<double>(trace.calls));
  result.Set("kernels", static_cast<double>(trace.kernels));
  result.Set("device", trace.device);
  result.Set("order", trace.order);
  result.Set("q", Pointer(env, trace.q));
  result.Set("output", Pointer(env, trace.output));
  result.Set("way", trace.way);
  result.Set("streamMode", tensorflow::StreamModeName(tensorflow::GetStreamMode()));
  result.Set("streamSearch", tensorflow::DescribeStreamSearch());
  return result;
}

// setTensorflowStream(mode: string): void, for the whole process. Throws for an unknown mode.
napi_value SetTensorflowStream(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  std::string name;
  if (!ReadText(env, arguments[0], &name)) return nullptr;
  tensorflow::StreamMode mode;
  if (!tensorflow::ParseStreamMode(name, &mode)) {
    return ThrowStatus(env, sage::Status::Invalid("there is no such stream mode"));
  }
  tensorflow::SetStreamMode(mode);
  return nullptr;
}

// probeTensorflow(vtableName: string): void. Later traces tell the way to such an object.
napi_value ProbeTensorflow(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  std::string name;
  if (ReadText(env, arguments[0], &name)) tensorflow::ProbeWay(name);
  return nullptr;
}

// cudaSupports(words: Float64Array): string | null, null when the CUDA kernels compute the problem,
// else why they do not.
napi_value CudaSupports(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const char* reason = "";
  napi_value result = nullptr;
  if (sage::CudaSupports(problem, &reason)) {
    napi_get_null(env, &result);
  } else {
    napi_create_string_utf8(env, reason, NAPI_AUTO_LENGTH, &result);
  }
  return result;
}

}  // namespace sage_node
