// Problems for the CUDA kernels beside those of backward_cases.h: lengths around their tiles, wide
// heads, few queries against many keys, and random mixtures of everything.
#ifndef SAGE_TEST_CUDA_EXACT_CASES_H_
#define SAGE_TEST_CUDA_EXACT_CASES_H_

#include <utility>
#include <vector>

#include "test/backward_cases.h"

namespace sage_test {

inline std::vector<Case> TileCases() {
  std::vector<Case> cases;
  for (const int64_t n : {1, 17, 31, 33, 127, 129, 300, 1000}) {
    for (const auto& [qk, v] :
         {std::pair<int, int>{40, 40}, {64, 64}, {80, 80}, {96, 64}, {128, 128}}) {
      Case c{"tiles"};
      c.q_len = c.kv_len = n;
      c.qk_dim = qk;
      c.v_dim = v;
      cases.push_back(c);
      c.name = "tiles, causal";
      c.causal = Causal::kBottomRight;
      c.heads = 2;
      c.kv_len = n + 70;
      cases.push_back(c);
    }
  }
  for (const auto& [qk, v] : {std::pair<int, int>{129, 128},
                              {128, 129},
                              {256, 256},
                              {160, 40},
                              {33, 200},
                              {256, 512},
                              {512, 70},
                              {511, 511}}) {
    Case c{"wide heads"};
    c.q_len = 77;
    c.kv_len = 150;
    c.heads = 2;
    c.qk_dim = qk;
    c.v_dim = v;
    cases.push_back(c);
    c.name = "wide heads, causal, mask";
    c.causal = Causal::kTopLeft;
    c.mask = MaskKind::kAdditive;
    c.d_lse = true;
    c.tokens_first = true;
    cases.push_back(c);
  }
  for (const char which : {'q', 'k', 'v', 'o'}) {
    for (const int dim : {128, 300}) {
      Case c{"not finite, wide"};
      c.q_len = 140;
      c.kv_len = 100;
      c.heads = 2;
      c.qk_dim = c.v_dim = dim;
      c.poison = which;
      c.left = 20;
      cases.push_back(c);
    }
  }
  return cases;
}

inline std::vector<Case> DecodeCases() {
  std::vector<Case> cases;
  for (const int64_t q_len : {1, 2, 5, 16}) {
    for (const int64_t dim : {40, 64, 127, 128, 256, 512}) {
      Case c{"decode"};
      c.heads = 4;
      c.kv_heads = q_len > 4 ? 4 : 1;
      c.q_len = q_len;
      c.kv_len = 1500;
      c.qk_dim = dim;
      c.v_dim = dim == 127 ? 129 : dim;
      c.tokens_first = dim == 64;
      cases.push_back(c);
      c.name = "decode, causal window";
      c.causal = Causal::kBottomRight;
      c.left = 700;
      cases.push_back(c);
    }
  }
  for (const char which : {'q', 'k', 'v'}) {
    Case c{"decode, not finite, mask"};
    c.heads = 6;
    c.kv_heads = 2;
    c.q_len = 3;
    c.kv_len = 901;
    c.qk_dim = c.v_dim = 64;
    c.poison = which;
    c.mask = MaskKind::kBoolean;
    cases.push_back(c);
  }
  // Few blocks and many keys: the keys are cut into parts.
  for (const int64_t q_len : {17, 130}) {
    Case c{"parts"};
    c.q_len = q_len;
    c.kv_len = 3000;
    c.qk_dim = c.v_dim = q_len == 17 ? 128 : 65;
    cases.push_back(c);
    c.name = "parts, window, mask";
    c.mask = MaskKind::kAdditive;
    c.mask_axes = "qk";
    c.left = 2000;
    c.right = 900;
    cases.push_back(c);
  }
  return cases;
}

inline std::vector<Case> RandomCases(int count, uint64_t seed) {
  static const char* const kAxes[] = {"bhqk", "qk", "bk", "hq", "k", "bhk"};
  static const int64_t kLengths[] = {1, 7, 17, 32, 63, 64, 65, 127, 128, 129, 200, 257, 391};
  static const int64_t kDims[] = {1, 8, 17, 40, 64, 65, 80, 96, 112, 128, 136, 192};
  Random random{seed};
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random.Next() % n); };
  std::vector<Case> cases;
  for (int n = 0; n < count; ++n) {
    Case c{"random"};
    c.batch = 1 + pick(2);
    c.kv_heads = 1 + pick(3);
    c.heads = c.kv_heads * (1 + pick(4));
    c.q_len = kLengths[pick(13)];
    c.kv_len = pick(3) == 0 ? c.q_len : kLengths[pick(13)];
    c.qk_dim = kDims[pick(12)];
    c.v_dim = pick(2) == 0 ? c.qk_dim : kDims[pick(12)];
    c.causal = static_cast<Causal>(pick(3));
    if (pick(3) == 0) c.left = pick(c.kv_len + 2);
    if (pick(3) == 0) c.right = pick(c.kv_len + 2);
    c.mask = static_cast<MaskKind>(pick(3));
    c.mask_axes = kAxes[pick(6)];
    c.tokens_first = pick(2) == 0;
    c.d_lse = pick(2) == 0;
    if (c.qk_dim > 1 && c.v_dim > 1 && pick(4) == 0) c.poison = "qkvo"[pick(4)];
    cases.push_back(c);
  }
  return cases;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_EXACT_CASES_H_
