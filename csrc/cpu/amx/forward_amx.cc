// The forward pass on AMX: recipes int8_bf16 and int8 in their tuned forms; the others run the
// AVX-512 kernels. Compiled once, with the flags of AMX, and once more with emulated tiles for
// tests.
#include "cpu/amx/amx_kernels.h"
#include "cpu/amx/tiles.h"
#include "cpu/forward/forward.h"
#include "cpu/forward/schedule.h"

#define SAGE_JOIN2(a, b) a##b
#define SAGE_JOIN(a, b) SAGE_JOIN2(a, b)

namespace sage {
namespace {

// Every task of attention leaves its thread's tiles as it found them.
template <class Values>
struct TaskScope<AmxKernels<Values>> {
  TileScope tiles;
};

}  // namespace

Status SAGE_JOIN(Forward_, SAGE_ISA_SUFFIX)(const Problem& problem, const ForwardBuffers& buffers,
                                            const InspectionBuffers* inspect,
                                            const EngineOptions& options, Workspace* workspace) {
  const Recipe& recipe = problem.recipe;
  const bool integer_form = recipe.smooth_q == 0 && recipe.v_scale != VScale::kBlock64 &&
                            recipe.variant == Variant::kTuned;
  if (integer_form && recipe.precision == Precision::kInt8Bf16) {
    return RunForward<AmxKernels<ValuesBf16>>(problem, buffers, inspect, options, workspace);
  }
  if (integer_form && recipe.precision == Precision::kInt8) {
    return RunForward<AmxKernels<ValuesBytes>>(problem, buffers, inspect, options, workspace);
  }
  return Forward_avx512_bf16(problem, buffers, inspect, options, workspace);
}

}  // namespace sage
