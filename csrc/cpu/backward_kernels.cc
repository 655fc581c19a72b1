// The backward pass on one instruction set (backward.h): float32, tile by tile, the scores never leave the cache.
//
// A tile is up to kQueryRows queries against kKeyRows keys. Its five products are three shapes of one register kernel,
// C[R rows][V vectors] = sum over k of A(row, k) · B[k][V vectors]:
//   S  = Q K^T    A = rows of Q        B = K transposed, in panels       dV += P^T dO    A = columns of P     B = rows of dO
//   dP = dO V^T   A = rows of dO       B = V transposed, in panels       dK += dS^T Q    A = columns of dS    B = rows of Q
//   dQ += dS K    A = rows of dS       B = rows of K
// Rows of Q, dO and K are copied to a padded buffer first: a token stride of a power of two would put a tile into a few cache sets.
// Every product runs only over the keys and queries that causality and window let see each other; where a register
// tile reaches past them, P and dS are 0.
//
// Values that are not finite: what a query does not see must not reach it, but 0 · NaN would. Tiles that hide something and hold
// such a value go through AccumulatePairs, which leaves hidden pairs out instead of multiplying by their zeros.
//
// Compiled once per instruction set, so everything but the last function has internal linkage, and no inline function
// of another header is called that the linker could share (problem.h's members, std:: templates).
#include <cstdint>
#include <cstring>

#include "cpu/backward.h"
#include "cpu/backward_product.h"
#include "cpu/simd/simd.h"

namespace sage {
namespace {

// A panel of transposed K (16 KiB at head_dim 64 on AVX-512) stays in L1 while the queries stream by; everything of a tile in L2.
constexpr int kQueryRows = 96;
constexpr int kKeyRows = 192;
// Rows of P and dS are an odd number of cache lines apart (13; 12.5 on AVX2), so that a column does not fall into a few cache sets.
constexpr int kScoreStride = kKeyRows + kLanes;

static_assert(kQueryRows % kRows == 0 && kKeyRows % kRows == 0, "full tiles have no short strips");
static_assert(kKeyRows % kPanel == 0, "key blocks are whole panels");
static_assert(kRows <= kLanes, "one vector of zeros beside a strip covers a register tile that reaches past it");

constexpr float kLog2E = 1.44269504088896340736f;
// Beyond it a power of two overflows; only an lse that is not that of the scores gets there.
constexpr float kExp2Top = 127.0f;
constexpr float kInfinity = __builtin_inff();

SAGE_INLINE int64_t MinOf(int64_t a, int64_t b) { return a < b ? a : b; }
SAGE_INLINE int64_t MaxOf(int64_t a, int64_t b) { return a > b ? a : b; }
SAGE_INLINE int64_t Clamp(int64_t x, int64_t top) { return x < 0 ? 0 : MinOf(x, top); }
SAGE_INLINE int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// ---- One worker's state -------------------------------------------------------------------------------------------

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

