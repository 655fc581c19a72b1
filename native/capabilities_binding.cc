// What this build and machine can do, and the choice of instruction set and threads.
#include <napi.h>

#include <string>

#include "addon_state.h"
#include "sage/capabilities.h"
#include "sage/cuda_attention.h"
#include "sage/problem.h"

namespace sage_node {
namespace {

Napi::Value Throw(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  error.ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Object FeaturesObject(Napi::Env env) {
  const sage::CpuFeatures& f = sage::DetectedCpuFeatures();
  Napi::Object object = Napi::Object::New(env);
  const struct {
    const char* name;
    bool value;
  } features[] = {
      {"avx2", f.avx2},
      {"fma", f.fma},
      {"f16c", f.f16c},
      {"avx512f", f.avx512f},
      {"avx512bw", f.avx512bw},
      {"avx512vl", f.avx512vl},
      {"avx512dq", f.avx512dq},
      {"avx512vnni", f.avx512vnni},
      {"avx512bf16", f.avx512bf16},
      {"amxTile", f.amx_tile},
      {"amxInt8", f.amx_int8},
      {"amxBf16", f.amx_bf16},
      {"neon", f.neon},
      {"dotprod", f.dotprod},
  };
  for (const auto& feature : features) object.Set(feature.name, feature.value);
  return object;
}

Napi::Object CudaObject(Napi::Env env) {
  const sage::CudaInfo& info = sage::DetectCuda();
  Napi::Object object = Napi::Object::New(env);
  object.Set("built", info.built);
  object.Set("available", info.available);
  object.Set("reason", info.reason);
  object.Set("driverVersion", info.driver_version);
  object.Set("runtimeVersion", info.runtime_version);
  object.Set("deviceCount", info.device_count);
  object.Set("deviceName", info.device_name);
  object.Set("computeCapability", info.compute_capability);
  object.Set("multiprocessors", info.multiprocessors);
  object.Set("architectures", info.architectures);
  return object;
}

}  // namespace

// configure({isa?: string, threads?: number}): void. A field left out, or null, goes back to this
// machine's default. Throws with code 'SAGE_UNKNOWN_ISA', 'SAGE_UNSUPPORTED_ISA' or
// 'SAGE_INVALID_ARGUMENT'; then nothing has changed.
napi_value Configure(napi_env raw_env, napi_callback_info info) {
  napi_value arguments[1];
  AddonState* state = ReadCall(raw_env, info, arguments);
  const Napi::Env env(raw_env);
  const Napi::Value value(env, arguments[0]);
  if (!value.IsObject())
    return Throw(env, "SAGE_INVALID_ARGUMENT", "configure: expected an object");
  const Napi::Object choice = value.As<Napi::Object>();
  const Napi::Value isa_value = choice.Get("isa");
  const Napi::Value threads_value = choice.Get("threads");

  sage::Isa isa = sage::DetectIsa();
  if (isa_value.IsString()) {
    const std::string name = isa_value.As<Napi::String>();
    if (!sage::ParseIsa(name.c_str(), &isa)) {
      return Throw(env, "SAGE_UNKNOWN_ISA", "there is no instruction set '" + name + "'");
    }
    if (!sage::CanRun(isa)) {
      return Throw(env, "SAGE_UNSUPPORTED_ISA",
                   "this machine cannot run '" + name + "': " + sage::IsaRefusal(isa));
    }
  } else if (!isa_value.IsNull() && !isa_value.IsUndefined()) {
    return Throw(env, "SAGE_INVALID_ARGUMENT", "configure: isa must be a string");
  }

  const int most = sage::MaxThreads();
  int threads = sage::AvailableProcessors();
  if (threads_value.IsNumber()) {
    const double asked = threads_value.As<Napi::Number>();
    if (!(asked >= 1 && asked <= most && asked == static_cast<int>(asked))) {
      return Throw(env, "SAGE_INVALID_ARGUMENT",
                   "threads must be an integer from 1 to " + std::to_string(most));
    }
    threads = static_cast<int>(asked);
  } else if (!threads_value.IsNull() && !threads_value.IsUndefined()) {
    return Throw(env, "SAGE_INVALID_ARGUMENT", "configure: threads must be a number");
  }
  state->isa = isa;
  state->threads = threads < most ? threads : most;
  return env.Undefined();
}

// capabilities(): an object, see NativeCapabilities in src/runtime/native_addon.ts.
napi_value Capabilities(napi_env raw_env, napi_callback_info info) {
  napi_value arguments[1];
  const AddonState* state = ReadCall(raw_env, info, arguments);
  const Napi::Env env(raw_env);

  Napi::Array available = Napi::Array::New(env);
  Napi::Object refused = Napi::Object::New(env);
  for (int index = 0; index < sage::kIsaCount; ++index) {
    const sage::Isa isa = static_cast<sage::Isa>(index);
    if (const char* reason = sage::IsaRefusal(isa)) {
      refused.Set(sage::IsaName(isa), reason);
    } else {
      available.Set(available.Length(), sage::IsaName(isa));
    }
  }
  Napi::Object isa = Napi::Object::New(env);
  isa.Set("detected", sage::IsaName(sage::DetectIsa()));
  isa.Set("chosen", sage::IsaName(state->isa));
  isa.Set("kernels", sage::IsaName(state->isa));
  isa.Set("available", available);
  isa.Set("refused", refused);

  Napi::Object threads = Napi::Object::New(env);
  threads.Set("chosen", state->threads);
  threads.Set("processors", sage::AvailableProcessors());
  threads.Set("started", sage::PoolThreadCount());
  threads.Set("max", sage::MaxThreads());

  Napi::Object result = Napi::Object::New(env);
  result.Set("version", sage::BuildVersion());
  result.Set("problemVersion", sage::kProblemVersion);
  result.Set("problemWords", sage::kProblemWords);
  result.Set("cpu", sage::CpuName());
  result.Set("features", FeaturesObject(env));
  result.Set("isa", isa);
  result.Set("threads", threads);
  result.Set("cuda", CudaObject(env));
  return result;
}

}  // namespace sage_node
