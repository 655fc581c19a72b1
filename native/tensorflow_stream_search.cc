#include "tensorflow_stream_search.h"

#if defined(__linux__)
#include <fcntl.h>
#include <unistd.h>
#endif

namespace sage_node::tensorflow {
namespace {

// Reads memory that may not be mapped: the system reports a bad address where a plain read would
// raise a signal.
class SafeReader {
 public:
#if defined(__linux__)
  SafeReader() { ok_ = pipe2(ends_, O_CLOEXEC | O_NONBLOCK) == 0; }
  ~SafeReader() {
    if (!ok_) return;
    close(ends_[0]);
    close(ends_[1]);
  }
  bool Read(uintptr_t address, uintptr_t* word) {
    constexpr uintptr_t kFirstPage = 4096;
    if (!ok_ || address < kFirstPage || address % sizeof(uintptr_t) != 0) return false;
    constexpr ssize_t kBytes = sizeof(*word);
    if (write(ends_[1], reinterpret_cast<const void*>(address), kBytes) != kBytes) return false;
    return read(ends_[0], word, kBytes) == kBytes;
  }

 private:
  int ends_[2] = {-1, -1};
  bool ok_ = false;
#else
  bool Read(uintptr_t, uintptr_t*) { return false; }
#endif
};

// How far to look, in words. Found at [21] -> [49] in TensorFlow 2.21.
constexpr int kContextWords = 32;
constexpr int kParamsWords = 96;
constexpr int kInnerWords = 256;

uintptr_t WordAt(const void* object, int index) {
  return static_cast<const uintptr_t*>(object)[index];
}

}  // namespace

std::string ObjectWay::Text() const {
  if (!found()) return "";
  const std::string way =
      "context[" + std::to_string(params) + "] -> params[" + std::to_string(object) + "]";
  return inner < 0 ? way : way + " -> [" + std::to_string(inner) + "]";
}

ObjectWay FindObject(TF_OpKernelContext* context, uintptr_t vptr) {
  SafeReader reader;
  constexpr auto kWord = sizeof(uintptr_t);
  const auto is_wanted = [&](uintptr_t object) {
    uintptr_t first;
    return reader.Read(object, &first) && first == vptr;
  };
  const auto base = reinterpret_cast<uintptr_t>(context);
  // All direct ways first: an object inside the device may belong to another kernel's context.
  for (const bool deep : {false, true}) {
    for (int i = 0; i < kContextWords; ++i) {
      uintptr_t params, object, inner;
      if (!reader.Read(base + i * kWord, &params)) break;
      for (int j = 0; j < kParamsWords; ++j) {
        if (!reader.Read(params + j * kWord, &object)) break;
        if (!deep && is_wanted(object)) return {i, j, -1};
        for (int n = 0; deep && n < kInnerWords; ++n) {
          if (!reader.Read(object + n * kWord, &inner)) break;
          if (is_wanted(inner)) return {i, j, n};
        }
      }
    }
  }
  return {};
}

const void* FollowWay(const ObjectWay& way, const void* context, uintptr_t vptr) {
  if (!way.found()) return nullptr;
  // The layout is that of the search, so plain reads are safe.
  const auto* params = reinterpret_cast<const void*>(WordAt(context, way.params));
  const auto* object = reinterpret_cast<const void*>(WordAt(params, way.object));
  if (object != nullptr && way.inner >= 0) {
    object = reinterpret_cast<const void*>(WordAt(object, way.inner));
  }
  return object != nullptr && WordAt(object, 0) == vptr ? object : nullptr;
}

// Behind the two words that head a vtable.
uintptr_t VptrOf(void* vtable) { return reinterpret_cast<uintptr_t>(vtable) + 2 * sizeof(void*); }

}  // namespace sage_node::tensorflow
