// fp4 and fp4_fp8 by the kernels of csrc/cuda/sm120, executed on the host: for tests, and to look
// into. Far slower than the CPU engine, which computes the same recipes.
#ifndef SAGE_SIMULATE_FP4_FORWARD_H_
#define SAGE_SIMULATE_FP4_FORWARD_H_

#include <cstdint>
#include <vector>

#include "cuda/sm120/workspace.h"
#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage::simulate {

// The workspace of a call, to look into.
struct SimulatedWorkspace {
  std::vector<uint8_t> memory;
  sm120::Workspace layout;  // of `memory`
};

// o (and lse when wanted) from host memory, as on a device of `blocks` multiprocessors.
// kUnsupported for what the kernels refuse.
Status Fp4Forward(const Problem& problem, const ForwardBuffers& buffers, int blocks,
                  SimulatedWorkspace* workspace);

}  // namespace sage::simulate

#endif  // SAGE_SIMULATE_FP4_FORWARD_H_
