// The slice of TensorFlow's C API that the op calls, declared here and found at run time: building
// the addon needs no TensorFlow, and one addon serves every TensorFlow that has these names.
#ifndef SAGE_NATIVE_TENSORFLOW_API_H_
#define SAGE_NATIVE_TENSORFLOW_API_H_

#include <cstddef>
#include <cstdint>

struct TF_Status;
struct TF_Tensor;
struct TF_OpKernelContext;
struct TF_OpKernelConstruction;
struct TF_KernelBuilder;
struct TF_OpDefinitionBuilder;
struct TF_ShapeInferenceContext;
struct TF_AllocatorAttributes;

// Its layout is part of the C API: `data` holds a serialised protocol buffer.
struct TF_Buffer {
  const void* data;
  size_t length;
  void (*deallocator)(void* data, size_t length);
};

namespace sage_node::tensorflow {

// Values of TF_Code and TF_DataType, fixed by the C API.
enum Code : int {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kResourceExhausted = 8,
  kUnimplemented = 12,
  kInternal = 13,
};
enum DataType : int { kFloat = 1, kInt32 = 3, kBool = 10 };

using CreateFunction = void* (*)(TF_OpKernelConstruction*);
using ComputeFunction = void (*)(void*, TF_OpKernelContext*);
using DeleteFunction = void (*)(void*);
using ShapeFunction = void (*)(TF_ShapeInferenceContext*, TF_Status*);

// X(result, name, parameters)
#define SAGE_TENSORFLOW_SYMBOLS(X)                                                          \
  X(const char*, TF_Version, ())                                                            \
  X(TF_Status*, TF_NewStatus, ())                                                           \
  X(void, TF_DeleteStatus, (TF_Status*))                                                    \
  X(void, TF_SetStatus, (TF_Status*, int, const char*))                                     \
  X(int, TF_GetCode, (const TF_Status*))                                                    \
  X(const char*, TF_Message, (const TF_Status*))                                            \
  X(TF_Buffer*, TF_GetAllOpList, ())                                                        \
  X(void, TF_DeleteBuffer, (TF_Buffer*))                                                    \
  X(TF_OpDefinitionBuilder*, TF_NewOpDefinitionBuilder, (const char*))                      \
  X(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char*))           \
  X(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char*))          \
  X(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char*))            \
  X(void, TF_OpDefinitionBuilderSetShapeInferenceFunction,                                  \
    (TF_OpDefinitionBuilder*, ShapeFunction))                                               \
  X(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                   \
  X(void, TF_ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext*, TF_Status*)) \
  X(TF_KernelBuilder*, TF_NewKernelBuilder,                                                 \
    (const char*, const char*, CreateFunction, ComputeFunction, DeleteFunction))            \
  X(void, TF_KernelBuilder_HostMemory, (TF_KernelBuilder*, const char*))                    \
  X(void, TF_RegisterKernelBuilder, (const char*, TF_KernelBuilder*, TF_Status*))           \
  X(void, TF_OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))                    \
  X(int, TF_NumInputs, (TF_OpKernelContext*))                                               \
  X(int, TF_NumOutputs, (TF_OpKernelContext*))                                              \
  X(void, TF_GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))                 \
  X(TF_Tensor*, TF_AllocateOutput,                                                          \
    (TF_OpKernelContext*, int, int, const int64_t*, int, size_t, TF_Status*))               \
  X(TF_Tensor*, TF_AllocateTemp,                                                            \
    (TF_OpKernelContext*, int, const int64_t*, int, TF_AllocatorAttributes*, TF_Status*))   \
  X(void, TF_DeleteTensor, (TF_Tensor*))                                                    \
  X(void*, TF_TensorData, (const TF_Tensor*))                                               \
  X(int, TF_TensorType, (const TF_Tensor*))                                                 \
  X(int, TF_NumDims, (const TF_Tensor*))                                                    \
  X(int64_t, TF_Dim, (const TF_Tensor*, int))

struct Api {
#define SAGE_TENSORFLOW_FIELD(result, name, parameters) result(*name) parameters = nullptr;
  SAGE_TENSORFLOW_SYMBOLS(SAGE_TENSORFLOW_FIELD)
#undef SAGE_TENSORFLOW_FIELD
};

// The functions of the TensorFlow that the op is registered with; all null until then.
extern Api api;

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_API_H_