  // Tile. Query r sees keys [low[r], high[r]) of the block by causality and window; both never fall with r.
  int low[kQueryRows], high[kQueryRows];
  float* p;     // [queries][kScoreStride]
  float* d_s;   // [queries][kScoreStride], first dP
  float* d_q;   // [kRows][kPanel], or one row of qk_padded
  float* bias;  // [keys]: the mask of one query, -Infinity where hidden
};

// With a null base only measures.
int64_t LayOut(const Problem& problem, float* base, Worker* worker) {
  const int64_t qk_padded = RoundUp(problem.qk_dim, kLanes), v_padded = RoundUp(problem.v_dim, kLanes);
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
  for (int j = 0; j < kKeyRows && j < RoundUp(problem.kv_len, kLanes); ++j) worker->bias[j] = 0.0f;
}

SAGE_INLINE bool Cancelled(const Worker& w) { return w.plan->cancelled(w.plan->cancelled_context); }

// ---- Copies -------------------------------------------------------------------------------------------------------

// Copies rows, padded with zeros to whole vectors. Returns whether every value is finite.
bool PackRows(const float* source, int64_t stride, int rows, int dim, int padded, float* out) {
  F32 sum = Zero();
  for (int r = 0; r < rows; ++r, source += stride, out += padded) {
    std::memcpy(out, source, static_cast<size_t>(dim) * sizeof(float));
    for (int d = dim; d < padded; ++d) out[d] = 0.0f;
    for (int d = 0; d < padded; d += kLanes) sum = Fma(Load(out + d), Zero(), sum);  // 0 · x is NaN
  }
  return ReduceAdd(sum) == 0.0f;
}

// Transposes rows into panels [panel][dim][kPanel], zeros past the last row.
void PackPanels(const float* source, int64_t stride, int rows, int dim, float* out) {
  for (int first = 0; first < rows; first += kPanel, out += static_cast<int64_t>(dim) * kPanel) {
    const int count = static_cast<int>(MinOf(kPanel, rows - first));
    if (count < kPanel) std::memset(out, 0, static_cast<size_t>(dim) * kPanel * sizeof(float));
    for (int r = 0; r < count; ++r) {
      const float* row = source + (first + r) * stride;
      for (int d = 0; d < dim; ++d) out[d * kPanel + r] = row[d];
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

void ZeroRows(float* out, int64_t stride, int64_t rows, int dim) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memset(out + r * stride, 0, static_cast<size_t>(dim) * sizeof(float));
  }
}

// out = factor · in, or out += factor · in.
template <bool kAdd>
SAGE_INLINE void ScaleRows(const float* in, int in_stride, float factor, int64_t rows, int dim, float* out,
                           int64_t stride) {
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

// ---- P and dS -----------------------------------------------------------------------------------------------------

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
  const int64_t base = w.batch * p.mask.batch + w.head * p.mask.head + query * p.mask.query + w.key_begin * key;
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
SAGE_INLINE void Differentiate(float* p, float* d_s, const float* bias, float scale, float lse, float delta, int begin,
                               int end) {
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

// Fills p with P and d_s with dS wherever the later products look. Returns whether nothing is hidden.
bool ScoreTile(Worker* w, bool add_mask_gradient) {
  const Problem& problem = *w->problem;
  const int vectors = static_cast<int>(RoundUp(w->keys, kLanes) / kLanes);
  const float scale = static_cast<float>(problem.scale);
  const bool masked = problem.mask_kind != MaskKind::kNone;
  bool full = FindBands(w) && !masked;

  for (int panel = 0; panel < vectors; panel += kVectors) {
    for (int r = 0; r < w->queries; r += kRows) {
      const int rows = static_cast<int>(MinOf(kRows, w->queries - r));
      const int begin = static_cast<int>(MaxOf(panel, w->low[r] / kLanes));
      const int end = static_cast<int>(
          MinOf(panel + kVectors, RoundUp(w->high[r + rows - 1], kLanes) / kLanes));
      if (begin >= end) continue;
      const int64_t column = (begin - panel) * kLanes;
      const int64_t panel_keys = static_cast<int64_t>(panel) * kLanes;
      const int64_t c = r * kScoreStride + begin * kLanes;
      MultiplyTile<false>(rows, end - begin,
                          {w->qk_dim, w->q_rows + r * w->qk_padded, w->qk_padded,
                           w->k_panels + panel_keys * w->qk_dim + column, kPanel, w->p + c, kScoreStride});
      MultiplyTile<false>(rows, end - begin,
                          {w->v_dim, w->d_o_rows + r * w->v_padded, w->v_padded,
                           w->v_panels + panel_keys * w->v_dim + column, kPanel, w->d_s + c, kScoreStride});
    }
  }

  const int64_t row0 = (w->batch * problem.q_heads + w->head) * problem.q_len + w->query_begin;
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

// ---- Gradients of one tile ----------------------------------------------------------------------------------------

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
                          rows + static_cast<int64_t>(begin) * dim + v * kLanes, dim,
                          out + static_cast<int64_t>(j) * dim + v * kLanes, dim});
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
      MultiplyTile<false>(rows, count,
                          {high - low, w.d_s + r * kScoreStride + low, kScoreStride,
                           w.k_rows + static_cast<int64_t>(low) * dim + column, dim, w.d_q, kPanel});
      ScaleRows<true>(w.d_q, kPanel, scale, rows, static_cast<int>(MinOf(count * kLanes, w.qk_dim - column)),
                      d_q + r * stride + column, stride);
    }
  }
}

SAGE_INLINE void AddMultiple(float factor, const float* in, int padded, float* out) {
  for (int d = 0; d < padded; d += kLanes) Store(out + d, Fma(Set1(factor), Load(in + d), Load(out + d)));
}

