// The tile vocabulary of AMX: eight tiles of 16 rows x 64 bytes, tile products, and the scope in
// which a thread may use them. Instructions, or the same arithmetic in plain C++
// (SAGE_AMX_EMULATED), so that the kernels above run under test on processors without AMX.
//
//   DotInt8<C, A, B>     C int32 [16][16] += A int8  [16][64] · B int8 [16][16][4]
//   DotUint8<C, A, B>    the same with A unsigned
//   DotBf16<C, A, B>     C float [16][16] += A bf16  [16][32] · B bf16 [16][16][2]
//
// B holds, for each group of 4 (2) steps of the inner dimension, 16 columns side by side.
//
// The tile state of a thread belongs to whoever uses it at the moment. TileScope saves the
// configuration it finds, loads its own, and at its end loads the old one back or, where there was
// none, releases the tiles: so another library's configuration survives, and a thread at rest
// carries no tile data through context switches. Contents of tiles are lost across a scope, as
// across any call (the calling convention counts them as scratch).
#ifndef SAGE_CPU_AMX_TILES_H_
#define SAGE_CPU_AMX_TILES_H_

#include <string.h>

#include <cstdint>

#include "cpu/simd/simd.h"

namespace sage {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 1024;

#if !defined(SAGE_AMX_EMULATED)

// The 64 bytes of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the processor reads 64 bytes");

// The statements name the memory that they touch as "memory": the compiler's own intrinsics leave
// that out in some versions, and then stores move past a tile load.
class TileScope {
 public:
  TileScope() {
    asm volatile("sttilecfg %0" : "=m"(found_)::"memory");
    TileConfig own = {};
    own.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      own.row_bytes[tile] = 64;
      own.rows[tile] = kTileRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(own) : "memory");
  }
  ~TileScope() {
    if (found_.palette != 0) {
      asm volatile("ldtilecfg %0" ::"m"(found_) : "memory");
    } else {
      asm volatile("tilerelease" ::: "memory");
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  TileConfig found_;
};

template <int kTile>
SAGE_INLINE void LoadTile(const void* base, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(kTile) : "memory");
}
// A tile of K or V, which is not needed again before a whole block has gone by: a hint that it need
// not stay in L1, where the rows of scores it is multiplied with have their place.
template <int kTile>
SAGE_INLINE void LoadPassingTile(const void* base, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
SAGE_INLINE void StoreTile(void* base, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
SAGE_INLINE void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kC, int kA, int kB>
SAGE_INLINE void DotInt8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}
template <int kC, int kA, int kB>
SAGE_INLINE void DotUint8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}
template <int kC, int kA, int kB>
SAGE_INLINE void DotBf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#else

struct alignas(64) EmulatedTiles {
  uint8_t bytes[8][kTileBytes];
  bool configured;
};
thread_local EmulatedTiles emulated_tiles;

// Using tiles outside of a scope ends the process on the real processor, and here too.
SAGE_INLINE uint8_t* Tile(int tile) {
  if (!emulated_tiles.configured) __builtin_trap();
  return emulated_tiles.bytes[tile];
}

class TileScope {
 public:
  TileScope() { emulated_tiles.configured = true; }
  ~TileScope() { emulated_tiles.configured = false; }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
SAGE_INLINE void LoadTile(const void* base, int64_t stride) {
  const uint8_t* from = static_cast<const uint8_t*>(base);
  for (int row = 0; row < kTileRows; ++row) memcpy(Tile(kTile) + 64 * row, from + row * stride, 64);
}
template <int kTile>
SAGE_INLINE void LoadPassingTile(const void* base, int64_t stride) {
  LoadTile<kTile>(base, stride);
}
template <int kTile>
SAGE_INLINE void StoreTile(void* base, int64_t stride) {
  uint8_t* to = static_cast<uint8_t*>(base);
  for (int row = 0; row < kTileRows; ++row) memcpy(to + row * stride, Tile(kTile) + 64 * row, 64);
}
template <int kTile>
SAGE_INLINE void ZeroTile() {
  memset(Tile(kTile), 0, kTileBytes);
}

template <class A>
SAGE_NOINLINE void EmulateDotBytes(uint8_t* c, const uint8_t* a, const uint8_t* b) {
  for (int row = 0; row < kTileRows; ++row) {
    int32_t sums[16];
    memcpy(sums, c + 64 * row, 64);
    for (int step = 0; step < 64; ++step) {
      const int32_t x = static_cast<A>(a[64 * row + step]);
      const uint8_t* line = b + 64 * (step / 4) + step % 4;
      for (int column = 0; column < 16; ++column) {
        sums[column] += x * static_cast<int8_t>(line[4 * column]);
      }
    }
    memcpy(c + 64 * row, sums, 64);
  }
}
template <int kC, int kA, int kB>
SAGE_INLINE void DotInt8() {
  EmulateDotBytes<int8_t>(Tile(kC), Tile(kA), Tile(kB));
}
template <int kC, int kA, int kB>
SAGE_INLINE void DotUint8() {
  EmulateDotBytes<uint8_t>(Tile(kC), Tile(kA), Tile(kB));
}

SAGE_INLINE float Bf16At(const uint8_t* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
SAGE_NOINLINE void EmulateDotBf16(uint8_t* c, const uint8_t* a, const uint8_t* b) {
  for (int row = 0; row < kTileRows; ++row) {
    float sums[16];
    memcpy(sums, c + 64 * row, 64);
    for (int step = 0; step < 32; ++step) {
      const float x = Bf16At(a + 64 * row + 2 * step);
      const uint8_t* line = b + 64 * (step / 2) + 2 * (step % 2);
      for (int column = 0; column < 16; ++column) {
        sums[column] = __builtin_fmaf(x, Bf16At(line + 4 * column), sums[column]);
      }
    }
    memcpy(c + 64 * row, sums, 64);
  }
}
template <int kC, int kA, int kB>
SAGE_INLINE void DotBf16() {
  EmulateDotBf16(Tile(kC), Tile(kA), Tile(kB));
}

#endif  // SAGE_AMX_EMULATED

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_AMX_TILES_H_
