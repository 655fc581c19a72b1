// The one device of calls on host arrays: which it is, whether it still works, and the memory and
// streams that calls take from it and give back.
#ifndef SAGE_CUDA_HOST_HOST_DEVICE_H_
#define SAGE_CUDA_HOST_HOST_DEVICE_H_

#include <cuda_runtime.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "cuda/host/block_pool.h"
#include "sage/cuda_host.h"

namespace sage::cuda {

class HostDevice {
 public:
  static HostDevice& Get();

  Status Choose(const char* wanted);
  CudaHostState State();

  // Whether calls can run now: a device is chosen (the default, if nobody has), CUDA has not
  // failed, and this is the process that began to use it.
  Status Check();

  // After a CUDA call of ours returned `error`: what it means for the caller. Errors that every
  // later call would report too mark CUDA as failed.
  Status Fail(cudaError_t error);
  // After a kernel's status was not ok: whether CUDA itself still works.
  Status Recheck(Status status);

  BlockPool& memory() { return memory_; }
  BlockPool& pinned() { return pinned_; }
  void SetLimit(int64_t bytes);
  int64_t Release();

  // Null when CUDA gives none.
  cudaStream_t TakeStream();
  void GiveStream(cudaStream_t stream);
  cudaEvent_t TakeEvent();
  void GiveEvent(cudaEvent_t event);

  int index() const { return index_.load(std::memory_order_acquire); }

 private:
  HostDevice();
  Status ChooseLocked(const char* wanted);
  void MarkFailed(cudaError_t error);
  // A text that lives as long as the process.
  const char* Keep(const std::string& text);

  std::mutex mutex_;
  std::atomic<int> index_{-1};
  std::atomic<bool> failed_{false};
  std::atomic<const char*> reason_{""};
  std::string wanted_;  // of the choice that holds
  int64_t limit_ = 0;   // as set, 0 = the default
  int64_t total_ = 0;   // memory of the device
  std::atomic<int> process_{0};
  BlockPool memory_, pinned_;
  std::vector<cudaStream_t> streams_;
  std::vector<cudaEvent_t> events_;
};

// Makes the chosen device the current one of this thread, and restores the one before.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = -1;
    error_ = before_ == device ? cudaSuccess : cudaSetDevice(device);
    if (before_ == device) before_ = -1;
  }
  ~DeviceScope() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = -1;
  cudaError_t error_;
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_HOST_DEVICE_H_
