// What the op's kernels did last, for tests: whether the op ran at all, where, and on whose memory.
#ifndef SAGE_NATIVE_TENSORFLOW_TRACE_H_
#define SAGE_NATIVE_TENSORFLOW_TRACE_H_

#include <cstdint>
#include <string>

#include "tensorflow_api.h"

namespace sage_node::tensorflow {

struct Trace {
  uint64_t calls = 0;
  uint64_t kernels = 0;     // kernel objects that TensorFlow has made
  const char* device = "";  // "CPU" or "GPU"
  const char* order = "";   // name of the stream mode that was in force, "" on a CPU
  uintptr_t q = 0;          // address of the input q
  uintptr_t output = 0;     // address of the first output
  std::string way;          // to the object asked for by ProbeWay
};

// A kernel has run, or been made.
void NoteCall(TF_OpKernelContext* context, const char* device, const char* order, const void* q,
              const void* output);
void NoteKernel();

// From now on every call looks for an object whose class has this vtable; "" ends that.
void ProbeWay(const std::string& vtable_name);

Trace GetTrace();

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_TRACE_H_
