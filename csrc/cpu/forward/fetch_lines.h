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

// Runs of lines, taken from the last one on: those of the present tile lie above those of a head to
// come, which stay from tile to tile. No function is called to take one, so that a loop keeps its
// accumulators in registers around it.
struct FetchLines {
  // 32 rows of queries and of outputs with strides (AMX), and fewer than that of others.
  static constexpr int kMostRuns = 64;
  // Rows of lines at one distance.
  struct Run {
    const float* line;  // the next one
    int64_t left;       // of the present row, 1 at least
    const float* row;
    int64_t stride, rows;  // to the next row in floats, and rows with the present one
    int64_t per_row;
    bool write;  // they are to be written (kFetchesToWrite)
  };
  Run runs[kMostRuns];
  int used;
  int kept;       // those of a head to come
  int64_t each;   // lines for each step; 0 where no run is left
  int64_t lines;  // of the tile
  bool near;      // into L1, else L2

  // A few kilobytes of runs that are not there stay as they are.
  FetchLines() : near(HasManyLineBuffers()) { Clear(); }

  void Clear() {
    used = kept = 0;
    each = lines = 0;
  }

  // `rows` rows of `dim` floats, to be written or read; those that there is no room for are left
  // out.
  void Add(const float* base, int64_t stride, int64_t rows, int64_t dim, bool to_write = false) {
    if (rows <= 0 || used == kMostRuns) return;
    if (stride == dim) {
      dim *= rows;
      rows = 1;
    }
    const int64_t per_row = (dim + kLineFloats - 1) / kLineFloats;
    runs[used++] = {base, per_row, base, stride, rows, per_row, to_write};
    lines += rows * per_row;
  }

  // What was added so far stays until it is taken.
  void Keep() { kept = used; }

  // A tile that takes `from_kept` lines of what is kept, beside what is added to it. What the tile
  // before it left over is not wanted any more.
  void BeginTile(int64_t from_kept) {
    kept = used < kept ? used : kept;
    used = kept;
    lines = kept > 0 ? from_kept : 0;
  }

  // The tile's lines in about this many steps.
  void Spread(int64_t steps) {
    // Short division: this runs once for each tile.
    const uint32_t all = static_cast<uint32_t>(lines), parts = static_cast<uint32_t>(steps);
    each = parts > 0 ? (all + parts - 1) / parts : lines;
  }

  // All that is left of what was added to the tile in one step.
  void SpreadRest() {
    each = 0;
    for (int i = kept; i < used; ++i) each += runs[i].left + (runs[i].rows - 1) * runs[i].per_row;
  }
};

// The lines of a step.
SAGE_INLINE void FetchStep(FetchLines* fetch) {
  const bool near = fetch->near;
  for (int64_t n = fetch->each; n > 0;) {
    FetchLines::Run* run = fetch->runs + fetch->used - 1;
    const float* line = run->line;
    const int64_t left = run->left, taken = n < left ? n : left;
    const float* end = line + taken * kLineFloats;
    n -= taken;
    if (kFetchesToWrite && run->write) {
      for (; line != end; line += kLineFloats) PrefetchToWrite(line);
    } else {
      for (; line != end; line += kLineFloats) PrefetchLine(line, near);
    }
    if (left > taken) {
      run->line = end;
      run->left = left - taken;
    } else if (--run->rows > 0) {
      run->line = run->row += run->stride;
      run->left = run->per_row;
    } else if (--fetch->used == 0) {
      fetch->each = 0;
      break;
    }
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FETCH_LINES_H_
