// Lines of memory to bring into L2, or into L1 where requests into L2 get lost
// (docs/kernels_cpu.md), while something else is computed, a few at each step of a loop. All at
// once they would take every buffer of outstanding misses: reads from L2 would wait behind them,
// and prefetches for each other.
#ifndef SAGE_CPU_FORWARD_FETCH_LINES_H_
#define SAGE_CPU_FORWARD_FETCH_LINES_H_

#include <cstdint>

#include "cpu/cpu_features.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

constexpr int64_t kLineFloats = 16;

// Whether lines of outputs are asked for in order to write them, else as others.
#if defined(SAGE_ISA_AMX)
constexpr bool kFetchesToWrite = true;
#else
constexpr bool kFetchesToWrite = false;
#endif

// Runs of lines. No function is called to take one, so that a loop keeps its accumulators in
// registers around it.
struct FetchLines {
  // Rows of six queries with strides, twice, and a few rows of K, V and Q beside them.
  static constexpr int kMostRuns = 64;
  struct Run {
    const float* at;
    int64_t lines;
    bool write;
  };
  Run runs[kMostRuns];
  int used, taken;
  const float* line;  // of the present run
  int64_t left;       // lines of it
  int64_t each;       // lines for each step
  int64_t lines;      // of all runs
  bool near;          // into L1, else L2
  bool write;         // the present run is to be written (kFetchesToWrite)

  // A kilobyte of runs that are not there stays as it is.
  FetchLines() : near(HasManyLineBuffers()) { Clear(); }

  void Clear() {
    used = taken = 0;
    left = lines = each = 0;
  }

  // `rows` rows of `dim` floats, to be written or read; those that there is no room for are left
  // out.
  void Add(const float* base, int64_t stride, int64_t rows, int64_t dim, bool to_write = false) {
    if (stride == dim) {
      dim *= rows;
      rows = rows > 0 ? 1 : 0;
    }
    const int64_t per_row = (dim + kLineFloats - 1) / kLineFloats;
    for (; rows > 0 && used < kMostRuns; --rows, base += stride) {
      runs[used++] = {base, per_row, to_write};
      lines += per_row;
    }
  }

  // All lines in about this many steps.
  void Spread(int64_t steps) {
    // Short division: this runs once for each tile.
    const uint32_t all = static_cast<uint32_t>(lines), parts = static_cast<uint32_t>(steps);
    each = parts > 0 ? (all + parts - 1) / parts : lines;
  }
};

// The lines of a step. Where it is goes to memory once: stored and read again for each line, that
// is all that lines wait for.
SAGE_INLINE void FetchStep(FetchLines* fetch) {
  const float* line = fetch->line;
  int64_t left = fetch->left;
  const bool near = fetch->near;
  for (int64_t n = fetch->each; n > 0; --n) {
    if (left == 0) {
      if (fetch->taken == fetch->used) {
        fetch->each = 0;
        break;
      }
      line = fetch->runs[fetch->taken].at;
      left = fetch->runs[fetch->taken].lines;
      if (kFetchesToWrite) fetch->write = fetch->runs[fetch->taken].write;
      ++fetch->taken;
    }
    if (kFetchesToWrite && fetch->write) {
      PrefetchToWrite(line);
    } else {
      PrefetchLine(line, near);
    }
    line += kLineFloats;
    --left;
  }
  fetch->line = line;
  fetch->left = left;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FETCH_LINES_H_
