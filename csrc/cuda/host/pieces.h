// How a call on host arrays is cut into pieces that follow each other through the device: whole
// key/value heads, each with all query heads that share it.
#ifndef SAGE_CUDA_HOST_PIECES_H_
#define SAGE_CUDA_HOST_PIECES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sage/problem.h"

namespace sage::cuda {

// Key/value heads [head, head + heads) of batches [batch, batch + batches); with more than one
// batch, all heads.
struct Piece {
  int64_t batch, batches, head, heads;
};

// Pieces of at most `units` heads (of one batch each counted by itself), in the order of the array.
inline std::vector<Piece> CutIntoPieces(const Problem& p, int64_t units) {
  std::vector<Piece> pieces;
  if (units >= p.kv_heads) {
    const int64_t step = std::max<int64_t>(1, units / std::max<int64_t>(1, p.kv_heads));
    for (int64_t b = 0; b < p.batch; b += step) {
      pieces.push_back({b, std::min(step, p.batch - b), 0, p.kv_heads});
    }
    return pieces;
  }
  // Nearly equal pieces: the last one must not be a small rest.
  const int64_t parts = (p.kv_heads + units - 1) / units;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t n = 0; n < parts; ++n) {
      const int64_t first = p.kv_heads * n / parts, last = p.kv_heads * (n + 1) / parts;
      pieces.push_back({b, 1, first, last - first});
    }
  }
  return pieces;
}

// Bytes that one key/value head of one batch brings to the device and back.
inline int64_t TransferOfUnit(const Problem& p, bool backward) {
  const int64_t rows = p.group() * p.q_len, tokens = p.kv_len;
  const int64_t q = rows * p.qk_dim, k = tokens * p.qk_dim, v = tokens * p.v_dim,
                o = rows * p.v_dim;
  const int64_t elements = backward ? 2 * (q + k + v + o) + rows : q + k + v + o + rows;
  return elements * static_cast<int64_t>(sizeof(float));
}

// Heads a piece. Small calls go in one: every piece costs launches and events, some 30 us. Others
// in eight, so that only an eighth of the copies is not overlapped; pieces stay between 8 MiB,
// which take as long to copy as their overhead, and 64 MiB, beyond which nothing gets faster.
inline int64_t UnitsOfPiece(const Problem& p, bool backward) {
  constexpr int64_t kPieces = 8, kLeast = int64_t{8} << 20, kMost = int64_t{64} << 20;
  const int64_t unit = std::max<int64_t>(1, TransferOfUnit(p, backward));
  const int64_t total = p.batch * p.kv_heads;
  const int64_t bytes = std::clamp(total * unit / kPieces, kLeast, kMost);
  return std::clamp<int64_t>(bytes / unit, 1, std::max<int64_t>(1, total));
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_PIECES_H_
