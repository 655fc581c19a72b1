// One tile of the backward pass: what a worker holds, how operands are packed, and its P and dS.
//
// Rows of Q, dO and K are copied to padded buffers first: a token stride of a power of two would
// put a tile into a few cache sets. K and V are transposed once per key block. Internal linkage
// throughout (simd.h says why).
#ifndef SAGE_CPU_BACKWARD_TILE_H_
#define SAGE_CPU_BACKWARD_TILE_H_

#include <cstdint>
#include <cstring>

#include "cpu/backward.h"
#include "cpu/backward_fetch.h"
#include "cpu/backward_product.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// A panel of transposed K (16 KiB at head_dim 64 on AVX-512) fits in L1, everything of a tile
// (450 KiB) in L2. Twice or half of either number is within 2 % of this.
constexpr int kQueryRows = 96;
constexpr int kKeyRows = 192;
// Rows of P and dS are an odd number of cache lines apart (13; 12.5 on AVX2), so that a column does
// not fall into a few cache sets.
constexpr int kScoreStride = kKeyRows + kLanes;

static_assert(kQueryRows % kRows == 0 && kKeyRows % kRows == 0, "full tiles have no short strips");
static_assert(kKeyRows % kPanel == 0, "key blocks are whole panels");
static_assert(kRows <= kLanes,
              "one vector of zeros beside a strip covers a register tile that reaches past it");

constexpr float kLog2E = 1.44269504088896340736f;
// Beyond it a power of two overflows; only an lse that is not that of the scores gets there.
constexpr float kExp2Top = 127.0f;
// Below it P of a tile where nothing is hidden stays what it is there, 8e-31 of its row: no
// denormals come out of the products with it, which some processors take hundreds of cycles for.
constexpr float kExp2Bottom = -100.0f;
constexpr float kInfinity = __builtin_inff();

SAGE_INLINE int64_t MinOf(int64_t a, int64_t b) { return a < b ? a : b; }
SAGE_INLINE int64_t MaxOf(int64_t a, int64_t b) { return a > b ? a : b; }
SAGE_INLINE int64_t Clamp(int64_t x, int64_t top) { return x < 0 ? 0 : MinOf(x, top); }
SAGE_INLINE int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// ---- One worker's state --------------------------------------------------------------

struct Worker {
  const BackwardPlan* plan;
  const Problem* problem;
  const BackwardBuffers* buffers;
  int qk_dim, v_dim;
  int qk_padded, v_padded;  // whole vectors

  // Key block.
  int64_t kv_head, key_begin;
  int keys;
  bool keys_finite;
  float* k_panels;  // [panel][qk_dim][kPanel]
  float* v_panels;  // [panel][v_dim][kPanel]
  float* k_rows;    // [keys][qk_padded]
  float* d_k;       // [keys][qk_padded], without the scale
  float* d_v;       // [keys][v_padded]

  // Query block.
  int64_t batch, head, query_begin;
  int queries;
  bool queries_finite;
  float* q_rows;    // [queries][qk_padded]
  float* d_o_rows;  // [queries][v_padded]
  FetchList fetch;

  // Tile. By causality and window, query r sees keys [low[r], high[r]) of the block. Neither bound
  // falls as r grows.
  int low[kQueryRows], high[kQueryRows];
  float* p;     // [queries][kScoreStride]
  float* d_s;   // [queries][kScoreStride], first dP
  float* d_q;   // [kRows][kPanel], or one row of qk_padded
  float* bias;  // [keys]: the mask of one query, -Infinity where hidden
};

// With a null base only measures.
int64_t LayOut(const Problem& problem, float* base, Worker* worker) {
  const int64_t qk_padded = RoundUp(problem.qk_dim, kLanes),
                v_padded = RoundUp(problem.v_dim, kLanes);
  const int64_t queries = MinOf(kQueryRows, problem.q_len);
  const int64_t keys = MinOf(kKeyRows, RoundUp(problem.kv_len, kPanel));
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    float* out = base == nullptr ? nullptr : base + used;
    used += RoundUp(count, 16);
    return out;
  };
  worker->k_panels = take(keys * problem.qk_dim);
  worker->v_panels = take(keys * problem.v_dim);
  worker->k_rows = take(keys * qk_padded);
  worker->d_k = take(keys * qk_padded);
  worker->d_v = take(keys * v_padded);
  worker->q_rows = take(queries * qk_padded);
  worker->d_o_rows = take(queries * v_padded);
  worker->p = take(queries * kScoreStride);
  worker->d_s = take(queries * kScoreStride);
  worker->d_q = take(MaxOf(kRows * kPanel, qk_padded));
  worker->bias = take(keys);
  return used;
}

