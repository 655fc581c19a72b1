// What the CUDA engine knows of the device it runs on.
#ifndef SAGE_CUDA_DEVICE_H_
#define SAGE_CUDA_DEVICE_H_

namespace sage::cuda {

// Multiprocessors of the current device, at least 1.
int Multiprocessors();

// Of the current device, 90 = sm_90; 0 when it does not tell.
int ComputeCapability();

// Whether the kernels run on the current device; if not, `reason` (static storage) says why.
bool CurrentDeviceServes(const char** reason);

// For tests: from now on devices count as at most this capability, so that a newer one runs the
// kernels of older ones. Of the whole process.
void LimitComputeCapability(int most);

}  // namespace sage::cuda

#endif  // SAGE_CUDA_DEVICE_H_
