// The TensorFlow library that this process has loaded already. None is ever loaded here.
#ifndef SAGE_NATIVE_TENSORFLOW_LIBRARY_H_
#define SAGE_NATIVE_TENSORFLOW_LIBRARY_H_

#include <string>
#include <vector>

#include "tensorflow_api.h"

namespace sage_node::tensorflow {

struct Library {
  void* handle = nullptr;            // null: no TensorFlow is loaded
  std::string name;                  // by which it was found
  std::vector<std::string> missing;  // functions of `api` that it lacks
};

// Looks through the names that TensorFlow has had on this system, and fills `api` from the first
// that is loaded and complete; otherwise from none.
Library FindLibrary();

// Any other symbol of a library found before; null when it has none.
void* FindSymbol(void* handle, const char* name);

// Held while the ops are registered: other copies of the addon in this process wait for it, two
// seconds at most. Where the system grants no such lock, nothing is held.
class RegistrationLock {
 public:
  RegistrationLock();
  ~RegistrationLock();
  RegistrationLock(const RegistrationLock&) = delete;
  RegistrationLock& operator=(const RegistrationLock&) = delete;

 private:
#if defined(_WIN32)
  void* mutex_ = nullptr;
#else
  int file_ = -1;
#endif
};

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_LIBRARY_H_
