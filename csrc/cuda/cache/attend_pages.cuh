// Attention of few rows over the pages of the device cache (docs/numerics.md 8), bound by reading
// them:
//
//   s[i,j] = (q^[i] . k^[j]) kscale[j] c[i]          log2 domain, c = |scale| log2(e) qscale
//   p      = 2^(s - m)    m: running maximum of the row
//   w      = p vscale[j]; T = max w of the page; P = round(16383 w / T)
//   o      = o alpha + T / 16383 sum_j P[i,j] v^[j]
//
// q^ has 14 bits and P too: both are multiplied in two digits of 7 bits, so that all products are
// int8 and their sums exact. With m16n8k32 (int8) keys or dims of v are the 16 rows of a product,
// and its 8 columns are 4 rows of q times 2 digits: for the 4 query heads of a usual group nothing
// is wasted, and codes go from shared memory to the tensor core as they lie.
//
//   scores   A = K [16 tokens x 32 dims]   B = q^     C: lane (g, c) has tokens g, g + 8 of row c
//   outputs  A = V [16 dims x 32 tokens]   B = P      C: lane (g, c) has dims g, g + 8 of row c
//
// Between them 8 words of digits per 4 rows go to the lanes that B wants them in (8 shuffles).
//
// Block: up to 16 warps in teams. Each team has pages of its own (page t, t + teams, ...) and its
// own stream of them (page_stream.cuh), so that nothing but the end of a unit synchronises the
// block; the warps of a team share its pages and have rows of their own. At the end of a unit the
// teams' sums are added in order; if the unit was cut, the last of its blocks adds the parts in
// order, so that results do not depend on timing.
//
// Shared memory: a page per team | q digits [tile][dims / 32][lane][8 B] | sums [rows][v_dims] |
// per team and row m, l | per row c, first key, end key, mask row, lse shift | barriers
#ifndef SAGE_CUDA_CACHE_ATTEND_PAGES_CUH_
#define SAGE_CUDA_CACHE_ATTEND_PAGES_CUH_

#include <cstdint>

#include "cuda/cache/cache_plan.h"
#include "cuda/cache/page_stream.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda {

constexpr float kQTop = 8191.0f, kPTop = 16383.0f;

struct RowRecord {
  double shift;    // scale · q · mean of k, natural-log domain
  int64_t mask;    // element of key 0
  float c;         // NaN for a row of q that is not finite
  int first, end;  // keys that causality and window let it see
  int unused;
};

// Shared memory behind the pages of `teams` teams, for units of kRows rows.
template <int kRows>
struct AttendShared {
  int digits, sums, tops, lasts, records, barriers, bytes;

  __host__ __device__ AttendShared(const CachePageLayout& layout, int teams) {
    digits = teams * layout.PageBytes();
    sums = digits + kRows * layout.k_dims * 2;
    tops = sums + kRows * layout.v_dims * 4;
    lasts = tops + teams * kRows * 4;
    records = lasts + teams * kRows * 4;
    barriers = records + kRows * static_cast<int>(sizeof(RowRecord));
    bytes = barriers + teams * kStreamBarrierBytes;
  }
};

