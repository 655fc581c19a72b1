// Products of small matrices by a whole warp: D = C + A B, with the fragments of PTX's mma
// instructions. g = lane / 4, q = lane % 4; C and D: (g, 2q) (g, 2q+1) (g+8, 2q) (g+8, 2q+1).
//
//   MmaNvfp4  16x8x64  e2m1 with a ue4m3 scale per 16 elements along k
//             a0: row g, k 8q..8q+7 (lowest nibble first)   a1: row g+8   a2, a3: k + 32
//             b0: column g, k 8q..8q+7                      b1: k + 32
//             scales: byte j of a word is that of k 16j..16j+15. Of A's row r, from lane
//             4 (r % 8) + 2 TA + r / 8; of B's column n, from lane 4n + TB. So one word per lane
//             serves two row tiles (TA 0 and 1) or four column tiles (TB 0 to 3).
//   MmaE4m3   16x8x32  e4m3; native: the block-scaled form with unit scales, which adds in float32
//             a0: row g, k 4q..4q+3 (lowest byte first)     a1: row g+8   a2, a3: k + 16
//             b0: column g, k 4q..4q+3                      b1: k + 16
//   MmaHalf   16x8x16  fp16
//             a0: row g, k 2q, 2q+1 (low half first)        a1: row g+8   a2, a3: k + 8
//             b0: column g, k 2q, 2q+1                      b1: k + 8
//   MmaTf32   16x8x4   floats of 10 mantissa bits (RoundTf32); a0: row g, k q; a1: row g+8;
//             b: k q, column g
//
// Emulated and simulated: sums of 16 products of nvfp4 are exact integers, added by one fused
// operation per group of 16, in order of k; the others add product by product in order of k within
// a thread's elements (the loops below). Every product of two elements is exact in float32, so each
// of those additions is rounded once.
#ifndef SAGE_CUDA_CORE_PRODUCTS_H_
#define SAGE_CUDA_CORE_PRODUCTS_H_

#include <cstring>

#include "cuda/core/convert.h"
#include "cuda/core/warp.h"

namespace sage::tile {

// What every thread of the warp holds of an operand pair: words of A, then of B, then scales.
template <int kWords>
class Peers {
 public:
#ifdef __CUDACC__
  SAGE_TILE_MEMBER explicit Peers(const uint32_t (&words)[kWords]) : words_(words) {}
  SAGE_TILE_MEMBER uint32_t Word(int word, int lane) const { return Shuffle(words_[word], lane); }

 private:
  const uint32_t (&words_)[kWords];
#else
  explicit Peers(const uint32_t (&words)[kWords])
      : all_(simulate::Exchange(words, sizeof(words))) {}
  uint32_t Word(int word, int lane) const {
    uint32_t x;
    std::memcpy(&x, all_ + lane * simulate::kExchangeBytes + word * 4, 4);
    return x;
  }

