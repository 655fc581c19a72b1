#include "cuda/host/pass.h"

namespace sage::cuda {

SharedMask ShareMask(const Problem& p, const void* mask) {
  SharedMask shared;
  if (p.mask_kind == MaskKind::kNone) return shared;
  const bool by_batch = p.batch == 1 || p.mask.batch != 0;
  const bool by_head = p.q_heads == 1 || p.mask.head != 0;
  if (by_batch && by_head) return shared;
  shared.used = true;
  shared.area.Add(MaskBox(p, p.batch, p.q_heads, &shared.strides), mask);
  return shared;
}

void Pass::Begin(const Piece& piece, int place, Work* work) const {
  work->problem = problem_;
  Problem& p = work->problem;
  p.batch = piece.batches;
  p.kv_heads = piece.heads;
  p.q_heads = piece.heads * problem_.group();
  work->mask = 0;
  if (problem_.mask_kind == MaskKind::kNone) return;
  const MaskStrides& from = shared_.used ? shared_.strides : problem_.mask;
  const int64_t element = problem_.mask_kind == MaskKind::kBoolean ? 1 : sizeof(float);
  const int64_t offset =
      (piece.batch * from.batch + piece.head * problem_.group() * from.head) * element;
  if (shared_.used) {
    p.mask = shared_.strides;
    work->mask = offset;
  } else {
    const StridedBox box = MaskBox(problem_, p.batch, p.q_heads, &p.mask);
    work->at_in[place] = work->in.Add(box, static_cast<const char*>(mask_) + offset);
  }
}

int64_t Pass::AddRows(const Piece& piece, const float* host, const TokenStrides& from, bool queries,
                      int64_t dim, Area* area, TokenStrides* strides) const {
  const int64_t group = queries ? problem_.group() : 1;
  const int64_t tokens = queries ? problem_.q_len : problem_.kv_len;
  const StridedBox box = TokenBox(from, piece.batches, piece.heads * group, tokens, dim, strides);
  return area->Add(box, host + piece.batch * from.batch + piece.head * group * from.head);
}

int64_t Pass::AddValues(const Piece& piece, const float* host, Area* area) const {
  const int64_t heads = problem_.q_heads, rows = problem_.q_len;
  const StridedBox box = {{piece.batches, piece.heads * problem_.group(), rows, 1},
                          {heads * rows, rows, 1, 1},
                          sizeof(float)};
  return area->Add(box, host + (piece.batch * heads + piece.head * problem_.group()) * rows);
}

const void* Pass::MaskOf(const Work& work, int place, const char* in, const char* mask) const {
  if (problem_.mask_kind == MaskKind::kNone) return nullptr;
  return shared_.used ? mask + work.mask : in + work.at_in[place];
}

}  // namespace sage::cuda
