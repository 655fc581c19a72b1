// The option space of the Hopper kernels, as cases of their runner.
#ifndef SAGE_TEST_CUDA_SM90_CASES_H_
#define SAGE_TEST_CUDA_SM90_CASES_H_

#include <vector>

#include "test/cuda/shared_cases.h"

namespace sage_test {

inline std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto with = [&](const char* name, auto change) { AddCase(&cases, name, change); };
  for (const int64_t d : {64, 128, 256}) {
    AddSharedCases(&cases, d, {1, 17, 127, 128, 129, 1000, 2500});
    // Spans of keys end here, and wait beside row sums until the last.
    with("long kv", [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = 200, c.kv_len = 20000; });
    with("long kv, biased, causal", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = 500, c.kv_len = 20000, c.causal = Causal::kBottomRight;
      c.k_bias = 5.0f, c.v_bias = 1.0f;
    });
    with("long kv, steep scores", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = 260, c.kv_len = 20000, c.q_gain = 12.0f, c.v_bias = 1.0f;
    });
    with("long kv, window", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = 400, c.kv_len = 20000, c.causal = Causal::kBottomRight;
      c.left = 15000, c.heads = 4;
    });
    with("long kv, mask", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = 130, c.kv_len = 9000, c.mask = MaskKind::kBoolean;
      c.mask_axes = "qk", c.v_bias = 1.0f;
    });
    with("long kv, no smoothing", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = 130, c.kv_len = 20000, c.smooth_k = c.smooth_v = false;
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
                        {192, 192},
                        {200, 256},
                        {129, 7},
                        {64, 255}});
  // More pieces of work than blocks, in two parts of 6 and of 7 tiles of keys: which warpgroup has
  // which tile must not depend on what its block did before.
  for (const int64_t d : {64, 128, 256}) {
    with("short q, many heads", [&](Case& c) {
      c.batch = 2, c.heads = 160, c.kv_heads = 40, c.q_len = 5, c.kv_len = 1600;
      c.qk_dim = c.v_dim = d, c.causal = Causal::kBottomRight;
    });
  }
  // As many keys as a cluster of blocks holds in the pre-pass, and one more.
  for (const int64_t d : {64, 128}) {
    for (const int64_t kv_len : {2048, 2049}) {
      with("keys of a cluster", [&](Case& c) {
        c.q_len = 200, c.kv_len = kv_len, c.heads = 80, c.kv_heads = 2, c.qk_dim = c.v_dim = d;
        c.k_bias = 5.0f, c.v_bias = 1.0f;
      });
    }
  }
  // Several tiles of work a block: rows of q are rounded while others are attended to.
  for (const int64_t d : {64, 128}) {
    const auto many = [&](const char* name, auto change) {
      with(name, [&](Case& c) {
        c.batch = 2, c.heads = 80, c.kv_heads = 20, c.q_len = 391, c.kv_len = 150;
        c.qk_dim = c.v_dim = d;
        change(c);
      });
    };
    many("many rows", [](Case&) {});
    many("many rows, between others", [](Case& c) { c.tokens_first = true, c.scale = -0.2; });
    many("many rows, other head_dim",
         [](Case& c) { c.qk_dim = 3 * c.qk_dim / 4, c.causal = Causal::kBottomRight; });
    many("many rows, mask", [](Case& c) { c.mask = MaskKind::kBoolean, c.mask_axes = "qk"; });
    many("many rows, not finite", [](Case& c) { c.poison = 'q', c.causal = Causal::kTopLeft; });
    many("many rows, 16 bits", [](Case& c) { c.input = sage::InputType::kBfloat16; });
    many("many rows, 16 bits, between others", [](Case& c) {
      c.input = sage::InputType::kFloat16, c.tokens_first = true, c.qk_dim = 3 * c.qk_dim / 4;
    });
  }
  // Rows that see no keys, and are not finite, beside rows that see some.
  for (const int64_t d : {64, 128}) {
    with("not finite, rows without keys", [&](Case& c) {
      c.q_len = 64, c.kv_len = 9, c.qk_dim = c.v_dim = d, c.poison = 'q';
      c.causal = Causal::kBottomRight;
    });
  }
  for (const int64_t q_len : {1, 3, 64, 65}) {
    for (const int64_t d : {64, 128, 256}) {
      with("short q", [&](Case& c) {
        c.q_len = q_len, c.kv_len = 4100, c.heads = 8, c.kv_heads = 2, c.qk_dim = c.v_dim = d;
        c.causal = Causal::kBottomRight;
      });
      with("short q, mask", [&](Case& c) {
        c.q_len = q_len, c.kv_len = 1700, c.heads = 3, c.kv_heads = 1, c.qk_dim = c.v_dim = d;
        c.mask = MaskKind::kAdditive;
      });
    }
    with("short q, window", [&](Case& c) {
      c.q_len = q_len, c.kv_len = 3000, c.left = 600, c.causal = Causal::kBottomRight;
    });
    with("short q, one key", [&](Case& c) { c.q_len = q_len, c.kv_len = 1; });
  }
  // Of one part of the keys all are hidden from all rows, or a value is not finite.
  for (const char which : {'q', 'k', 'v', 'm'}) {
    with("few heads, not finite", [&](Case& c) {
      c.heads = c.kv_heads = 1, c.q_len = 70, c.kv_len = 3000, c.poison = which;
      c.mask = which == 'm' ? MaskKind::kAdditive : MaskKind::kNone;
    });
  }
  with("few heads, causal", [&](Case& c) {
    c.heads = c.kv_heads = 1, c.q_len = c.kv_len = 2500, c.causal = Causal::kTopLeft;
  });
  // More keys than the tensor core sums at most (kSpanGroups).
  with("several spans",
       [&](Case& c) { c.q_len = 70, c.kv_len = 70000, c.qk_dim = c.v_dim = 128, c.v_bias = 1.0f; });
  with("several spans, moving offsets", [&](Case& c) {
    c.q_len = 100, c.kv_len = 40000, c.qk_dim = c.v_dim = 128, c.q_gain = 12.0f, c.v_bias = 1.0f;
    c.causal = Causal::kBottomRight;
  });
  // Offsets that are fitted to the first tile and to flat scores, and what passes them later.
  for (const int64_t d : {64, 128}) {
    const auto flat = [&](const char* name, auto change) {
      with(name, [&](Case& c) {
        c.q_len = 400, c.kv_len = 2600, c.qk_dim = c.v_dim = d, c.v_bias = 1.0f;
        change(c);
      });
    };
    flat("equal scores", [](Case& c) { c.q_gain = 0.0f; });
    flat("flat scores", [](Case& c) { c.q_gain = 0.1f, c.causal = Causal::kBottomRight; });
    flat("one steep key", [](Case& c) { c.heavy_key = 1100, c.heavy_score = 12.0f; });
    flat("one steep key for some", [](Case& c) {
      c.heavy_key = 300, c.heavy_score = 7.5f, c.q_gain = 1.4f, c.causal = Causal::kTopLeft;
    });
    flat("steep scores", [](Case& c) { c.q_gain = 3.0f, c.left = 900, c.right = 700; });
  }
  // Spans that end early, where one key outweighs others; keys are walked from the last on. Spans
  // that do not end then have an error a fifth above the recipe's in the first of these cases.
  const auto heavy = [&](const char* name, int64_t key, float score, float v, auto change) {
    with(name, [&](Case& c) {
      c.q_len = 70, c.kv_len = 33000, c.qk_dim = c.v_dim = 128;
      c.heavy_key = key, c.heavy_score = score, c.heavy_v = v;
      change(c);
    });
  };
  heavy("heavy last key, large v", 32699, 7.06f, 10.0f,
        [](Case& c) { c.kv_len = 32700, c.slack = 0.0; });
  heavy("heavy last key", 32990, 11.0f, 1.0f, [](Case& c) { c.v_bias = 1.0f; });
  heavy("heavy key that moves offsets", 14000, 11.5f, 1.0f, [](Case& c) { c.v_bias = 1.0f; });
  heavy("heavy first key, causal", 0, 11.0f, 1.0f,
        [](Case& c) { c.causal = Causal::kBottomRight, c.k_bias = 5.0f, c.v_bias = 1.0f; });
  heavy("heavy key for some rows", 32000, 5.5f, 1.0f,
        [](Case& c) { c.q_gain = 1.5f, c.kv_len = 50000, c.v_bias = 1.0f; });
  heavy("heavy key, no smoothing, padded", 30000, 10.0f, 1.0f, [](Case& c) {
    c.smooth_k = c.smooth_v = false, c.qk_dim = 100, c.v_dim = 90, c.tokens_first = true;
  });
  with("one query, 70000 keys", [&](Case& c) {
    c.q_len = 1, c.kv_len = 70000, c.heads = 4, c.kv_heads = 1, c.v_bias = 1.0f;
  });
  AddNarrowCases(&cases);
  return cases;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_CASES_H_
