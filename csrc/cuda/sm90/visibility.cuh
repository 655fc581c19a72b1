// Which keys a query attends to (docs/numerics.md 1), and the rows that a value of k or v that is
// not finite spoils (docs/numerics.md 2).
#ifndef SAGE_CUDA_SM90_VISIBILITY_CUH_
#define SAGE_CUDA_SM90_VISIBILITY_CUH_

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/workspace.h"
#include "sage/problem.h"

namespace sage {
namespace sm90 {

// What one row may see by causality and window, and where its mask lies.
struct RowView {
  int first;
  unsigned count;
  int64_t mask;  // element of key 0
};

// An additive value in the log2 domain. Rounded towards zero, so that a finite one stays finite: a
// row whose keys all have float32's lowest value attends to all of them (docs/numerics.md 5).
SAGE_DEVICE float ToLog2(float bias) { return __fmul_rz(bias, 1.44269504088896340736f); }

struct Visibility {
  int q_len, kv_len, offset;      // query i stands opposite key i + offset
  int window_left, window_right;  // -1 = no limit
  MaskKind mask_kind;
  MaskStrides mask_strides;
  const void* mask;
  int q_heads;
  const uint8_t* marks;
  const uint32_t* not_finite;
  int tiles;

  SAGE_DEVICE int FirstKey(int i) const {
    return window_left < 0 ? 0 : max(0, i + offset - window_left);
  }
  SAGE_DEVICE int EndKey(int i) const {
    return window_right < 0 ? kv_len : min(kv_len, max(0, i + offset + window_right + 1));
  }
  // Which of the keys [key, key + 32) a row sees by causality and window, the lowest bit the first.
  SAGE_DEVICE uint32_t SeenOf32(int row, int key) const {
    const int i = min(row, q_len - 1);
    const int begin = min(max(FirstKey(i) - key, 0), 32), end = min(max(EndKey(i) - key, 0), 32);
    const auto below = [](int bits) { return static_cast<uint32_t>((uint64_t{1} << bits) - 1); };
    return begin < end ? below(end) & ~below(begin) : 0;
  }
  // Rows past the end see what the last one sees: their results are dropped.
  SAGE_DEVICE RowView Row(int head, int row) const {
    const int i = min(row, q_len - 1);
    RowView view;
    view.first = FirstKey(i);
    view.count = static_cast<unsigned>(max(0, EndKey(i) - view.first));
    view.mask = head / q_heads * mask_strides.batch + head % q_heads * mask_strides.head +
                i * mask_strides.query;
    return view;
  }
  // What the mask adds to x of a key inside the view, log2 domain.
  SAGE_DEVICE float Bias(const RowView& view, int j) const {
    const int64_t at = view.mask + j * mask_strides.key;
    if (mask_kind == MaskKind::kAdditive) {
      return ToLog2(__ldg(static_cast<const float*>(mask) + at));
    }
    return __ldg(static_cast<const uint8_t*>(mask) + at) != 0 ? 0.0f : -INFINITY;
  }
  // The same of keys [j, j + 8), -Infinity of those outside the view. Elements that lie side by
  // side come as two vectors: lanes have keys of their own, and singly each load asks for 32 lines.
  SAGE_DEVICE void Biases(const RowView& view, int j, float (&bias)[8]) const {
    const unsigned in_view = static_cast<unsigned>(j - view.first);
    const bool side_by_side =
        mask_strides.key == 1 && in_view < view.count && in_view + 8 <= view.count;
    const int64_t first = view.mask + j * mask_strides.key;
    if (mask_kind == MaskKind::kAdditive) {
      const float* at = static_cast<const float*>(mask) + first;
      if (side_by_side && reinterpret_cast<uintptr_t>(at) % 16 == 0) {
#pragma unroll
        for (int n = 0; n < 8; n += 4) {
          const float4 x = LoadGlobal4(at + n);
          bias[n] = x.x, bias[n + 1] = x.y, bias[n + 2] = x.z, bias[n + 3] = x.w;
        }
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n, at += mask_strides.key) {
          bias[n] = LoadGlobalFloatIf(in_view + n < view.count, at, -INFINITY);
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) bias[n] = ToLog2(bias[n]);
    } else {
      const uint8_t* at = static_cast<const uint8_t*>(mask) + first;
      uint32_t seen[8];
      if (side_by_side && reinterpret_cast<uintptr_t>(at) % 8 == 0) {
        const uint2 x = __ldg(reinterpret_cast<const uint2*>(at));
#pragma unroll
        for (int n = 0; n < 8; ++n) seen[n] = (n < 4 ? x.x : x.y) & 0xffu << 8 * (n % 4);
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n, at += mask_strides.key) {
          seen[n] = LoadGlobalByteIf(in_view + n < view.count, at, 0);
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) bias[n] = seen[n] != 0 ? 0.0f : -INFINITY;
    }
  }
  SAGE_DEVICE bool Attends(const RowView& view, int j) const {
    return mask_kind == MaskKind::kNone || Bias(view, j) != -INFINITY;
  }
  SAGE_DEVICE bool AnyNotFinite(int kv_head) const { return __ldg(not_finite + kv_head) != 0; }
};

// Of a tile where a mask is: scores S of rows `row` and `row` + 8 and 32 keys from `key` on (S[i]:
// row i & 2, key 2 (i / 4) + i % 2 of these) become floats, times s0 or s1 plus what the mask adds;
// -Infinity where hidden. x0, x1: the largest of each row. NaN or +Infinity in the mask of a key
// that is attended to makes its P NaN, and with it the row's sum.
SAGE_DEVICE void MaskScores(const Visibility& see, int head, int row, int key, float s0, float s1,
                            int (&S)[64], float& x0, float& x1) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const RowView view = see.Row(head, row + 8 * r);
    float most = -INFINITY;
#pragma unroll
    for (int first = 0; first < 32; first += 8) {
      float bias[8];
      see.Biases(view, key + first, bias);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int i = 4 * ((first + n) / 2) + 2 * r + n % 2;
        // A row of q that is not finite must not spoil what is hidden from it.
        const float x =
            bias[n] == -INFINITY ? -INFINITY : fmaf(static_cast<float>(S[i]), r ? s1 : s0, bias[n]);
        S[i] = __float_as_int(x);
        most = fmaxf(most, x);
      }
    }
    (r ? x1 : x0) = most;
  }
}

// Rare: writes NaN over what the row's attended tokens spoil. The four threads of a quad share the
// keys; the row's results are already written.
static __device__ __noinline__ void MarkRow(const Visibility& see, int kv_head, int head, int row,
                                            int c, const Values& v, int kv_heads, int v_dim,
                                            float* o, float* lse) {
  const int64_t head_values =
      kv_head / kv_heads * v.strides.batch + kv_head % kv_heads * v.strides.head;
  const RowView view = see.Row(head, row);
  const uint8_t* marks = see.marks + static_cast<int64_t>(kv_head) * see.tiles * kTile;
  const float nan = __uint_as_float(0x7fc00000u);
  for (int j = view.first + c; j < view.first + static_cast<int>(view.count); j += 4) {
    const uint8_t mark = marks[j];
    if (mark == 0 || !see.Attends(view, j)) continue;
    for (int d = 0; d < v_dim; ++d) {
      if ((mark & 1) || !v.Finite(head_values + j * v.strides.token + d)) o[d] = nan;
    }
    if ((mark & 1) && lse != nullptr) *lse = nan;
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_VISIBILITY_CUH_