// c += a b; a: 16 x 32 and b: 32 x 8 of int8 (page_layout.h), c: lane (g, t) has rows g, g + 8 of
// columns 2t, 2t + 1.
__device__ __forceinline__ void MultiplyInt8(int (&c)[4], const uint4& a, uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The first of a block's pages, and the block that a page belongs to.
__device__ __forceinline__ int RangeBegin(const AttendPlan& plan, int block) {
  return block * plan.range + min(block, plan.longer);
}
__device__ __forceinline__ int BlockOf(const AttendPlan& plan, int flat) {
  const int in_longer = plan.longer * (plan.range + 1);
  return flat < in_longer ? flat / (plan.range + 1) : plan.longer + (flat - in_longer) / plan.range;
}

// A unit of work (rows of a head) and the pages of it that this block reads.
struct Segment {
  int unit, head, row;  // the first row
  int first, end;       // pages; nothing to read where end <= first
  int next_flat;        // where the next segment begins; the range's end ends the block
};

__device__ __forceinline__ Segment SegmentAt(const AttendPlan& plan, int unit_rows, int flat,
                                             int flat_end) {
  Segment s;
  s.unit = flat / plan.pages;
  s.head = s.unit / plan.row_groups;
  s.row = (s.unit - s.head * plan.row_groups) * unit_rows;
  const int begin = s.unit * plan.pages;
  s.next_flat = min(begin + plan.pages, flat_end);
  const Visibility& see = plan.visibility;
  const int last = min(s.row + unit_rows, plan.rows) - 1;
  s.first = max(plan.first_page + flat - begin, see.FirstKey(s.row / plan.group) / kPageTokens);
  s.end = min(plan.first_page + s.next_flat - begin,
              (see.EndKey(last / plan.group) + kPageTokens - 1) / kPageTokens);
  return s;
}

// The pages of one team of warps, through all segments of the block.
struct PageCursor {
  Segment segment;
  int page;
  bool done;

  __device__ __forceinline__ void Begin(const AttendPlan& plan, int unit_rows, int from, int to,
                                        int team) {
    done = from >= to;
    if (done) return;
    segment = SegmentAt(plan, unit_rows, from, to);
    page = segment.first + team;
    Settle(plan, unit_rows, to, team);
  }
  __device__ __forceinline__ void Advance(const AttendPlan& plan, int unit_rows, int to, int team,
                                          int teams) {
    page += teams;
    Settle(plan, unit_rows, to, team);
  }
  __device__ __forceinline__ const uint8_t* Data(const AttendPlan& plan) const {
    return done ? nullptr : plan.slabs.Page(plan.layout, segment.head, page);
  }

 private:
  // To the next segment that has a page for this team.
  __device__ __forceinline__ void Settle(const AttendPlan& plan, int unit_rows, int to, int team) {
    while (!done && page >= segment.end) {
      done = segment.next_flat >= to;
      if (done) return;
      segment = SegmentAt(plan, unit_rows, segment.next_flat, to);
      page = segment.first + team;
    }
  }
};

// Digits and record of row r of a unit, by one warp.
__device__ __forceinline__ void PrepareRow(const AttendPlan& plan, const Segment& segment, int r,
                                           int lane, uint8_t* digits, RowRecord* record) {
  const int row = segment.row + r, head = segment.head;
  const int64_t batch = head / plan.kv_heads;
  const bool exists = row < plan.rows;
  const int query = row / plan.group;
  const int64_t q_head = head % plan.kv_heads * plan.group + row % plan.group;
  const float* q = plan.q + batch * plan.q_strides.batch + q_head * plan.q_strides.head +
                   query * plan.q_strides.token;
  const float* mean = plan.k_mean + static_cast<int64_t>(head) * plan.layout.k_dims;
  float x[kCacheDims / 32];
  bool finite = true;
  uint32_t most = 0;
  double shift = 0.0;
#pragma unroll
  for (int n = 0; n < kCacheDims / 32; ++n) {
    const int d = 32 * n + lane;
    x[n] = exists && d < plan.qk_dim ? __ldg(q + d) : 0.0f;
    const uint32_t magnitude = __float_as_uint(x[n]) & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
      finite = false;
      x[n] = 0.0f;
    } else {
      most = max(most, magnitude);
    }
    if (plan.lse != nullptr && d < plan.qk_dim)
      shift += static_cast<double>(x[n]) * static_cast<double>(__ldg(mean + d));
  }
  finite = __all_sync(~0u, finite);
  most = __reduce_max_sync(~0u, most);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) shift += __shfl_xor_sync(~0u, shift, step);
  const bool tiny = most < (127 - 110) << 23;
  const float scale = tiny ? 0.0f : __fdiv_rn(__uint_as_float(most), kQTop);
  const float inverse = tiny ? 0.0f : __fdiv_rn(kQTop, __uint_as_float(most));
  const int steps = plan.layout.k_dims / 32;
  uint8_t* tile = digits + r / 4 * steps * 256;
#pragma unroll
  for (int n = 0; n < kCacheDims / 32; ++n) {
    if (n >= steps) break;
    int code = max(-8191, min(8191, __float2int_rn(__fmul_rn(x[n], inverse))));
    // The sign of the scale goes with q, so that the largest sum is the largest score.
    if (plan.scale < 0.0) code = -code;
    const int high = (code + 64) >> 7, low = code - 128 * high;
    // Column 2 (r % 4) + digit, row `lane` of the 32.
    const int at = n * 256 + (r % 4 * 8 + lane % 16 / 4) * 8 + lane / 16 * 4 + lane % 4;
    tile[at] = static_cast<uint8_t>(high);
    tile[at + 32] = static_cast<uint8_t>(low);
  }
  if (lane == 0) {
    const Visibility& see = plan.visibility;
    record->shift = plan.scale * shift;
    record->mask = see.MaskRow(batch, q_head, query);
    record->c = finite ? scale * static_cast<float>(fabs(plan.scale) * 1.44269504088896340736)
                       : __uint_as_float(0x7fc00000u);
    record->first = exists ? see.FirstKey(query) : 0;
    record->end = exists ? see.EndKey(query) : 0;
  }
}

