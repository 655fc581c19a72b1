// The register kernel of the backward pass, in float32:
// C[R rows][V vectors] = sum over k of A(row, k) · B[k][V vectors].
//
// A is read in place, one broadcast element at a time, by rows or by columns; B is rows of aligned
// vectors. R · V accumulators stay in registers over the whole depth, and an End says what becomes
// of them: a store, an addition, or more. Internal linkage throughout (simd.h says why).
#ifndef SAGE_CPU_BACKWARD_PRODUCT_H_
#define SAGE_CPU_BACKWARD_PRODUCT_H_

#include <cstdint>

#include "cpu/simd/simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#define SAGE_UNROLL _Pragma("GCC unroll 8")
#define SAGE_UNROLL_LANES _Pragma("GCC unroll 16")
#else
#define SAGE_UNROLL
#define SAGE_UNROLL_LANES
#endif

namespace sage {
namespace {

// Register tile. 6 x 4 accumulators fit AVX-512's 32 registers, 6 x 2 AVX2's 16; the portable
// 8-lane vector is two of SSE2's or NEON's registers, so 6 x 1 takes 12 of 16.
constexpr int kRows = 6;
#if defined(SAGE_ISA_AVX512)
constexpr int kVectors = 4;
#elif defined(SAGE_ISA_AVX2) || defined(SAGE_ISA_NEON)
constexpr int kVectors = 2;
#else
constexpr int kVectors = 1;
#endif
constexpr int kPanel = kVectors * kLanes;

struct Product {
  int64_t depth;
  const float* a;
  int64_t a_stride;
  const float* b;  // aligned vectors
  int64_t b_stride;
};

// Ends: row r of C is given to Row(end, r, sums).
//
// C = sum, in aligned vectors.
struct WriteSums {
  float* c;
  int64_t stride;
  template <int V>
  SAGE_INLINE void Row(const WriteSums& end, int r, const F32 (&sum)[V]) {
    float* c = end.c + r * end.stride;
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) Store(c + v * kLanes, sum[v]);
  }
};
// C += sum, in aligned vectors.
struct AddSums {
  float* c;
  int64_t stride;
  template <int V>
  SAGE_INLINE void Row(const AddSums& end, int r, const F32 (&sum)[V]) {
    float* c = end.c + r * end.stride;
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) Store(c + v * kLanes, Add(Load(c + v * kLanes), sum[v]));
  }
};
// C += factor · sum, wherever C lies.
struct AddScaledSums {
  float* c;
  int64_t stride;
  float factor;
  template <int V>
  SAGE_INLINE void Row(const AddScaledSums& end, int r, const F32 (&sum)[V]) {
    const F32 factor = Set1(end.factor);
    float* c = end.c + r * end.stride;
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) {
      StoreU(c + v * kLanes, Fma(factor, sum[v], LoadU(c + v * kLanes)));
    }
  }
};

// kColumns: A(r, k) = a[k · a_stride + r]; else A(r, k) = a[r · a_stride + k].
template <int R, int V, bool kColumns, class End>
SAGE_NOINLINE void Multiply(const Product& product, const End& end) {
  F32 sum[R][V];
  SAGE_UNROLL
  for (int r = 0; r < R; ++r) {
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) sum[r][v] = Zero();
  }
  const int64_t a_stride = product.a_stride, b_stride = product.b_stride;
  const float* a = product.a;
  const float* b = product.b;
  for (int64_t k = product.depth; k > 0; --k) {
    F32 row[V];
    SAGE_UNROLL
    for (int v = 0; v < V; ++v) row[v] = Load(b + v * kLanes);
    SAGE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32 x = Set1(kColumns ? a[r] : a[r * a_stride]);
      SAGE_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] = Fma(x, row[v], sum[r][v]);
    }
    a += kColumns ? a_stride : 1;
    b += b_stride;
  }
  SAGE_UNROLL
  for (int r = 0; r < R; ++r) End::template Row<V>(end, r, sum[r]);
}

template <int V, bool kColumns, class End>
SAGE_INLINE void MultiplyRows(int rows, const Product& product, const End& end) {
  switch (rows) {
    case 1:
      return Multiply<1, V, kColumns>(product, end);
    case 2:
      return Multiply<2, V, kColumns>(product, end);
    case 3:
      return Multiply<3, V, kColumns>(product, end);
    case 4:
      return Multiply<4, V, kColumns>(product, end);
    case 5:
      return Multiply<5, V, kColumns>(product, end);
    default:
      return Multiply<6, V, kColumns>(product, end);
  }
}

// rows in [1, kRows], vectors in [1, kVectors].
template <bool kColumns, class End>
SAGE_NOINLINE void MultiplyTile(int rows, int vectors, const Product& product, const End& end) {
  if constexpr (kVectors >= 4) {
    if (vectors == 4) return MultiplyRows<4, kColumns>(rows, product, end);
    if (vectors == 3) return MultiplyRows<3, kColumns>(rows, product, end);
  }
  if constexpr (kVectors >= 2) {
    if (vectors == 2) return MultiplyRows<2, kColumns>(rows, product, end);
  }
  MultiplyRows<1, kColumns>(rows, product, end);
}

// Splits `vectors` into as few panels as registers allow, of nearly the same width: 5 = 3 + 2 keeps
// more accumulators busy than 4 + 1.
SAGE_INLINE int PanelWidth(int vectors) {
  const int panels = (vectors + kVectors - 1) / kVectors;
  return (vectors + panels - 1) / panels;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_BACKWARD_PRODUCT_H_
