// Device memory of the CUDA tests, with a guard behind it, and checked CUDA calls.
#ifndef SAGE_TEST_CUDA_DEVICE_ARRAY_H_
#define SAGE_TEST_CUDA_DEVICE_ARRAY_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace sage_test {

inline void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

// `count` elements that start `shift` elements into an allocation, and a guard of 64 behind them.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count, int64_t shift = 0) : count_(count), shift_(shift) {
    Must(cudaMalloc(&memory_, (count + shift + kGuard) * sizeof(T)), "cudaMalloc");
  }
  DeviceArray(const std::vector<T>& values, int64_t shift) : DeviceArray(values.size(), shift) {
    Must(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
         "copy to the device");
  }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return memory_ + shift_; }
  int64_t count() const { return count_; }

  void FillAll(T value) {
    const std::vector<T> values(count_ + shift_ + kGuard, value);
    Must(cudaMemcpy(memory_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
         "fill");
  }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    Must(cudaMemcpy(values.data(), memory_ + shift_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
         "copy from the device");
    return values;
  }
  // Whether everything around the elements still is `value`.
  bool IsGuarded(T value) const {
    std::vector<T> around(shift_ + kGuard);
    Must(cudaMemcpy(around.data(), memory_, shift_ * sizeof(T), cudaMemcpyDeviceToHost), "guard");
    Must(cudaMemcpy(around.data() + shift_, memory_ + shift_ + count_, kGuard * sizeof(T),
                    cudaMemcpyDeviceToHost),
         "guard");
    for (const T& x : around) {
      if (x != value) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 64;
  int64_t count_, shift_;
  T* memory_ = nullptr;
};

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_DEVICE_ARRAY_H_
