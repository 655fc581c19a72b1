// Which keys a query sees, on the device (docs/numerics.md section 1), and how far tiles must look.
#ifndef SAGE_CUDA_VISIBILITY_CUH_
#define SAGE_CUDA_VISIBILITY_CUH_

#include <cstdint>

#include "sage/problem.h"

namespace sage::cuda {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// A score plus an additive value, log2 domain. Rounded towards zero, so that a finite value stays
// finite: a row whose keys all have float32's lowest one attends to all of them (docs/numerics.md
// 5).
__device__ __forceinline__ float AddBias(float score, float bias) {
  return __fmaf_rz(bias, kLog2E, score);
}

struct Visibility {
  int q_len, kv_len;
  int offset;                     // query i stands opposite key i + offset
  int window_left, window_right;  // -1 = no limit
  MaskKind mask_kind;
  MaskStrides strides;
  const void* mask;

  static Visibility Of(const Problem& p, const void* mask) {
    // Lengths stay below 2^30, so that a wider window is no limit.
    const auto window = [](int64_t n) { return static_cast<int>(n < (1 << 30) - 1 ? n : -1); };
    Visibility v = {};
    v.q_len = static_cast<int>(p.q_len);
    v.kv_len = static_cast<int>(p.kv_len);
    v.offset = static_cast<int>(p.offset());
    v.window_left = window(p.window_left);
    v.window_right = window(p.window_right);
    v.mask_kind = p.mask_kind;
    v.strides = p.mask;
    v.mask = mask;
    return v;
  }

  // First key and one past the last key of query i by causality and window.
  __host__ __device__ int FirstKey(int i) const {
    if (window_left < 0) return 0;
    const int first = i + offset - window_left;
    return first > 0 ? first : 0;
  }
  __host__ __device__ int EndKey(int i) const {
    if (window_right < 0) return kv_len;
    const int last = i + offset + window_right;  // may be 2^31 - 1
    return last < 0 ? 0 : last < kv_len ? last + 1 : kv_len;
  }
  // First query and one past the last that see key j.
  __host__ __device__ int FirstQuery(int j) const {
    if (window_right < 0) return 0;
    const int first = j - offset - window_right;
    return first > 0 ? first : 0;
  }
  __host__ __device__ int EndQuery(int j) const {
    if (window_left < 0) return q_len;
    const int64_t last = static_cast<int64_t>(j) - offset + window_left;
    return last < 0 ? 0 : last < q_len ? static_cast<int>(last) + 1 : q_len;
  }

  // Whether queries [i, i + rows) see all keys [j, j + keys); only queries that exist count.
  __device__ bool SeesAll(int i, int rows, int j, int keys) const {
    if (mask_kind != MaskKind::kNone || j + keys > kv_len) return false;
    const int last = min(i + rows, q_len) - 1;
    return FirstKey(last) <= j && EndKey(i) >= j + keys;
  }

  // Element offset of the mask's row for one query.
  __device__ int64_t MaskRow(int64_t batch, int64_t head, int i) const {
    return batch * strides.batch + head * strides.head + i * strides.query;
  }
  // What the mask adds to a score, natural-log domain; -Infinity hides. The pair must exist.
  __device__ float Bias(int64_t row, int j) const {
    if (mask_kind == MaskKind::kNone) return 0.0f;
    const int64_t at = row + j * strides.key;
    if (mask_kind == MaskKind::kBoolean) {
      return static_cast<const uint8_t*>(mask)[at] != 0 ? 0.0f : -__int_as_float(0x7f800000);
    }
    return static_cast<const float*>(mask)[at];
  }

  // Adds the mask to scores x of keys key + 8 n + {0, 1}, log2 domain; those outside [first, end)
  // and those that it hides become -Infinity. All of it is asked for before any is waited for, two
  // elements at once where they lie side by side.
  template <int kPairs>
  __device__ __forceinline__ void AddBiases(int64_t row, int key, int first, int end,
                                            float (&x)[kPairs][2]) const {
    if (first >= end) {
      Hide<kPairs>(x);
    } else if (mask_kind == MaskKind::kAdditive) {
      const float* data = static_cast<const float*>(mask) + row;
      float bias[kPairs][2];
      LoadPairs<float2>(data, key, first, end, bias);
      ForEachPair<kPairs>(key, first, end, [&](int n, int e, bool inside) {
        const float b = bias[n][e];
        x[n][e] = inside && b != -INFINITY ? AddBias(x[n][e], b) : -INFINITY;
      });
    } else {
      const uint8_t* data = static_cast<const uint8_t*>(mask) + row;
      uint8_t sees[kPairs][2];
      LoadPairs<uchar2>(data, key, first, end, sees);
      ForEachPair<kPairs>(key, first, end, [&](int n, int e, bool inside) {
        if (!inside || sees[n][e] == 0) x[n][e] = -INFINITY;
      });
    }
  }

 private:
  template <int kPairs>
  __device__ __forceinline__ static void Hide(float (&x)[kPairs][2]) {
#pragma unroll
    for (int n = 0; n < kPairs; ++n) x[n][0] = x[n][1] = -INFINITY;
  }
  template <int kPairs, class Fn>
  __device__ __forceinline__ static void ForEachPair(int key, int first, int end, const Fn& fn) {
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = key + 8 * n + e;
        fn(n, e, j >= first && j < end);
      }
    }
  }
  // Elements of keys outside are others of the row.
  template <class Pair, class T, int kPairs>
  __device__ __forceinline__ void LoadPairs(const T* data, int key, int first, int end,
                                            T (&to)[kPairs][2]) const {
    const T* at = data + key;
    const bool side_by_side = strides.key == 1 && key >= first && key + 8 * kPairs - 6 <= end &&
                              reinterpret_cast<uintptr_t>(at) % sizeof(Pair) == 0;
    if (side_by_side) {
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        const Pair pair = __ldg(reinterpret_cast<const Pair*>(at + 8 * n));
        to[n][0] = pair.x;
        to[n][1] = pair.y;
      }
    } else {
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = min(max(key + 8 * n + e, first), end - 1);
          to[n][e] = __ldg(data + j * strides.key);
        }
      }
    }
  }
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_VISIBILITY_CUH_