 private:
  const uint8_t* all_;
#endif
};

#if !SAGE_NATIVE_FP4

#ifdef __CUDACC__
// Four e2m1 codes (the low 16 bits) as signed bytes of twice their values.
SAGE_TILE uint32_t TwiceE2m1(uint32_t codes) {
  const uint32_t magnitude = __byte_perm(0x03020100u, 0x0c080604u, codes & 0x7777u);
  // Bit 3 of each nibble to bit 0 of its byte.
  uint32_t minus =
      (codes >> 3 & 1u) | (codes & 0x80u) << 1 | (codes & 0x800u) << 5 | (codes & 0x8000u) << 9;
  const uint32_t some = magnitude | magnitude >> 4;
  // No carry between bytes: -0 is left alone.
  minus &= (some | some >> 1 | some >> 2 | some >> 3) & 0x01010101u;
  return (magnitude ^ minus * 0xffu) + minus;
}

SAGE_TILE_CALL Floats4 EmulatedNvfp4(Floats4 d, Words4 a, Words2 b, uint32_t sfa, uint32_t sfb,
                                     int ta, int tb) {
  const int lane = Lane(), quad = lane & ~3, q = lane & 3;
  const uint32_t scale_a0 = Shuffle(sfa, quad + 2 * ta);
  const uint32_t scale_a1 = Shuffle(sfa, quad + 2 * ta + 1);
  const uint32_t scale_b0 = Shuffle(sfb, 4 * (2 * q) + tb);
  const uint32_t scale_b1 = Shuffle(sfb, 4 * (2 * q + 1) + tb);
  for (int c = 0; c < 4; ++c) {
    // Lanes q = 0, 1 hold the even groups of 16, the others the odd ones: zeroing the rest of A
    // leaves the exact integer sum of one group.
    const bool mine = (q >> 1) == (c & 1);
    const uint32_t row0 = mine ? (c < 2 ? a.x : a.z) : 0u, row1 = mine ? (c < 2 ? a.y : a.w) : 0u;
    const uint32_t column = c < 2 ? b.x : b.y;
    int s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(s0), "+r"(s1), "+r"(s2), "+r"(s3)
        : "r"(TwiceE2m1(row0 & 0xffffu)), "r"(TwiceE2m1(row1 & 0xffffu)),
          "r"(TwiceE2m1(row0 >> 16)), "r"(TwiceE2m1(row1 >> 16)), "r"(TwiceE2m1(column & 0xffffu)),
          "r"(TwiceE2m1(column >> 16)));
    const float x0 = DecodeUe4m3(static_cast<uint8_t>(scale_a0 >> 8 * c));
    const float x1 = DecodeUe4m3(static_cast<uint8_t>(scale_a1 >> 8 * c));
    const float y0 = 0.25f * DecodeUe4m3(static_cast<uint8_t>(scale_b0 >> 8 * c));
    const float y1 = 0.25f * DecodeUe4m3(static_cast<uint8_t>(scale_b1 >> 8 * c));
    d.x = Fma(static_cast<float>(s0), x0 * y0, d.x);
    d.y = Fma(static_cast<float>(s1), x0 * y1, d.y);
    d.z = Fma(static_cast<float>(s2), x1 * y0, d.z);
    d.w = Fma(static_cast<float>(s3), x1 * y1, d.w);
  }
  return d;
}
#else
inline Floats4 EmulatedNvfp4(Floats4 d, Words4 a, Words2 b, uint32_t sfa, uint32_t sfb, int ta,
                             int tb) {
  static const int kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, sfa, sfb};
  const Peers<8> peers(words);
  const int lane = Lane(), g = lane / 4, q = lane % 4;
  float* const out[4] = {&d.x, &d.y, &d.z, &d.w};
  for (int i = 0; i < 4; ++i) {
    const int low = i / 2, n = 2 * q + i % 2;
    const uint32_t scale_a = peers.Word(6, 4 * g + 2 * ta + low);
    const uint32_t scale_b = peers.Word(7, 4 * n + tb);
    for (int c = 0; c < 4; ++c) {
      int sum = 0;
      for (int k = 2 * (c % 2); k < 2 * (c % 2) + 2; ++k) {
        const uint32_t x = peers.Word(2 * (c / 2) + low, 4 * g + k);
        const uint32_t y = peers.Word(4 + c / 2, 4 * n + k);
        for (int e = 0; e < 8; ++e) sum += kTwice[x >> 4 * e & 15] * kTwice[y >> 4 * e & 15];
      }
      const float scale = DecodeUe4m3(static_cast<uint8_t>(scale_a >> 8 * c)) *
                          (0.25f * DecodeUe4m3(static_cast<uint8_t>(scale_b >> 8 * c)));
      *out[i] = Fma(static_cast<float>(sum), scale, *out[i]);
    }
  }
  return d;
}
#endif

SAGE_TILE_CALL Floats4 EmulatedE4m3(Floats4 d, Words4 a, Words2 b) {
  const uint32_t words[6] = {a.x, a.y, a.z, a.w, b.x, b.y};
  const Peers<6> peers(words);
  const int quad = Lane() & ~3, q = Lane() & 3;
  SAGE_UNROLL
  for (int half = 0; half < 2; ++half) {
    SAGE_NO_UNROLL
    for (int k = 0; k < 4; ++k) {
      const uint32_t x0 = peers.Word(2 * half, quad + k), x1 = peers.Word(2 * half + 1, quad + k);
      const uint32_t y0 = peers.Word(4 + half, 8 * q + k), y1 = peers.Word(4 + half, 8 * q + 4 + k);
      for (int i = 0; i < 4; ++i) {
        const float u0 = DecodeE4m3(static_cast<uint8_t>(x0 >> 8 * i));
        const float u1 = DecodeE4m3(static_cast<uint8_t>(x1 >> 8 * i));
        const float w0 = DecodeE4m3(static_cast<uint8_t>(y0 >> 8 * i));
        const float w1 = DecodeE4m3(static_cast<uint8_t>(y1 >> 8 * i));
        d.x = Fma(u0, w0, d.x);
        d.y = Fma(u0, w1, d.y);
        d.z = Fma(u1, w0, d.z);
        d.w = Fma(u1, w1, d.w);
      }
    }
  }
  return d;
}

