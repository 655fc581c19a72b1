// The key/value cache and decoding from float32 against float64, on every instruction set of this
// machine.
//
//   kv_cache_test                       all checks; exit code 0 if all hold
//   kv_cache_test quick                 a third of the cases, not on the portable path
//   kv_cache_test time [isa] [threads]  decoding over 4,096 keys, beside a plain read of memory
#include "sage/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "test/kv_cache_bench.h"
#include "test/kv_cache_cases.h"
#include "test/kv_cache_fill.h"
#include "test/kv_cache_reference.h"

namespace {

using sage::CacheForm;
using sage::Isa;
using sage::KvCache;
using namespace sage_test;

struct Form {
  CacheForm form;
  const char* name;
  double o, lse;  // largest relative L1 of o, largest error of lse
};

// exp2 of float32 scores far from 0, as those of D 512, costs a few units of 1e-7.
constexpr double kExact = 6e-6;
constexpr Form kForms[] = {{CacheForm::kFloat32, "float32", kExact, 2e-5},
                           {CacheForm::kInt8, "int8", 0.03, 0.15},
                           {CacheForm::kInt8Int16, "int8_int16", 0.03, 0.15},
                           {CacheForm::kInt16, "int16", 6e-4, 2e-3}};

int failures = 0;

void Check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAIL %s\n", what.c_str());
  ++failures;
}

// A cache made of the codes of another one. As on a device, the scale of a token of k with a value
// that is not finite is NaN.
sage::Status Restored(const Data& data, const KvCache& from, std::unique_ptr<KvCache>* out) {
  const Problem& p = data.p;
  const auto read = [&](int64_t batch, int64_t head, const sage::CacheCodes& codes) {
    const sage::Status status = from.Inspect(batch, head, codes);
    const float* k = data.k.data() + batch * p.k.batch + head * p.k.head;
    for (int64_t n = 0; n < p.kv_len * p.qk_dim; ++n) {
      if (!std::isfinite(k[n])) codes.k_scale[n / p.qk_dim] = kNan;
    }
    return status;
  };
  return KvCache::Restore(from.shape(), from.length(), read, out);
}

void CheckCase(const Case& c, Isa isa) {
  const Data data = MakeData(c);
  std::vector<double> o, lse;
  Reference(data, &o, &lse);
  const auto title = [&](const char* what) {
    return std::string(c.name) + ", " + sage::IsaName(isa) + ", " + what;
  };
  const sage::EngineOptions one{isa, 1}, three{isa, 3};

  Outputs direct(data.p), direct3(data.p);
  Check(AttentionForward(data.p, BuffersOf(data, &direct), one).ok(), title("decode"));
  AttentionForward(data.p, BuffersOf(data, &direct3), three);
  Check(direct == direct3, title("decode: threads change bits"));
  Check(RelativeL1(direct.o, o) <= kExact, title("decode: o"));
  Check(RelativeL1(direct.lse, lse) <= kExact, title("decode: lse"));

  for (const auto& [form, form_name, bound, lse_bound] : kForms) {
    const std::string name = form_name;
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
    Check(worst <= lse_bound && std::isfinite(RelativeL1(whole.lse, lse)),
          title((name + ": lse").c_str()));
    Check(Attend(data, *cache, three) == whole, title((name + ": threads change bits").c_str()));

    if (form != CacheForm::kFloat32) {
      std::unique_ptr<KvCache> restored;
      Check(Restored(data, *cache, &restored).ok() && Attend(data, *restored, one) == whole,
            title((name + ": restored from its codes").c_str()));
    }

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

// Tokens with gaps between them: the same bits. NaN in the gaps also sends whoever reads them to
// the careful steps, which copy rows without gaps; a large number does not.
void CheckGaps(Isa isa, float gap) {
  for (const Case& c : {Case{"gaps, 1 row", 1, 1, 1, 1, 400, 64, 48},
                        Case{"gaps, 1 row, whole lines", 1, 2, 2, 1, 333, 96, 128},
                        Case{"gaps, 4 rows", 1, 2, 2, 4, 333, 128, 128},
                        Case{"gaps, 5 rows", 1, 1, 1, 5, 290, 64, 96},
                        Case{"gaps, 14 rows", 2, 4, 2, 7, 333, 40, 72},
                        Case{"gaps, 32 rows", 1, 2, 1, 16, 270, 33, 64}}) {
    Data data = MakeData(c);
    Outputs expected(data.p), spaced(data.p);
    AttentionForward(data.p, BuffersOf(data, &expected), {isa, 1});
    const auto spread = [&](std::vector<float>* x, sage::TokenStrides* strides, int64_t dim) {
      const int64_t token = dim + 7, tokens = c.batch * c.kv_heads * c.kv_len;
      std::vector<float> out(static_cast<size_t>(tokens * token), gap);
      for (int64_t n = 0; n < tokens; ++n) {
        std::copy_n(x->begin() + n * dim, dim, out.begin() + n * token);
      }
      *x = std::move(out);
      *strides = Strides(c.kv_heads, c.kv_len, token);
    };
    spread(&data.k, &data.p.k, c.qk_dim);
    spread(&data.v, &data.p.v, c.v_dim);
    AttentionForward(data.p, BuffersOf(data, &spaced), {isa, 1});
    Check(spaced == expected, std::string(c.name) + ", " + sage::IsaName(isa));
  }
}

void CheckForks(Isa isa) {
  const Case c = {"forks", 1, 4, 2, 1, 400, 64, 64};
  const sage::EngineOptions options{isa, 1};
  for (const Form& each : kForms) {
    const CacheForm form = each.form;
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

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "time") == 0) {
    Isa isa = sage::DetectIsa();
    if (argc > 2 && (!sage::ParseIsa(argv[2], &isa) || !sage::CanRun(isa))) return 2;
    Time(isa, argc > 3 ? std::atoi(argv[3]) : 1);
    return 0;
  }
  const bool quick = argc > 1 && std::strcmp(argv[1], "quick") == 0;
  CheckMisuse();
  for (int index = 0; index < sage::kIsaCount; ++index) {
    const Isa isa = static_cast<Isa>(index);
    if (!sage::CanRun(isa) || sage::KernelIsa(isa) != isa) continue;
    if (quick && isa == Isa::kPortable) continue;
    int n = 0;
    for (const Case& c : kCases) {
      if (!quick || n++ % 3 == 0) CheckCase(c, isa);
    }
    CheckGaps(isa, kNan);
    CheckGaps(isa, 1e6f);
    if (!quick) CheckForks(isa);
    std::printf("%s done\n", sage::IsaName(isa));
  }
  std::printf(failures == 0 ? "all checks hold\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
