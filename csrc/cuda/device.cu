// The device, its driver, and the order of work among streams. The driver is looked up at run time
// (the runtime library does that), so that a machine without one loads this code and reads why.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cuda/device.h"
#include "sage/cuda_attention.h"

namespace sage {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kLeastCapability = 80;
constexpr char kTooOld[] = "the kernels need compute capability 8.0 (Ampere) or later";

Status StatusOf(cudaError_t error) {
  if (error == cudaSuccess) return Status::Ok();
  cudaGetLastError();
  return {StatusCode::kInternal, cudaGetErrorString(error)};
}

CudaInfo Look() {
  CudaInfo info = {};
  info.built = true;
  info.device_name = "";
  info.architectures = SAGE_CUDA_ARCHITECTURE_NAMES;
  cudaRuntimeGetVersion(&info.runtime_version);
  if (cudaDriverGetVersion(&info.driver_version) != cudaSuccess) info.driver_version = 0;
  const cudaError_t error = cudaGetDeviceCount(&info.device_count);
  if (error != cudaSuccess || info.device_count == 0) {
    cudaGetLastError();
    info.device_count = 0;
    info.reason = info.driver_version == 0 ? "this machine has no NVIDIA driver"
                  : error == cudaErrorInsufficientDriver
                      ? "the NVIDIA driver is older than the CUDA runtime of this build"
                  : error == cudaErrorNoDevice || error == cudaSuccess
                      ? "the NVIDIA driver shows no device"
                      : cudaGetErrorString(error);
    return info;
  }
  int device = 0;
  static cudaDeviceProp properties;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    cudaGetLastError();
    info.reason = "the NVIDIA device does not tell its properties";
    return info;
  }
  info.device_name = properties.name;
  info.compute_capability = properties.major * 10 + properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.available = info.compute_capability >= kLeastCapability;
  info.reason = info.available ? "float32 on the tensor cores" : kTooOld;
  return info;
}

}  // namespace

namespace cuda {

namespace {

struct DeviceFacts {
  int multiprocessors, capability;
};

// Asked once per device; zeros where the driver does not answer.
DeviceFacts FactsOfCurrentDevice() {
  static std::atomic<uint64_t> known[kMaxDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return {};
  uint64_t packed = known[device].load(std::memory_order_relaxed);
  if (packed == 0) {
    int count = 0, major = 0, minor = 0;
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    packed = static_cast<uint64_t>(count) << 32 | static_cast<uint64_t>(major * 10 + minor);
    known[device].store(packed, std::memory_order_relaxed);
  }
  return {static_cast<int>(packed >> 32), static_cast<int>(packed & 0xffffffffu)};
}

}  // namespace

int Multiprocessors() { return std::max(1, FactsOfCurrentDevice().multiprocessors); }

namespace {
std::atomic<int> most_capability{1000};
}  // namespace

int ComputeCapability() {
  return std::min(FactsOfCurrentDevice().capability, most_capability.load());
}

bool CurrentDeviceServes(const char** reason) {
  const CudaInfo& info = DetectCuda();
  if (info.device_count > 0 && ComputeCapability() >= kLeastCapability) return true;
  *reason = info.available ? kTooOld : info.reason;
  return false;
}

void LimitComputeCapability(int most) { most_capability.store(most); }

}  // namespace cuda

const CudaInfo& DetectCuda() {
  static const CudaInfo info = Look();
  return info;
}

void* CudaOwnStream() {
  static thread_local cudaStream_t streams[kMaxDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) {
    cudaGetLastError();
    return nullptr;
  }
  if (streams[device] == nullptr &&
      cudaStreamCreateWithFlags(&streams[device], cudaStreamNonBlocking) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return streams[device];
}

Status CudaSynchronizeDevice() { return StatusOf(cudaDeviceSynchronize()); }

Status CudaSynchronizeStream(void* stream) {
  return StatusOf(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

Status CudaOrderStreams(void* earlier, void* later) {
  cudaEvent_t event = nullptr;
  cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return StatusOf(error);
  error = cudaEventRecord(event, static_cast<cudaStream_t>(earlier));
  if (error == cudaSuccess) error = cudaStreamWaitEvent(static_cast<cudaStream_t>(later), event, 0);
  // The driver keeps what a waiting stream still needs of it.
  cudaEventDestroy(event);
  return StatusOf(error);
}

}  // namespace sage