int64_t ScratchFloats(const Problem& problem) {
  Worker worker;
  return LayOut(problem, nullptr, &worker);
}

void Begin(const BackwardPlan& plan, float* scratch, Worker* worker) {
  const Problem& problem = *plan.problem;
  worker->plan = &plan;
  worker->problem = &problem;
  worker->buffers = plan.buffers;
  worker->qk_dim = static_cast<int>(problem.qk_dim);
  worker->v_dim = static_cast<int>(problem.v_dim);
  worker->qk_padded = static_cast<int>(RoundUp(problem.qk_dim, kLanes));
  worker->v_padded = static_cast<int>(RoundUp(problem.v_dim, kLanes));
  LayOut(problem, scratch, worker);
  worker->fetch.count = 0;
  for (int j = 0; j < kKeyRows && j < RoundUp(problem.kv_len, kLanes); ++j) worker->bias[j] = 0.0f;
}

SAGE_INLINE bool Cancelled(const Worker& w) { return w.plan->cancelled(w.plan->cancelled_context); }

// ---- Copies --------------------------------------------------------------------------

// Copies rows, padded with zeros to whole vectors. Returns whether every value is finite: if not,
// a sum of zero times each is NaN. Four sums, as one would wait for itself.
bool PackRows(const float* source, int64_t stride, int rows, int dim, int padded, float* out) {
  constexpr int kSums = 4;
  F32 sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = Zero();
  for (int r = 0; r < rows; ++r, source += stride, out += padded) {
    int d = 0;
    for (; d + kSums * kLanes <= dim; d += kSums * kLanes) {
      SAGE_UNROLL
      for (int i = 0; i < kSums; ++i) {
        const F32 x = LoadU(source + d + i * kLanes);
        sum[i] = Fma(x, Zero(), sum[i]);
        Store(out + d + i * kLanes, x);
      }
    }
    for (; d < dim; d += kLanes) {
      const F32 x = d + kLanes <= dim ? LoadU(source + d) : LoadFirst(source + d, dim - d);
      sum[0] = Fma(x, Zero(), sum[0]);
      Store(out + d, x);
    }
  }
  return ReduceAdd(Add(Add(sum[0], sum[1]), Add(sum[2], sum[3]))) == 0.0f;
}

// Transposes rows into panels [panel][dim][kPanel], zeros past the last row.
void PackPanels(const float* source, int64_t stride, int rows, int dim, float* out) {
  for (int t = 0; t < RoundUp(rows, kPanel); t += kLanes) {
    float* column = out + t / kPanel * kPanel * static_cast<int64_t>(dim) + t % kPanel;
    const float* from = source + t * stride;
    const int count = rows - t;
    for (int d = 0; d < dim; d += kLanes) {
      F32 x[kLanes];
      if (count >= kLanes && d + kLanes <= dim) {
        SAGE_UNROLL_LANES
        for (int i = 0; i < kLanes; ++i) x[i] = LoadU(from + i * stride + d);
        Transpose(x);
        SAGE_UNROLL_LANES
        for (int i = 0; i < kLanes; ++i) Store(column + (d + i) * kPanel, x[i]);
      } else {
        const int dims = static_cast<int>(MinOf(kLanes, dim - d));
        for (int i = 0; i < kLanes; ++i) {
          x[i] = i >= count       ? Zero()
                 : dims == kLanes ? LoadU(from + i * stride + d)
                                  : LoadFirst(from + i * stride + d, dims);
        }
        Transpose(x);
        for (int i = 0; i < dims; ++i) Store(column + (d + i) * kPanel, x[i]);
      }
    }
  }
}

SAGE_INLINE int64_t At(const TokenStrides& s, int64_t batch, int64_t head, int64_t token) {
  return batch * s.batch + head * s.head + token * s.token;
}

