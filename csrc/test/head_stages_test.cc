// The order in which workers take the pieces of a wave (csrc/cpu/forward/head_stages.h): each piece
// once, a stage only when the one before it is done, one head after the other where a worker is
// alone; with threads of the pool, over sizes that leave some without a head and some without work.
#include "cpu/forward/head_stages.h"

#include <atomic>
#include <cstdio>
#include <vector>

#include "cpu/thread_pool.h"
#include "sage/capabilities.h"

namespace {

using sage::HeadStages;
using sage::Piece;
using sage::Stage;

int failures = 0;

void Expect(bool good, const char* what, int64_t a, int64_t b) {
  if (good) return;
  ++failures;
  std::printf("failed: %s (%lld, %lld)\n", what, static_cast<long long>(a),
              static_cast<long long>(b));
}

struct Memory {
  explicit Memory(int64_t bytes) : held(static_cast<size_t>(bytes) + 64) {}
  uint8_t* Aligned() {
    const size_t at = reinterpret_cast<size_t>(held.data());
    return held.data() + ((at + 63) / 64 * 64 - at);
  }
  std::vector<uint8_t> held;
};

// What is done of one head, counted apart from the class under test.
struct Done {
  std::atomic<int64_t> pieces[sage::kStages] = {};
};

void RunThreads(int64_t heads, int64_t statistics, int64_t packing, int64_t rows, int threads) {
  const int64_t pieces[sage::kStages] = {statistics, packing, rows};
  Memory memory(HeadStages::Bytes(heads, threads));
  const HeadStages stages(memory.Aligned(), heads, pieces, threads);
  std::vector<Done> done(static_cast<size_t>(heads));
  std::vector<std::atomic<int>> taken(static_cast<size_t>(stages.Pieces()));
  for (std::atomic<int>& x : taken) x = 0;
  for (int64_t h = 0; statistics == 0 && h < heads; ++h) stages.Open(h, Stage::kPacking);
  std::atomic<int> early{0};
  sage::ParallelFor(stages.Pieces(), threads, [&](int64_t, int worker) {
    const Piece piece = stages.Take(worker);
    const int s = static_cast<int>(piece.stage);
    Done& head = done[static_cast<size_t>(piece.head)];
    if (s > 0 && head.pieces[s - 1] != pieces[s - 1]) ++early;
    int64_t number = piece.head * (statistics + packing + rows) + piece.at;
    for (int before = 0; before < s; ++before) number += pieces[before];
    ++taken[static_cast<size_t>(number)];
    ++head.pieces[s];
    if (piece.stage != Stage::kRows && stages.Finish(piece)) {
      stages.Open(piece.head, static_cast<Stage>(s + 1));
    }
  });
  Expect(early == 0, "a stage opened early", heads, early);
  for (size_t i = 0; i < taken.size(); ++i) {
    Expect(taken[i] == 1, "a piece not taken once", static_cast<int64_t>(i), taken[i]);
  }
}

// A worker finishes its head before it turns to another, and starts at a head of its own.
void RunAlone() {
  constexpr int64_t kHeads = 5;
  const int64_t pieces[sage::kStages] = {2, 3, 4};
  for (int64_t worker = 0; worker < 3; ++worker) {
    Memory memory(HeadStages::Bytes(kHeads, 3));
    const HeadStages stages(memory.Aligned(), kHeads, pieces, 3);
    int64_t turns = 0, last = worker * kHeads / 3;
    for (int64_t i = 0; i < stages.Pieces(); ++i) {
      const Piece piece = stages.Take(worker);
      turns += piece.head != last;
      last = piece.head;
      if (piece.stage != Stage::kRows && stages.Finish(piece)) {
        stages.Open(piece.head, static_cast<Stage>(static_cast<int>(piece.stage) + 1));
      }
    }
    Expect(turns == kHeads - 1, "turns to another head", worker, turns);
  }
}

}  // namespace

int main() {
  RunAlone();
  for (const int threads : {1, 2, 3, 16}) {
    for (int round = 0; round < 20; ++round) {
      RunThreads(1, 1, 1, 1, threads);
      RunThreads(1, 8, 8, 8, threads);
      RunThreads(3, 0, 5, 7, threads);
      RunThreads(12, 8, 8, 8, threads);
      RunThreads(40, 1, 1, 2, threads);
    }
  }
  std::printf("head_stages_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
