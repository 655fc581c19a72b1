// What the pre-pass of the Hopper kernels leaves in the workspace, in plain order.
#ifndef SAGE_TEST_CUDA_SM90_OPERANDS_H_
#define SAGE_TEST_CUDA_SM90_OPERANDS_H_

#include <cstdint>
#include <vector>

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/workspace.h"
#include "formats/formats.h"
#include "sage/problem.h"
#include "test/cuda/sm90_device.h"

namespace sage_test {

// The workspace after a call, as plain codes and scales by token; and what is put back for v
// [head][tile][channel], which no code is: it is rounded to tf32.
struct Operands {
  std::vector<float> q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, v_means;
};

template <int D>
inline void UnpackOperandsOf(const sage::Problem& p, const sage::sm90::Workspace& w,
                             Operands* out) {
  using sage::sm90::OperandByte;
  using sage::sm90::SwizzledChunk;
  const int64_t q_heads = p.batch * p.q_heads, kv_heads = p.batch * p.kv_heads;
  const auto q = Download(w.q_codes, q_heads * w.q_rows * D);
  const auto k = Download(w.k_codes, kv_heads * w.tiles * 128 * D);
  const auto v = Download(w.v_codes, kv_heads * w.tiles * 128 * D);
  const auto q_scale = Download(w.q_scale, q_heads * w.q_rows);
  const auto k_scale = Download(w.k_scale, kv_heads * w.tiles * 4);
  const auto image = Download(w.mean_image, kv_heads * w.mean_groups * 8 * D);
  const auto v_scale = Download(w.v_scale, kv_heads * D);
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
  for (int64_t h = 0; h < q_heads; ++h) {
    for (int64_t i = 0; i < p.q_len; ++i) {
      const int64_t row = h * w.q_rows + i;
      out->q_scale.push_back(q_scale[row]);
      for (int d = 0; d < p.qk_dim; ++d) {
        const int8_t code = static_cast<int8_t>(
            q[(row - i % 64) * D + OperandByte<D, 64>(static_cast<int>(i % 64), d)]);
        out->q_codes.push_back(sign * code + 0.0f);
      }
    }
  }
  for (int64_t h = 0; h < kv_heads; ++h) {
    for (int64_t j = 0; j < p.kv_len; ++j) {
      const int64_t tile = h * w.tiles + j / 128;
      const int t = static_cast<int>(j % 128), c = t / 32;
      const int row = 8 * (t % 32 / 2) + 2 * c + t % 2;
      out->k_scale.push_back(k_scale[tile * 4 + c]);
      for (int d = 0; d < p.qk_dim; ++d) {
        out->k_codes.push_back(
            static_cast<int8_t>(k[tile * 128 * D + OperandByte<D, sage::sm90::kTile>(row, d)]));
      }
      const int byte = 32 * (t % 32 / 8) + 16 * (t / 4 % 2) + 4 * c + t % 4;
      for (int d = 0; d < p.v_dim; ++d) {
        out->v_codes.push_back(sage::DecodeE4m3(
            v[(tile * D + d) * 128 + SwizzledChunk<128>(d, byte / 16) * 16 + byte % 16]));
      }
    }
    for (int d = 0; d < p.v_dim; ++d) out->v_scale.push_back(v_scale[h * D + d]);
    for (int64_t t = 0; t < w.tiles; ++t) {
      for (int d = 0; d < p.v_dim; ++d) {
        const float scale = v_scale[h * D + d];
        const int64_t group = h * w.mean_groups + t / 8, s = t % 8, j = d / 8, g = d % 8;
        const float mean =
            image[group * 8 * D + (j / 2 * 32 + g * 4 + s % 4) * 4 + j % 2 * 2 + s / 4];
        out->v_means.push_back(mean * (scale == 0.0f ? 1.0f : scale));
      }
    }
  }
}

inline void UnpackOperands(const sage::Problem& p, const sage::sm90::Workspace& w, Operands* out) {
  if (w.dim == 64) {
    UnpackOperandsOf<64>(p, w, out);
  } else if (w.dim == 128) {
    UnpackOperandsOf<128>(p, w, out);
  } else {
    UnpackOperandsOf<256>(p, w, out);
  }
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_OPERANDS_H_