void LoadKeys(Worker* w, int64_t key_begin, int keys) {
  const Problem& p = *w->problem;
  w->key_begin = key_begin;
  w->keys = keys;
  const float* k = w->buffers->k + At(p.k, w->batch, w->kv_head, key_begin);
  const float* v = w->buffers->v + At(p.v, w->batch, w->kv_head, key_begin);
  w->keys_finite = PackRows(k, p.k.token, keys, w->qk_dim, w->qk_padded, w->k_rows);
  PackPanels(k, p.k.token, keys, w->qk_dim, w->k_panels);
  PackPanels(v, p.v.token, keys, w->v_dim, w->v_panels);
}

void LoadQueries(Worker* w, int64_t query_begin, int queries) {
  const Problem& p = *w->problem;
  w->query_begin = query_begin;
  w->queries = queries;
  const float* q = w->buffers->q + At(p.q, w->batch, w->head, query_begin);
  const float* d_o = w->buffers->d_o + At(p.o, w->batch, w->head, query_begin);
  const bool q_finite = PackRows(q, p.q.token, queries, w->qk_dim, w->qk_padded, w->q_rows);
  const bool d_o_finite = PackRows(d_o, p.o.token, queries, w->v_dim, w->v_padded, w->d_o_rows);
  w->queries_finite = q_finite && d_o_finite;
}

// What tiles of this key block will read next: queries [begin, end) of a head, and the rows of dQ
// that belong to them where these are wanted.
void AnnounceQueries(Worker* w, int64_t head, int64_t begin, int64_t end, bool of_queries) {
  const Problem& p = *w->problem;
  const int64_t rows = end - begin, q = At(p.q, w->batch, head, begin);
  Announce(&w->fetch, w->buffers->q + q, p.q.token, w->qk_dim, rows);
  Announce(&w->fetch, w->buffers->d_o + At(p.o, w->batch, head, begin), p.o.token, w->v_dim, rows);
  if (of_queries) Announce(&w->fetch, w->buffers->d_q + q, p.q.token, w->qk_dim, rows);
}

void AnnounceKeys(Worker* w, int64_t begin, int64_t end) {
  const Problem& p = *w->problem;
  Announce(&w->fetch, w->buffers->k + At(p.k, w->batch, w->kv_head, begin), p.k.token, w->qk_dim,
           end - begin);
  Announce(&w->fetch, w->buffers->v + At(p.v, w->batch, w->kv_head, begin), p.v.token, w->v_dim,
           end - begin);
}

void ZeroRows(float* out, int64_t stride, int64_t rows, int dim) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memset(out + r * stride, 0, static_cast<size_t>(dim) * sizeof(float));
  }
}

// out = factor · in, or out += factor · in.
template <bool kAdd>
SAGE_INLINE void ScaleRows(const float* in, int in_stride, float factor, int64_t rows, int dim,
                           float* out, int64_t stride) {
  const F32 f = Set1(factor);
  for (int64_t r = 0; r < rows; ++r, in += in_stride, out += stride) {
    int d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      const F32 x = Load(in + d);
      StoreU(out + d, kAdd ? Fma(f, x, LoadU(out + d)) : Mul(f, x));
    }
    for (; d < dim; ++d) out[d] = kAdd ? out[d] + factor * in[d] : factor * in[d];
  }
}

// ---- P and dS ------------------------------------------------------------------------

// Sets low and high; false if some query does not see every key of the block.
bool FindBands(Worker* w) {
  const Problem& p = *w->problem;
  const int64_t first = w->query_begin + w->plan->offset - w->key_begin;
  bool full = true;
  for (int r = 0; r < w->queries; ++r) {
    const int64_t low = p.window_left < 0 ? 0 : first + r - p.window_left;
    const int64_t high = p.window_right < 0 ? w->keys : first + r + p.window_right + 1;
    w->low[r] = static_cast<int>(Clamp(low, w->keys));
    w->high[r] = static_cast<int>(Clamp(high, w->keys));
    full = full && w->low[r] == 0 && w->high[r] == w->keys;
  }
  return full;
}

// The mask of one query over keys [begin, end) of the block, as what is added to the score.
void FillBias(const Worker& w, int64_t query, int begin, int end) {
  const Problem& p = *w.problem;
  const int64_t key = p.mask.key;
  const int64_t base =
      w.batch * p.mask.batch + w.head * p.mask.head + query * p.mask.query + w.key_begin * key;
  float* bias = w.bias;
  if (p.mask_kind == MaskKind::kBoolean) {
    const uint8_t* mask = static_cast<const uint8_t*>(w.buffers->mask) + base;
    if (key == 1) {
      for (int j = begin; j < end; ++j) bias[j] = mask[j] != 0 ? 0.0f : -kInfinity;
    } else {
      for (int j = begin; j < end; ++j) bias[j] = mask[j * key] != 0 ? 0.0f : -kInfinity;
    }
    return;
  }
  const float* mask = static_cast<const float*>(w.buffers->mask) + base;
  if (key == 1) {
    std::memcpy(bias + begin, mask + begin, static_cast<size_t>(end - begin) * sizeof(float));
  } else {
    for (int j = begin; j < end; ++j) bias[j] = mask[j * key];
  }
}

