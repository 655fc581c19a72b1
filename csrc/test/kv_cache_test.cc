// The key/value cache and decoding from float32 against float64, on every instruction set of this
// machine.
//
//   kv_cache_test                       all checks; exit code 0 if all hold
//   kv_cache_test time [isa] [threads]  decoding over 4,096 keys, beside a plain read of memory
#include "sage/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"

namespace {

using sage::CacheForm;
using sage::Causal;
using sage::Isa;
using sage::KvCache;
using sage::MaskKind;
using sage::Problem;
using sage::Status;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

int failures = 0;

void Check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAIL %s\n", what.c_str());
  ++failures;
}

struct Random {
  uint64_t state;
  double Uniform() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) / 9007199254740992.0;
  }
  float Normal() {
    // Near enough: variance 1, bell-shaped, one step of the generator.
    const double u = Uniform();
    const double a = u * 65536.0, b = (a - std::floor(a)) * 65536.0, c = b - std::floor(b);
    return static_cast<float>((std::floor(a) / 65536.0 + std::floor(b) / 65536.0 + c - 1.5) * 2.0);
  }
};

struct Case {
  const char* name;
  int64_t batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;
  MaskKind mask = MaskKind::kNone;
  double scale = 0;  // 0: 1 / sqrt(D)
  bool odd = false;  // NaN and Infinity in q, k and v
  bool infinite =
      false;            // one key is -Infinity where every q is positive: its scores are -Infinity
  bool hidden = false;  // the mask hides every key of some rows
};

const Case kCases[] = {
    {"one key", 1, 1, 1, 1, 1, 64, 64},
    {"17", 1, 2, 2, 1, 17, 64, 64},
    {"D 1", 1, 2, 1, 2, 33, 1, 3},
    {"127, odd dims", 2, 3, 3, 1, 127, 17, 80},
    {"129", 1, 4, 2, 2, 129, 80, 17},
    {"1000, group 4", 1, 8, 2, 1, 1000, 128, 128},
    {"1000, 3 rows", 1, 3, 1, 1, 1000, 64, 64},
    {"2050, 5 queries", 1, 2, 2, 5, 2050, 64, 32},
    {"1500, 16 queries, group 3", 1, 3, 1, 16, 1500, 40, 48},
    {"chunk of 130", 1, 4, 2, 130, 700, 64, 64},
    {"130 queries alone", 1, 2, 1, 130, 130, 64, 100},
    {"more queries than keys", 1, 2, 2, 20, 7, 32, 32},
    {"D 512", 1, 1, 1, 3, 260, 512, 512},
    {"window", 1, 2, 2, 3, 1300, 64, 64, Causal::kBottomRight, 200},
    {"window of itself", 1, 2, 1, 9, 300, 64, 64, Causal::kBottomRight, 0},
    {"not causal", 2, 2, 1, 4, 300, 64, 64, Causal::kNone},
    {"top left", 1, 2, 1, 40, 300, 64, 64, Causal::kTopLeft},
    {"boolean mask", 2, 4, 2, 3, 1100, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean},
    {"additive mask", 1, 4, 2, 7, 400, 64, 64, Causal::kNone, -1, MaskKind::kAdditive},
    {"hidden rows", 1, 2, 1, 4, 1100, 64, 64, Causal::kNone, -1, MaskKind::kBoolean, 0, false,
     false, true},
    {"negative scale", 1, 2, 1, 2, 300, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, -0.2},
    {"not finite", 2, 4, 2, 3, 1100, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean, 0, true},
    {"infinite key", 1, 2, 1, 2, 300, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, 0, false,
     true},
    {"not finite, chunk", 1, 2, 1, 70, 300, 48, 24, Causal::kBottomRight, -1, MaskKind::kNone, 0,
     true},
};

struct Data {
  Problem p = {};
  std::vector<float> q, k, v, additive;
  std::vector<uint8_t> boolean;
  const void* mask() const {
    if (p.mask_kind == MaskKind::kBoolean) return boolean.data();
    return p.mask_kind == MaskKind::kAdditive ? additive.data() : nullptr;
  }
};

sage::TokenStrides Strides(int64_t heads, int64_t tokens, int64_t dim) {
  return {heads * tokens * dim, tokens * dim, dim};
}

