// The rows that a warp quantises, in its registers: loads, centring, maxima, codes. Every rounding
// by itself: nothing here may be contracted.
#ifndef SAGE_CUDA_INT8_WARP_ROWS_CUH_
#define SAGE_CUDA_INT8_WARP_ROWS_CUH_

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/int8/products.cuh"
#include "cuda/int8/rows.cuh"

namespace sage::cuda::int8 {

// Of a block of the second launch.
constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kWarpTokens = kTileTokens / kWarps;  // 16

// 16 rows of a warp, four channels of a lane, or twice four: at 128 and 256 channels a row is the
// warp's, at 64 half a warp's, rows 0 to 7 and 8 to 15. What is of a row alone is kept by one lane
// of it.
template <int D, class E>
struct WarpRows {
  static constexpr int kFours = D == 256 ? 2 : 1, kChannels = 4 * kFours;
  static constexpr int kRowLanes = D / kChannels, kLoads = kWarpTokens * kRowLanes / 32;

  float x[kLoads][kChannels];
  bool bad = false;  // the row that this lane keeps holds a value that is not finite
  int lane = static_cast<int>(threadIdx.x) % 32;
  int half = lane / kRowLanes, channel = lane % kRowLanes * 4;

  __device__ __forceinline__ int Row(int i) const { return i + 8 * half; }
  __device__ __forceinline__ int Keeper(int i) const { return half * kRowLanes + i; }
  __device__ __forceinline__ bool Keeps() const { return lane % kRowLanes < kLoads; }
  __device__ __forceinline__ int KeptRow() const { return lane % kRowLanes + 8 * half; }
  // Channel c of kChannels, counted from `channel`.
  __device__ __forceinline__ static constexpr int Beyond(int c) {
    return c / 4 * (D / kFours) + c % 4;
  }

  // Rows from token `first` of the head whose row 0 is `rows`; zeros outside the tensor.
  __device__ __forceinline__ void Load(const Source& source, const typename E::Storage* rows,
                                       int first) {
    const typename E::Storage* at =
        rows + static_cast<int64_t>(first + 8 * half) * source.strides.token + channel;
    if (source.vectors && first + kWarpTokens <= source.tokens && source.dim == D) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int c = 0; c < kChannels; c += 4) {
          float y[4];
          LoadElements<E>(at + i * source.strides.token + Beyond(c), y);
#pragma unroll
          for (int n = 0; n < 4; ++n) x[i][c + n] = y[n];
        }
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const bool exists = first + Row(i) < source.tokens && channel + Beyond(c) < source.dim;
        x[i][c] = exists ? E::At(__ldg(at + i * source.strides.token + Beyond(c)), 0) : 0.0f;
      }
    }
  }

  // Values of one channel each, from those of a whole row.
  __device__ __forceinline__ void OfChannels(const float* row, float (&of)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; c += 4) {
      const float4 y = *reinterpret_cast<const float4*>(row + channel + Beyond(c));
      of[c] = y.x, of[c + 1] = y.y, of[c + 2] = y.z, of[c + 3] = y.w;
    }
  }

  // Takes a mean from every value; what is not finite or lies outside the tensor becomes zero, not
  // minus the mean.
  __device__ __forceinline__ void Centre(const Source& source, int first,
                                         const float (&mean)[kChannels]) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; c += 2)
        most = __vimax3_u32(most, Magnitude(x[i][c]), Magnitude(x[i][c + 1]));
    }
    const bool whole = first + kWarpTokens <= source.tokens && source.dim == D;
    if (!whole || __any_sync(~0u, most >= kInfBits)) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        bool finite = true;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          const bool number = Finite(x[i][c]);
          finite &= number;
          if (!number || first + Row(i) >= source.tokens || channel + Beyond(c) >= source.dim)
            x[i][c] = mean[c];
        }
        const uint32_t lanes = __ballot_sync(~0u, !finite);
        constexpr uint32_t kOfRow = kRowLanes == 32 ? ~0u : (1u << (kRowLanes % 32)) - 1;
        if (lane == Keeper(i)) bad = (lanes >> half * kRowLanes & kOfRow) != 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[i][c] = __fsub_rn(x[i][c], mean[c]);
    }
  }

  // The largest magnitude of each row, each in the lane that keeps it.
  __device__ __forceinline__ uint32_t Largest() const {
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      uint32_t most = __vimax3_u32(Magnitude(x[i][0]), Magnitude(x[i][1]), Magnitude(x[i][2]));
      most = max(most, Magnitude(x[i][3]));
      if constexpr (kChannels == 8) {
        most = __vimax3_u32(most, Magnitude(x[i][4]), Magnitude(x[i][5]));
        most = __vimax3_u32(most, Magnitude(x[i][6]), Magnitude(x[i][7]));
      }
      if constexpr (kRowLanes == 32) {
        most = __reduce_max_sync(~0u, most);
      } else {
#pragma unroll
        for (int step = kRowLanes / 2; step > 0; step /= 2)
          most = max(most, __shfl_xor_sync(~0u, most, step));
      }
      if (lane == Keeper(i)) kept = most;
    }
    return kept;
  }

  // Four codes of this lane of load i, from channel c on, as bytes of a word, or nibbles of half a
  // word.
  __device__ __forceinline__ uint32_t Codes(int i, int c0, float inverse,
                                            const PrepassPlan& a) const {
    uint32_t code[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      // To nearest even: |x · (top / max |x|)| rounds to at most top, so that nothing needs
      // clamping, and adding 1.5 · 2^23 leaves the integer in the lowest bits.
      code[c] = a.away ? static_cast<uint32_t>(
                             RoundCode(x[i][c0 + c], inverse, static_cast<int>(a.qk_top), true))
                       : __float_as_uint(__fadd_rn(__fmul_rn(x[i][c0 + c], inverse), kMagic));
    }
    if (!a.int4) {
      return __byte_perm(__byte_perm(code[0], code[1], 0x0040),
                         __byte_perm(code[2], code[3], 0x0040), 0x5410);
    }
    return (code[0] & 15u) | (code[1] & 15u) << 4 | (code[2] & 15u) << 8 | (code[3] & 15u) << 12;
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_WARP_ROWS_CUH_
