// Large pages for results that are about to be written for the first time.
//
// A page of 4 KiB that is touched for the first time costs 1.3 us on a virtual machine (Zen 5,
// Linux 6.18), of 2 MiB .07 to .3 us for each 4 KiB: outputs of 25 MiB 9 ms or 1 to 2, where
// 64 x 12 heads of 128 tokens take 9 ms to compute. Most systems give large pages to those who ask.
#ifndef SAGE_CPU_LARGE_PAGES_H_
#define SAGE_CPU_LARGE_PAGES_H_

#include <cstddef>
#include <cstdint>

#include "sage/problem.h"

namespace sage {

// Pages of 2 MiB that lie wholly within some memory.
struct LargePages {
  uintptr_t first;
  int64_t count;
};

// Asks for large pages within [memory, memory + bytes), all of which the caller is going to write;
// what lies around is left as it is. None where the system knows no such request.
LargePages AskForLargePages(void* memory, size_t bytes);

// Asks for large pages for a tensor of `batch` x `heads` x `tokens` rows of `dim`, unless there are
// gaps between them. Where heads are more than threads, all pages are touched at once, without
// changing what they hold: a page is zeroed by the thread that comes first, and threads that write
// neighbouring short heads would all wait for the same one.
void PrepareResults(float* memory, const TokenStrides& strides, int64_t batch, int64_t heads,
                    int64_t tokens, int64_t dim, int threads);

}  // namespace sage

#endif  // SAGE_CPU_LARGE_PAGES_H_
