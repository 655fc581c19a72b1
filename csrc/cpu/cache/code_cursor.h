// Where in the pages of a cache lines of codes are asked for, ahead of the products that need them.
//
//   part of a head in a page:   K codes | V codes | scales, sums, marks
//   products are here:               ^
//   lines are asked for here:               ^   so many bytes ahead, then in the part of the next
//                                               page, with as many lines as the products take
//
// Memory answers best to lines that are asked for evenly and in the order of their use: in bursts
// it rests between them, and some are lost. So where several passes go over the same codes, each
// asks for its share, and the softmax, which reads no codes, asks for some too.
#ifndef SAGE_CPU_CACHE_CODE_CURSOR_H_
#define SAGE_CPU_CACHE_CODE_CURSOR_H_

#include <cstdint>

#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

constexpr int64_t kLineBytes = 64;

struct CodeCursor {
  const uint8_t* at;
  int64_t left;         // bytes of codes from there to the end of its part
  const uint8_t* next;  // the part after that
  int64_t budget;       // bytes that this step may still ask for
  int passes, turn;     // every so many calls ask, the next one after `turn` calls
  bool near;            // into L1, else L2

  // A step over `part`, whose codes are `bytes` long; `next_part` is read after it. The cursor goes
  // on from where the step before left it in this part, else begins `distance` bytes ahead.
  void BeginStep(const uint8_t* part, int64_t bytes, const uint8_t* next_part, int64_t distance) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(part);
    if (offset > static_cast<uintptr_t>(bytes)) at = part + distance;
    next = next_part;
    left = part + bytes - at;
    budget = bytes;
    turn = 1;
    if (left <= 0) TakeNext();
  }
  void SetPasses(int count) {
    passes = count;
    if (turn > count) turn = count;
  }
  template <int kLines>
  __attribute__((always_inline)) void Ask() {
    if (--turn > 0) return;
    turn = passes;
    if (budget <= 0) return;
    if (near) {
#pragma GCC unroll 4
      for (int n = 0; n < kLines; ++n) PrefetchNear(at + n * kLineBytes);
    } else {
#pragma GCC unroll 4
      for (int n = 0; n < kLines; ++n) Prefetch(at + n * kLineBytes);
    }
    at += kLines * kLineBytes;
    left -= kLines * kLineBytes;
    budget -= kLines * kLineBytes;
    if (left <= 0) TakeNext();
  }

 private:
  // The end of that part is told before the cursor gets there.
  void TakeNext() {
    at = next;
    left = INT64_MAX / 2;
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_CODE_CURSOR_H_