SAGE_TILE_CALL Floats4 EmulatedHalf(Floats4 d, Words4 a, Words2 b) {
  const uint32_t words[6] = {a.x, a.y, a.z, a.w, b.x, b.y};
  const Peers<6> peers(words);
  const int quad = Lane() & ~3, q = Lane() & 3;
  SAGE_UNROLL
  for (int half = 0; half < 2; ++half) {
    SAGE_NO_UNROLL
    for (int k = 0; k < 4; ++k) {
      const uint32_t x0 = peers.Word(2 * half, quad + k), x1 = peers.Word(2 * half + 1, quad + k);
      const uint32_t y0 = peers.Word(4 + half, 8 * q + k), y1 = peers.Word(4 + half, 8 * q + 4 + k);
      for (int i = 0; i < 2; ++i) {
        const float u0 = DecodeFp16(static_cast<uint16_t>(x0 >> 16 * i));
        const float u1 = DecodeFp16(static_cast<uint16_t>(x1 >> 16 * i));
        const float w0 = DecodeFp16(static_cast<uint16_t>(y0 >> 16 * i));
        const float w1 = DecodeFp16(static_cast<uint16_t>(y1 >> 16 * i));
        d.x = Fma(u0, w0, d.x);
        d.y = Fma(u0, w1, d.y);
        d.z = Fma(u1, w0, d.z);
        d.w = Fma(u1, w1, d.w);
      }
    }
  }
  return d;
}

SAGE_TILE_CALL Floats4 EmulatedTf32(Floats4 d, float a0, float a1, float b) {
  const uint32_t words[3] = {FloatToBits(a0), FloatToBits(a1), FloatToBits(b)};
  const Peers<3> peers(words);
  const int quad = Lane() & ~3, q = Lane() & 3;
  for (int k = 0; k < 4; ++k) {
    const float u0 = BitsToFloat(peers.Word(0, quad + k)),
                u1 = BitsToFloat(peers.Word(1, quad + k));
    const float w0 = BitsToFloat(peers.Word(2, 8 * q + k));
    const float w1 = BitsToFloat(peers.Word(2, 8 * q + 4 + k));
    d.x = Fma(u0, w0, d.x);
    d.y = Fma(u0, w1, d.y);
    d.z = Fma(u1, w0, d.z);
    d.w = Fma(u1, w1, d.w);
  }
  return d;
}

SAGE_TILE void Assign(float (&d)[4], const Floats4& x) {
  d[0] = x.x;
  d[1] = x.y;
  d[2] = x.z;
  d[3] = x.w;
}

#endif  // !SAGE_NATIVE_FP4

template <int TA, int TB>
SAGE_TILE void MmaNvfp4(float (&d)[4], const float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                        uint32_t b1, uint32_t sfa, uint32_t sfb) {
  static_assert(TA >= 0 && TA < 2 && TB >= 0 && TB < 4);
#if SAGE_NATIVE_FP4
  asm("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1.f32"
      ".ue4m3 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13}, {%14}, {0,%16}, {%15}, "
      "{0,%17};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]), "r"(sfa), "r"(sfb), "n"(TA), "n"(TB));
#else
  Assign(d, EmulatedNvfp4({c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}, sfa, sfb,
                          TA, TB));
#endif
}

SAGE_TILE void MmaE4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if SAGE_NATIVE_FP4
  // 0x7f: a scale of 2^0 in each byte.
  asm("mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32"
      ".ue8m0 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {0,0}, {%10}, {0,0};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0x7f7f7f7fu));
#else
  Assign(d, EmulatedE4m3({d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}));
#endif
}

SAGE_TILE void MmaHalf(float (&d)[4], const Words4& a, uint32_t b0, uint32_t b1) {
#if SAGE_NATIVE_FP4
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
  Assign(d, EmulatedHalf({d[0], d[1], d[2], d[3]}, a, {b0, b1}));
#endif
}

SAGE_TILE void MmaTf32(float (&d)[4], float a0, float a1, float b) {
#if SAGE_NATIVE_FP4
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)));
#else
  Assign(d, EmulatedTf32({d[0], d[1], d[2], d[3]}, a0, a1, b));
#endif
}

}  // namespace sage::tile

#endif  // SAGE_CUDA_CORE_PRODUCTS_H_
