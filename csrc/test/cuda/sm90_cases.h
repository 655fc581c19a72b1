// The option space of the Hopper kernels, as cases of their runner.
#ifndef SAGE_TEST_CUDA_SM90_CASES_H_
#define SAGE_TEST_CUDA_SM90_CASES_H_

#include <string>
#include <utility>
#include <vector>

#include "test/cuda/sm90_problem.h"

namespace sage_test {

inline std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto with = [&](const char* name, auto change) {
    Case c;
    c.name = name;
    change(c);
    cases.push_back(c);
  };
  for (const int64_t d : {64, 128, 256}) {
    for (const int64_t n : {1, 17, 127, 128, 129, 1000, 2500}) {
      with("square", [&](Case& c) { c.q_len = c.kv_len = n, c.qk_dim = c.v_dim = d; });
      with("causal", [&](Case& c) {
        c.q_len = c.kv_len = n, c.qk_dim = c.v_dim = d, c.causal = Causal::kTopLeft;
        c.tokens_first = true;
      });
    }
    with("bottom right, long kv", [&](Case& c) {
      c.q_len = 300, c.kv_len = 1700, c.qk_dim = c.v_dim = d, c.causal = Causal::kBottomRight;
    });
    with("bottom right, long q", [&](Case& c) {
      c.q_len = 700, c.kv_len = 300, c.qk_dim = c.v_dim = d, c.causal = Causal::kBottomRight;
    });
    with("top left, long kv", [&](Case& c) {
      c.q_len = 300, c.kv_len = 1700, c.qk_dim = c.v_dim = d, c.causal = Causal::kTopLeft;
    });
    with("window", [&](Case& c) {
      c.q_len = c.kv_len = 1500, c.qk_dim = c.v_dim = d, c.left = 400, c.right = 150;
    });
    with("narrow causal window", [&](Case& c) {
      c.q_len = c.kv_len = 900, c.qk_dim = c.v_dim = d, c.left = 5, c.causal = Causal::kTopLeft;
    });
    with("window beyond the keys", [&](Case& c) {
      c.q_len = 900, c.kv_len = 200, c.qk_dim = c.v_dim = d, c.left = 20, c.right = 10;
    });
    with("grouped heads", [&](Case& c) {
      c.batch = 2, c.heads = 6, c.kv_heads = 2, c.q_len = 257, c.kv_len = 640;
      c.qk_dim = c.v_dim = d;
    });
    with("padded rows", [&](Case& c) {
      c.padding = 3, c.q_len = 200, c.kv_len = 333, c.qk_dim = c.v_dim = d, c.tokens_first = true;
    });
    for (const char* axes : {"bhqk", "qk", "bk", "hq", ""}) {
      for (const MaskKind kind : {MaskKind::kBoolean, MaskKind::kAdditive}) {
        with(kind == MaskKind::kBoolean ? "boolean mask" : "additive mask", [&](Case& c) {
          c.batch = 2, c.heads = 4, c.kv_heads = 2, c.q_len = 203, c.kv_len = 417;
          c.qk_dim = c.v_dim = d, c.mask = kind, c.mask_axes = axes;
        });
      }
    }
    with("additive mask, causal", [&](Case& c) {
      c.q_len = c.kv_len = 600, c.qk_dim = c.v_dim = d, c.mask = MaskKind::kAdditive;
      c.causal = Causal::kTopLeft, c.mask_axes = "qk";
    });
    with("mask with NaN", [&](Case& c) {
      c.q_len = c.kv_len = 300, c.qk_dim = c.v_dim = d, c.mask = MaskKind::kAdditive,
      c.poison = 'm';
    });
    for (const char which : {'q', 'k', 'v'}) {
      with("not finite", [&](Case& c) {
        c.batch = 2, c.q_len = 260, c.kv_len = 390, c.qk_dim = c.v_dim = d, c.poison = which;
      });
      with("not finite, causal window", [&](Case& c) {
        c.q_len = c.kv_len = 390, c.qk_dim = c.v_dim = d, c.poison = which, c.left = 77;
        c.causal = Causal::kTopLeft;
      });
      with("not finite, mask", [&](Case& c) {
        c.q_len = c.kv_len = 290, c.qk_dim = c.v_dim = d, c.poison = which;
        c.mask = MaskKind::kBoolean, c.mask_axes = "qk";
      });
    }
    with("negative scale",
         [&](Case& c) { c.qk_dim = c.v_dim = d, c.kv_len = 500, c.scale = -0.2; });
    with("scale 0 by a hair", [&](Case& c) { c.qk_dim = c.v_dim = d, c.scale = 1e-30; });
    with("steep scores",
         [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1400, c.q_gain = 12.0f; });
    with("biased k and v", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1500, c.k_bias = 5.0f, c.v_bias = 1.0f;
    });
    with("constant v",
         [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1500, c.constant_v = true; });
    with("no smoothing", [&](Case& c) {
      c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1100, c.smooth_k = c.smooth_v = false;
    });
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
  for (const std::pair<int, int>& dims : {std::pair<int, int>{1, 1},
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
                                          {64, 255}}) {
    with("other head_dim", [&](Case& c) {
      c.qk_dim = dims.first, c.v_dim = dims.second, c.q_len = 150, c.kv_len = 700,
      c.causal = Causal::kBottomRight;
      c.tokens_first = true;
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
  with("several spans", [&](Case& c) {
    c.q_len = 130, c.kv_len = 70000, c.qk_dim = c.v_dim = 128, c.v_bias = 1.0f;
  });
  with("several spans, moving offsets", [&](Case& c) {
    c.q_len = 200, c.kv_len = 40000, c.qk_dim = c.v_dim = 128, c.q_gain = 12.0f, c.v_bias = 1.0f;
    c.causal = Causal::kBottomRight;
  });
  // Spans that end early, where one key outweighs others; keys are walked from the last on. Spans
  // that do not end then have an error a fifth above the recipe's in the first of these cases.
  const auto heavy = [&](const char* name, int64_t key, float score, float v, auto change) {
    with(name, [&](Case& c) {
      c.q_len = 200, c.kv_len = 33000, c.qk_dim = c.v_dim = 128;
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
  using sage::InputType;
  for (const InputType type : {InputType::kFloat16, InputType::kBfloat16}) {
    const char* name = type == InputType::kFloat16 ? "fp16" : "bf16";
    for (const int64_t d : {64, 128, 256}) {
      with(name, [&](Case& c) {
        c.input = type, c.batch = 2, c.heads = 4, c.q_len = 203, c.kv_len = 700;
        c.qk_dim = c.v_dim = d, c.k_bias = 5.0f, c.v_bias = 1.0f;
      });
      // Rows aligned to words, and to nothing.
      for (const int64_t padding : {1, 2, 3}) {
        with((std::string(name) + ", padded rows").c_str(), [&](Case& c) {
          c.input = type, c.padding = padding, c.q_len = 150, c.kv_len = 333;
          c.qk_dim = c.v_dim = d, c.tokens_first = true;
        });
      }
      // Words are aligned, but the last has one element.
      with((std::string(name) + ", odd head_dim in even rows").c_str(), [&](Case& c) {
        c.input = type, c.padding = 1, c.qk_dim = c.v_dim = d - 1, c.kv_len = 200;
      });
      for (const char which : {'q', 'k', 'v'}) {
        with((std::string(name) + ", not finite").c_str(), [&](Case& c) {
          c.input = type, c.q_len = c.kv_len = 290, c.qk_dim = c.v_dim = d, c.poison = which;
          c.causal = Causal::kTopLeft;
        });
      }
    }
    for (const std::pair<int, int>& dims :
         {std::pair<int, int>{1, 1}, {33, 65}, {96, 17}, {63, 127}, {200, 129}}) {
      with((std::string(name) + ", other head_dim").c_str(), [&](Case& c) {
        c.input = type, c.qk_dim = dims.first, c.v_dim = dims.second, c.q_len = 90;
        c.kv_len = 300;
      });
    }
    with((std::string(name) + ", short q").c_str(), [&](Case& c) {
      c.input = type, c.q_len = 1, c.kv_len = 4100, c.heads = 8, c.kv_heads = 2;
    });
  }
  return cases;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_CASES_H_
