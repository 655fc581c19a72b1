// Halves of the integer tile kernels on AVX-512, for tile_integer.h to put together: Q·K in
// score_tile_avx512.h, P·V in value_tile_avx512.h.
#ifndef SAGE_CPU_FORWARD_TILE_AVX512_H_
#define SAGE_CPU_FORWARD_TILE_AVX512_H_

#include "cpu/forward/score_tile_avx512.h"
#include "cpu/forward/value_tile_avx512.h"

#endif  // SAGE_CPU_FORWARD_TILE_AVX512_H_