Data MakeData(const Case& c) {
  Data data;
  Problem& p = data.p;
  p.batch = c.batch;
  p.q_heads = c.q_heads;
  p.kv_heads = c.kv_heads;
  p.q_len = c.q_len;
  p.kv_len = c.kv_len;
  p.qk_dim = c.qk_dim;
  p.v_dim = c.v_dim;
  p.q = Strides(c.q_heads, c.q_len, c.qk_dim);
  p.k = Strides(c.kv_heads, c.kv_len, c.qk_dim);
  p.v = Strides(c.kv_heads, c.kv_len, c.v_dim);
  p.o = Strides(c.q_heads, c.q_len, c.v_dim);
  p.scale = c.scale != 0 ? c.scale : 1.0 / std::sqrt(static_cast<double>(c.qk_dim));
  p.causal = c.causal;
  p.window_left = c.window_left;
  p.window_right = c.causal == Causal::kNone ? -1 : 0;
  p.mask_kind = c.mask;
  p.mask = {0, 0, 0, 0};
  p.want_lse = true;
  p.recipe.precision = sage::Precision::kExact;
  p.recipe.p_top = 1.0f;
  Random random{static_cast<uint64_t>(c.kv_len * 131 + c.qk_dim)};
  const auto fill = [&](std::vector<float>* x, int64_t count, float shift) {
    x->resize(static_cast<size_t>(count));
    for (size_t i = 0; i < x->size(); ++i) (*x)[i] = random.Normal() + shift * ((i & 7) == 3);
  };
  fill(&data.q, c.batch * c.q_heads * c.q_len * c.qk_dim, 0);
  fill(&data.k, c.batch * c.kv_heads * c.kv_len * c.qk_dim, 5);  // some channels far from 0
  fill(&data.v, c.batch * c.kv_heads * c.kv_len * c.v_dim, 0);
  if (c.mask != MaskKind::kNone) {
    p.mask = {0, 0, c.kv_len, 1};
    for (int64_t n = 0; n < c.q_len * c.kv_len; ++n) {
      const bool hide = random.Uniform() < 0.2 || (c.hidden && n / c.kv_len % 2 == 1);
      data.boolean.push_back(!hide);
      data.additive.push_back(hide ? -kInf : random.Normal());
    }
  }
  if (c.infinite) {
    data.k[static_cast<size_t>(7 * c.qk_dim + 2)] = -kInf;
    for (int64_t row = 0; row < c.q_heads * c.q_len; ++row) {
      float& x = data.q[static_cast<size_t>(row * c.qk_dim + 2)];
      x = std::fabs(x);
    }
  }
  if (c.odd) {
    data.q[static_cast<size_t>(c.qk_dim + 1)] = kNan;
    data.k[static_cast<size_t>(7 * c.qk_dim)] = -kInf;
    data.k[static_cast<size_t>((c.kv_len - 2) * c.qk_dim + 2)] = kNan;
    data.v[static_cast<size_t>(9 * c.v_dim + 1)] = kInf;
    data.v[static_cast<size_t>(40 * c.v_dim + 5)] = kNan;
    if (!data.boolean.empty()) {
      // Query 0 hides both keys that are not finite, query 1 sees the Infinity alone.
      data.boolean[7] = data.boolean[static_cast<size_t>(c.kv_len - 2)] = 0;
      data.boolean[static_cast<size_t>(c.kv_len + 7)] = 1;
      data.boolean[static_cast<size_t>(2 * c.kv_len - 2)] = 0;
    }
  }
  return data;
}

