// Entry points of the forward pass, one per instruction set, and what they take from their
// surroundings.
#ifndef SAGE_CPU_FORWARD_FORWARD_H_
#define SAGE_CPU_FORWARD_FORWARD_H_

#include <cstddef>
#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/quantize.h"
#include "sage/status.h"

namespace sage {

// Memory that outlives a call on its thread, so that small calls allocate nothing.
class Workspace {
 public:
  // 64-byte aligned, at least `bytes`; null when memory is out. Earlier pointers become invalid.
  uint8_t* Reserve(size_t bytes);
  // Gives memory back that only unusually large calls of that many threads need.
  void Trim(int threads);
  ~Workspace();

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

using ForwardFunction = Status (*)(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                                   const EngineOptions&, Workspace*);

Status Forward_portable(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                        const EngineOptions&, Workspace*);
#if defined(__x86_64__) || defined(_M_X64)
Status Forward_avx2(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                    const EngineOptions&, Workspace*);
Status Forward_avx512(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                      const EngineOptions&, Workspace*);
Status Forward_avx512_bf16(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                           const EngineOptions&, Workspace*);
Status Forward_amx(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                   const EngineOptions&, Workspace*);
#endif
#if defined(__aarch64__)
Status Forward_neon(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                    const EngineOptions&, Workspace*);
Status Forward_neon_dot(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                        const EngineOptions&, Workspace*);
#endif

}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FORWARD_H_
