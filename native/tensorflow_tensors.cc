#include "tensorflow_tensors.h"

namespace sage_node::tensorflow {
namespace {

std::string Text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t Product(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

Code CodeOf(sage::StatusCode code) {
  switch (code) {
    case sage::StatusCode::kOk:
      return kOk;
    case sage::StatusCode::kInvalidArgument:
      return kInvalidArgument;
    case sage::StatusCode::kOutOfMemory:
      return kResourceExhausted;
    case sage::StatusCode::kUnsupported:
      return kUnimplemented;
    case sage::StatusCode::kCancelled:
      return kCancelled;
    case sage::StatusCode::kInternal:
      return kInternal;
  }
  return kInternal;
}

}  // namespace

std::vector<int64_t> Tensor::shape() const {
  std::vector<int64_t> shape(static_cast<size_t>(rank()));
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = dim(static_cast<int>(i));
  return shape;
}

int64_t Tensor::elements() const {
  int64_t product = 1;
  for (int i = 0, n = rank(); i < n; ++i) product *= dim(i);
  return product;
}

Tensor Input(TF_OpKernelContext* context, int index) {
  TensorflowStatus status;
  TF_Tensor* tensor = nullptr;
  api.TF_GetInput(context, index, &tensor, status.get());
  if (!status.ok()) throw KernelFailure{kInternal, status.message()};
  return Tensor(tensor);
}

Tensor FloatInput(TF_OpKernelContext* context, int index, int64_t elements, const char* name) {
  Tensor tensor = Input(context, index);
  if (tensor.type() != kFloat) {
    throw KernelFailure{kInvalidArgument, std::string(name) + ": expected float32"};
  }
  if (tensor.elements() < elements) {
    throw KernelFailure{kInvalidArgument, std::string(name) + ": the tensor of shape " +
                                              Text(tensor.shape()) +
                                              " is too short for the problem"};
  }
  return tensor;
}

Tensor Output(TF_OpKernelContext* context, int index, const std::vector<int64_t>& shape) {
  TensorflowStatus status;
  TF_Tensor* tensor =
      api.TF_AllocateOutput(context, index, kFloat, shape.data(), static_cast<int>(shape.size()),
                            static_cast<size_t>(Product(shape)) * sizeof(float), status.get());
  if (!status.ok()) throw KernelFailure{kResourceExhausted, status.message()};
  return Tensor(tensor);
}

Tensor Temporary(TF_OpKernelContext* context, int64_t bytes) {
  TensorflowStatus status;
  const int64_t count = (bytes + 3) / static_cast<int64_t>(sizeof(float));
  TF_Tensor* tensor = api.TF_AllocateTemp(context, kFloat, &count, 1, nullptr, status.get());
  if (!status.ok()) throw KernelFailure{kResourceExhausted, status.message()};
  return Tensor(tensor);
}

void ThrowUnlessOk(const sage::Status& status) {
  if (!status.ok()) throw KernelFailure{CodeOf(status.code), status.message};
}

}  // namespace sage_node::tensorflow