struct Outputs {
  std::vector<float> o, lse;
  explicit Outputs(const Problem& p)
      : o(static_cast<size_t>(p.batch * p.q_heads * p.q_len * p.v_dim), 1e30f),
        lse(static_cast<size_t>(p.batch * p.q_heads * p.q_len), 1e30f) {}
  bool operator==(const Outputs& other) const {
    return o.size() == other.o.size() &&
           std::memcmp(o.data(), other.o.data(), o.size() * sizeof(float)) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

sage::ForwardBuffers BuffersOf(const Data& data, Outputs* out) {
  return {data.q.data(), data.k.data(), data.v.data(), data.mask(), out->o.data(), out->lse.data()};
}

// docs/numerics.md 1 and 2 in float64.
void Reference(const Data& data, std::vector<double>* o, std::vector<double>* lse) {
  const Problem& p = data.p;
  const auto finite = [](const float* x, int64_t n) {
    return std::all_of(x, x + n, [](float y) { return std::isfinite(y); });
  };
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h) {
      const int64_t kv_head = b * p.kv_heads + h / p.group();
      const float* k = data.k.data() + kv_head * p.kv_len * p.qk_dim;
      const float* v = data.v.data() + kv_head * p.kv_len * p.v_dim;
      for (int64_t i = 0; i < p.q_len; ++i) {
        const float* q = data.q.data() + ((b * p.q_heads + h) * p.q_len + i) * p.qk_dim;
        std::vector<double> s(static_cast<size_t>(p.kv_len), -INFINITY);
        std::vector<double> sums(static_cast<size_t>(p.v_dim));
        bool nan_row = !finite(q, p.qk_dim);
        double m = -INFINITY, l = 0;
        bool any = false;
        for (int64_t j = p.FirstKey(i); j < p.EndKey(i); ++j) {
          double add = 0;
          if (p.mask_kind == MaskKind::kBoolean && !data.boolean[i * p.kv_len + j]) continue;
          if (p.mask_kind == MaskKind::kAdditive) add = data.additive[i * p.kv_len + j];
          if (add == -INFINITY) continue;
          any = true;
          if (!finite(k + j * p.qk_dim, p.qk_dim)) nan_row = true;
          double dot = 0;
          for (int64_t d = 0; d < p.qk_dim; ++d)
            dot += static_cast<double>(q[d]) * static_cast<double>(k[j * p.qk_dim + d]);
          s[j] = dot * p.scale + add;
          m = std::max(m, s[j]);
        }
        for (int64_t j = 0; any && !nan_row && j < p.kv_len; ++j) {
          if (s[j] == -INFINITY) continue;
          const double e = std::exp(s[j] - m);
          l += e;
          for (int64_t d = 0; d < p.v_dim; ++d) {
            const float x = v[j * p.v_dim + d];
            sums[d] += std::isfinite(x) ? e * x : NAN;
          }
        }
        for (int64_t d = 0; d < p.v_dim; ++d) o->push_back(!any ? 0 : nan_row ? NAN : sums[d] / l);
        lse->push_back(!any ? -INFINITY : nan_row ? NAN : m + std::log(l));
      }
    }
  }
}

// Relative L1 over finite values; infinite where the two differ in what is finite.
double RelativeL1(const std::vector<float>& x, const std::vector<double>& y) {
  double error = 0, norm = 1e-30;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(y[i]) || std::isinf(y[i])) {
      const bool same = std::isnan(y[i]) ? std::isnan(x[i]) : static_cast<double>(x[i]) == y[i];
      if (!same) return INFINITY;
      continue;
    }
    if (!std::isfinite(x[i])) return INFINITY;
    error += std::fabs(static_cast<double>(x[i]) - y[i]);
    norm += std::fabs(y[i]);
  }
  return error / norm;
}

std::unique_ptr<KvCache> MakeCache(const Problem& p, CacheForm form, int64_t capacity = 0) {
  std::unique_ptr<KvCache> cache;
  const Status status =
      KvCache::Create({p.batch, p.kv_heads, p.qk_dim, p.v_dim, form}, capacity, &cache);
  Check(status.ok(), status.message);
  return cache;
}

// Appends tokens [first, end) of the data.
void Append(const Data& data, KvCache* cache, int64_t first, int64_t end,
            const sage::EngineOptions& options) {
  const Problem& p = data.p;
  const int64_t n = end - first, heads = p.batch * p.kv_heads;
  std::vector<float> k, v;
  for (int64_t h = 0; h < heads; ++h) {
    const float* kh = data.k.data() + (h * p.kv_len + first) * p.qk_dim;
    const float* vh = data.v.data() + (h * p.kv_len + first) * p.v_dim;
    k.insert(k.end(), kh, kh + n * p.qk_dim);
    v.insert(v.end(), vh, vh + n * p.v_dim);
  }
  const Status status = cache->Append(k.data(), v.data(), n, options);
  Check(status.ok(), status.message);
}

