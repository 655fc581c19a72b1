#include "tensorflow_trace.h"

#include <mutex>

#include "tensorflow_stream.h"

namespace sage_node::tensorflow {
namespace {

std::mutex g_mutex;
Trace g_trace;
std::string g_probe;

}  // namespace

void NoteCall(TF_OpKernelContext* context, const char* device, const char* order, const void* q,
              const void* output) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  ++g_trace.calls;
  g_trace.device = device;
  g_trace.order = order;
  g_trace.q = reinterpret_cast<uintptr_t>(q);
  g_trace.output = reinterpret_cast<uintptr_t>(output);
  if (!g_probe.empty()) g_trace.way = DescribeWay(context, g_probe.c_str());
}

void NoteKernel() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  ++g_trace.kernels;
}

void ProbeWay(const std::string& vtable_name) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_probe = vtable_name;
  g_trace.way.clear();
}

Trace GetTrace() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  return g_trace;
}

}  // namespace sage_node::tensorflow
