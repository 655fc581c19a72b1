// The CUDA engine on host arrays: the same arguments as the CPU engine's calls.
#include <napi.h>

#include <algorithm>
#include <string>
#include <vector>

#include "addon_state.h"
#include "async_call.h"
#include "buffers.h"
#include "sage/cuda_host.h"

namespace sage_node {
namespace {

// Far above any table of results.
constexpr int kMaxRepeats = 1000;

sage::CudaHostOptions Options(const AddonState* state) {
  sage::CudaHostOptions options;
  options.threads = state->threads;
  return options;
}

napi_value Number(napi_env env, double value) {
  napi_value number = nullptr;
  napi_create_double(env, value, &number);
  return number;
}

}  // namespace

// cudaForward(words, q, k, v, mask | null, o, lse | null): void
napi_value CudaForward(napi_env env, napi_callback_info info) {
  napi_value arguments[7];
  AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  const sage::ForwardBuffers buffers = reader.Forward(arguments + 1, problem);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  NoteCudaUse(state);
  const sage::Status status = sage::CudaHostForward(problem, buffers, Options(state));
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// cudaForwardAsync(the arguments of cudaForward, cancelled: Uint8Array): Promise<void>
// A 1 written to cancelled[0] ends the call between two pieces with code 'SAGE_CANCELLED'.
napi_value CudaForwardAsync(napi_env env, napi_callback_info info) {
  napi_value arguments[8];
  AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  const sage::ForwardBuffers buffers = reader.Forward(arguments + 1, problem);
  uint8_t* flag = reader.Byte(arguments[7], "cancelled");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  NoteCudaUse(state);
  sage::CudaHostOptions options = Options(state);
  options.cancelled = reinterpret_cast<const CancelFlag*>(flag);
  return StartAsyncCall(env, "sageAttention", arguments, 8, [problem, buffers, options] {
    return sage::CudaHostForward(problem, buffers, options);
  });
}

// cudaBackward(words, q, k, v, mask | null, o, lse, dO, dLse | null, dQ, dK, dV, dMask | null):
// void
napi_value CudaBackward(napi_env env, napi_callback_info info) {
  napi_value arguments[13];
  AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  const sage::BackwardBuffers buffers = reader.Backward(arguments + 1, problem);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  NoteCudaUse(state);
  const sage::Status status = sage::CudaHostBackward(problem, buffers, Options(state));
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// timeCudaForward(words, q, k, v, mask | null, repeats): number[], milliseconds of forward calls on
// inputs that lie in device memory.
napi_value TimeCudaForward(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  sage::Problem problem = reader.ReadProblem(arguments[0]);
  problem.want_lse = false;
  const sage::ForwardBuffers buffers = reader.Operands(arguments + 1, problem);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  int32_t repeats = 0;
  napi_get_value_int32(env, arguments[5], &repeats);
  if (repeats < 1 || repeats > kMaxRepeats) {
    return ThrowStatus(env, sage::Status::Invalid("repeats must be an integer from 1 to 1000"));
  }
  std::vector<float> samples(static_cast<size_t>(repeats));
  NoteCudaUse(state);
  const sage::Status status = sage::TimeCudaForward(problem, buffers, repeats, samples.data());
  if (!status.ok()) return ThrowStatus(env, status);
  napi_value result = nullptr;
  napi_create_array_with_length(env, samples.size(), &result);
  for (uint32_t n = 0; n < samples.size(); ++n) {
    napi_set_element(env, result, n, Number(env, samples[n]));
  }
  return result;
}

// cudaHostSupports(words): null, or why the kernels do not compute the problem on the device of
// these calls.
napi_value CudaHostSupports(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const sage::Status status = sage::CudaHostSupports(problem);
  napi_value result = nullptr;
  if (status.ok()) {
    napi_get_null(env, &result);
  } else {
    napi_create_string_utf8(env, status.message, NAPI_AUTO_LENGTH, &result);
  }
  return result;
}

// cudaChooseDevice(name: string): null, or {code, message}. The first choice holds for the process.
napi_value CudaChooseDevice(napi_env raw_env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(raw_env, info, arguments);
  const Napi::Env env(raw_env);
  const Napi::Value name(env, arguments[0]);
  const std::string wanted = name.IsString() ? name.As<Napi::String>().Utf8Value() : "";
  const sage::Status status = sage::ChooseCudaDevice(wanted.c_str());
  if (status.ok()) return env.Null();
  Napi::Object refusal = Napi::Object::New(env);
  refusal.Set("code", ErrorCode(status.code));
  refusal.Set("message", status.message);
  return refusal;
}

// cudaState(): an object, see CudaHostState in src/runtime/native_addon.ts.
napi_value CudaState(napi_env raw_env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(raw_env, info, arguments);
  const Napi::Env env(raw_env);
  const sage::CudaHostState state = sage::GetCudaHostState();
  Napi::Object object = Napi::Object::New(env);
  object.Set("available", state.available);
  object.Set("reason", state.reason);
  object.Set("device", state.device);
  object.Set("failed", state.failed);
  object.Set("deviceBytes", static_cast<double>(state.device_bytes));
  object.Set("pinnedBytes", static_cast<double>(state.pinned_bytes));
  object.Set("deviceLimit", static_cast<double>(state.device_limit));
  return object;
}

// cudaDevices(): an array, see CudaDevice in src/runtime/native_addon.ts.
napi_value CudaDevices(napi_env raw_env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(raw_env, info, arguments);
  const Napi::Env env(raw_env);
  std::vector<sage::CudaDevice> devices(
      static_cast<size_t>(std::max(0, sage::ListCudaDevices(nullptr, 0))));
  sage::ListCudaDevices(devices.data(), static_cast<int>(devices.size()));
  Napi::Array list = Napi::Array::New(env, devices.size());
  for (uint32_t n = 0; n < devices.size(); ++n) {
    const sage::CudaDevice& device = devices[n];
    Napi::Object object = Napi::Object::New(env);
    object.Set("name", device.name);
    object.Set("uuid", device.uuid);
    object.Set("computeCapability", device.compute_capability);
    object.Set("multiprocessors", device.multiprocessors);
    object.Set("memory", static_cast<double>(device.memory));
    object.Set("supported", device.supported);
    list.Set(n, object);
  }
  return list;
}

// cudaLimitMemory(bytes: number): void. 0: the default.
napi_value CudaLimitMemory(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  double bytes = 0;
  napi_get_value_double(env, arguments[0], &bytes);
  sage::SetCudaMemoryLimit(bytes > 0 && bytes < 9e15 ? static_cast<int64_t>(bytes) : 0);
  return nullptr;
}

// cudaRelease(): number, bytes that were freed.
napi_value CudaRelease(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  return Number(env, static_cast<double>(sage::ReleaseCudaMemory()));
}

}  // namespace sage_node
