// The backward pass on one instruction set (backward.h): float32, tile by tile; the scores never
// leave the cache.
//
// A tile is up to kQueryRows queries against kKeyRows keys. Its five products are three shapes of
// one register kernel, C[R rows][V vectors] = sum over k of A(row, k) · B[k][V vectors]:
//   S  = Q K^T      A = rows of Q         B = K transposed, in panels
//   dP = dO V^T     A = rows of dO        B = V transposed, in panels
//   dV += P^T dO    A = columns of P      B = rows of dO
//   dK += dS^T Q    A = columns of dS     B = rows of Q
//   dQ += dS K      A = rows of dS        B = rows of K
// Every product runs only over the keys and queries that causality and window let see each other;
// where a register tile reaches past them, P and dS are 0.
//
// Values that are not finite: what a query does not see must not reach it, but 0 · NaN would. Tiles
// that hide something and hold such a value go through AccumulatePairs, which leaves hidden pairs
// out instead of multiplying by their zeros.
//
// Compiled once per instruction set, so everything but the last function has internal linkage, and
// nothing is called that the linker could share with another file: no members of problem.h, no
// std:: templates.
#include <cstdint>
#include <cstring>

#include "cpu/backward.h"
#include "cpu/backward_product.h"
#include "cpu/backward_tile.h"
#include "cpu/simd/simd.h"

