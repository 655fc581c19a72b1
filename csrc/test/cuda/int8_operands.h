// What the pre-pass of the int8 kernels left in the workspace, as plain codes and scales by token,
// and the same from the CPU engine.
#ifndef SAGE_TEST_CUDA_INT8_OPERANDS_H_
#define SAGE_TEST_CUDA_INT8_OPERANDS_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/int8/images.h"
#include "cuda/int8/plan.h"
#include "formats/formats.h"
#include "test/cuda/sm90_device.h"

namespace sage_test {

struct Operands {
  std::vector<float> q_codes, q_scale, k_codes, k_scale, v_codes, v_scale;
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
  const int64_t v_image = bytes ? kVByteImageBytes<D> : kVHalfImageBytes<D>;
  const auto q = Download(w.q_codes, q_heads * w.q_rows / kRowImage * kQImageBytes<D, kInt4>);
  const auto k = Download(w.k_codes, kv_heads * tokens / kStepTokens * kKImageBytes<D, kInt4>);
  const auto v = Download(w.v_codes, kv_heads * tokens / kStepTokens * v_image);
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
        const float code = CodeAt(&q[row / kRowImage * kQImageBytes<D, kInt4> + at], kInt4, d);
        out->q_codes.push_back(sign * code + 0.0f);
      }
    }
  }
  for (int64_t h = 0; h < kv_heads; ++h) {
    for (int64_t j = 0; j < p.kv_len; ++j) {
      const int64_t token = h * tokens + j, image = token / kStepTokens;
      const int t = static_cast<int>(token % kStepTokens);
      out->k_scale.push_back(k_scale[token]);
      for (int d = 0; d < p.qk_dim; ++d) {
        out->k_codes.push_back(
            CodeAt(&k[image * kKImageBytes<D, kInt4> + KOffset<D, kInt4>(t, d)], kInt4, d));
      }
      for (int d = 0; d < p.v_dim; ++d) {
        if (bytes) {
          out->v_codes.push_back(sage::DecodeE4m3(v[image * v_image + VByteOffset<D>(t, d)]));
        } else {
          const uint8_t* at = &v[image * v_image + VHalfOffset<D>(t, d)];
          out->v_codes.push_back(
              sage::DecodeFp16(static_cast<uint16_t>(at[0] | static_cast<unsigned>(at[1]) << 8)));
        }
      }
    }
    for (int d = 0; d < p.v_dim; ++d) out->v_scale.push_back(v_scale[h * D + d]);
  }
}

inline void UnpackOperands(const sage::Problem& p, const sage::cuda::int8::Form& form,
                           const sage::cuda::int8::Workspace& w, Operands* out) {
  if (form.dim == 64) {
    form.int4 ? UnpackImages<64, true>(p, form, w, out) : UnpackImages<64, false>(p, form, w, out);
  } else {
    form.int4 ? UnpackImages<128, true>(p, form, w, out)
              : UnpackImages<128, false>(p, form, w, out);
  }
}

// Differing elements; NaN marks rows of q that are not finite, whose scale nobody reads.
inline int64_t Differences(const std::vector<float>& gpu, const std::vector<float>& cpu) {
  if (gpu.size() != cpu.size()) return 1;
  int64_t count = 0;
  for (size_t i = 0; i < gpu.size(); ++i) count += !(gpu[i] == cpu[i] || std::isnan(gpu[i]));
  return count;
}

inline int64_t Differences(const Operands& gpu, const Operands& cpu) {
  return Differences(gpu.q_codes, cpu.q_codes) + Differences(gpu.q_scale, cpu.q_scale) +
         Differences(gpu.k_codes, cpu.k_codes) + Differences(gpu.k_scale, cpu.k_scale) +
         Differences(gpu.v_codes, cpu.v_codes) + Differences(gpu.v_scale, cpu.v_scale);
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_INT8_OPERANDS_H_
