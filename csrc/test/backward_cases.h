// The shapes and options that the backward pass is checked on.
#ifndef SAGE_TEST_BACKWARD_CASES_H_
#define SAGE_TEST_BACKWARD_CASES_H_

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "test/backward_reference.h"

namespace sage_test {

inline std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](Case c) { cases.push_back(c); };
  for (const int64_t n : {1, 17, 127, 129, 257}) {
    for (const int64_t d : {1, 3, 8, 31, 64, 80, 128, 192}) {
      if (n == 257 && d != 64 && d != 31) continue;
      Case c{"square"};
      c.q_len = c.kv_len = n;
      c.qk_dim = c.v_dim = d;
      add(c);
      c.name = "square causal";
      c.causal = Causal::kTopLeft;
      c.tokens_first = true;
      c.heads = 2;
      add(c);
    }
  }
  for (const bool bottom : {false, true}) {
    for (const auto& [q_len, kv_len] :
         {std::pair<int, int>{33, 210}, {210, 33}, {1, 257}, {257, 1}, {300, 420}}) {
      Case c{bottom ? "bottom right" : "top left"};
      c.q_len = q_len;
      c.kv_len = kv_len;
      c.causal = bottom ? Causal::kBottomRight : Causal::kTopLeft;
      c.qk_dim = 40;
      c.v_dim = 24;
      c.d_lse = true;
      add(c);
    }
  }
  for (const auto& [left, right] :
       {std::pair<int, int>{0, 0}, {5, 3}, {-1, 7}, {40, -1}, {150, 20}, {3, 500}}) {
    Case c{"window"};
    c.left = left;
    c.right = right;
    c.q_len = 270;
    c.kv_len = 230;
    c.qk_dim = c.v_dim = 32;
    add(c);
    c.name = "causal window";
    c.causal = Causal::kBottomRight;
    add(c);
  }
  for (const int64_t kv_heads : {1, 2, 6}) {
    Case c{"grouped heads"};
    c.batch = 2;
    c.heads = 6;
    c.kv_heads = kv_heads;
    c.q_len = 65;
    c.kv_len = 97;
    c.qk_dim = 64;
    c.v_dim = 33;
    c.tokens_first = kv_heads == 2;
    c.d_lse = true;
    add(c);
  }
  for (const char* axes :
       {"bhqk", "hqk", "bqk", "qk", "bhk", "bk", "k", "bhq", "q", "hq", "h", "", "bh"}) {
    for (const MaskKind kind : {MaskKind::kBoolean, MaskKind::kAdditive}) {
      Case c{kind == MaskKind::kBoolean ? "boolean mask" : "additive mask"};
      c.batch = 2;
      c.heads = 4;
      c.kv_heads = 2;
      c.q_len = 103;
      c.kv_len = 217;
      c.qk_dim = 16;
      c.v_dim = 20;
      c.mask = kind;
      c.mask_axes = axes;
      c.d_lse = true;
      add(c);
      c.name = kind == MaskKind::kBoolean ? "boolean mask, causal" : "additive mask, causal";
      c.causal = Causal::kBottomRight;
      c.left = 50;
      add(c);
    }
  }
  for (const char which : {'q', 'k', 'v', 'o'}) {
    Case c{"not finite"};
    c.q_len = 205;
    c.kv_len = 215;
    c.heads = 2;
    c.qk_dim = c.v_dim = 24;
    c.poison = which;
    add(c);
    c.name = "not finite, causal";
    c.causal = Causal::kTopLeft;
    add(c);
    c.name = "not finite, window";
    c.causal = Causal::kNone;
    c.left = 9;
    c.right = 30;
    add(c);
    c.name = "not finite, mask";
    c.mask = MaskKind::kBoolean;
    add(c);
  }
  Case large{"head_dim 512"};
  large.q_len = 40;
  large.kv_len = 50;
  large.qk_dim = 512;
  large.v_dim = 320;
  add(large);
  Case negative{"negative scale, large scores"};
  negative.scale = -3;
  negative.qk_dim = 16;
  negative.q_len = negative.kv_len = 129;
  add(negative);
  for (const auto& [batch, q_len, kv_len] :
       {std::tuple<int, int, int>{0, 5, 5}, {1, 0, 5}, {1, 5, 0}, {2, 0, 0}}) {
    Case c{"empty"};
    c.batch = batch;
    c.q_len = q_len;
    c.kv_len = kv_len;
    c.mask = MaskKind::kAdditive;
    c.mask_axes = "k";
    add(c);
  }
  return cases;
}

}  // namespace sage_test

#endif  // SAGE_TEST_BACKWARD_CASES_H_