// Sums of a warp over its pages of a unit: 4 kTiles rows, lane (g, c) has row 4j + c of tile j.
template <int kDims, int kTiles>
struct RowSums {
  float o[kTiles][kDims / 16][2];  // dims 16 n + g and 16 n + 8 + g
  float top[kTiles];               // running maximum, log2 domain
  float sum[kTiles];               // of p over this lane's tokens

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      top[j] = -INFINITY;
      sum[j] = 0.0f;
#pragma unroll
      for (int n = 0; n < kDims / 16; ++n) o[j][n][0] = o[j][n][1] = 0.0f;
    }
  }
};

// Scores of one page as integers: s[j][2m] and [2m + 1] are tokens 16m + g, 16m + 8 + g.
template <int kTiles>
__device__ __forceinline__ void Scores(const uint8_t* k, const uint8_t* digits, int steps, int lane,
                                       int (&s)[kTiles][16]) {
  int sums[kTiles][8][4];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int m = 0; m < 8; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[j][m][e] = 0;
    }
  }
#pragma unroll 1
  for (int n = 0; n < steps; ++n) {
    uint2 q[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      q[j] = *reinterpret_cast<const uint2*>(digits + (j * steps + n) * 256 + lane * 8);
    }
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const uint4 a = *reinterpret_cast<const uint4*>(k + (m * steps + n) * 512 + lane * 16);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) MultiplyInt8(sums[j][m], a, q[j].x, q[j].y);
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      s[j][2 * m] = 128 * sums[j][m][0] + sums[j][m][1];
      s[j][2 * m + 1] = 128 * sums[j][m][2] + sums[j][m][3];
    }
  }
}

// What the mask adds to the scores of one row and this lane's tokens; NaN for a value of +Infinity.
__device__ __noinline__ float MaskBias(const Visibility& see, int64_t row, int key) {
  const float bias = AddBias(0.0f, see.Bias(row, key));
  return bias < INFINITY ? bias : __uint_as_float(0x7fc00000u);
}

// One page: adds to `sums`. `read_k` is called when the K part is read, `await_v` before the V part
// is.
template <int kDims, int kTiles, class ReadK, class AwaitV>
__device__ __forceinline__ void AttendPage(const AttendPlan& plan, const uint8_t* page, int key0,
                                           const uint8_t* digits, const RowRecord* records,
                                           int lane, RowSums<kDims, kTiles>* sums, ReadK read_k,
                                           AwaitV await_v) {
  const CachePageLayout& layout = plan.layout;
  const int g = lane / 4, c = lane % 4;
  int s[kTiles][16];
  Scores<kTiles>(page, digits, layout.k_dims / 32, lane, s);
  float scale[16];
  const auto load_scales = [&](int at) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float4 x = *reinterpret_cast<const float4*>(page + at + g * 64 + n * 16);
      scale[4 * n] = x.x, scale[4 * n + 1] = x.y, scale[4 * n + 2] = x.z, scale[4 * n + 3] = x.w;
    }
  };
  load_scales(layout.KScales());
  read_k();

  // Scores as floats, -Infinity where hidden; running maxima.
  const bool masked = plan.visibility.mask_kind != MaskKind::kNone;
  float alpha[kTiles];
  uint32_t attends[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const RowRecord& row = records[4 * j + c];
    const float factor = row.c;
    const int first = row.first - key0, count = row.end - row.first;
    attends[j] = 0xffffu;
    float most = -INFINITY;
    if (!masked && __all_sync(~0u, first <= 0 && first + count >= kPageTokens)) {
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        const float x = static_cast<float>(s[j][n]) * (scale[n] * factor);
        s[j][n] = __float_as_int(x);
        most = fmaxf(most, x);
      }
    } else {
      attends[j] = 0;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        float x = static_cast<float>(s[j][n]) * (scale[n] * factor);
        const int t = 8 * n + g;
        bool seen = static_cast<unsigned>(t - first) < static_cast<unsigned>(max(0, count));
        if (masked && seen) {
          const float bias = MaskBias(plan.visibility, row.mask, key0 + t);
          seen = bias != -INFINITY;
          x += bias;
        }
        if (!seen) x = -INFINITY;
        attends[j] |= seen ? 1u << n : 0u;
        s[j][n] = __float_as_int(x);
        most = fmaxf(most, x);
      }
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    }
    const float top = fmaxf(sums->top[j], most), origin = top == -INFINITY ? 0.0f : top;
    alpha[j] = Exp2(sums->top[j] - origin);
    sums->top[j] = top;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const float p = Exp2(__int_as_float(s[j][n]) - origin);
      sum += p;
      s[j][n] = __float_as_int(p);
    }
    sums->sum[j] = fmaf(sums->sum[j], alpha[j], sum);
  }

  await_v();
  load_scales(layout.VScales());
  bool marked = false;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    marked = marked || __float_as_int(scale[n]) < 0;
    scale[n] = fabsf(scale[n]);
  }
  float unit[kTiles];         // of the integer sums
  uint32_t words[kTiles][8];  // [2 step + half]: B operands
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    float most = 0.0f;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const float w = __int_as_float(s[j][n]) * scale[n];
      s[j][n] = __float_as_int(w);
      most = fmaxf(most, w);
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    }
    const bool tiny = __float_as_uint(most) < (127 - 110) << 23;
    const float inverse = tiny ? 0.0f : __fdiv_rn(kPTop, most);
    unit[j] = tiny ? 0.0f : most * (1.0f / kPTop);
    uint32_t high[4], low[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      high[n] = low[n] = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t code = static_cast<uint32_t>(
            min(16383, __float2int_rn(__int_as_float(s[j][4 * n + i]) * inverse)));
        high[n] |= code >> 7 << 8 * i;
        low[n] |= (code & 127u) << 8 * i;
      }
    }
    // Lane (g, c) of B wants of row g / 2 the digit g % 2 of tokens 8i + 4h + c: from lane
    // (c + 4h, g / 2). In round x each lane sends digit x ^ (g / 4).
    const bool upper = lane >= 16, odd = g & 1;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t first = upper ? low[n] : high[n], second = upper ? high[n] : low[n];
      const int at = 4 * c + (g >> 1);
      const uint32_t zero = __shfl_sync(~0u, first, at + (odd ? 16 : 0));
      const uint32_t one = __shfl_sync(~0u, second, at + (odd ? 0 : 16));
      words[j][2 * n] = odd ? one : zero;
      words[j][2 * n + 1] = odd ? zero : one;
    }
  }

  const uint8_t* v = page + layout.VCodes() + lane * 16;
  const int v_tiles = layout.v_dims / 16;
