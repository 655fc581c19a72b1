// The request for large pages, by system.
#include "cpu/large_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/thread_pool.h"

namespace sage {
namespace {

// Of x86-64, and of ARM with base pages of 4 KiB.
[[maybe_unused]] constexpr uintptr_t kPage = uintptr_t{2} << 20;

#if defined(__linux__) && defined(MADV_HUGEPAGE)
// A write that changes nothing. A load first would map a page of zeros, which older systems replace
// by small pages when it is written.
void Touch(uintptr_t address) {
  char expected = 0;
  __atomic_compare_exchange_n(reinterpret_cast<char*>(address), &expected, char{0}, false,
                              __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
#endif

}  // namespace

LargePages AskForLargePages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  // A system without large pages refuses; nothing is lost then.
  if (begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0) {
    return {begin, static_cast<int64_t>((end - begin) / kPage)};
  }
#endif
  return {0, 0};
}

void PrepareResults(float* memory, const TokenStrides& strides, int64_t batch, int64_t heads,
                    int64_t tokens, int64_t dim, int threads) {
  const int64_t elements = batch * heads * tokens * dim;
  if (memory == nullptr || RequiredElements(strides, batch, heads, tokens, dim) != elements) return;
  const LargePages pages = AskForLargePages(memory, static_cast<size_t>(elements) * sizeof(float));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (threads < 2 || pages.count < 2 || batch * heads <= threads) return;
  ParallelFor(pages.count, threads, [&](int64_t page, int) {
    Touch(pages.first + static_cast<uintptr_t>(page) * kPage);
  });
#endif
}

}  // namespace sage
