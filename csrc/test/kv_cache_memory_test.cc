// A key/value cache where memory ends: what is refused, and what is left afterwards. The address
// space of this process is limited for that, so it runs by itself.
#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <vector>

#include "sage/kv_cache.h"

namespace {

using sage::CacheForm;
using sage::KvCache;
using sage::StatusCode;

constexpr int64_t kHeads = 8, kDim = 128, kMebibyte = int64_t{1} << 20;
constexpr int64_t kFew = 1000, kTooMany = 60000;  // tokens: 8 and 480 MiB
constexpr int64_t kRoom = 256 * kMebibyte;
constexpr sage::KvCacheShape kShape = {1, kHeads, kDim, kDim, CacheForm::kFloat32};
constexpr sage::EngineOptions kOptions = {sage::Isa::kPortable, 1};

int failures = 0;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAIL %s\n", what);
  ++failures;
}

// Bytes of the address space in use.
int64_t AddressSpace() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * 4096;
}

int64_t MostResidentBytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

void CheckCapacity() {
  std::unique_ptr<KvCache> cache;
  const int64_t before = MostResidentBytes();
  const sage::Status status = KvCache::Create(kShape, int64_t{1} << 20, &cache);
  Check(status.code == StatusCode::kOutOfMemory, "8 GiB are refused");
  Check(MostResidentBytes() - before < 32 * kMebibyte, "before memory is written");
  Check(KvCache::Create(kShape, int64_t{1} << 40, &cache).code == StatusCode::kOutOfMemory,
        "what no machine has is refused");
}

void CheckAppend(const std::vector<float>& tokens) {
  std::unique_ptr<KvCache> cache;
  Check(KvCache::Create(kShape, 0, &cache).ok(), "a cache");
  Check(cache->Append(tokens.data(), tokens.data(), kFew, kOptions).ok(), "tokens that fit");
  const int64_t bytes = cache->bytes();
  const sage::Status status = cache->Append(tokens.data(), tokens.data(), kTooMany, kOptions);
  Check(status.code == StatusCode::kOutOfMemory, "tokens that do not fit are refused");
  Check(cache->length() == kFew, "the tokens are as they were");
  Check(cache->bytes() == bytes, "and so is the memory");
  void* const others = std::malloc(static_cast<size_t>(kRoom / 2));
  Check(others != nullptr, "what was free is free again");
  std::free(others);
  Check(cache->Append(tokens.data(), tokens.data(), kFew, kOptions).ok(), "fewer tokens fit");
}

}  // namespace

int main() {
  const std::vector<float> tokens(static_cast<size_t>(kHeads * kTooMany * kDim), 0.5f);
  const int64_t used = AddressSpace();
  if (used == 0) {
    std::puts("not checked: the system does not tell the size of a process");
    return 0;
  }
  const rlimit limit = {static_cast<rlim_t>(used + kRoom), static_cast<rlim_t>(used + kRoom)};
  if (setrlimit(RLIMIT_AS, &limit) != 0) return 1;
  CheckCapacity();
  CheckAppend(tokens);
  std::printf(failures == 0 ? "all checks hold\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