#pragma unroll
  for (int m = 0; m < kDims / 16; ++m) {
    if (m >= v_tiles) break;
    int t[kTiles][4];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) t[j][0] = t[j][1] = t[j][2] = t[j][3] = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint4 a = *reinterpret_cast<const uint4*>(v + (m * 4 + n) * 512);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        MultiplyInt8(t[j], a, words[j][2 * n], words[j][2 * n + 1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float(&o)[2] = sums->o[j][m];
      o[0] = fmaf(o[0], alpha[j], static_cast<float>(128 * t[j][0] + t[j][1]) * unit[j]);
      o[1] = fmaf(o[1], alpha[j], static_cast<float>(128 * t[j][2] + t[j][3]) * unit[j]);
    }
  }

  if (!__any_sync(~0u, marked)) return;
    // Rare: values of v that are not finite spoil their channel in the rows that attend to them.
#pragma unroll 1
  for (int t = 0; t < kPageTokens; ++t) {
    if (*reinterpret_cast<const int*>(page + layout.VScales() + CachePageLayout::ScaleAt(t)) >= 0)
      continue;
    uint32_t bad = 0;  // bit m: dim 8m + g
    for (int m = 0; m < 2 * v_tiles; ++m) {
      const bool is = static_cast<int8_t>(page[layout.VCodeAt(t, 8 * m + g)]) == kNotFiniteCode;
      bad |= is ? 1u << m : 0u;
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const uint32_t seen = __shfl_sync(~0u, attends[j], t % 8 * 4 + c);
      if (!(seen >> t / 8 & 1u)) continue;
#pragma unroll
      for (int m = 0; m < kDims / 8; ++m) {
        if (bad >> m & 1u) sums->o[j][m / 2][m % 2] = __uint_as_float(0x7fc00000u);
      }
    }
  }
}

// o and lse of one row from its sums, by a warp; lane l asks `o` for dims l, l + 32, ...
template <class Sums>
__device__ __forceinline__ void WriteRow(const AttendPlan& plan, int head, int row, float top,
                                         float sum, double shift, int lane, Sums o) {
  const int64_t batch = head / plan.kv_heads;
  const int64_t q_head = head % plan.kv_heads * plan.group + row % plan.group;
  const int query = row / plan.group;
  float* out = plan.o + batch * plan.o_strides.batch + q_head * plan.o_strides.head +
               query * plan.o_strides.token;
  // Nothing attended to: sum = 0, o = 0 and lse = -Infinity.
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int d = lane; d < plan.v_dim; d += 32) out[d] = o(d) * inverse;
  if (plan.lse != nullptr && lane == 0) {
    plan.lse[(batch * plan.kv_heads * plan.group + q_head) * plan.visibility.q_len + query] =
        sum == 0.0f ? -INFINITY
                    : static_cast<float>(
                          0.69314718055994531 * (static_cast<double>(top) + log2f(sum)) + shift);
  }
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_CACHE_ATTEND_PAGES_CUH_
