#include "tensorflow_library.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>

#include <cstring>
#endif

namespace sage_node::tensorflow {

Api api;

namespace {

// TensorFlow 2.9 to 2.21. The library of the Python package comes first: where both are loaded, the
// tensors are its own. A framework library alone lacks TF_GetAllOpList.
constexpr const char* kNames[] = {
#if defined(_WIN32)
    "tensorflow_cc.dll",
    "tensorflow.dll",
#elif defined(__APPLE__)
    "libtensorflow_cc.2.dylib",
    "libtensorflow.2.dylib",
#else
    "libtensorflow_cc.so.2",
    "libtensorflow.so.2",
#endif
};

#if defined(_WIN32)

void* FindLoaded(const char* name) { return GetModuleHandleA(name); }

#elif defined(__APPLE__)

// A path of an image decides there, not the bare name.
void* FindLoaded(const char* name) {
  for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
    const char* path = _dyld_get_image_name(i);
    const char* slash = path != nullptr ? std::strrchr(path, '/') : nullptr;
    if (slash != nullptr && std::strcmp(slash + 1, name) == 0) {
      return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    }
  }
  return nullptr;
}

#else

void* FindLoaded(const char* name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD); }

#endif

}  // namespace

void* FindSymbol(void* handle, const char* name) {
#if defined(_WIN32)
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(handle), name));
#else
  return dlsym(handle, name);
#endif
}

Library FindLibrary() {
  Library found;
  for (const char* name : kNames) {
    void* handle = FindLoaded(name);
    if (handle == nullptr) continue;
    Library candidate;
    candidate.handle = handle;
    candidate.name = name;
    Api functions;
#define SAGE_TENSORFLOW_LOAD(result, symbol, parameters)                                        \
  functions.symbol = reinterpret_cast<decltype(functions.symbol)>(FindSymbol(handle, #symbol)); \
  if (functions.symbol == nullptr) candidate.missing.push_back(#symbol);
    SAGE_TENSORFLOW_SYMBOLS(SAGE_TENSORFLOW_LOAD)
#undef SAGE_TENSORFLOW_LOAD
    if (candidate.missing.empty()) {
      api = functions;
      return candidate;
    }
    // The first one is told about, if none is complete.
    if (found.handle == nullptr) found = candidate;
  }
  return found;
}

#if defined(_WIN32)

constexpr DWORD kLockMilliseconds = 2000;

RegistrationLock::RegistrationLock() {
  const std::string name = "sage-attention-" + std::to_string(GetCurrentProcessId());
  mutex_ = CreateMutexA(nullptr, FALSE, name.c_str());
  if (mutex_ != nullptr) WaitForSingleObject(mutex_, kLockMilliseconds);
}

RegistrationLock::~RegistrationLock() {
  if (mutex_ == nullptr) return;
  ReleaseMutex(mutex_);
  CloseHandle(mutex_);
}

#else

constexpr int kLockTries = 2000;
constexpr useconds_t kLockPauseMicroseconds = 1000;

// Two copies of the addon share no variable, but both find TensorFlow's file, and a lock on a file
// belongs to whoever opened it.
RegistrationLock::RegistrationLock() {
  Dl_info place = {};
  if (dladdr(reinterpret_cast<void*>(api.TF_Version), &place) == 0) return;
  file_ = open(place.dli_fname, O_RDONLY | O_CLOEXEC);
  if (file_ < 0) return;
  // Another process may hold such a lock, and for longer than a registration takes.
  for (int tries = 0; tries < kLockTries && flock(file_, LOCK_EX | LOCK_NB) != 0; ++tries) {
    usleep(kLockPauseMicroseconds);
  }
}

RegistrationLock::~RegistrationLock() {
  if (file_ >= 0) close(file_);
}

#endif

}  // namespace sage_node::tensorflow
