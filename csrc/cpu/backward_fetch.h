// Rows that the backward pass needs soon, fetched into the cache a few at a time while it
// multiplies: the products of a tile read little from memory, and what copies the next rows waits
// for nothing else.
#ifndef SAGE_CPU_BACKWARD_FETCH_H_
#define SAGE_CPU_BACKWARD_FETCH_H_

#include <cstdint>

#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

struct FetchList {
  struct Rows {
    const float* row;
    int64_t stride, dim, left;
  };
  static constexpr int kMost = 3;  // Q, dO and dQ, or K and V
  Rows rows[kMost];
  int count;
  int64_t per_step;  // rows of each source
};

// Rows of each source at a time: S and dP of a full tile have 96 register tiles on AVX-512, twice
// as many on AVX2.
constexpr int64_t kFetchedQueries = 1, kFetchedKeys = 2;

SAGE_INLINE void Announce(FetchList* list, const float* first, int64_t stride, int64_t dim,
                          int64_t rows) {
  list->rows[list->count++] = {first, stride, dim, rows};
}

SAGE_INLINE void FetchSome(FetchList* list) {
  constexpr int kLineFloats = 16;
  for (int i = 0; i < list->count; ++i) {
    FetchList::Rows& rows = list->rows[i];
    const int64_t now = list->per_step < rows.left ? list->per_step : rows.left;
    for (int64_t r = 0; r < now; ++r, rows.row += rows.stride) {
      for (int64_t d = 0; d < rows.dim; d += kLineFloats) Prefetch(rows.row + d);
    }
    rows.left -= now;
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_BACKWARD_FETCH_H_