Outputs Attend(const Data& data, const KvCache& cache, const sage::EngineOptions& options) {
  Outputs out(data.p);
  const Status status = cache.Attend(data.p, BuffersOf(data, &out), options);
  Check(status.ok(), status.message);
  return out;
}

// The first `length` tokens as a case of its own.
Data Shortened(const Case& c, int64_t length) {
  const Data all = MakeData(c);
  Data data = all;
  Problem& p = data.p;
  p.kv_len = length;
  p.k = Strides(p.kv_heads, length, p.qk_dim);
  p.v = Strides(p.kv_heads, length, p.v_dim);
  data.k.clear();
  data.v.clear();
  for (int64_t h = 0; h < p.batch * p.kv_heads; ++h) {
    const float* k = all.k.data() + h * all.p.kv_len * p.qk_dim;
    const float* v = all.v.data() + h * all.p.kv_len * p.v_dim;
    data.k.insert(data.k.end(), k, k + length * p.qk_dim);
    data.v.insert(data.v.end(), v, v + length * p.v_dim);
  }
  return data;
}

void CheckCase(const Case& c, Isa isa) {
  const Data data = MakeData(c);
  std::vector<double> o, lse;
  Reference(data, &o, &lse);
  const auto title = [&](const char* what) {
    return std::string(c.name) + ", " + sage::IsaName(isa) + ", " + what;
  };
  const sage::EngineOptions one{isa, 1}, three{isa, 3};
  // exp2 of float32 scores far from 0, as those of D 512, costs a few units of 1e-7.
  const double exact = 6e-6;

  Outputs direct(data.p), direct3(data.p);
  Check(AttentionForward(data.p, BuffersOf(data, &direct), one).ok(), title("decode"));
  AttentionForward(data.p, BuffersOf(data, &direct3), three);
  Check(direct == direct3, title("decode: threads change bits"));
  Check(RelativeL1(direct.o, o) <= exact, title("decode: o"));
  Check(RelativeL1(direct.lse, lse) <= exact, title("decode: lse"));

  for (const CacheForm form : {CacheForm::kFloat32, CacheForm::kInt8}) {
    const bool packed = form == CacheForm::kInt8;
    const double bound = packed ? 0.03 : exact;
    const std::string name = packed ? "int8" : "float32";
    auto cache = MakeCache(data.p, form);
    // The first append freezes the mean: it is the same in all that follows.
    const int64_t head = (c.kv_len + 1) / 2;
    Append(data, cache.get(), 0, head, one);
    auto other = MakeCache(data.p, form, 50);
    Append(data, other.get(), 0, head, three);
    Append(data, cache.get(), head, c.kv_len, three);
    const Outputs whole = Attend(data, *cache, one);
    const double error = RelativeL1(whole.o, o);
    if (!(error <= bound)) std::printf("  %g\n", error);
    Check(error <= bound, title((name + ": o").c_str()));
    double worst = 0;
    for (size_t i = 0; i < lse.size(); ++i) {
      const double difference = std::fabs(lse[i] - static_cast<double>(whole.lse[i]));
      if (std::isfinite(lse[i])) worst = std::max(worst, difference);
    }
    Check(worst <= (packed ? 0.15 : 2e-5) && std::isfinite(RelativeL1(whole.lse, lse)),
          title((name + ": lse").c_str()));
    Check(Attend(data, *cache, three) == whole, title((name + ": threads change bits").c_str()));

    // Odd pieces, with a detour: too much, cut back, appended again.
    int64_t at = head;
    for (int64_t step = 1; at < c.kv_len; step = step * 2 + 1) {
      const int64_t end = std::min(c.kv_len, at + step);
      Append(data, other.get(), at, end, one);
      const int64_t back = std::max(head, end - step / 2);
      Check(other->Truncate(back).ok(), title("truncate"));
      at = back > at ? back : end;
      if (back <= at && at == end && back != end) Append(data, other.get(), back, end, one);
    }
    Check(other->length() == c.kv_len, title("length"));
    Check(Attend(data, *other, one) == whole, title((name + ": pieces differ").c_str()));
  }
}

