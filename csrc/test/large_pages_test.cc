// Which pages become large: those within the results, and nothing around them.
#include "cpu/large_pages.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace {

using Range = std::pair<uintptr_t, uintptr_t>;

constexpr uintptr_t kMebibyte = uintptr_t{1} << 20, kPage = 2 * kMebibyte;

int failures = 0;
bool touched = false;  // by AskedForTensor, the second large page

void Check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAIL %s\n", what);
  ++failures;
}

// Mappings of this process for which large pages were asked ("hg" among their flags), as the system
// tells them.
std::vector<Range> Asked() {
  std::vector<Range> ranges;
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  Range mapping = {};
  while (std::getline(maps, line)) {
    unsigned long begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) mapping = {begin, end};
    if (line.rfind("VmFlags:", 0) != 0 || line.find(" hg") == std::string::npos) continue;
    if (!ranges.empty() && ranges.back().second == mapping.first) {
      ranges.back().second = mapping.second;
    } else {
      ranges.push_back(mapping);
    }
  }
  return ranges;
}

// 16 MiB from a multiple of 2 MiB on, with as much before and behind.
class Memory {
 public:
  Memory() {
    memory_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) std::perror("mmap");
  }
  ~Memory() { munmap(memory_, kBytes); }
  uintptr_t begin() const {
    return (reinterpret_cast<uintptr_t>(memory_) + 17 * kMebibyte) / kPage * kPage;
  }

 private:
  static constexpr size_t kBytes = 50 * kMebibyte;
  void* memory_;
};

// What is asked for where `bytes` are, from `offset` bytes behind the first large page on.
std::vector<Range> AskedFor(uintptr_t offset, size_t bytes) {
  const Memory memory;
  const uintptr_t first = memory.begin();
  sage::AskForLargePages(reinterpret_cast<void*>(first + offset), bytes);
  std::vector<Range> asked = Asked();
  for (Range& range : asked) range = {range.first - first, range.second - first};
  return asked;
}

std::vector<Range> AskedForTensor(const sage::TokenStrides& strides, int64_t heads, int64_t tokens,
                                  int64_t dim) {
  const Memory memory;
  const uintptr_t first = memory.begin();
  float* results = reinterpret_cast<float*>(first);
  results[3] = 1.5f;
  sage::PrepareResults(results, strides, 1, heads, tokens, dim, 2);
  unsigned char there = 0;
  mincore(results + kPage / sizeof(float), 4096, &there);
  touched = there & 1;
  Check(results[3] == 1.5f && results[kPage / sizeof(float)] == 0.0f, "nothing is changed");
  std::vector<Range> asked = Asked();
  for (Range& range : asked) range = {range.first - first, range.second - first};
  return asked;
}

// Whether this system has large pages at all.
bool HasLargePages() {
  const Memory memory;
  return madvise(reinterpret_cast<void*>(memory.begin()), kPage, MADV_HUGEPAGE) == 0;
}

}  // namespace

int main() {
  if (!HasLargePages()) {
    std::printf("this system has no large pages: only that nothing breaks is checked\n");
    Check(AskedFor(0, 8 * kMebibyte).empty(), "nothing is asked for");
    return failures == 0 ? 0 : 1;
  }
  const auto whole = [](uintptr_t begin, uintptr_t end) {
    return std::vector<Range>{{begin * kMebibyte, end * kMebibyte}};
  };
  Check(AskedFor(0, 8 * kMebibyte) == whole(0, 8), "whole pages");
  Check(AskedFor(4, 8 * kMebibyte) == whole(2, 8), "a first page that begins before the results");
  Check(AskedFor(0, 8 * kMebibyte - 4) == whole(0, 6), "a last page that ends behind them");
  Check(AskedFor(kMebibyte, 3 * kMebibyte) == whole(2, 4), "one page");
  Check(AskedFor(4, 4 * kMebibyte - 8).empty(), "no page lies within");
  Check(AskedFor(0, 0).empty(), "no bytes");

  // 4 heads of 4,096 tokens of 64: 4 MiB.
  Check(AskedForTensor({0, 4096 * 64, 64}, 4, 4096, 64) == whole(0, 4), "heads outside");
  Check(touched, "several threads touch the pages");
  Check(AskedForTensor({0, 64, 4 * 64}, 4, 4096, 64) == whole(0, 4), "tokens outside");
  Check(AskedForTensor({0, 4096 * 96, 96}, 4, 4096, 64).empty(), "rows with gaps");
  Check(!touched, "what has gaps is not touched");
  Check(AskedForTensor({0, 8192 * 64, 64}, 4, 4096, 64).empty(), "heads with gaps");
  Check(AskedForTensor({0, 4096 * 64, 64}, 4, 0, 64).empty(), "no tokens");
  if (failures == 0) std::printf("all checks hold\n");
  return failures == 0 ? 0 : 1;
}
