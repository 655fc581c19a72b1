// The forward pass of one instruction set: compiled once for each, with its own flags and its own
// SAGE_ISA_SUFFIX.
#include "cpu/forward/forward.h"
#include "cpu/forward/pack_rows_float.h"
#include "cpu/forward/schedule.h"
#include "cpu/forward/tile_float.h"
#if defined(SAGE_ISA_AVX512)
#include "cpu/forward/pack_rows_avx512.h"
#include "cpu/forward/pack_words_avx512.h"
#include "cpu/forward/tile_avx512.h"
#elif defined(SAGE_ISA_AVX2)
#include "cpu/forward/tile_avx2.h"
#elif defined(SAGE_ISA_NEON)
#include "cpu/forward/tile_neon.h"
#endif

#define SAGE_JOIN2(a, b) a##b
#define SAGE_JOIN(a, b) SAGE_JOIN2(a, b)

namespace sage {

Status SAGE_JOIN(Forward_, SAGE_ISA_SUFFIX)(const Problem& problem, const ForwardBuffers& buffers,
                                            const InspectionBuffers* inspect,
                                            const EngineOptions& options, Workspace* workspace) {
#define SAGE_RUN(...) return RunForward<__VA_ARGS__>(problem, buffers, inspect, options, workspace)
  // What the integer kernels hold: one scale per key and channel, no mean that rides along with Q,
  // P as the tuned form rounds it.
  const Recipe& recipe = problem.recipe;
  const bool integer_form = recipe.smooth_q == 0 && recipe.v_scale != VScale::kBlock64 &&
                            recipe.variant == Variant::kTuned;
  if (integer_form) {
#if defined(SAGE_ISA_AVX512)
    switch (recipe.precision) {
      case Precision::kInt16:
        SAGE_RUN(IntegerKernels<QkWords512, PvWords512<true>>);
      case Precision::kInt8Int16:
        SAGE_RUN(IntegerKernels<QkBytes512<107>, PvWords512<false>>);
      case Precision::kInt8:
        SAGE_RUN(IntegerKernels<QkBytes512<128>, PvBytes512>);
#if defined(SAGE_ISA_AVX512_BF16)
      case Precision::kInt8Bf16:
        SAGE_RUN(IntegerKernels<QkBytes512<128>, PvBf16>);
#endif
      default:
        break;
    }
#elif defined(SAGE_ISA_AVX2)
    switch (recipe.precision) {
      case Precision::kInt16:
        SAGE_RUN(IntegerKernels<QkWords256, PvWords256<8192, true>>);
      case Precision::kInt8Int16:
        SAGE_RUN(IntegerKernels<QkPairBytes256, PvWords256<8192, false>>);
      case Precision::kInt8:
        SAGE_RUN(IntegerKernels<QkWords256, PvWords256<255, false>>);
      default:
        break;
    }
#elif defined(SAGE_ISA_NEON)
    switch (recipe.precision) {
      case Precision::kInt16:
        SAGE_RUN(IntegerKernels<QkWordsNeon, PvWordsNeon<true>>);
      case Precision::kInt8Int16:
#if defined(SAGE_ISA_NEON_DOT)
        SAGE_RUN(IntegerKernels<QkBytesDot, PvWordsNeon<false>>);
#else
        SAGE_RUN(IntegerKernels<QkWordsNeon, PvWordsNeon<false>>);
#endif
      default:
        break;
    }
#endif
  }
  SAGE_RUN(FloatKernels);
#undef SAGE_RUN
}

}  // namespace sage