// The same three products over visible pairs alone. P of a visible pair is never 0: Exp2 ends above it.
void AccumulatePairs(const Worker& w, bool of_keys, float* d_q, int64_t stride) {
  const int qk = w.qk_padded, v = w.v_padded;
  for (int r = 0; r < w.queries; ++r) {
    const float* p = w.p + r * kScoreStride;
    const float* d_s = w.d_s + r * kScoreStride;
    std::memset(w.d_q, 0, static_cast<size_t>(qk) * sizeof(float));
    for (int j = w.low[r]; j < w.high[r]; ++j) {
      if (p[j] == 0.0f) continue;
      if (of_keys) {
        AddMultiple(p[j], w.d_o_rows + static_cast<int64_t>(r) * v, v, w.d_v + static_cast<int64_t>(j) * v);
        AddMultiple(d_s[j], w.q_rows + static_cast<int64_t>(r) * qk, qk, w.d_k + static_cast<int64_t>(j) * qk);
      }
      if (d_q != nullptr) AddMultiple(d_s[j], w.k_rows + static_cast<int64_t>(j) * qk, qk, w.d_q);
    }
    if (d_q != nullptr) {
      ScaleRows<true>(w.d_q, qk, static_cast<float>(w.problem->scale), 1, w.qk_dim, d_q + r * stride, stride);
    }
  }
}

// The loaded queries against the loaded keys.
void RunTile(Worker* w, bool of_keys, bool of_queries) {
  const MaskGradient mask = w->plan->mask_gradient;
  const bool add_mask_gradient =
      (mask == MaskGradient::kElements && of_queries) || (mask == MaskGradient::kColumns && of_keys);
  const bool full = ScoreTile(w, add_mask_gradient);
  const TokenStrides& strides = w->problem->q;
  float* d_q = of_queries ? w->buffers->d_q + At(strides, w->batch, w->head, w->query_begin) : nullptr;
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
  const int64_t begin = p.window_right < 0 ? 0 : Clamp(key_begin - offset - p.window_right, p.q_len);
  const int64_t end = p.window_left < 0 ? p.q_len : Clamp(key_begin + keys - offset + p.window_left, p.q_len);
  for (int64_t head = 0; head < w->plan->group; ++head) {
    w->head = w->kv_head * w->plan->group + head;
    for (int64_t i = begin; i < end; i += kQueryRows) {
      if (Cancelled(*w)) return false;
      LoadQueries(w, i, static_cast<int>(MinOf(kQueryRows, end - i)));
      RunTile(w, true, of_queries);
    }
  }
  ScaleRows<false>(w->d_k, w->qk_padded, static_cast<float>(p.scale), keys, w->qk_dim,
                   w->buffers->d_k + At(p.k, w->batch, w->kv_head, key_begin), p.k.token);
  ScaleRows<false>(w->d_v, w->v_padded, 1.0f, keys, w->v_dim,
                   w->buffers->d_v + At(p.v, w->batch, w->kv_head, key_begin), p.v.token);
  return true;
}

// ---- Entry points -------------------------------------------------------------------------------------------------

void Heads(const BackwardPlan& plan, const BackwardRange& range, float* scratch) {
  Worker w;
  Begin(plan, scratch, &w);
  const Problem& p = *w.problem;
  for (w.batch = range.batch_begin; w.batch < range.batch_end; ++w.batch) {
    for (w.kv_head = range.kv_begin; w.kv_head < range.kv_end; ++w.kv_head) {
      for (int64_t head = 0; head < plan.group; ++head) {
        ZeroRows(plan.buffers->d_q + At(p.q, w.batch, w.kv_head * plan.group + head, 0), p.q.token, p.q_len, w.qk_dim);
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
      if (!RunKeyBlock(&w, range.row_begin, static_cast<int>(range.row_end - range.row_begin), false)) return;
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
        ZeroRows(plan.buffers->d_q + At(p.q, w.batch, w.head, range.row_begin), p.q.token, w.queries, w.qk_dim);
        for (int64_t j = begin; j < end; j += kKeyRows) {
          if (Cancelled(w)) return;
          LoadKeys(&w, j, static_cast<int>(MinOf(kKeyRows, end - j)));
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

constexpr BackwardKernels kKernels = {kQueryRows, kKeyRows, ScratchFloats, Delta, Heads, Keys, Queries};

}  // namespace

#define SAGE_JOIN_NAME(name, suffix) name##_##suffix
#define SAGE_NAME(name, suffix) SAGE_JOIN_NAME(name, suffix)

const BackwardKernels* SAGE_NAME(BackwardKernels, SAGE_ISA_SUFFIX)() { return &kKernels; }

}  // namespace sage