namespace sage {
namespace {

// out[keys][dim] += weights^T · rows: dV from P and dO, dK from dS and Q.
void AccumulateKeys(const Worker& w, const float* weights, const float* rows, int dim, float* out) {
  const int vectors = dim / kLanes, width = PanelWidth(vectors);
  for (int v = 0; v < vectors; v += width) {
    const int count = static_cast<int>(MinOf(width, vectors - v));
    int begin = 0, end = 0;  // queries that see a key of the strip
    for (int j = 0; j < w.keys; j += kRows) {
      const int strip = static_cast<int>(MinOf(kRows, w.keys - j));
      while (begin < w.queries && w.high[begin] <= j) ++begin;
      while (end < w.queries && w.low[end] < j + strip) ++end;
      if (begin >= end) continue;
      MultiplyTile<true>(strip, count,
                         {end - begin, weights + begin * kScoreStride + j, kScoreStride,
                          rows + static_cast<int64_t>(begin) * dim + v * kLanes, dim},
                         AddSums{out + static_cast<int64_t>(j) * dim + v * kLanes, dim});
    }
  }
}

// dQ += scale · dS K, into the caller's rows.
void AccumulateQueries(const Worker& w, float* d_q, int64_t stride) {
  const float scale = static_cast<float>(w.problem->scale);
  const int dim = w.qk_padded, vectors = dim / kLanes, width = PanelWidth(vectors);
  for (int v = 0; v < vectors; v += width) {
    const int count = static_cast<int>(MinOf(width, vectors - v));
    const int column = v * kLanes;
    for (int r = 0; r < w.queries; r += kRows) {
      const int rows = static_cast<int>(MinOf(kRows, w.queries - r));
      const int low = w.low[r], high = w.high[r + rows - 1];
      if (low >= high) continue;
      const Product product = {high - low, w.d_s + r * kScoreStride + low, kScoreStride,
                               w.k_rows + static_cast<int64_t>(low) * dim + column, dim};
      float* out = d_q + r * stride + column;
      if (column + count * kLanes <= w.qk_dim) {
        MultiplyTile<false>(rows, count, product, AddScaledSums{out, stride, scale});
        continue;
      }
      // The caller's rows end within the last vector.
      MultiplyTile<false>(rows, count, product, WriteSums{w.d_q, kPanel});
      ScaleRows<true>(w.d_q, kPanel, scale, rows, w.qk_dim - column, out, stride);
    }
  }
}

SAGE_INLINE void AddMultiple(float factor, const float* in, int padded, float* out) {
  for (int d = 0; d < padded; d += kLanes)
    Store(out + d, Fma(Set1(factor), Load(in + d), Load(out + d)));
}

// The same three products over visible pairs alone. P of a visible pair is never 0: Exp2 ends above
// it.
void AccumulatePairs(const Worker& w, bool of_keys, float* d_q, int64_t stride) {
  const int qk = w.qk_padded, v = w.v_padded;
  for (int r = 0; r < w.queries; ++r) {
    const float* p = w.p + r * kScoreStride;
    const float* d_s = w.d_s + r * kScoreStride;
    std::memset(w.d_q, 0, static_cast<size_t>(qk) * sizeof(float));
    for (int j = w.low[r]; j < w.high[r]; ++j) {
      if (p[j] == 0.0f) continue;
      if (of_keys) {
        AddMultiple(p[j], w.d_o_rows + static_cast<int64_t>(r) * v, v,
                    w.d_v + static_cast<int64_t>(j) * v);
        AddMultiple(d_s[j], w.q_rows + static_cast<int64_t>(r) * qk, qk,
                    w.d_k + static_cast<int64_t>(j) * qk);
      }
      if (d_q != nullptr) AddMultiple(d_s[j], w.k_rows + static_cast<int64_t>(j) * qk, qk, w.d_q);
    }
    if (d_q != nullptr) {
      ScaleRows<true>(w.d_q, qk, static_cast<float>(w.problem->scale), 1, w.qk_dim,
                      d_q + r * stride, stride);
    }
  }
}

// The loaded queries against the loaded keys.
void RunTile(Worker* w, bool of_keys, bool of_queries) {
  const MaskGradient mask = w->plan->mask_gradient;
  const bool add_mask_gradient = (mask == MaskGradient::kElements && of_queries) ||
                                 (mask == MaskGradient::kColumns && of_keys);
  const bool full = ScoreTile(w, add_mask_gradient);
  const TokenStrides& strides = w->problem->q;
  float* d_q =
      of_queries ? w->buffers->d_q + At(strides, w->batch, w->head, w->query_begin) : nullptr;
  if (!full && !(w->queries_finite && w->keys_finite)) {
    AccumulatePairs(*w, of_keys, d_q, strides.token);
    return;
  }
  if (of_keys) {
    AccumulateKeys(*w, w->p, w->d_o_rows, w->v_padded, w->d_v);
    AccumulateKeys(*w, w->d_s, w->q_rows, w->qk_padded, w->d_k);
  }
  if (of_queries) AccumulateQueries(*w, d_q, strides.token);
}

// dK and dV of one key block over all queries of the group, and its part of their dQ if asked for.
// False when cancelled.
bool RunKeyBlock(Worker* w, int64_t key_begin, int keys, bool of_queries) {
  const Problem& p = *w->problem;
  LoadKeys(w, key_begin, keys);
  std::memset(w->d_k, 0, static_cast<size_t>(keys) * w->qk_padded * sizeof(float));
  std::memset(w->d_v, 0, static_cast<size_t>(keys) * w->v_padded * sizeof(float));
  const int64_t offset = w->plan->offset;
  const int64_t begin =
      p.window_right < 0 ? 0 : Clamp(key_begin - offset - p.window_right, p.q_len);
  const int64_t end =
      p.window_left < 0 ? p.q_len : Clamp(key_begin + keys - offset + p.window_left, p.q_len);
  for (int64_t head = 0; head < w->plan->group; ++head) {
    w->head = w->kv_head * w->plan->group + head;
    for (int64_t i = begin; i < end; i += kQueryRows) {
      if (Cancelled(*w)) return false;
      LoadQueries(w, i, static_cast<int>(MinOf(kQueryRows, end - i)));
      w->fetch.count = 0;
      const int64_t next = i + kQueryRows;
      w->fetch.per_step = next < end ? kFetchedQueries : kFetchedKeys;
      if (next < end) {
        AnnounceQueries(w, w->head, next, MinOf(next + kQueryRows, end), of_queries);
      } else if (head + 1 < w->plan->group) {
        AnnounceQueries(w, w->head + 1, begin, MinOf(begin + kQueryRows, end), of_queries);
      } else if (key_begin + keys < p.kv_len) {
        AnnounceKeys(w, key_begin + keys, MinOf(key_begin + keys + kKeyRows, p.kv_len));
      }
      RunTile(w, true, of_queries);
    }
  }
  ScaleRows<false>(w->d_k, w->qk_padded, static_cast<float>(p.scale), keys, w->qk_dim,
                   w->buffers->d_k + At(p.k, w->batch, w->kv_head, key_begin), p.k.token);
  ScaleRows<false>(w->d_v, w->v_padded, 1.0f, keys, w->v_dim,
                   w->buffers->d_v + At(p.v, w->batch, w->kv_head, key_begin), p.v.token);
  return true;
}

// ---- Entry points
// -------------------------------------------------------------------------------------------------

void Heads(const BackwardPlan& plan, const BackwardRange& range, float* scratch) {
  Worker w;
  Begin(plan, scratch, &w);
  const Problem& p = *w.problem;
  for (w.batch = range.batch_begin; w.batch < range.batch_end; ++w.batch) {
    for (w.kv_head = range.kv_begin; w.kv_head < range.kv_end; ++w.kv_head) {
      for (int64_t head = 0; head < plan.group; ++head) {
        ZeroRows(plan.buffers->d_q + At(p.q, w.batch, w.kv_head * plan.group + head, 0), p.q.token,
                 p.q_len, w.qk_dim);
      }
      for (int64_t j = 0; j < p.kv_len; j += kKeyRows) {
        if (!RunKeyBlock(&w, j, static_cast<int>(MinOf(kKeyRows, p.kv_len - j)), true)) return;
      }
    }
  }
}

void Keys(const BackwardPlan& plan, const BackwardRange& range, float* scratch) {
  Worker w;
  Begin(plan, scratch, &w);
  for (w.batch = range.batch_begin; w.batch < range.batch_end; ++w.batch) {
    for (w.kv_head = range.kv_begin; w.kv_head < range.kv_end; ++w.kv_head) {
      if (!RunKeyBlock(&w, range.row_begin, static_cast<int>(range.row_end - range.row_begin),
                       false))
        return;
    }
  }
}

void Queries(const BackwardPlan& plan, const BackwardRange& range, float* scratch) {
  Worker w;
  Begin(plan, scratch, &w);
  const Problem& p = *w.problem;
  const int64_t first = range.row_begin + plan.offset, last = range.row_end - 1 + plan.offset;
  const int64_t begin = p.window_left < 0 ? 0 : Clamp(first - p.window_left, p.kv_len);
  const int64_t end = p.window_right < 0 ? p.kv_len : Clamp(last + p.window_right + 1, p.kv_len);
  for (w.batch = range.batch_begin; w.batch < range.batch_end; ++w.batch) {
    for (w.kv_head = range.kv_begin; w.kv_head < range.kv_end; ++w.kv_head) {
      for (int64_t head = range.head_begin; head < range.head_end; ++head) {
        w.head = w.kv_head * plan.group + head;
        LoadQueries(&w, range.row_begin, static_cast<int>(range.row_end - range.row_begin));
        ZeroRows(plan.buffers->d_q + At(p.q, w.batch, w.head, range.row_begin), p.q.token,
                 w.queries, w.qk_dim);
        for (int64_t j = begin; j < end; j += kKeyRows) {
          if (Cancelled(w)) return;
          LoadKeys(&w, j, static_cast<int>(MinOf(kKeyRows, end - j)));
          w.fetch.count = 0;
          w.fetch.per_step = kFetchedKeys;
          if (j + kKeyRows < end) AnnounceKeys(&w, j + kKeyRows, MinOf(j + 2 * kKeyRows, end));
          RunTile(&w, false, true);
        }
      }
    }
  }
}

void Delta(const BackwardPlan& plan, int64_t begin, int64_t end) {
  const Problem& p = *plan.problem;
  const BackwardBuffers& buffers = *plan.buffers;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = At(p.o, row / p.q_len / p.q_heads, row / p.q_len % p.q_heads, row % p.q_len);
    const float* o = buffers.o + at;
    const float* d_o = buffers.d_o + at;
    F32 sums = Zero();
    int64_t d = 0;
    for (; d + kLanes <= p.v_dim; d += kLanes) sums = Fma(LoadU(o + d), LoadU(d_o + d), sums);
    float sum = ReduceAdd(sums);
    for (; d < p.v_dim; ++d) sum += o[d] * d_o[d];
    plan.delta[row] = sum - (buffers.d_lse == nullptr ? 0.0f : buffers.d_lse[row]);
  }
}

constexpr BackwardKernels kKernels = {kQueryRows, kKeyRows, ScratchFloats, Delta,
                                      Heads,      Keys,     Queries};

}  // namespace

#define SAGE_JOIN_NAME(name, suffix) name##_##suffix
#define SAGE_NAME(name, suffix) SAGE_JOIN_NAME(name, suffix)

const BackwardKernels* SAGE_NAME(BackwardKernels, SAGE_ISA_SUFFIX)() { return &kKernels; }

}  // namespace sage
