// A box of elements in a strided host array, and its move to and from one compact row of bytes.
//
// The compact form holds the elements in the order of the axes, outermost first, without gaps: what
// is copied to and from the device. Any byte range of it can be moved on its own, so that transfers
// are cut where the staging memory ends and not where rows do.
#ifndef SAGE_CUDA_HOST_STRIDED_BOX_H_
#define SAGE_CUDA_HOST_STRIDED_BOX_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "sage/problem.h"

namespace sage::cuda {

struct StridedBox {
  // Elements, outermost axis first. An axis of one element has no stride.
  int64_t size[4];
  int64_t stride[4];
  int64_t element;  // bytes

  int64_t bytes() const { return size[0] * size[1] * size[2] * size[3] * element; }
};

// Runs of a box that lie together in both forms.
class BoxRuns {
 public:
  explicit BoxRuns(const StridedBox& box) {
    // Axes of one element disappear, neighbours that continue each other become one.
    int64_t size[4], stride[4];
    int axes = 0;
    for (int n = 0; n < 4; ++n) {
      if (box.size[n] == 1) continue;
      if (axes > 0 && stride[axes - 1] == box.size[n] * box.stride[n]) {
        size[axes - 1] *= box.size[n];
        stride[axes - 1] = box.stride[n];
      } else {
        size[axes] = box.size[n];
        stride[axes++] = box.stride[n];
      }
    }
    run_ = box.element;
    if (axes > 0 && stride[axes - 1] == 1) run_ *= size[--axes];
    outer_ = axes;
    for (int n = 0; n < axes; ++n) {
      size_[n] = size[n];
      stride_[n] = stride[n] * box.element;
    }
  }

  int64_t run() const { return run_; }

  // Calls move(strided offset, compact offset, bytes) for the parts of [from, to), bytes of the
  // compact form.
  template <typename Move>
  void ForEach(int64_t from, int64_t to, const Move& move) const {
    if (from >= to) return;
    int64_t at[4] = {0, 0, 0, 0};
    int64_t index = from / run_;
    for (int n = outer_ - 1; n >= 0; --n) {
      at[n] = index % size_[n];
      index /= size_[n];
    }
    int64_t inside = from % run_;
    while (from < to) {
      int64_t offset = inside;
      for (int n = 0; n < outer_; ++n) offset += at[n] * stride_[n];
      const int64_t bytes = std::min(run_ - inside, to - from);
      move(offset, from, bytes);
      from += bytes;
      inside = 0;
      for (int n = outer_ - 1; n >= 0 && ++at[n] == size_[n]; --n) at[n] = 0;
    }
  }

 private:
  int64_t run_;  // bytes
  int outer_;
  int64_t size_[4], stride_[4];  // of runs; strides in bytes
};

// Bytes [from, to) of the compact form, to `compact` (which starts at `from`).
inline void GatherBox(const StridedBox& box, const void* strided, int64_t from, int64_t to,
                      void* compact) {
  BoxRuns(box).ForEach(from, to, [&](int64_t offset, int64_t at, int64_t bytes) {
    std::memcpy(static_cast<char*>(compact) + (at - from),
                static_cast<const char*>(strided) + offset, static_cast<size_t>(bytes));
  });
}

// The way back. Elements between the strides stay as they are.
inline void ScatterBox(const StridedBox& box, void* strided, int64_t from, int64_t to,
                       const void* compact) {
  BoxRuns(box).ForEach(from, to, [&](int64_t offset, int64_t at, int64_t bytes) {
    std::memcpy(static_cast<char*>(strided) + offset,
                static_cast<const char*>(compact) + (at - from), static_cast<size_t>(bytes));
  });
}

// The way back for float32 that is added to what is there. `from` and `to` are whole elements.
inline void AddBox(const StridedBox& box, void* strided, int64_t from, int64_t to,
                   const void* compact) {
  BoxRuns(box).ForEach(from, to, [&](int64_t offset, int64_t at, int64_t bytes) {
    float* sum = reinterpret_cast<float*>(static_cast<char*>(strided) + offset);
    const float* more =
        reinterpret_cast<const float*>(static_cast<const char*>(compact) + (at - from));
    for (int64_t n = 0; n < bytes / static_cast<int64_t>(sizeof(float)); ++n) sum[n] += more[n];
  });
}

// float32 rows of `heads` heads of `batches` batches. Tokens come before heads where they do in the
// array, so that its rows lie together in longer runs. `strides` get those of the compact form.
inline StridedBox TokenBox(const TokenStrides& from, int64_t batches, int64_t heads, int64_t tokens,
                           int64_t dim, TokenStrides* strides) {
  constexpr int64_t kFloat = sizeof(float);
  if (from.token > from.head && heads > 1) {
    *strides = {tokens * heads * dim, dim, heads * dim};
    return {{batches, tokens, heads, dim}, {from.batch, from.token, from.head, 1}, kFloat};
  }
  *strides = {heads * tokens * dim, tokens * dim, dim};
  return {{batches, heads, tokens, dim}, {from.batch, from.head, from.token, 1}, kFloat};
}

// The mask of `heads` query heads of `batches` batches; broadcast axes stay broadcast.
inline StridedBox MaskBox(const Problem& p, int64_t batches, int64_t heads, MaskStrides* strides) {
  const auto size = [](int64_t stride, int64_t count) { return stride == 0 ? 1 : count; };
  const StridedBox box = {{size(p.mask.batch, batches), size(p.mask.head, heads),
                           size(p.mask.query, p.q_len), size(p.mask.key, p.kv_len)},
                          {p.mask.batch, p.mask.head, p.mask.query, p.mask.key},
                          p.mask_kind == MaskKind::kBoolean ? 1 : int64_t{sizeof(float)}};
  const auto stride = [&](int axis, int64_t inner) { return box.stride[axis] == 0 ? 0 : inner; };
  strides->key = stride(3, 1);
  strides->query = stride(2, box.size[3]);
  strides->head = stride(1, box.size[3] * box.size[2]);
  strides->batch = stride(0, box.size[3] * box.size[2] * box.size[1]);
  return box;
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_STRIDED_BOX_H_
