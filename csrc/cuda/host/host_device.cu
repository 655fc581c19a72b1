#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "cuda/host/find_device.h"
#include "cuda/host/host_device.h"
#include "sage/cuda_attention.h"

#if defined(__unix__)
#include <unistd.h>
#endif

namespace sage {
namespace cuda {
namespace {

constexpr int kLeastCapability = 80;
// Staging of two calls at once (staging.h), and some.
constexpr int64_t kPinnedLimit = int64_t{128} << 20;

// A process that was forked has a copy of CUDA's state, which does not work there.
int ProcessNumber() {
#if defined(__unix__)
  return static_cast<int>(getpid());
#else
  return 1;
#endif
}

void* AllocateDevice(int64_t bytes) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<size_t>(bytes)) == cudaSuccess) return memory;
  cudaGetLastError();
  return nullptr;
}

void FreeDevice(void* memory) {
  if (cudaFree(memory) != cudaSuccess) cudaGetLastError();
}

void* AllocatePinned(int64_t bytes) {
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocPortable) == cudaSuccess) {
    return memory;
  }
  cudaGetLastError();
  return nullptr;
}

void FreePinned(void* memory) {
  if (cudaFreeHost(memory) != cudaSuccess) cudaGetLastError();
}

bool ReadDevice(int index, CudaDevice* device) {
  const auto properties = std::make_unique<cudaDeviceProp>();
  if (cudaGetDeviceProperties(properties.get(), index) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  *device = {};
  std::snprintf(device->name, sizeof(device->name), "%s", properties->name);
  const std::string uuid = UuidText(reinterpret_cast<const unsigned char*>(&properties->uuid));
  std::snprintf(device->uuid, sizeof(device->uuid), "%s", uuid.c_str());
  device->compute_capability = properties->major * 10 + properties->minor;
  device->multiprocessors = properties->multiProcessorCount;
  device->memory = static_cast<int64_t>(properties->totalGlobalMem);
  device->supported = device->compute_capability >= kLeastCapability;
  return true;
}

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

}  // namespace

HostDevice& HostDevice::Get() {
  // Never destroyed: CUDA's own state may be gone before static objects are.
  static HostDevice* const device = new HostDevice;
  return *device;
}

HostDevice::HostDevice()
    : memory_(AllocateDevice, FreeDevice, 0), pinned_(AllocatePinned, FreePinned, kPinnedLimit) {}

const char* HostDevice::Keep(const std::string& text) {
  char* copy = new char[text.size() + 1];
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

Status HostDevice::Choose(const char* wanted) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return ChooseLocked(wanted);
}

Status HostDevice::ChooseLocked(const char* wanted) {
  if (index() >= 0) {
    if (*wanted == '\0' || wanted_ == wanted) return Status::Ok();
    // Another spelling of the same device is no change.
    std::vector<std::string> uuids;
    CudaDevice device;
    for (int n = 0; n < DeviceCount(); ++n) {
      uuids.push_back(ReadDevice(n, &device) ? device.uuid : "");
    }
    std::string why;
    if (FindDevice(wanted, uuids, &why) == index()) return Status::Ok();
    return Status::Invalid(Keep("this process uses CUDA device " + std::to_string(index()) +
                                " already, and cannot change to '" + wanted + "'"));
  }
  const CudaInfo& info = DetectCuda();
  if (info.device_count == 0) return {StatusCode::kUnsupported, info.reason};
  std::vector<CudaDevice> devices(static_cast<size_t>(DeviceCount()));
  std::vector<std::string> uuids;
  for (size_t n = 0; n < devices.size(); ++n) {
    if (!ReadDevice(static_cast<int>(n), &devices[n])) devices[n] = {};
    uuids.push_back(devices[n].uuid);
  }
  int chosen = -1;
  if (*wanted != '\0') {
    std::string why;
    chosen = FindDevice(wanted, uuids, &why);
    if (chosen < 0) return Status::Invalid(Keep(why));
  } else {
    for (size_t n = 0; n < devices.size() && chosen < 0; ++n) {
      if (devices[n].supported) chosen = static_cast<int>(n);
    }
    if (chosen < 0) chosen = 0;
  }
  if (static_cast<size_t>(chosen) >= devices.size()) {
    return {StatusCode::kUnsupported, "the NVIDIA driver shows no device"};
  }
  const CudaDevice& device = devices[static_cast<size_t>(chosen)];
  const std::string name =
      std::string(device.name) + " (sm_" + std::to_string(device.compute_capability) + ")";
  if (!device.supported) {
    return {StatusCode::kUnsupported,
            Keep("the kernels need compute capability 8.0 (Ampere) or later, not " + name)};
  }
  total_ = device.memory;
  memory_.SetLimit(limit_ > 0 ? limit_ : total_ / 4);
  wanted_ = wanted;
  reason_.store(Keep("CUDA device " + std::to_string(chosen) + ", " + name));
  process_.store(ProcessNumber());
  index_.store(chosen, std::memory_order_release);
  return Status::Ok();
}

