// What the pre-pass of the int8 kernels left in the workspace, as plain codes and scales by token,
// and the same from the CPU engine.
#ifndef SAGE_TEST_CUDA_INT8_OPERANDS_H_
#define SAGE_TEST_CUDA_INT8_OPERANDS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/int8/images.h"
#include "cuda/int8/plan.h"
#include "formats/formats.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_problem.h"

namespace sage_test {

struct Operands {
  std::vector<float> q_codes, q_scale, k_codes, k_scale, v_codes, v_scale;
  std::vector<float> v_back;  // [B·Hkv][block of 128 tokens][v_dim], of the device alone
};

// A code of an image: byte, or nibble by the parity of the dim.
inline float CodeAt(const uint8_t* at, bool int4, int d) {
  if (!int4) return static_cast<int8_t>(*at);
  const int nibble = *at >> (d % 2 * 4) & 15;
  return static_cast<float>(nibble < 8 ? nibble : nibble - 16);
}

template <int D, bool kInt4>
void UnpackImages(const sage::Problem& p, const sage::cuda::int8::Form& form,
                  const sage::cuda::int8::Workspace& w, Operands* out) {
  using namespace sage::cuda::int8;
  const int64_t q_heads = p.batch * p.q_heads, kv_heads = p.batch * p.kv_heads;
  const int64_t tokens = static_cast<int64_t>(w.tiles) * kTileTokens;
  const bool bytes = ValuesAreBytes(form.values);
  constexpr int V = D < kPartDim ? D : kPartDim;
  const int64_t v_image = bytes ? kVByteImageBytes<V> : kVHalfImageBytes<V>;
  const int64_t v_heads = kv_heads * form.v_parts;
  const auto q = Download(w.q_codes, q_heads * w.q_rows / kRowImage * kCodeImageBytes<D, kInt4>);
  const auto k = Download(w.k_codes, kv_heads * tokens / kRowImage * kCodeImageBytes<D, kInt4>);
  const auto v = Download(w.v_codes, v_heads * tokens / kStepTokens * v_image);
  const auto v_back = Download(w.v_back, v_heads * w.tiles * V);
  const auto q_scale = Download(w.q_scale, q_heads * w.q_rows);
  const auto k_scale = Download(w.k_scale, kv_heads * tokens);
  const auto v_scale = Download(w.v_scale, kv_heads * D);
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
  for (int64_t h = 0; h < q_heads; ++h) {
    for (int64_t i = 0; i < p.q_len; ++i) {
      const int64_t row = h * w.q_rows + i;
      out->q_scale.push_back(q_scale[row]);
      for (int d = 0; d < p.qk_dim; ++d) {
        // Offsets are of whole words: the first of four codes, then within it.
        const int at = QOffset<D, kInt4>(static_cast<int>(row % kRowImage), d);
        const float code = CodeAt(&q[row / kRowImage * kCodeImageBytes<D, kInt4> + at], kInt4, d);
        out->q_codes.push_back(sign * code + 0.0f);
      }
    }
  }
  for (int64_t h = 0; h < kv_heads; ++h) {
    for (int64_t j = 0; j < p.kv_len; ++j) {
      const int64_t token = h * tokens + j, image = token / kRowImage;
      const int row = static_cast<int>(token % kRowImage);
      const int t = static_cast<int>(token % kStepTokens);
      out->k_scale.push_back(k_scale[token]);
      for (int d = 0; d < p.qk_dim; ++d) {
        out->k_codes.push_back(
            CodeAt(&k[image * kCodeImageBytes<D, kInt4> + KOffset<D, kInt4>(row, d)], kInt4, d));
      }
      for (int d = 0; d < p.v_dim; ++d) {
        const int64_t v_token = (h * form.v_parts + d / V) * tokens + j;
        const uint8_t* v_at = &v[v_token / kStepTokens * v_image];
        if (bytes) {
          out->v_codes.push_back(sage::DecodeE4m3(v_at[VByteOffset<V>(t, d % V)]));
        } else {
          const uint8_t* at = v_at + VHalfOffset<V>(t, d % V);
          out->v_codes.push_back(
              sage::DecodeFp16(static_cast<uint16_t>(at[0] | static_cast<unsigned>(at[1]) << 8)));
        }
      }
    }
    for (int d = 0; d < p.v_dim; ++d) out->v_scale.push_back(v_scale[h * D + d]);
    for (int64_t tile = 0; tile < w.tiles; ++tile) {
      for (int d = 0; d < p.v_dim; ++d)
        out->v_back.push_back(v_back[((h * form.v_parts + d / V) * w.tiles + tile) * V + d % V]);
    }
  }
}

inline void UnpackOperands(const sage::Problem& p, const sage::cuda::int8::Form& form,
                           const sage::cuda::int8::Workspace& w, Operands* out) {
  if (form.dim == 64) {
    form.int4 ? UnpackImages<64, true>(p, form, w, out) : UnpackImages<64, false>(p, form, w, out);
  } else if (form.dim == 128) {
    form.int4 ? UnpackImages<128, true>(p, form, w, out)
              : UnpackImages<128, false>(p, form, w, out);
  } else {
    form.int4 ? UnpackImages<256, true>(p, form, w, out)
              : UnpackImages<256, false>(p, form, w, out);
  }
}

// Differing elements; NaN marks rows of q that are not finite, whose scale nobody reads.
inline int64_t Differences(const std::vector<float>& gpu, const std::vector<float>& cpu) {
  if (gpu.size() != cpu.size()) return 1;
  int64_t count = 0;
  for (size_t i = 0; i < gpu.size(); ++i) count += !(gpu[i] == cpu[i] || std::isnan(gpu[i]));
  return count;
}

// How far what is put back for v (docs/numerics.md 3) is from the mean of v less the mean of the
// codes' errors: in units of the channel's largest code, the means themselves counted in.
inline double ErrorOfMeansBack(const Data& data, const Operands& gpu, const Operands& cpu) {
  const Problem& p = data.p;
  const int64_t tiles = (p.kv_len + 127) / 128;
  double worst = 0.0;
  if (p.recipe.smooth_v == 0) return worst;
  for (int64_t h = 0; h < p.batch * p.kv_heads; ++h) {
    const float* v = data.v.data() + h / p.kv_heads * p.v.batch + h % p.kv_heads * p.v.head;
    for (int64_t d = 0; d < p.v_dim; ++d) {
      const float* codes = cpu.v_codes.data() + h * p.kv_len * p.v_dim + d;
      double top = 0.0;
      for (int64_t j = 0; j < p.kv_len; ++j)
        top = std::fmax(top, std::fabs(static_cast<double>(codes[j * p.v_dim])));
      const double scale = cpu.v_scale[h * p.v_dim + d];
      for (int64_t tile = 0; tile < tiles; ++tile) {
        double sum = 0.0, of_codes = 0.0;
        int64_t count = 0;
        for (int64_t j = tile * 128; j < std::min(tile * 128 + 128, p.kv_len); ++j) {
          of_codes += codes[j * p.v_dim];
          const float x = v[j * p.v.token + d];
          if (std::isfinite(x)) sum += x, ++count;
        }
        const double n = static_cast<double>(std::max<int64_t>(count, 1));
        const double mean =
            static_cast<double>(static_cast<float>(sum / n)) / (scale == 0.0 ? 1.0 : scale);
        const double expected = mean - of_codes / n;
        const double got = gpu.v_back[(h * tiles + tile) * p.v_dim + d];
        const double unit = top + std::fabs(mean) + 1e-30;
        const double error = std::fabs(got - expected) / unit;
        worst = error <= worst ? worst : error;  // NaN stays
      }
    }
  }
  return worst;
}

inline int64_t Differences(const Operands& gpu, const Operands& cpu) {
  return Differences(gpu.q_codes, cpu.q_codes) + Differences(gpu.q_scale, cpu.q_scale) +
         Differences(gpu.k_codes, cpu.k_codes) + Differences(gpu.k_scale, cpu.k_scale) +
         Differences(gpu.v_codes, cpu.v_codes) + Differences(gpu.v_scale, cpu.v_scale);
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_INT8_OPERANDS_H_
