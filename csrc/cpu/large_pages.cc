// The request for large pages, by system.
#include "cpu/large_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sage {

void AskForLargePages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;  // of x86-64, and of ARM with base pages of 4 KiB
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  // A system without large pages says so; nothing is lost then.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void AskForLargePages(float* memory, const TokenStrides& strides, int64_t batch, int64_t heads,
                      int64_t tokens, int64_t dim) {
  const int64_t elements = batch * heads * tokens * dim;
  if (memory == nullptr || RequiredElements(strides, batch, heads, tokens, dim) != elements) return;
  AskForLargePages(memory, static_cast<size_t>(elements) * sizeof(float));
}

}  // namespace sage
