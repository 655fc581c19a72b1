// Problems that kernels of several precisions share: every kind of visibility, strides, values that
// are not finite, inputs that move the offsets of rows, head_dims inside tiles, 16-bit inputs.
#ifndef SAGE_TEST_CUDA_SHARED_CASES_H_
#define SAGE_TEST_CUDA_SHARED_CASES_H_

#include <string>
#include <utility>
#include <vector>

#include "test/cuda/sm90_problem.h"

namespace sage_test {

// Adds the case that `change` makes of the default one.
template <class Change>
void AddCase(std::vector<Case>* cases, const std::string& name, Change change) {
  Case c;
  c.name = name;
  change(c);
  cases->push_back(c);
}

// Of one head_dim; `lengths` are those of square problems.
inline void AddSharedCases(std::vector<Case>* cases, int64_t d,
                           const std::vector<int64_t>& lengths) {
  const auto with = [&](const char* name, auto change) { AddCase(cases, name, change); };
  for (const int64_t n : lengths) {
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
    c.q_len = c.kv_len = 300, c.qk_dim = c.v_dim = d, c.mask = MaskKind::kAdditive, c.poison = 'm';
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
  with("negative scale", [&](Case& c) { c.qk_dim = c.v_dim = d, c.kv_len = 500, c.scale = -0.2; });
  with("scale 0 by a hair", [&](Case& c) { c.qk_dim = c.v_dim = d, c.scale = 1e-30; });
  with("steep scores",
       [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1400, c.q_gain = 12.0f; });
  with("scores of one key",
       [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 600, c.q_gain = 1e5f; });
  with("scores of one key, causal", [&](Case& c) {
    c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 600, c.q_gain = 1e3f, c.causal = Causal::kTopLeft;
  });
  with("biased k and v", [&](Case& c) {
    c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1500, c.k_bias = 5.0f, c.v_bias = 1.0f;
  });
  with("constant v",
       [&](Case& c) { c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1500, c.constant_v = true; });
  with("no smoothing", [&](Case& c) {
    c.qk_dim = c.v_dim = d, c.q_len = c.kv_len = 1100, c.smooth_k = c.smooth_v = false;
  });
}

// Of head_dims (of q and k, of v) that tiles hold with room to spare.
inline void AddOtherDims(std::vector<Case>* cases,
                         const std::vector<std::pair<int, int>>& all_dims) {
  for (const std::pair<int, int>& dims : all_dims) {
    AddCase(cases, "other head_dim", [&](Case& c) {
      c.qk_dim = dims.first, c.v_dim = dims.second, c.q_len = 150, c.kv_len = 700,
      c.causal = Causal::kBottomRight;
      c.tokens_first = true;
    });
  }
}

// Of 16-bit inputs.
inline void AddNarrowCases(std::vector<Case>* cases) {
  const auto with = [&](const std::string& name, auto change) { AddCase(cases, name, change); };
  using sage::InputType;
  for (const InputType type : {InputType::kFloat16, InputType::kBfloat16}) {
    const std::string name = type == InputType::kFloat16 ? "fp16" : "bf16";
    for (const int64_t d : {64, 128, 256}) {
      with(name, [&](Case& c) {
        c.input = type, c.batch = 2, c.heads = 4, c.q_len = 203, c.kv_len = 700;
        c.qk_dim = c.v_dim = d, c.k_bias = 5.0f, c.v_bias = 1.0f;
      });
      // Rows aligned to words, and to nothing.
      for (const int64_t padding : {1, 2, 3}) {
        with(name + ", padded rows", [&](Case& c) {
          c.input = type, c.padding = padding, c.q_len = 150, c.kv_len = 333;
          c.qk_dim = c.v_dim = d, c.tokens_first = true;
        });
      }
      // Words are aligned, but the last has one element.
      with(name + ", odd head_dim in even rows", [&](Case& c) {
        c.input = type, c.padding = 1, c.qk_dim = c.v_dim = d - 1, c.kv_len = 200;
      });
      for (const char which : {'q', 'k', 'v'}) {
        with(name + ", not finite", [&](Case& c) {
          c.input = type, c.q_len = c.kv_len = 290, c.qk_dim = c.v_dim = d, c.poison = which;
          c.causal = Causal::kTopLeft;
        });
      }
    }
    for (const std::pair<int, int>& dims :
         {std::pair<int, int>{1, 1}, {33, 65}, {96, 17}, {63, 127}, {200, 129}}) {
      with(name + ", other head_dim", [&](Case& c) {
        c.input = type, c.qk_dim = dims.first, c.v_dim = dims.second, c.q_len = 90;
        c.kv_len = 300;
      });
    }
    with(name + ", short q", [&](Case& c) {
      c.input = type, c.q_len = 1, c.kv_len = 4100, c.heads = 8, c.kv_heads = 2;
    });
  }
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SHARED_CASES_H_
