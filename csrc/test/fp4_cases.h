// Recipes and cases of the FP4 kernels, and their workspace read back as plain codes. Shared by the
// test of the simulation and the runner on a device.
#ifndef SAGE_TEST_FP4_CASES_H_
#define SAGE_TEST_FP4_CASES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/sm120/workspace.h"
#include "formats/formats.h"
#include "sage/quantize.h"
#include "test/cuda/sm90_problem.h"
#include "test/fp4_means.h"

namespace sage_test {

enum class Form { kFp4, kFp4Paper, kFp4Fp8 };

inline const char* NameOf(Form form) {
  return form == Form::kFp4 ? "fp4" : form == Form::kFp4Paper ? "fp4 paper" : "fp4_fp8";
}

// src/numerics/recipes.ts.
inline sage::Recipe RecipeOf(Form form) {
  sage::Recipe r = {};
  r.precision = form == Form::kFp4Fp8 ? sage::Precision::kFp4Fp8 : sage::Precision::kFp4;
  r.qk = sage::QkFormat::kNvfp4;
  r.smooth_k = true;
  r.q_group = sage::TokenGroup::kToken;
  r.k_group = sage::TokenGroup::kToken;
  r.rounding = sage::Rounding::kEven;
  r.row_sum = sage::RowSum::kExact;
  r.pv_accumulator = sage::PvAccumulator::kFp32Fp32;
  const bool paper = form == Form::kFp4Paper;
  r.variant = paper ? sage::Variant::kPaper : sage::Variant::kTuned;
  r.smooth_q = paper ? 128 : 32;
  r.smooth_v = paper ? 0 : 128;
  r.balance = r.rotate = r.four_six = r.head_exponent = !paper;
  if (form == Form::kFp4Fp8) {
    r.pv = sage::PvFormat::kE4m3;
    r.v_scale = sage::VScale::kChannel;
    r.p_top = r.v_top = 448.0f;
  } else {
    r.pv = sage::PvFormat::kNvfp4;
    r.v_scale = sage::VScale::kNone;
    r.p_top = 2688.0f;
    r.v_top = 0.0f;
  }
  return r;
}

struct Fp4Case {
  Case shape;
  Form form = Form::kFp4;
  bool smooth_q = true;
  bool uneven = false;  // channels of q and k are of many widths
};

inline Data MakeData(const Fp4Case& c, uint64_t seed) {
  Data data = MakeData(c.shape, seed);
  data.p.recipe = RecipeOf(c.form);
  data.p.recipe.smooth_k = c.shape.smooth_k;
  if (!c.shape.smooth_v) data.p.recipe.smooth_v = 0;
  if (!c.smooth_q) data.p.recipe.smooth_q = 0;
  const auto widen = [&](std::vector<float>* x, std::vector<uint16_t>* bits, int64_t every) {
    const int64_t row = c.shape.qk_dim + c.shape.padding;
    for (size_t i = 0; i < x->size(); ++i) {
      const int64_t d = static_cast<int64_t>(i) % row;
      (*x)[i] *= std::ldexp(1.0f, static_cast<int>(d % every) - 3);
      if (!bits->empty()) (*bits)[i] = RoundTo(data.narrow, &(*x)[i]);
    }
  };
  if (c.uneven) {
    widen(&data.q, &data.q16, 7);
    widen(&data.k, &data.k16, 5);
  }
  return data;
}

// The arrays of a problem in host memory, as float32 or in the 16 bits of data.narrow.
inline sage::ForwardBuffers HostBuffers(const Data& data, const Problem& p, float* o, float* lse) {
  const bool wide = p.input == sage::InputType::kFloat32;
  const auto of = [&](const std::vector<float>& x, const std::vector<uint16_t>& bits) {
    return wide ? x.data() : reinterpret_cast<const float*>(bits.data());
  };
  return {of(data.q, data.q16), of(data.k, data.k16), of(data.v, data.v16), data.mask(), o, lse};
}

struct Outputs {
  std::vector<float> o, lse;
};

// Codes times group scales of q and k, before the recipe's power of two is taken back; the same of
// v, or codes of e4m3; what a code of v is worth per channel.
struct Operands {
  std::vector<float> q, k, v, v_scale;
  StoredMeans means;
};

// The q, k and v that a workspace holds; `read` copies device (or host) memory to a vector.
template <class Read>
Operands Unpack(const Problem& p, const sage::sm120::Workspace& w, Read read) {
  using sage::DecodeE2m1;
  using sage::DecodeUe4m3;
  Operands out;
  const int D = w.dim, S = D / 64;
  const bool fp8 = p.recipe.pv == sage::PvFormat::kE4m3;
  const int64_t q_heads = p.batch * p.q_heads, kv_heads = p.batch * p.kv_heads;
  const int dims = static_cast<int>((p.qk_dim + 15) / 16 * 16);
  const auto q = read(w.q_codes, q_heads * w.q_rows * D / 2);
  const auto q_scale =
      read(reinterpret_cast<const uint8_t*>(w.q_scale), q_heads * w.q_rows * S * 4);
  const auto images = read(w.tiles_image, kv_heads * w.tiles * w.tile_bytes);
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
  const auto nibble = [](const uint8_t* words, int64_t word, int i) {
    return DecodeE2m1(words[word * 4 + i / 2] >> 4 * (i % 2) & 15);
  };
  for (int64_t h = 0; h < q_heads; ++h) {
    for (int64_t i = 0; i < p.q_len; ++i) {
      const int64_t block = (h * w.q_rows + i) / 32;
      const int r = static_cast<int>(i % 32), g = r % 8;
      for (int d = 0; d < dims; ++d) {
        const int s = d / 64, k = d % 64, lane = g * 4 + k % 32 / 8;
        const int64_t word =
            (((block * S + s) * 2 + r / 16) * 32 + lane) * 4 + r / 8 % 2 + k / 32 * 2;
        const uint8_t scale = q_scale[((block * S + s) * 32 + g * 4 + r / 8) * 4 + k / 16];
        out.q.push_back(sign * nibble(q.data(), word, k % 8) * DecodeUe4m3(scale) + 0.0f);
      }
    }
  }
  const sage::sm120::TileBytes bytes = sage::sm120::TileBytesOf(D, fp8);
  const int V = sage::sm120::VChannelsOf(D);
  for (int64_t h = 0; h < kv_heads; ++h) {
    for (int64_t j = 0; j < p.kv_len; ++j) {
      const uint8_t* image = images.data() + (h * w.tiles + j / 128) * w.tile_bytes;
      const int t = static_cast<int>(j % 128), u = t / 32, q4 = t % 32 / 8, jt = t % 8 / 2;
      const int column = 2 * q4 + t % 2;
      for (int d = 0; d < dims; ++d) {
        const int s = d / 64, k = d % 64, lane = column * 4 + k % 32 / 8;
        const int64_t word = (((u * S + s) * 2 + jt / 2) * 32 + lane) * 4 + jt % 2 * 2 + k / 32;
        const uint8_t scale =
            image[64 * D + (((u * S + s) / 4 * 32 + column * 4 + jt) * 4 + (u * S + s) % 4) * 4 +
                  k / 16];
        out.k.push_back(nibble(image, word, k % 8) * DecodeUe4m3(scale) + 0.0f);
      }
      for (int d = 0; d < p.v_dim; ++d) {
        const uint8_t* v = image + bytes.k + d / V * bytes.v;
        const int dv = d % V, pair = dv / 16, g = d % 8, second = d / 8 % 2;
        if (fp8) {
          const int64_t word =
              ((u * (V / 16) + pair) * 32 + g * 4 + q4) * 4 + second * 2 + t / 4 % 2;
          out.v.push_back(sage::DecodeE4m3(v[word * 4 + t % 4]) + 0.0f);
          continue;
        }
        const int step = t / 64, of_step = step * (V / 32) + dv / 32;
        const int64_t word =
            ((step * (V / 16) + pair) * 32 + g * 4 + q4) * 4 + second * 2 + t % 64 / 32;
        const uint8_t scale =
            v[64 * V + ((of_step / 4 * 32 + g * 4 + d / 8 % 4) * 4 + of_step % 4) * 4 +
              t % 64 / 16];
        out.v.push_back(nibble(v, word, t % 8) * DecodeUe4m3(scale) + 0.0f);
      }
    }
  }
  const auto scales = read(reinterpret_cast<const uint8_t*>(w.v_scale), kv_heads * D * 4);
  for (int64_t h = 0; h < kv_heads && p.kv_len > 0; ++h) {
    for (int d = 0; d < p.v_dim; ++d) {
      float x;
      std::memcpy(&x, scales.data() + (h * D + d) * 4, 4);
      out.v_scale.push_back(x);
    }
  }
  out.means = UnpackMeans(p, w, read);
  return out;
}

// The CPU engine on the same problem.
inline Outputs RunCpu(const Data& data, Operands* operands) {
  const Problem& p = data.p;
  Outputs out;
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  const sage::ForwardBuffers buffers = {data.q.data(), data.k.data(), data.v.data(),
                                        data.mask(),   out.o.data(),  out.lse.data()};
  const int64_t q_rows = p.batch * p.q_heads * p.q_len, kv_rows = p.batch * p.kv_heads * p.kv_len;
  const int64_t dims = sage::QuantizedDims(p);
  operands->q.resize(q_rows * dims);
  operands->k.resize(kv_rows * dims);
  operands->v.resize(kv_rows * p.v_dim);
  operands->v_scale.resize(p.kv_len > 0 ? p.batch * p.kv_heads * p.v_dim : 0);
  sage::InspectionBuffers inspect = {};
  inspect.q_codes = operands->q.data();
  inspect.k_codes = operands->k.data();
  inspect.v_codes = operands->v.data();
  inspect.v_scale = operands->v_scale.data();
  const sage::EngineOptions options = {
      sage::DetectIsa(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
  const sage::Status status = sage::InspectForward(p, buffers, inspect, options);
  if (!status.ok()) {
    std::printf("InspectForward: %s\n", status.message);
    std::exit(2);
  }
  return out;
}

inline int64_t Differences(const std::vector<float>& mine, const std::vector<float>& theirs) {
  if (mine.size() != theirs.size()) return 1 << 30;
  int64_t count = 0;
  for (size_t i = 0; i < mine.size(); ++i) count += mine[i] != theirs[i];
  return count;
}

inline int64_t Differences(const Operands& mine, const Operands& theirs) {
  return Differences(mine.q, theirs.q) + Differences(mine.k, theirs.k) +
         Differences(mine.v, theirs.v) + Differences(mine.v_scale, theirs.v_scale);
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool both_nan = std::isnan(a[i]) && std::isnan(b[i]);  // payloads are the device's own
    if (!both_nan && std::memcmp(&a[i], &b[i], 4) != 0) return false;
  }
  return true;
}

struct Errors {
  double l2 = 0, of = 0;
  int64_t wrong = 0;  // NaN, zeros or infinities in other places
  double RelativeL2() const { return of > 0 ? std::sqrt(l2 / of) : std::sqrt(l2); }
  void Add(double x, double y) {
    if (std::isnan(x) != std::isnan(y) || std::isinf(x) || (y == 0.0 && x != 0.0)) {
      ++wrong;
    } else if (!std::isnan(x)) {
      l2 += (x - y) * (x - y);
      of += y * y;
    }
  }
};

// Of each of `outputs` against float64, over about `most_rows` rows.
inline std::vector<Errors> Compare(const Data& data, const std::vector<const Outputs*>& outputs,
                                   int64_t most_rows) {
  const Problem& p = data.p;
  std::vector<Errors> all(outputs.size());
  std::vector<double> exact;
  const int64_t rows = p.batch * p.q_heads * p.q_len;
  const int64_t step = std::max<int64_t>(1, rows / most_rows) | 1;
  for (int64_t n = 0; n < rows; n += step) {
    const int64_t b = n / (p.q_heads * p.q_len), h = n / p.q_len % p.q_heads, i = n % p.q_len;
    const double lse = ExactRow(data, b, h, i, &exact);
    for (size_t k = 0; k < outputs.size(); ++k) {
      const float* o = outputs[k]->o.data() + b * p.o.batch + h * p.o.head + i * p.o.token;
      for (int64_t d = 0; d < p.v_dim; ++d) all[k].Add(o[d], exact[d]);
      const float mine = outputs[k]->lse[(b * p.q_heads + h) * p.q_len + i];
      if (std::isnan(lse) != std::isnan(mine) || (lse == -INFINITY) != (mine == -INFINITY)) {
        ++all[k].wrong;
      }
    }
  }
  return all;
}

// Relative L2 distance of two results, and the largest difference of lse.
inline void Distances(const Data& data, const Outputs& a, const Outputs& b, double* o,
                      double* lse) {
  const Problem& p = data.p;
  double sum = 0, of = 0;
  *lse = 0;
  for (int64_t n = 0; n < p.batch * p.q_heads * p.q_len; ++n) {
    const int64_t at = n / (p.q_heads * p.q_len) * p.o.batch + n / p.q_len % p.q_heads * p.o.head +
                       n % p.q_len * p.o.token;
    for (int64_t d = 0; d < p.v_dim; ++d) {
      const double x = a.o[at + d], y = b.o[at + d];
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      sum += (x - y) * (x - y);
      of += y * y;
    }
    const double x = a.lse[n], y = b.lse[n];
    if (std::isfinite(x) && std::isfinite(y)) {
      *lse = std::max(*lse, std::fabs(x - y) / std::max(1.0, std::fabs(y)));
    }
  }
  *o = of > 0 ? std::sqrt(sum / of) : std::sqrt(sum);
}

// What a result must satisfy whoever computed it; prints one line.
inline bool Judge(const Fp4Case& c, const Data& data, const Outputs& mine,
                  const Operands& operands) {
  Operands cpu;
  const Outputs theirs = RunCpu(data, &cpu);
  const int64_t codes = data.p.kv_len > 0 ? Differences(operands, cpu) : 0;
  const int64_t means = WrongMeans(data, operands.means, operands.v, operands.v_scale);
  const std::vector<Errors> errors = Compare(data, {&mine, &theirs}, 400);
  double o = 0, lse = 0;
  Distances(data, mine, theirs, &o, &lse);
  // Rows are dim + padding long: what lies between stays.
  int64_t touched = 0;
  for (size_t i = 0; c.shape.padding > 0 && i < mine.o.size(); ++i) {
    touched += static_cast<int64_t>(i) % (c.shape.v_dim + c.shape.padding) >= c.shape.v_dim &&
               mine.o[i] != 1e30f;
  }
  const double error = errors[0].RelativeL2(), of_cpu = errors[1].RelativeL2();
  // P is rounded against another maximum, so the errors agree but for chance; scores differ by the
  // fp16 of the means.
  const bool ok = codes == 0 && means == 0 && errors[0].wrong == 0 && touched == 0 && lse <= 2e-3 &&
                  error <= 1.15 * of_cpu + 4e-3;
  std::printf(
      "%s %-9s %-26s q %4ld kv %4ld d %3ld/%3ld  codes %ld means %ld wrong %ld touched %ld  lse "
      "%.1e  "
      "relL2 %.4f cpu %.4f  apart %.4f\n",
      ok ? "ok  " : "FAIL", NameOf(c.form), c.shape.name.c_str(), static_cast<long>(data.p.q_len),
      static_cast<long>(data.p.kv_len), static_cast<long>(data.p.qk_dim),
      static_cast<long>(data.p.v_dim), static_cast<long>(codes), static_cast<long>(means),
      static_cast<long>(errors[0].wrong), static_cast<long>(touched), lse, error, of_cpu, o);
  return ok;
}

// The case table, small enough for the simulation.
inline std::vector<Fp4Case> Fp4Cases() {
  std::vector<Fp4Case> cases;
  Form form = Form::kFp4;
  int64_t d = 64;
  const auto with = [&](const char* name, auto change) {
    Fp4Case c;
    c.form = form;
    c.shape.name = name;
    c.shape.heads = c.shape.kv_heads = 1;
    c.shape.qk_dim = c.shape.v_dim = d;
    change(c.shape);
    cases.push_back(c);
  };
  for (const Form f : {Form::kFp4, Form::kFp4Paper, Form::kFp4Fp8}) {
    form = f;
    for (const int64_t dim : {64, 128, 256}) {
      d = dim;
      for (const int64_t n : {1, 17, 127, 129}) {
        with("square", [&](Case& c) { c.q_len = c.kv_len = n; });
      }
      with("long", [&](Case& c) { c.q_len = 40, c.kv_len = 1000; });
      with("causal", [&](Case& c) {
        c.q_len = c.kv_len = 290, c.causal = Causal::kTopLeft, c.tokens_first = true;
      });
      with("bottom right",
           [&](Case& c) { c.q_len = 70, c.kv_len = 333, c.causal = Causal::kBottomRight; });
      with("bottom right, long q",
           [&](Case& c) { c.q_len = 200, c.kv_len = 90, c.causal = Causal::kBottomRight; });
      with("window", [&](Case& c) { c.q_len = c.kv_len = 300, c.left = 60, c.right = 20; });
      with("window beyond the keys",
           [&](Case& c) { c.q_len = 260, c.kv_len = 100, c.left = 20, c.right = 10; });
      with("boolean mask", [&](Case& c) {
        c.batch = 2, c.heads = 2, c.q_len = 67, c.kv_len = 139, c.mask = MaskKind::kBoolean;
      });
      with("additive mask, causal", [&](Case& c) {
        c.q_len = c.kv_len = 140, c.mask = MaskKind::kAdditive, c.mask_axes = "qk";
        c.causal = Causal::kTopLeft;
      });
      with("not finite q", [&](Case& c) { c.q_len = 66, c.kv_len = 130, c.poison = 'q'; });
      with("not finite k", [&](Case& c) {
        c.q_len = 130, c.kv_len = 130, c.poison = 'k', c.causal = Causal::kTopLeft;
      });
      with("not finite v",
           [&](Case& c) { c.q_len = 66, c.kv_len = 130, c.poison = 'v', c.left = 40; });
      with("biased k and v",
           [&](Case& c) { c.q_len = 64, c.kv_len = 600, c.k_bias = 5.0f, c.v_bias = 1.0f; });
    }
  }
  form = Form::kFp4;
  d = 64;
  with("grouped heads", [&](Case& c) {
    c.batch = 2, c.heads = 4, c.kv_heads = 2, c.q_len = 40, c.kv_len = 150, c.padding = 3;
  });
  for (const char* axes : {"k", "hq", ""}) {
    for (const MaskKind kind : {MaskKind::kBoolean, MaskKind::kAdditive}) {
      with("broadcast mask", [&](Case& c) {
        c.batch = 2, c.heads = 2, c.kv_heads = 1, c.q_len = 35, c.kv_len = 77;
        c.mask = kind, c.mask_axes = axes;
      });
    }
  }
  with("mask with NaN", [&](Case& c) {
    c.q_len = 60, c.kv_len = 100, c.mask = MaskKind::kAdditive, c.poison = 'm';
  });
  with("negative scale", [&](Case& c) { c.kv_len = 200, c.scale = -0.2; });
  with("scale 0 by a hair", [&](Case& c) { c.scale = 1e-30; });
  with("steep scores", [&](Case& c) { c.kv_len = 300, c.q_gain = 12.0f; });
  with("large q", [&](Case& c) { c.kv_len = 140, c.q_gain = 1e18f, c.scale = 1e-19; });
  with("small q", [&](Case& c) { c.kv_len = 140, c.q_gain = 1e-18f, c.scale = 1e17; });
  with("constant v", [&](Case& c) { c.q_len = 40, c.kv_len = 700, c.constant_v = true; });
  with("no smoothing", [&](Case& c) { c.kv_len = 200, c.smooth_k = c.smooth_v = false; });
  cases.back().smooth_q = false;
  with("no keys", [&](Case& c) { c.kv_len = 0; });
  for (const Form f : {Form::kFp4, Form::kFp4Fp8}) {
    form = f;
    for (const int64_t dim : {40, 64, 128, 256}) {
      d = dim;
      with("uneven channels", [&](Case& c) {
        c.batch = 2, c.heads = 4, c.kv_heads = 2, c.q_len = 150, c.kv_len = 300, c.k_bias = 2.0f;
        if (dim == 64) c.poison = 'q', c.padding = 4, c.tokens_first = true;
      });
      cases.back().uneven = true;
    }
  }
  form = Form::kFp4;
  d = 64;
  with("uneven channels, no smoothing",
       [&](Case& c) { c.kv_len = 200, c.q_len = 290, c.smooth_k = c.smooth_v = false; });
  cases.back().uneven = true;
  cases.back().smooth_q = false;
  for (const sage::InputType type : {sage::InputType::kFloat16, sage::InputType::kBfloat16}) {
    form = type == sage::InputType::kFloat16 ? Form::kFp4 : Form::kFp4Fp8;
    for (const int64_t dim : {64, 128, 256}) {
      d = dim;
      with("16 bits", [&](Case& c) {
        c.input = type, c.heads = 2, c.q_len = 150, c.kv_len = 290, c.k_bias = 3.0f;
        c.causal = Causal::kBottomRight;
      });
      cases.back().uneven = dim != 64;
    }
    d = 64;
    for (const char which : {'q', 'k', 'v'}) {
      for (const int64_t padding : {1, 8}) {
        with("16 bits, not finite", [&](Case& c) {
          c.input = type, c.q_len = 66, c.kv_len = 130, c.poison = which, c.padding = padding;
        });
      }
    }
    with("16 bits, other head_dim", [&](Case& c) {
      c.input = type, c.qk_dim = 33, c.v_dim = 65, c.batch = 2, c.heads = 4, c.kv_heads = 2;
      c.tokens_first = true;
    });
  }
  form = Form::kFp4;
  const std::pair<int, int> dims[] = {{1, 1},    {40, 24},  {33, 65},  {80, 80},
                                      {96, 17},  {128, 64}, {3, 128},  {129, 130},
                                      {256, 40}, {20, 200}, {192, 256}};
  for (const auto& pair : dims) {
    with("other head_dim", [&](Case& c) {
      c.qk_dim = pair.first, c.v_dim = pair.second, c.q_len = 50, c.kv_len = 150;
      c.causal = Causal::kBottomRight, c.tokens_first = true;
    });
  }
  return cases;
}

}  // namespace sage_test

#endif  // SAGE_TEST_FP4_CASES_H_
