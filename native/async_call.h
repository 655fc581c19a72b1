// A call that runs on a thread of libuv's pool while JavaScript goes on.
//
// The typed arrays are kept alive until it ends. Their memory must stay where it is: no transfer to
// another thread, no growth of a WebAssembly memory that they view. A worker thread that is
// terminated waits for the calls that have begun, since its memory is what they write to; those
// that have not begun are dropped.
#ifndef SAGE_NATIVE_ASYNC_CALL_H_
#define SAGE_NATIVE_ASYNC_CALL_H_

#include <node_api.h>

#include <atomic>
#include <cstdint>
#include <functional>

#include "sage/status.h"

namespace sage_node {

// One byte of a Uint8Array, which TypeScript sets to 1 and the engine polls between tiles.
using CancelFlag = std::atomic<bool>;
static_assert(sizeof(CancelFlag) == 1 && CancelFlag::is_always_lock_free,
              "a cancel flag must be one plain byte, since JavaScript writes it");

// A promise of what `run` returns, which must not touch Node; `arguments` are kept until then.
// Null after throwing.
napi_value StartAsyncCall(napi_env env, const char* name, const napi_value* arguments,
                          uint32_t count, std::function<sage::Status()> run);

}  // namespace sage_node

#endif  // SAGE_NATIVE_ASYNC_CALL_H_
