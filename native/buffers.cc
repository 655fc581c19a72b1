// Typed arrays to pointers. One Node-API call per array reads type, length and address; more would
// show in the time of small problems.
#include "buffers.h"

#include <cstdio>
#include <limits>

namespace sage_node {

using sage::Problem;
using sage::Status;

void ArgumentReader::Fail(const char* name, const char* problem) {
  if (!status_.ok()) return;
  std::snprintf(message_, sizeof(message_), "%s: %s", name, problem);
  status_ = Status::Invalid(message_);
}

void* ArgumentReader::View(napi_value value, napi_typedarray_type type, int64_t elements,
                           const char* name) {
  napi_typedarray_type actual;
  size_t length = 0;
  void* data = nullptr;
  if (!status_.ok()) return nullptr;
  if (napi_get_typedarray_info(env_, value, &actual, &length, &data, nullptr, nullptr) != napi_ok ||
      actual != type) {
    const char* expected = type == napi_float32_array   ? "expected a Float32Array"
                           : type == napi_float64_array ? "expected a Float64Array"
                                                        : "expected a Uint8Array";
    Fail(name, expected);
    return nullptr;
  }
  // A detached array has length 0.
  if (elements > static_cast<int64_t>(length)) {
    Fail(name, "the array is too short for the problem");
    return nullptr;
  }
  return data;
}

bool ArgumentReader::IsNullish(napi_value value) const {
  napi_valuetype type = napi_undefined;
  napi_typeof(env_, value, &type);
  return type == napi_null || type == napi_undefined;
}

Problem ArgumentReader::ReadProblem(napi_value words) {
  Problem problem = {};
  const void* data = View(words, napi_float64_array, sage::kProblemWords, "problem");
  if (status_.ok())
    status_ = sage::DecodeProblem(static_cast<const double*>(data), sage::kProblemWords, &problem);
  return problem;
}

float* ArgumentReader::Floats(napi_value value, int64_t elements, const char* name) {
  return static_cast<float*>(View(value, napi_float32_array, elements, name));
}

float* ArgumentReader::FloatsOrNull(napi_value value, int64_t elements, const char* name) {
  return IsNullish(value) ? nullptr : Floats(value, elements, name);
}

const void* ArgumentReader::Mask(napi_value value, const Problem& problem) {
  if (problem.mask_kind == sage::MaskKind::kNone) return nullptr;
  const bool additive = problem.mask_kind == sage::MaskKind::kAdditive;
  return View(value, additive ? napi_float32_array : napi_uint8_array,
              sage::RequiredMaskElements(problem), "mask");
}

uint8_t* ArgumentReader::Byte(napi_value value, const char* name) {
  return static_cast<uint8_t*>(View(value, napi_uint8_array, 1, name));
}

sage::ForwardBuffers ArgumentReader::Operands(const napi_value* values, const Problem& p) {
  sage::ForwardBuffers buffers = {};
  if (!ok()) return buffers;
  buffers.q = Floats(values[0], RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim), "q");
  buffers.k =
      Floats(values[1], RequiredElements(p.k, p.batch, p.kv_heads, p.kv_len, p.qk_dim), "k");
  buffers.v = Floats(values[2], RequiredElements(p.v, p.batch, p.kv_heads, p.kv_len, p.v_dim), "v");
  buffers.mask = Mask(values[3], p);
  return buffers;
}

sage::ForwardBuffers ArgumentReader::Forward(const napi_value* values, const Problem& p) {
  sage::ForwardBuffers buffers = Operands(values, p);
  if (!ok()) return buffers;
  buffers.o = Floats(values[4], RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim), "o");
  buffers.lse = p.want_lse ? Floats(values[5], RowCount(p), "lse") : nullptr;
  return buffers;
}

sage::BackwardBuffers ArgumentReader::Backward(const napi_value* values, const Problem& p) {
  sage::BackwardBuffers buffers = {};
  if (!ok()) return buffers;
  const int64_t q = RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim);
  const int64_t k = RequiredElements(p.k, p.batch, p.kv_heads, p.kv_len, p.qk_dim);
  const int64_t v = RequiredElements(p.v, p.batch, p.kv_heads, p.kv_len, p.v_dim);
  const int64_t o = RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim);
  buffers.q = Floats(values[0], q, "q");
  buffers.k = Floats(values[1], k, "k");
  buffers.v = Floats(values[2], v, "v");
  buffers.mask = Mask(values[3], p);
  buffers.o = Floats(values[4], o, "o");
  buffers.lse = Floats(values[5], RowCount(p), "lse");
  buffers.d_o = Floats(values[6], o, "dO");
  buffers.d_lse = FloatsOrNull(values[7], RowCount(p), "dLse");
  buffers.d_q = Floats(values[8], q, "dQ");
  buffers.d_k = Floats(values[9], k, "dK");
  buffers.d_v = Floats(values[10], v, "dV");
  if (p.mask_kind == sage::MaskKind::kAdditive) {
    buffers.d_mask = FloatsOrNull(values[11], RequiredMaskElements(p), "dMask");
  }
  return buffers;
}

int64_t Elements(std::initializer_list<int64_t> sizes) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size != 0 && product > kMost / size) return kMost;
    product *= size;
  }
  return product;
}

int64_t RowCount(const Problem& p) { return Elements({p.batch, p.q_heads, p.q_len}); }

const char* ErrorCode(sage::StatusCode code) {
  switch (code) {
    case sage::StatusCode::kOk:
      return "SAGE_OK";
    case sage::StatusCode::kInvalidArgument:
      return "SAGE_INVALID_ARGUMENT";
    case sage::StatusCode::kOutOfMemory:
      return "SAGE_OUT_OF_MEMORY";
    case sage::StatusCode::kUnsupported:
      return "SAGE_UNSUPPORTED";
    case sage::StatusCode::kCancelled:
      return "SAGE_CANCELLED";
    case sage::StatusCode::kInternal:
      return "SAGE_INTERNAL";
  }
  return "SAGE_INTERNAL";
}

napi_value ThrowStatus(napi_env env, const Status& status) {
  napi_throw_error(env, ErrorCode(status.code), status.message);
  return nullptr;
}

napi_value StatusError(napi_env env, const Status& status) {
  napi_value code = nullptr, message = nullptr, error = nullptr;
  napi_create_string_utf8(env, ErrorCode(status.code), NAPI_AUTO_LENGTH, &code);
  napi_create_string_utf8(env, status.message, NAPI_AUTO_LENGTH, &message);
  napi_create_error(env, code, message, &error);
  return error;
}

}  // namespace sage_node
