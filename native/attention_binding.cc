// The synchronous calls: problem words and typed arrays in, results written in place.
#include "addon_state.h"
#include "buffers.h"
#include "sage/attention.h"
#include "sage/quantize.h"

namespace sage_node {

// forward(words: Float64Array, q, k, v: Float32Array, mask: Float32Array | Uint8Array | null,
//         o: Float32Array, lse: Float32Array | null): void
napi_value Forward(napi_env env, napi_callback_info info) {
  napi_value arguments[7];
  const AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  const sage::ForwardBuffers buffers = reader.Forward(arguments + 1, problem);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const sage::Status status =
      sage::AttentionForward(problem, buffers, {state->isa, state->threads, nullptr});
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// backward(words, q, k, v, mask | null, o, lse, dO, dLse | null, dQ, dK, dV, dMask | null): void
napi_value Backward(napi_env env, napi_callback_info info) {
  napi_value arguments[13];
  const AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem p = reader.ReadProblem(arguments[0]);
  const sage::BackwardBuffers buffers = reader.Backward(arguments + 1, p);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const sage::Status status =
      sage::AttentionBackward(p, buffers, {state->isa, state->threads, nullptr});
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// quantize(words, q, k, v, mask | null, o, lse | null, qCodes | null, qScale | null,
//          kCodes | null, kScale | null, vCodes | null, vScale | null): number,
// the padded head_dim of the codes. csrc/include/sage/quantize.h has the shapes.
napi_value Quantize(napi_env env, napi_callback_info info) {
  napi_value arguments[13];
  const AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem p = reader.ReadProblem(arguments[0]);
  const sage::ForwardBuffers buffers = reader.Forward(arguments + 1, p);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const int64_t dims = sage::QuantizedDims(p);
  const int64_t q_rows = RowCount(p);
  const int64_t k_rows = Elements({p.batch, p.kv_heads, p.kv_len});
  sage::InspectionBuffers out = {};
  out.q_codes = reader.FloatsOrNull(arguments[7], Elements({q_rows, dims}), "qCodes");
  out.q_scale = reader.FloatsOrNull(arguments[8], q_rows, "qScale");
  out.k_codes = reader.FloatsOrNull(arguments[9], Elements({k_rows, dims}), "kCodes");
  out.k_scale = reader.FloatsOrNull(arguments[10], k_rows, "kScale");
  out.v_codes = reader.FloatsOrNull(arguments[11], Elements({k_rows, p.v_dim}), "vCodes");
  out.v_scale =
      reader.FloatsOrNull(arguments[12], Elements({p.batch, p.kv_heads, p.v_dim}), "vScale");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const sage::Status status =
      sage::InspectForward(p, buffers, out, {state->isa, state->threads, nullptr});
  if (!status.ok()) return ThrowStatus(env, status);
  napi_value result = nullptr;
  napi_create_int64(env, dims, &result);
  return result;
}

}  // namespace sage_node
