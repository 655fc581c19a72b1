// The CUDA engine on host arrays: staging, copies that overlap with the kernels, device memory with
// a limit. One device for the whole process. A build without CUDA has the same functions; they say
// so.
//
// Nothing here throws or ends the process. kUnsupported, kOutOfMemory and kInternal leave the
// outputs undefined and the inputs as they were: another engine can compute the call.
#ifndef SAGE_CUDA_HOST_H_
#define SAGE_CUDA_HOST_H_

#include <atomic>
#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// A device that the driver shows.
struct CudaDevice {
  char name[256];
  char uuid[48];           // "GPU-...", "" when it tells none
  int compute_capability;  // 90 = sm_90
  int multiprocessors;     // those of this slice, where the device is cut into slices (MIG)
  int64_t memory;          // bytes
  bool supported;          // the kernels run there
};

// Fills at most `most`; how many there are. 0 without a driver.
int ListCudaDevices(CudaDevice* devices, int most);

// The device of all calls, as a number or UUID; "" is the first that the kernels run on. The
// first choice holds for the process: another one later is kInvalidArgument, as is a text that
// names no device. A call that comes before any choice takes "". kUnsupported where no device can
// be used. `message` has static storage.
Status ChooseCudaDevice(const char* wanted);

struct CudaHostState {
  bool available;
  const char* reason;    // one sentence: which device, or why none; static storage
  int device;            // -1 as long as none is chosen
  bool failed;           // CUDA reported an error after which a process cannot use it again
  int64_t device_bytes;  // device memory held, in use and kept for later calls
  int64_t pinned_bytes;  // page-locked host memory held
  int64_t device_limit;  // most device memory that is held
};
CudaHostState GetCudaHostState();

// Most bytes of device memory that calls may hold together; 0: a quarter of the device's.
void SetCudaMemoryLimit(int64_t bytes);
// Frees all memory that no call uses. Bytes freed, device and page-locked memory together.
int64_t ReleaseCudaMemory();

// Whether the kernels compute this problem on that device: kOk, or kUnsupported and why.
Status CudaHostSupports(const Problem& problem);

struct CudaHostOptions {
  int threads = 1;                               // that move data between arrays and staging, >= 1
  const std::atomic<bool>* cancelled = nullptr;  // polled between pieces of a call
  bool overlap = true;                           // false: one piece after another, for comparison
};

// As AttentionForward and AttentionBackward (sage/attention.h), on host arrays. They return when
// the outputs are written. Any number of threads may call at once.
Status CudaHostForward(const Problem& problem, const ForwardBuffers& buffers,
                       const CudaHostOptions& options);
Status CudaHostBackward(const Problem& problem, const BackwardBuffers& buffers,
                        const CudaHostOptions& options);

// Milliseconds of forward calls on inputs that already lie in device memory, by events of the
// device: one for each of `repeats` calls after a warm-up. `buffers.o` and `lse` are not written.
Status TimeCudaForward(const Problem& problem, const ForwardBuffers& buffers, int repeats,
                       float* milliseconds);

}  // namespace sage

#endif  // SAGE_CUDA_HOST_H_
