// Device memory of the runner of the Hopper kernels, and checked CUDA calls.
#ifndef SAGE_TEST_CUDA_SM90_DEVICE_H_
#define SAGE_TEST_CUDA_SM90_DEVICE_H_

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace sage_test {

inline void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

// Device memory for one problem.
class Device {
 public:
  explicit Device(size_t bytes) {
    if (bytes > 0) Require(cudaMalloc(&data_, bytes), "cudaMalloc");
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Fills a workspace with bytes that are NaN as floats, so that it shows when a place is read before
// it is written. Left out under SAGE_TEST_NO_POISON, for initcheck, which it would blind.
inline void Poison(const Device& workspace, size_t bytes) {
  if (std::getenv("SAGE_TEST_NO_POISON") != nullptr) return;
  Require(cudaMemset(workspace.as<void>(), 0xff, bytes), "poison");
}

template <class T>
void Upload(const Device& to, const std::vector<T>& from) {
  if (from.empty()) return;
  Require(cudaMemcpy(to.as<T>(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice),
          "upload");
}
template <class T>
std::vector<T> Download(const T* from, size_t count) {
  std::vector<T> to(count);
  if (count > 0) {
    Require(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "download");
  }
  return to;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_DEVICE_H_
