// Tensors and failures of one kernel call.
#ifndef SAGE_NATIVE_TENSORFLOW_TENSORS_H_
#define SAGE_NATIVE_TENSORFLOW_TENSORS_H_

#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "sage/status.h"
#include "tensorflow_api.h"

namespace sage_node::tensorflow {

// A failure on its way to TF_OpKernelContext_Failure. Thrown within a kernel only: GuardKernel
// lets nothing across the C API.
struct KernelFailure {
  Code code;
  std::string message;
};

// Owns a TF_Status.
class TensorflowStatus {
 public:
  TensorflowStatus() : status_(api.TF_NewStatus()) {}
  ~TensorflowStatus() { api.TF_DeleteStatus(status_); }
  TensorflowStatus(const TensorflowStatus&) = delete;
  TensorflowStatus& operator=(const TensorflowStatus&) = delete;

  bool ok() const { return api.TF_GetCode(status_) == kOk; }
  std::string message() const { return api.TF_Message(status_); }
  void Set(Code code, const std::string& message) {
    api.TF_SetStatus(status_, code, message.c_str());
  }
  TF_Status* get() { return status_; }

 private:
  TF_Status* status_;
};

// A reference to a tensor, whose memory is on the device of the kernel unless said otherwise.
class Tensor {
 public:
  explicit Tensor(TF_Tensor* tensor) : tensor_(tensor) {}

  int type() const { return api.TF_TensorType(tensor_.get()); }
  int rank() const { return api.TF_NumDims(tensor_.get()); }
  int64_t dim(int axis) const { return api.TF_Dim(tensor_.get(), axis); }
  std::vector<int64_t> shape() const;
  int64_t elements() const;
  // Null for some tensors without elements.
  void* data() const { return api.TF_TensorData(tensor_.get()); }
  float* floats() const { return static_cast<float*>(data()); }

 private:
  struct Deleter {
    void operator()(TF_Tensor* tensor) const { api.TF_DeleteTensor(tensor); }
  };
  std::unique_ptr<TF_Tensor, Deleter> tensor_;
};

// The index-th input. Throws KernelFailure, like all below.
Tensor Input(TF_OpKernelContext* context, int index);
// A float32 input of at least `elements` elements; `name` is for the message.
Tensor FloatInput(TF_OpKernelContext* context, int index, int64_t elements, const char* name);
// A float32 output, uninitialised.
Tensor Output(TF_OpKernelContext* context, int index, const std::vector<int64_t>& shape);
// Working memory of at least `bytes` bytes on the kernel's device.
Tensor Temporary(TF_OpKernelContext* context, int64_t bytes);

void ThrowUnlessOk(const sage::Status& status);

// Runs body(); whatever it throws becomes the status of the call, with `op` in front.
template <typename Body>
void GuardKernel(TF_OpKernelContext* context, const char* op, const Body& body) noexcept {
  TensorflowStatus status;
  try {
    body();
    return;
  } catch (const KernelFailure& failure) {
    status.Set(failure.code, std::string(op) + ": " + failure.message);
  } catch (const std::bad_alloc&) {
    status.Set(kResourceExhausted, std::string(op) + ": out of host memory");
  } catch (const std::exception& error) {
    status.Set(kInternal, std::string(op) + ": " + error.what());
  }
  api.TF_OpKernelContext_Failure(context, status.get());
}

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_TENSORS_H_