void CheckForks(Isa isa) {
  const Case c = {"forks", 1, 4, 2, 1, 400, 64, 64};
  const sage::EngineOptions options{isa, 1};
  for (const CacheForm form : {CacheForm::kFloat32, CacheForm::kInt8}) {
    const Data data = MakeData(c);
    auto cache = MakeCache(data.p, form);
    const int64_t shared = 300;
    Append(data, cache.get(), 0, shared, options);
    const Data before = Shortened(c, shared);
    const Outputs at_fork = Attend(before, *cache, options);
    // Each fork goes its own way: a multiple of the same tokens.
    std::vector<std::unique_ptr<KvCache>> forks(20);
    std::vector<Outputs> results;
    for (size_t n = 0; n < forks.size(); ++n) {
      Check(cache->Fork(&forks[n]).ok(), "fork");
    }
    Check(forks[0]->exclusive_bytes() == 0, "a fork shares all pages");
    for (size_t n = 0; n < forks.size(); ++n) {
      Data own = data;
      for (float& x : own.v) x *= static_cast<float>(n + 1);
      Append(own, forks[n].get(), shared, c.kv_len, options);
    }
    Check(Attend(before, *cache, options) == at_fork, "forks changed their source");
    for (size_t n = 0; n < forks.size(); ++n) {
      auto alone = MakeCache(data.p, form);
      Append(data, alone.get(), 0, shared, options);
      Data own = data;
      for (float& x : own.v) x *= static_cast<float>(n + 1);
      Append(own, alone.get(), shared, c.kv_len, options);
      Check(Attend(data, *alone, options) == Attend(data, *forks[n], options), "a fork differs");
    }
    // A cut inside a shared page, then other tokens.
    Check(forks[0]->Truncate(290).ok(), "truncate a fork");
    Append(data, forks[0].get(), 300, 310, options);
    Check(Attend(before, *cache, options) == at_fork, "a cut fork changed its source");
    cache.reset();
    Check(forks[1]->length() == c.kv_len && forks[1]->bytes() > 0, "a fork outlives its source");
    Attend(data, *forks[1], options);
  }
}

void CheckMisuse() {
  std::unique_ptr<KvCache> cache;
  Check(!KvCache::Create({1, 1, 0, 64, CacheForm::kInt8}, 0, &cache).ok(), "head_dim 0");
  Check(!KvCache::Create({1, 1, 64, 513, CacheForm::kInt8}, 0, &cache).ok(), "head_dim 513");
  Check(!KvCache::Create({1, 0, 64, 64, CacheForm::kInt8}, 0, &cache).ok(), "no heads");
  Check(!KvCache::Create({1, 1, 64, 64, CacheForm::kInt8}, -1, &cache).ok(), "capacity -1");
  const Case c = {"empty", 2, 2, 1, 3, 0, 64, 64};
  const Data data = MakeData(c);
  auto empty = MakeCache(data.p, CacheForm::kInt8, 1000);
  const Outputs out = Attend(data, *empty, {Isa::kPortable, 1});
  Check(std::all_of(out.o.begin(), out.o.end(), [](float x) { return x == 0; }), "empty: o");
  Check(std::all_of(out.lse.begin(), out.lse.end(), [](float x) { return x == -kInf; }),
        "empty: lse");
  Check(!empty->Truncate(1).ok() && !empty->Truncate(-1).ok(), "truncate beyond");
  Problem other = data.p;
  other.kv_len = 5;
  Outputs none(data.p);
  Check(!empty->Attend(other, BuffersOf(data, &none), {Isa::kPortable, 1}).ok(), "another length");
}

// Of one thread's own processor time when there is one, so that others on the machine count less.
clockid_t clock_used = CLOCK_MONOTONIC;