// S and dP of one row become P and dS, over vectors [begin, end).
template <bool kMasked>
SAGE_INLINE void Differentiate(float* p, float* d_s, const float* bias, float scale, float lse,
                               float delta, int begin, int end) {
  const F32 hidden = Set1(-kInfinity);
  for (int j = begin * kLanes; j < end * kLanes; j += kLanes) {
    const F32 s = Load(p + j), d_p = Load(d_s + j);
    const F32 b = kMasked ? Load(bias + j) : Zero();
    const F32 x = kMasked ? Sub(Fma(s, Set1(scale), b), Set1(lse)) : Fms(s, Set1(scale), Set1(lse));
    F32 e = Exp2(Min(Set1(kExp2Top), Mul(x, Set1(kLog2E))));
    F32 g = Mul(e, Sub(d_p, Set1(delta)));
    if (kMasked) {
      e = ZeroWhereEqual(b, hidden, e);
      g = ZeroWhereEqual(b, hidden, g);
    }
    Store(p + j, e);
    Store(d_s + j, g);
  }
}

SAGE_INLINE void ZeroRange(float* row, int begin, int end) {
  if (begin < end) std::memset(row + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
}

// Adds dS of one row to the gradient of the mask.
void AddMaskRow(const Worker& w, const float* d_s, int64_t query, int low, int high) {
  const Problem& p = *w.problem;
  int64_t stride = 1;
  float* out;
  if (w.plan->mask_gradient == MaskGradient::kColumns) {
    out = w.plan->mask_columns + (w.batch * p.q_heads + w.head) * p.kv_len + w.key_begin;
  } else {
    stride = p.mask.key;
    out = w.buffers->d_mask + w.batch * p.mask.batch + w.head * p.mask.head + query * p.mask.query +
          w.key_begin * stride;
  }
  if (stride == 1) {
    int j = low;
    for (; j + kLanes <= high; j += kLanes) StoreU(out + j, Add(LoadU(out + j), LoadU(d_s + j)));
    for (; j < high; ++j) out[j] += d_s[j];
  } else if (stride == 0) {
    float sum = 0.0f;
    for (int j = low; j < high; ++j) sum += d_s[j];
    *out += sum;
  } else {
    for (int j = low; j < high; ++j) out[j * stride] += d_s[j];
  }
}

// An end of a product (backward_product.h): dP becomes dS, and S beside it P, where every query of
// the tile sees every key. The vectors of a row go step by step, together: each step of one waits
// for the one before, and the processor looks only some four vectors' steps ahead.
struct Differentiated {
  float* p;
  float* d_s;
  float scale;
  const float* lse;
  const float* delta;
  template <int V>
  SAGE_INLINE void Row(const Differentiated& end, int r, const F32 (&d_p)[V]) {
    float* p = end.p + r * kScoreStride;
    float* d_s = end.d_s + r * kScoreStride;
    const F32 scale = Set1(end.scale), lse = Set1(end.lse[r]), delta = Set1(end.delta[r]);
    F32 x[V];
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) x[v] = Mul(Fms(Load(p + v * kLanes), scale, lse), Set1(kLog2E));
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) x[v] = Min(Set1(kExp2Top), Max(Set1(kExp2Bottom), x[v]));
    Exp2Together<true>(x);
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) {
      Store(p + v * kLanes, x[v]);
      Store(d_s + v * kLanes, Mul(x[v], Sub(d_p[v], delta)));
    }
  }
};

