// The option space of the int8 kernels, as cases of their runner.
#ifndef SAGE_TEST_CUDA_INT8_CASES_H_
#define SAGE_TEST_CUDA_INT8_CASES_H_

#include <vector>

#include "test/cuda/shared_cases.h"

namespace sage_test {

// The runner makes the inputs of this case.
constexpr char kTies[] = "ties of codes";

inline std::vector<Case> Int8Cases() {
  std::vector<Case> cases;
  const auto with = [&](const char* name, auto change) { AddCase(&cases, name, change); };
  for (const int64_t d : {64, 128, 256}) {
    AddSharedCases(&cases, d, {1, 17, 32, 33, 127, 128, 129, 1000, 2500});
    with("equal scores",
         [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 700, c.q_gain = 0.0f; });
    with(kTies, [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = 140, c.kv_len = 200, c.smooth_k = c.smooth_v = false;
    });
    with("no keys", [&](Case& c) { c.qk_dim = c.v_dim = d, c.kv_len = 0; });
  }
  AddOtherDims(&cases, {{1, 1},
                        {40, 24},
                        {33, 65},
                        {80, 80},
                        {96, 17},
                        {128, 64},
                        {64, 100},
                        {3, 128},
                        {136, 136},
                        {192, 128},
                        {200, 192},
                        {129, 40},
                        {100, 255},
                        {256, 130}});
  for (const int64_t q_len : {1, 3, 64}) {
    with("short q", [&](Case& c) {
      c.q_len = q_len, c.kv_len = 4100, c.heads = 8, c.kv_heads = 2, c.qk_dim = c.v_dim = 128;
      c.causal = Causal::kBottomRight;
    });
  }
  AddNarrowCases(&cases);
  return cases;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_INT8_CASES_H_