double Milliseconds() {
  timespec now = {};
  clock_gettime(clock_used, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

// Sums of 64-bit words: what reading costs when nothing is computed.
uint64_t ReadAll(const uint64_t* x, size_t words) {
  uint64_t sums[16] = {};
  for (size_t i = 0; i + 16 <= words; i += 16) {
    for (size_t n = 0; n < 16; ++n) sums[n] ^= x[i + n];
    __builtin_prefetch(x + i + 256);
    __builtin_prefetch(x + i + 264);
  }
  uint64_t all = 0;
  for (const uint64_t s : sums) all ^= s;
  return all;
}

void Time(Isa isa, int threads) {
  const sage::EngineOptions options{isa, threads};
  if (threads == 1) clock_used = CLOCK_THREAD_CPUTIME_ID;
  const Case shapes[] = {{"12,64", 1, 12, 12, 1, 4096, 64, 64},
                         {"16,128", 1, 16, 16, 1, 4096, 128, 128},
                         {"32:8,128", 1, 32, 8, 1, 4096, 128, 128}};
  uint64_t kept = 0;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const Case& shape : shapes) {
    for (const int64_t q_len : {1, 4, 16}) {
      Case c = shape;
      c.q_len = q_len;
      // Several sets in rotation: larger than the last cache, so each call reads from memory.
      const int sets = 8;
      std::vector<Data> data;
      std::vector<std::unique_ptr<KvCache>> packed;
      for (int n = 0; n < sets; ++n) {
        data.push_back(MakeData(c));
        packed.push_back(MakeCache(data.back().p, CacheForm::kInt8));
        Append(data.back(), packed.back().get(), 0, c.kv_len, options);
      }
      Outputs out(data[0].p);
      const double float_bytes = 4.0 * c.kv_heads * c.kv_len * (c.qk_dim + c.v_dim);
      const double packed_bytes = static_cast<double>(packed[0]->bytes());
      std::vector<double> read, decode, cold, hot, hot_decode;
      for (int round = 0; round < 8; ++round) {
        for (int n = 0; n < sets; ++n) {
          double start = Milliseconds();
          AttentionForward(data[n].p, BuffersOf(data[n], &out), options);
          if (round > 0) decode.push_back(Milliseconds() - start);
        }
        for (int n = 0; n < sets; ++n) {
          const double start = Milliseconds();
          for (const auto* x : {&data[n].k, &data[n].v})
            kept ^= ReadAll(reinterpret_cast<const uint64_t*>(x->data()), x->size() / 2);
          if (round > 0) read.push_back(Milliseconds() - start);
        }
        for (int n = 0; n < sets; ++n) {
          const double start = Milliseconds();
          packed[n]->Attend(data[n].p, BuffersOf(data[n], &out), options);
          if (round > 0) cold.push_back(Milliseconds() - start);
        }
        for (int n = 0; n < sets; ++n) {
          double start = Milliseconds();
          packed[0]->Attend(data[0].p, BuffersOf(data[0], &out), options);
          if (n > 0) hot.push_back(Milliseconds() - start);
        }
        for (int n = 0; n < sets; ++n) {
          double start = Milliseconds();
          AttentionForward(data[0].p, BuffersOf(data[0], &out), options);
          if (n > 0) hot_decode.push_back(Milliseconds() - start);
        }
      }
      std::printf(
          "%-9s q %2d: read 1T %.3f ms (%.1f GB/s) | float32 cold %.3f (%.1f GB/s, %.0f%% of read) "
          "hot %.3f | int8 cold %.3f (%.1f GB/s) hot %.3f (%.1f GB/s)\n",
          c.name, static_cast<int>(q_len), Median(read), float_bytes / Median(read) / 1e6,
          Median(decode), float_bytes / Median(decode) / 1e6, 100 * Median(read) / Median(decode),
          Median(hot_decode), Median(cold), packed_bytes / Median(cold) / 1e6, Median(hot),
          packed_bytes / Median(hot) / 1e6);
    }
  }
  if (kept == 42) std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "time") == 0) {
    Isa isa = sage::DetectIsa();
    if (argc > 2 && (!sage::ParseIsa(argv[2], &isa) || !sage::CanRun(isa))) return 2;
    Time(isa, argc > 3 ? std::atoi(argv[3]) : 1);
    return 0;
  }
  CheckMisuse();
  for (int index = 0; index < sage::kIsaCount; ++index) {
    const Isa isa = static_cast<Isa>(index);
    if (!sage::CanRun(isa) || sage::KernelIsa(isa) != isa) continue;
    for (const Case& c : kCases) CheckCase(c, isa);
    CheckForks(isa);
    std::printf("%s done\n", sage::IsaName(isa));
  }
  std::printf(failures == 0 ? "all checks hold\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