// rows · panels, [queries][keys]: S from Q and K, dP from dO and V. A panel stays in L1 while all
// queries stream by. end_at(query, vector) is what becomes of a register tile.
template <class EndAt>
SAGE_INLINE void MultiplyScores(Worker* w, const float* rows, int dim, int padded,
                                const float* panels, const EndAt& end_at) {
  for (int panel = 0; panel * kLanes < w->keys; panel += kVectors, panels += dim * kPanel) {
    for (int r = 0; r < w->queries; r += kRows) {
      const int count = static_cast<int>(MinOf(kRows, w->queries - r));
      const int begin = static_cast<int>(MaxOf(panel, w->low[r] / kLanes));
      const int end = static_cast<int>(
          MinOf(panel + kVectors, RoundUp(w->high[r + count - 1], kLanes) / kLanes));
      if (begin >= end) continue;
      MultiplyTile<false>(
          count, end - begin,
          {dim, rows + r * padded, padded, panels + (begin - panel) * kLanes, kPanel},
          end_at(r, begin));
      FetchSome(&w->fetch);
    }
  }
}

SAGE_INLINE bool AllAttend(const float* lse, int rows) {
  for (int r = 0; r < rows; ++r) {
    if (lse[r] == -kInfinity) return false;
  }
  return true;
}

// Fills p with P and d_s with dS wherever the later products look.
// Returns whether nothing is hidden.
bool ScoreTile(Worker* w, bool add_mask_gradient) {
  const Problem& problem = *w->problem;
  const int vectors = static_cast<int>(RoundUp(w->keys, kLanes) / kLanes);
  const float scale = static_cast<float>(problem.scale);
  const bool masked = problem.mask_kind != MaskKind::kNone;
  bool full = FindBands(w) && !masked;

  const auto write_to = [](float* out) {
    return [out](int r, int v) {
      return WriteSums{out + r * kScoreStride + v * kLanes, kScoreStride};
    };
  };
  MultiplyScores(w, w->q_rows, w->qk_dim, w->qk_padded, w->k_panels, write_to(w->p));
  const int64_t row0 = (w->batch * problem.q_heads + w->head) * problem.q_len + w->query_begin;
  // Values that are not finite need the exact 0 of P where a score is -Infinity.
  if (full && !add_mask_gradient && w->queries_finite && w->keys_finite &&
      AllAttend(w->buffers->lse + row0, w->queries)) {
    MultiplyScores(w, w->d_o_rows, w->v_dim, w->v_padded, w->v_panels, [&](int r, int v) {
      const int64_t at = r * kScoreStride + v * kLanes;
      return Differentiated{w->p + at, w->d_s + at, scale, w->buffers->lse + row0 + r,
                            w->plan->delta + row0 + r};
    });
    return true;
  }
  MultiplyScores(w, w->d_o_rows, w->v_dim, w->v_padded, w->v_panels, write_to(w->d_s));

  if (masked && problem.mask.query == 0) FillBias(*w, 0, 0, w->keys);
  for (int r = 0; r < w->queries; ++r) {
    const int strip = r / kRows * kRows;
    const int strip_last = static_cast<int>(MinOf(strip + kRows, w->queries)) - 1;
    const int begin = w->low[strip] / kLanes;
    const int end = static_cast<int>(RoundUp(w->high[strip_last], kLanes) / kLanes);
    if (begin >= end) continue;
    float* p = w->p + r * kScoreStride;
    float* d_s = w->d_s + r * kScoreStride;
    const float lse = w->buffers->lse[row0 + r], delta = w->plan->delta[row0 + r];
    int low = w->low[r], high = w->high[r];
    if (lse == -kInfinity) {  // attends to nothing
      low = high = 0;
      full = false;
    }
    if (low < high) {
      if (masked && problem.mask.query != 0) FillBias(*w, w->query_begin + r, low, high);
      if (masked) {
        Differentiate<true>(p, d_s, w->bias, scale, lse, delta, begin, end);
      } else {
        Differentiate<false>(p, d_s, w->bias, scale, lse, delta, begin, end);
      }
      if (add_mask_gradient) AddMaskRow(*w, d_s, w->query_begin + r, low, high);
    } else {
      low = high = end * kLanes;
    }
    // One vector more on either side than the strip sees: register tiles of dV and dK reach there.
    const int zero_begin = static_cast<int>(MaxOf(begin - 1, 0)) * kLanes;
    const int zero_end = static_cast<int>(MinOf(end + 1, vectors)) * kLanes;
    ZeroRange(p, zero_begin, low);
    ZeroRange(p, high, zero_end);
    ZeroRange(d_s, zero_begin, low);
    ZeroRange(d_s, high, zero_end);
  }
  return full;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_BACKWARD_TILE_H_
