// sageAttention and its gradient as ops of the TensorFlow that this process has loaded.
#ifndef SAGE_NATIVE_TENSORFLOW_OP_H_
#define SAGE_NATIVE_TENSORFLOW_OP_H_

#include <string>
#include <vector>

namespace sage_node::tensorflow {

struct Registration {
  enum class State {
    kRegistered,
    kRegisteredByOther,  // another copy of this addon did, and its kernels serve
    kNoLibrary,          // no TensorFlow is loaded; asked again later, the answer may differ
    kMissingSymbols,
    kFailed,
  };
  State state = State::kNoLibrary;
  std::string library;               // by which TensorFlow was found
  std::string version;               // TensorFlow's own
  std::string message;               // why it failed
  std::vector<std::string> missing;  // functions that this TensorFlow lacks
  bool gpu = false;                  // whether there are kernels for GPUs too
};

// Registers the ops at the first call that finds TensorFlow; later calls return the same answer.
// Safe from any thread. Takes some ten milliseconds the first time.
Registration RegisterOps();

// Names of the ops: [with mask][with lse], of the gradient [with dMask], and those of caches.
struct OpNames {
  std::string forward[2][2];
  std::string backward[2];
  std::string cache_append;
  std::string cache_attend[2][2];  // as `forward`
};
const OpNames& GetOpNames();

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_OP_H_
