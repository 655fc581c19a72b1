#include "tensorflow_stream.h"

#include <atomic>
#include <mutex>

#include "sage/cuda_attention.h"
#include "tensorflow_library.h"
#include "tensorflow_stream_search.h"

namespace sage_node::tensorflow {
namespace {

constexpr const char* kModeNames[kStreamModeCount] = {"auto",    "tfstream", "tfevent",
                                                      "devsync", "legacy",   "nosync"};

std::atomic<StreamMode> g_mode{StreamMode::kAuto};
void* g_library = nullptr;

// A method without parameters that returns a pointer; the C++ ABI passes the object first.
using PointerMethod = void* (*)(const void* object);

struct StreamFinder {
  uintptr_t context_vptr = 0;
  uintptr_t stream_vptr = 0;
  PointerMethod stream_of_context = nullptr;  // GPUDeviceContext::stream()
  PointerMethod handle_of_stream = nullptr;   // CudaStream::platform_specific_handle()
  ObjectWay way;
};

std::once_flag g_symbols_once;
std::once_flag g_search_once;
StreamFinder g_finder;
std::mutex g_text_mutex;
std::string g_text = "no kernel has run on a GPU";

void SetText(const std::string& text) {
  const std::lock_guard<std::mutex> lock(g_text_mutex);
  g_text = text;
}

void LoadSymbols() {
  const auto find = [](const char* name) { return FindSymbol(g_library, name); };
  void* context_vtable = find("_ZTVN10tensorflow16GPUDeviceContextE");
  void* stream_vtable = find("_ZTVN15stream_executor3gpu10CudaStreamE");
  void* stream = find("_ZNK10tensorflow16GPUDeviceContext6streamEv");
  void* handle = find("_ZNK15stream_executor3gpu10CudaStream24platform_specific_handleEv");
  if (!context_vtable || !stream_vtable || !stream || !handle) {
    SetText("this TensorFlow does not export the classes of its CUDA streams");
    return;
  }
  g_finder.context_vptr = VptrOf(context_vtable);
  g_finder.stream_vptr = VptrOf(stream_vtable);
  g_finder.stream_of_context = reinterpret_cast<PointerMethod>(stream);
  g_finder.handle_of_stream = reinterpret_cast<PointerMethod>(handle);
}

// The CUstream on which TensorFlow runs this kernel's neighbours, or null.
void* FindComputeStream(TF_OpKernelContext* context) {
  std::call_once(g_symbols_once, LoadSymbols);
  if (g_finder.stream_of_context == nullptr) return nullptr;
  std::call_once(g_search_once, [context] {
    g_finder.way = FindObject(context, g_finder.context_vptr);
    SetText(g_finder.way.found() ? "found at " + g_finder.way.Text()
                                 : "no GPUDeviceContext lies behind TF_OpKernelContext");
  });
  const void* device_context = FollowWay(g_finder.way, context, g_finder.context_vptr);
  if (device_context == nullptr) return nullptr;
  const void* stream = g_finder.stream_of_context(device_context);
  if (stream == nullptr || *static_cast<const uintptr_t*>(stream) != g_finder.stream_vptr) {
    return nullptr;
  }
  return g_finder.handle_of_stream(stream);
}

}  // namespace

const char* StreamModeName(StreamMode mode) { return kModeNames[static_cast<int>(mode)]; }

bool ParseStreamMode(const std::string& name, StreamMode* mode) {
  for (int i = 0; i < kStreamModeCount; ++i) {
    if (name != kModeNames[i]) continue;
    *mode = static_cast<StreamMode>(i);
    return true;
  }
  return false;
}

void SetStreamMode(StreamMode mode) { g_mode = mode; }
StreamMode GetStreamMode() { return g_mode; }

void SetStreamLibrary(void* handle) { g_library = handle; }

StreamOrder::StreamOrder(TF_OpKernelContext* context)
    : tensorflow_(FindComputeStream(context)), mode_(g_mode) {
  const bool needs_stream =
      mode_ == StreamMode::kAuto || mode_ == StreamMode::kTensorflow || mode_ == StreamMode::kEvent;
  if (needs_stream && tensorflow_ == nullptr) {
    mode_ = StreamMode::kDeviceSync;
  } else if (mode_ == StreamMode::kAuto) {
    mode_ = StreamMode::kTensorflow;
  }
  if (mode_ == StreamMode::kTensorflow) {
    stream_ = tensorflow_;
  } else if (mode_ != StreamMode::kLegacy) {
    stream_ = sage::CudaOwnStream();
  }
}

sage::Status StreamOrder::Begin() {
  if (mode_ != StreamMode::kTensorflow && mode_ != StreamMode::kLegacy && stream_ == nullptr) {
    return {sage::StatusCode::kInternal, "CUDA gave no stream"};
  }
  if (mode_ == StreamMode::kEvent) return sage::CudaOrderStreams(tensorflow_, stream_);
  if (mode_ == StreamMode::kDeviceSync) return sage::CudaSynchronizeDevice();
  return {};
}

sage::Status StreamOrder::End() {
  if (mode_ == StreamMode::kEvent) return sage::CudaOrderStreams(stream_, tensorflow_);
  if (mode_ == StreamMode::kDeviceSync) return sage::CudaSynchronizeStream(stream_);
  return {};
}

std::string DescribeStreamSearch() {
  const std::lock_guard<std::mutex> lock(g_text_mutex);
  return g_text;
}

std::string DescribeWay(TF_OpKernelContext* context, const char* vtable_name) {
  void* vtable = FindSymbol(g_library, vtable_name);
  return vtable == nullptr ? "" : FindObject(context, VptrOf(vtable)).Text();
}

}  // namespace sage_node::tensorflow
