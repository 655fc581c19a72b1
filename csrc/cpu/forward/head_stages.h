// Hands the work of a wave of heads to its workers, piece by piece.
//
// The pieces of a head come in three stages: statistics, packing, rows. A stage is open when all
// pieces of the one before it are done. A worker starts at a head of its own and takes pieces of it
// as long as one is open and free, then of the heads after it. So
//   - a head is read, packed and attended to in one cache (or a few) from its first statistic to
//     its last row: lines that another core has just written cost several times those of the own
//     L2;
//   - no worker waits for a stage of all heads, only for the last pieces of one, and only when no
//     other head has anything to do.
// A worker that waits holds no piece, and whoever holds one is running: the wait ends. Which worker
// computes a piece changes no bits.
#ifndef SAGE_CPU_FORWARD_HEAD_STAGES_H_
#define SAGE_CPU_FORWARD_HEAD_STAGES_H_

#include "cpu/forward/plan.h"
#include "cpu/thread_pool.h"

namespace sage {
namespace {

enum class Stage { kStatistics, kPacking, kRows };
constexpr int kStages = 3;

// A piece of work: number `at` of a stage of a head.
struct Piece {
  int64_t head;
  Stage stage;
  int64_t at;
};

class HeadStages {
 public:
  static int64_t Bytes(int64_t heads, int64_t workers) {
    return heads * static_cast<int64_t>(sizeof(State)) + workers * kLine;
  }

  // pieces[s] is the number of pieces of stage s of each head. A stage may be empty.
  HeadStages(uint8_t* memory, int64_t heads, const int64_t pieces[kStages], int64_t workers)
      : states_(reinterpret_cast<State*>(memory)),
        homes_(memory + heads * static_cast<int64_t>(sizeof(State))),
        heads_(heads) {
    for (int s = 0; s < kStages; ++s) pieces_[s] = pieces[s];
    for (int64_t h = 0; h < heads; ++h) states_[h] = {};
    for (int64_t w = 0; w < workers; ++w) *HomeOf(w) = w * heads / workers;
  }

  int64_t Pieces() const { return heads_ * (pieces_[0] + pieces_[1] + pieces_[2]); }

  // The next piece for this worker; to be called Pieces() times in all, by any workers, each of
  // which has finished its piece before it asks for another.
  Piece Take(int64_t worker) const {
    int64_t* home = HomeOf(worker);
    for (int64_t passes = 0;; ++passes) {
      int64_t h = *home;
      for (int64_t tried = 0; tried < heads_; ++tried) {
        Piece piece = {h, Stage::kStatistics, 0};
        if (TakeFrom(&states_[h], &piece)) return piece;
        // A home that only waits for the end of a stage stays the home.
        if (h == *home && IsTaken(states_[h])) *home = Next(h);
        h = Next(h);
      }
      WaitABit(passes);
    }
  }

  // Tells that a piece is done. True for the last one of its stage: the caller then does what
  // belongs between the stages, and opens the next by Open.
  bool Finish(const Piece& piece) const {
    const int s = static_cast<int>(piece.stage);
    return __atomic_add_fetch(&states_[piece.head].stage[s].done, 1, __ATOMIC_ACQ_REL) ==
           pieces_[s];
  }
  void Open(int64_t head, Stage stage) const {
    __atomic_store_n(&states_[head].open, static_cast<int64_t>(stage), __ATOMIC_RELEASE);
  }

 private:
  static constexpr int64_t kLine = 64;
  // Counters that workers write at the same time lie in cache lines of their own.
  struct alignas(64) Counters {
    int64_t taken, done;
  };
  struct alignas(64) State {
    int64_t open;  // the last open stage
    Counters stage[kStages];
  };

  bool TakeFrom(State* state, Piece* piece) const {
    const int64_t open = __atomic_load_n(&state->open, __ATOMIC_ACQUIRE);
    int64_t* taken = &state->stage[open].taken;
    // Looked at before it is counted up, so that idle workers leave the line shared.
    if (__atomic_load_n(taken, __ATOMIC_RELAXED) >= pieces_[open]) return false;
    piece->stage = static_cast<Stage>(open);
    piece->at = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
    return piece->at < pieces_[open];
  }

  // Nothing is left of the head.
  bool IsTaken(const State& state) const {
    constexpr int kLast = kStages - 1;
    return __atomic_load_n(&state.open, __ATOMIC_RELAXED) == kLast &&
           __atomic_load_n(&state.stage[kLast].taken, __ATOMIC_RELAXED) >= pieces_[kLast];
  }

  int64_t Next(int64_t head) const { return head + 1 < heads_ ? head + 1 : 0; }

  int64_t* HomeOf(int64_t worker) const {
    return reinterpret_cast<int64_t*>(homes_ + worker * kLine);
  }

  State* states_;
  uint8_t* homes_;
  int64_t heads_;
  int64_t pieces_[kStages];
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_HEAD_STAGES_H_
