// Which instruction sets this processor and its operating system offer, by CPUID and XGETBV.
//
// Asked directly instead of through __builtin_cpu_supports: compilers differ in the names they know
// (GCC 12 has no "amx-int8"), and the state of the AMX tiles must be read from XCR0 in any case.
#ifndef SAGE_CPU_CPU_FEATURES_H_
#define SAGE_CPU_CPU_FEATURES_H_

#include <cstdint>

#include "sage/capabilities.h"

namespace sage {

// The registers that decide, so that a test can feed those of any processor.
struct CpuRegisters {
  uint32_t max_leaf;
  uint32_t leaf1_ecx;
  uint32_t leaf7_ebx, leaf7_ecx, leaf7_edx;
  uint32_t leaf7_1_eax;
  uint64_t xcr0;
};

CpuFeatures FeaturesFrom(const CpuRegisters& registers);

// Whether the features cover everything that the flags of `isa` (cmake/isa.cmake) let a compiler
// emit.
bool Supports(const CpuFeatures& features, Isa isa);

// Whether as many lines of memory can be on their way into L1 at a time as memory can deliver.
// Known of AMD's Zen 5 and taken for its successors: 64 of them, while requests for lines in L2 get
// lost when many come at once (docs/kernels_cpu.md). Elsewhere it is false.
bool HasManyLineBuffers();
// The same from words of CPUID: the vendor's of leaf 0 and the signature of leaf 1.
bool ManyLineBuffersFrom(uint32_t leaf0_ebx, uint32_t leaf1_eax);

// Whether more requests for lines in L1 than there are places for get lost, known of AMD's Zen 4
// and taken for those before it: loops that ask for nearly each line there are slower for it.
bool HasFewLineBuffers();
bool FewLineBuffersFrom(uint32_t leaf0_ebx, uint32_t leaf1_eax);

}  // namespace sage

#endif  // SAGE_CPU_CPU_FEATURES_H_