Status HostDevice::Check() {
  if (index() < 0) {
    const Status status = Choose("");
    if (!status.ok()) return status;
  }
  if (failed_.load(std::memory_order_acquire)) return {StatusCode::kUnsupported, reason_.load()};
  if (process_.load() != ProcessNumber()) {
    return {StatusCode::kUnsupported, "CUDA was in use before this process was forked"};
  }
  return Status::Ok();
}

CudaHostState HostDevice::State() {
  CudaHostState state = {};
  if (index() < 0) {
    const CudaInfo& info = DetectCuda();
    state.reason = info.device_count == 0 ? info.reason : "no device has been chosen yet";
  } else {
    const Status status = Check();
    state.available = status.ok();
    state.reason = status.ok() ? reason_.load() : status.message;
  }
  state.device = index();
  state.failed = failed_.load();
  state.device_bytes = memory_.held();
  state.pinned_bytes = pinned_.held();
  state.device_limit = memory_.limit();
  return state;
}

void HostDevice::MarkFailed(cudaError_t error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failed_.load()) return;
  reason_.store(Keep(std::string("CUDA failed, and this process cannot use it again: ") +
                     cudaGetErrorString(error)));
  failed_.store(true, std::memory_order_release);
  memory_.Abandon();
  pinned_.Abandon();
  streams_.clear();
  events_.clear();
}

Status HostDevice::Fail(cudaError_t error) {
  cudaGetLastError();
  // Only what a wait for the device reports again stays.
  const cudaError_t lasting = cudaDeviceSynchronize();
  if (lasting != cudaSuccess) {
    cudaGetLastError();
    MarkFailed(lasting);
    return {StatusCode::kInternal, reason_.load()};
  }
  if (error == cudaErrorMemoryAllocation) {
    return {StatusCode::kOutOfMemory, "there is no device memory, or no page-locked memory, left"};
  }
  return {StatusCode::kInternal, cudaGetErrorString(error)};
}

Status HostDevice::Recheck(Status status) {
  const cudaError_t lasting = cudaDeviceSynchronize();
  if (lasting == cudaSuccess) return status;
  cudaGetLastError();
  MarkFailed(lasting);
  return {StatusCode::kInternal, reason_.load()};
}

void HostDevice::SetLimit(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  limit_ = bytes;
  if (index() < 0 || failed_.load()) return;
  const DeviceScope scope(index());
  memory_.SetLimit(bytes > 0 ? bytes : total_ / 4);
}

int64_t HostDevice::Release() {
  if (index() < 0 || !Check().ok()) return 0;
  const DeviceScope scope(index());
  return memory_.Trim() + pinned_.Trim();
}

cudaStream_t HostDevice::TakeStream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!streams_.empty()) {
      cudaStream_t stream = streams_.back();
      streams_.pop_back();
      return stream;
    }
  }
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess) return stream;
  cudaGetLastError();
  return nullptr;
}

void HostDevice::GiveStream(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failed_.load()) streams_.push_back(stream);
}

cudaEvent_t HostDevice::TakeEvent() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!events_.empty()) {
      cudaEvent_t event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess) return event;
  cudaGetLastError();
  return nullptr;
}

void HostDevice::GiveEvent(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failed_.load()) events_.push_back(event);
}

}  // namespace cuda

int ListCudaDevices(CudaDevice* devices, int most) {
  const int count = cuda::DeviceCount();
  for (int n = 0; n < count && n < most; ++n) {
    if (!cuda::ReadDevice(n, &devices[n])) devices[n] = {};
  }
  return count;
}

Status CudaHostSupports(const Problem& problem) {
  cuda::HostDevice& device = cuda::HostDevice::Get();
  const Status ready = device.Check();
  if (!ready.ok()) return ready;
  const cuda::DeviceScope scope(device.index());
  if (scope.error() != cudaSuccess) return device.Fail(scope.error());
  const char* reason = nullptr;
  if (CudaSupports(problem, &reason)) return Status::Ok();
  return {StatusCode::kUnsupported, reason};
}

Status ChooseCudaDevice(const char* wanted) { return cuda::HostDevice::Get().Choose(wanted); }
CudaHostState GetCudaHostState() { return cuda::HostDevice::Get().State(); }
void SetCudaMemoryLimit(int64_t bytes) { cuda::HostDevice::Get().SetLimit(bytes); }
int64_t ReleaseCudaMemory() { return cuda::HostDevice::Get().Release(); }

}  // namespace sage
