// How long a call takes on the device, by events.
#ifndef SAGE_TEST_CUDA_MEDIAN_TIME_H_
#define SAGE_TEST_CUDA_MEDIAN_TIME_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "test/cuda/sm90_device.h"

namespace sage_test {

// Median milliseconds of batches that together take about `budget`.
template <class Call>
double MedianTime(double budget, Call call) {
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin), "event");
  Require(cudaEventCreate(&end), "event");
  const auto once = [&](int calls) {
    Require(cudaEventRecord(begin), "event");
    for (int i = 0; i < calls; ++i) call();
    Require(cudaEventRecord(end), "event");
    Require(cudaEventSynchronize(end), "run");
    float ms = 0.0f;
    Require(cudaEventElapsedTime(&ms, begin, end), "event");
    return static_cast<double>(ms) / calls;
  };
  once(2);
  const double estimate = std::max(1e-3, once(3));
  constexpr int kBatches = 9;
  const int calls = std::max(1, static_cast<int>(budget / kBatches / estimate));
  once(calls);
  std::vector<double> times;
  for (int i = 0; i < kBatches; ++i) times.push_back(once(calls));
  std::sort(times.begin(), times.end());
  Require(cudaEventDestroy(begin), "event");
  Require(cudaEventDestroy(end), "event");
  return times[kBatches / 2];
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_MEDIAN_TIME_H_
