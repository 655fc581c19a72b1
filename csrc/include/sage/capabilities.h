// What this build and this machine can do, as told to users by `doctor` and getSageAttentionInfo.
#ifndef SAGE_CAPABILITIES_H_
#define SAGE_CAPABILITIES_H_

#include "sage/attention.h"

namespace sage {

// Features of the processor that the operating system also saves and restores for a process.
struct CpuFeatures {
  bool avx2, fma, f16c;
  bool avx512f, avx512bw, avx512vl, avx512dq, avx512vnni, avx512bf16;
  bool amx_tile, amx_int8, amx_bf16;
  bool neon, dotprod;
};
const CpuFeatures& DetectedCpuFeatures();

// The processor's own name of itself, such as "AMD EPYC 9354P"; "unknown" where it has none.
const char* CpuName();

// Whether this machine, and this build, can run code for `isa`. DetectIsa() is the last of these.
bool CanRun(Isa isa);

// Why not, in words; null where it can. The first question about kAmx asks the system for the use
// of its tiles.
const char* IsaRefusal(Isa isa);

// Whose kernels run what `isa` has none of its own for: the tiles of kAmx serve the forward pass of
// two recipes; all else there takes those of kAvx512Bf16.
Isa KernelIsa(Isa isa);

// Reads a value of SAGE_CPU_ISA; false if it is no name of an instruction set.
bool ParseIsa(const char* name, Isa* isa);

// Processors that this process may keep busy: its affinity mask, cut by the CPU quota of its
// control groups. At least 1.
int AvailableProcessors();

// Threads of the pool that exist now (callers not counted), and the largest number that one call
// may use.
int PoolThreadCount();
int MaxThreads();

// Version of the package that this was built from.
const char* BuildVersion();

}  // namespace sage

#endif  // SAGE_CAPABILITIES_H_
