// In which order a CUDA kernel of ours runs among TensorFlow's own.
#ifndef SAGE_NATIVE_TENSORFLOW_STREAM_H_
#define SAGE_NATIVE_TENSORFLOW_STREAM_H_

#include <string>

#include "sage/status.h"
#include "tensorflow_api.h"

namespace sage_node::tensorflow {

// kAuto is kTensorflow where its stream is found, else kDeviceSync. The last two order nothing and
// give wrong results: they are the negative controls of the tests.
enum class StreamMode : int {
  kAuto,
  kTensorflow,  // launch into TensorFlow's own compute stream
  kEvent,       // a stream of ours, ordered with TensorFlow's by events
  kDeviceSync,  // wait for the device before and for our stream after
  kLegacy,      // the default stream, which TensorFlow's streams do not wait for
  kNone,        // a stream of ours, unordered
};
constexpr int kStreamModeCount = 6;
const char* StreamModeName(StreamMode mode);
bool ParseStreamMode(const std::string& name, StreamMode* mode);

// Of the whole process; read at every call.
void SetStreamMode(StreamMode mode);
StreamMode GetStreamMode();

// Orders the work of one call: Begin, launches into stream(), End.
class StreamOrder {
 public:
  explicit StreamOrder(TF_OpKernelContext* context);
  sage::Status Begin();
  sage::Status End();
  void* stream() const { return stream_; }
  StreamMode mode() const { return mode_; }

 private:
  void* tensorflow_;  // TensorFlow's stream, null when not found
  StreamMode mode_;
  void* stream_ = nullptr;
};

// Where the search for TensorFlow's stream should look for symbols. Once, before the first kernel.
void SetStreamLibrary(void* handle);

// How the search went, in words.
std::string DescribeStreamSearch();

// For tests on machines without a GPU: the way from `context` to an object of any class, by the
// mangled name of its vtable; "" when there is none.
std::string DescribeWay(TF_OpKernelContext* context, const char* vtable_name);

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_STREAM_H_
