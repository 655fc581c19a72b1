// Finds objects of TensorFlow behind its opaque TF_OpKernelContext.
//
// The C API refuses to tell the stream of TensorFlow's own CUDA devices, but the GPU build exports
// the vtables of GPUDeviceContext and CudaStream and the methods that read them. So the context
// object is found by looking for a pointer to such a vtable; every step is checked, and an unknown
// layout gives null rather than a wrong pointer. Systems whose memory cannot be read with that care
// find nothing.
#ifndef SAGE_NATIVE_TENSORFLOW_STREAM_SEARCH_H_
#define SAGE_NATIVE_TENSORFLOW_STREAM_SEARCH_H_

#include <cstdint>
#include <string>

#include "tensorflow_api.h"

namespace sage_node::tensorflow {

// A way from OpKernelContext to an object, in words: its parameters lie at [params], the object
// at [object] of them, or at [inner] of what is there (the device) when inner >= 0.
struct ObjectWay {
  int params = -1;
  int object = -1;
  int inner = -1;

  bool found() const { return params >= 0; }
  std::string Text() const;
};

// The first way to an object whose first word is `vptr`.
ObjectWay FindObject(TF_OpKernelContext* context, uintptr_t vptr);

// Follows a way that was found before in this process; null where it leads to another class now.
const void* FollowWay(const ObjectWay& way, const void* context, uintptr_t vptr);

// What the first word of an object holds, given its class' vtable.
uintptr_t VptrOf(void* vtable);

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_STREAM_SEARCH_H_
