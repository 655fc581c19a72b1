// From JavaScript values to problems and buffers: every length is checked before anything runs.
#ifndef SAGE_NATIVE_BUFFERS_H_
#define SAGE_NATIVE_BUFFERS_H_

#include <node_api.h>

#include <cstdint>
#include <initializer_list>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage_node {

// Reads the arguments of one call, one after another. After the first fault it does nothing more;
// `status` tells it.
class ArgumentReader {
 public:
  explicit ArgumentReader(napi_env env) : env_(env) {}

  // Words of `encodeProblem`.
  sage::Problem ReadProblem(napi_value words);
  // A Float32Array of at least `elements` elements, wherever it lies in its ArrayBuffer. `name` is
  // for the message.
  float* Floats(napi_value value, int64_t elements, const char* name);
  // The same, or null where the value is null or undefined.
  float* FloatsOrNull(napi_value value, int64_t elements, const char* name);
  // A mask of the problem's kind, null when it has none.
  const void* Mask(napi_value value, const sage::Problem& problem);
  // One byte of a Uint8Array.
  uint8_t* Byte(napi_value value, const char* name);
  // q, k, v, mask, o and lse of a forward call.
  sage::ForwardBuffers Forward(const napi_value* values, const sage::Problem& problem);
  // q, k, v and mask.
  sage::ForwardBuffers Operands(const napi_value* values, const sage::Problem& problem);
  // q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV and dMask of a backward call.
  sage::BackwardBuffers Backward(const napi_value* values, const sage::Problem& problem);

  bool ok() const { return status_.ok(); }
  const sage::Status& status() const { return status_; }

 private:
  void* View(napi_value value, napi_typedarray_type type, int64_t elements, const char* name);
  bool IsNullish(napi_value value) const;
  void Fail(const char* name, const char* problem);

  napi_env env_;
  sage::Status status_;
  char message_[96];  // where status_.message points once something failed
};

// Product of sizes, the largest int64 where it would overflow: no array is that long.
int64_t Elements(std::initializer_list<int64_t> sizes);
// Rows of q [B,H,Nq], such as lse has.
int64_t RowCount(const sage::Problem& problem);

// `code` of the JavaScript error that a status becomes, such as 'SAGE_INVALID_ARGUMENT'.
const char* ErrorCode(sage::StatusCode code);
// Throws the status as a JavaScript error with a `code`. Returns null, for `return
// ThrowStatus(...)`.
napi_value ThrowStatus(napi_env env, const sage::Status& status);
// The status as an error object, for a promise.
napi_value StatusError(napi_env env, const sage::Status& status);

}  // namespace sage_node

#endif  // SAGE_NATIVE_BUFFERS_H_
