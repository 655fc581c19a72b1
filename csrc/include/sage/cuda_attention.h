// The CUDA engine: attention on device pointers, in a stream the caller gives. Knows neither Node
// nor TensorFlow. A build without CUDA has the same functions; they say so in `CudaInfo::reason`.
#ifndef SAGE_CUDA_ATTENTION_H_
#define SAGE_CUDA_ATTENTION_H_

#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// What this build and this machine's driver offer. Strings have static storage.
struct CudaInfo {
  bool built;           // compiled with CUDA
  bool available;       // a driver and a device that the kernels run on
  const char* reason;   // one sentence: what runs, or why nothing does
  int driver_version;   // as CUDA counts it, 13000 = 13.0; 0 = no driver
  int runtime_version;  // of the runtime linked in; 0 = not built
  int device_count;
  const char* device_name;  // of the current device, "" when none
  int compute_capability;   // 90 = sm_90, 0 when none
  int multiprocessors;
  const char* architectures;  // machine code in this build, "sm_80 sm_90", "" when none
};

// Looks once per process. Never fails: a missing driver is a reason.
const CudaInfo& DetectCuda();

// Whether the kernels compute this problem as its recipe says. If not, `reason` (static storage)
// tells why; if so, by which kernels, such as an emulation ("" = nothing to tell).
bool CudaSupports(const Problem& problem, const char** reason);

// Bytes of device memory that a call needs beside its buffers, O(N); aligned to 256 bytes, as
// cudaMalloc gives it.
int64_t CudaForwardWorkspace(const Problem& problem);
int64_t CudaBackwardWorkspace(const Problem& problem);

// `stream` is a CUstream of the current context; all work is enqueued there and nothing is
// synchronised. Buffers and workspace are device memory. kUnsupported for what CudaSupports
// refuses, kInternal with the driver's own text after a failed launch.
Status CudaForward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                   void* stream);
Status CudaBackward(const Problem& problem, const BackwardBuffers& buffers, void* workspace,
                    void* stream);

// A non-blocking stream of the current device, one per thread and device, kept for the process;
// null without CUDA.
void* CudaOwnStream();
// Waits for all work of the current device, or of one stream.
Status CudaSynchronizeDevice();
Status CudaSynchronizeStream(void* stream);
// Makes `later` wait for everything enqueued in `earlier` so far.
Status CudaOrderStreams(void* earlier, void* later);

}  // namespace sage

#endif  // SAGE_CUDA_ATTENTION_H_
