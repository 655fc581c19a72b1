// The instructions of sm_90a that the attention kernel is made of: barriers with a transaction
// count, bulk copies, wgmma and its descriptors, and the register split between warpgroups. One
// function per instruction; names and semantics as in the PTX ISA.
#ifndef SAGE_CUDA_SM90_HOPPER_CUH_
#define SAGE_CUDA_SM90_HOPPER_CUH_

#include <cstdint>

namespace sage {
namespace sm90 {

#define SAGE_DEVICE __device__ __forceinline__

SAGE_DEVICE uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// threadIdx.x, read where this stands.
SAGE_DEVICE uint32_t ThreadAnew() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// A value that is found anew each time.
SAGE_DEVICE int Anew(int x) {
  int y;
  asm volatile("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// ---- one launch behind another ----

// The next launch may begin where this one leaves room, though not pass AwaitEarlierLaunch.
SAGE_DEVICE void LetNextLaunchBegin() { asm volatile("griddepcontrol.launch_dependents;"); }
// Until the launch before is done, and what it wrote can be read.
SAGE_DEVICE void AwaitEarlierLaunch() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ---- mbarrier ----

SAGE_DEVICE void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
SAGE_DEVICE void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
SAGE_DEVICE void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Bytes to come, without an arrival.
SAGE_DEVICE void BarrierExpectOnly(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
SAGE_DEVICE void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
SAGE_DEVICE void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A warp gives back what all its lanes have read: one lane arrives, or, for tools that follow
// single threads, each for itself (docs/kernels_hopper.md, "Checks").
#ifdef SAGE_EACH_LANE_ARRIVES
constexpr int kWarpArrivals = 32;
SAGE_DEVICE void WarpArrive(uint32_t barrier, int) { BarrierArrive(barrier); }
#else
constexpr int kWarpArrivals = 1;
SAGE_DEVICE void WarpArrive(uint32_t barrier, int lane) {
  __syncwarp();
  if (lane == 0) BarrierArrive(barrier);
}
#endif

// Named barriers: `threads` of the block meet, or leave a mark for those who wait.
SAGE_DEVICE void NamedSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SAGE_DEVICE void NamedArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- bulk copy, global to shared; 16-byte aligned, completes on the barrier ----

SAGE_DEVICE void BulkCopy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// What this thread wrote to shared memory, for the tensor cores to read: before the barrier at
// which they learn of it.
SAGE_DEVICE void ProxyFence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Shared memory to global; returns when the former may be written again.
SAGE_DEVICE void BulkStore(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// ---- shared memory by address ----

SAGE_DEVICE void StoreSharedFloat(uint32_t at, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");
}
SAGE_DEVICE void LoadShared(uint32_t at, float (&x)[2]) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "r"(at) : "memory");
}
SAGE_DEVICE void LoadShared(uint32_t at, float (&x)[4]) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(at)
               : "memory");
}
SAGE_DEVICE void LoadShared(uint32_t at, uint32_t (&x)[1]) {
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x[0]) : "r"(at) : "memory");
}
SAGE_DEVICE void LoadShared(uint32_t at, uint32_t (&x)[2]) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(at) : "memory");
}
SAGE_DEVICE void StoreSharedHalfword(uint32_t at, uint16_t x) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(x) : "memory");
}

SAGE_DEVICE void StoreShared2(uint32_t at, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(x), "f"(y) : "memory");
}
SAGE_DEVICE float2 LoadShared2(uint32_t at) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at) : "memory");
  return x;
}
SAGE_DEVICE float LoadSharedFloat(uint32_t at) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
  return x;
}
SAGE_DEVICE float4 LoadSharedFloat4(uint32_t at) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(at)
               : "memory");
  return x;
}
SAGE_DEVICE void StoreShared4(uint32_t at, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(x), "f"(y), "f"(z), "f"(w)
               : "memory");
}
SAGE_DEVICE void StoreSharedInt(uint32_t at, int x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}
SAGE_DEVICE void StoreSharedInt4(uint32_t at, int x, int y, int z, int w) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
SAGE_DEVICE int4 LoadSharedInt4(uint32_t at) {
  int4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at)
               : "memory");
  return x;
}
SAGE_DEVICE int2 LoadSharedInt2(uint32_t at) {
  int2 x;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
  return x;
}
SAGE_DEVICE int LoadSharedInt(uint32_t at) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}

// ---- global memory ----

// Volatile: the place in the code is where the load should start.
SAGE_DEVICE float2 LoadGlobal2(const float* at) {
  float2 x;
  asm volatile("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(at));
  return x;
}
SAGE_DEVICE float4 LoadGlobal4(const float* at) {
  float4 x;
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(at));
  return x;
}
SAGE_DEVICE uint32_t LoadGlobalWord(const uint32_t* at) {
  uint32_t x;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(at));
  return x;
}
// *at if `loads`, else `otherwise`; for memory that nobody writes meanwhile. Loads in a row are
// under way together.
SAGE_DEVICE float LoadGlobalFloatIf(bool loads, const float* at, float otherwise) {
  asm volatile(
      "{\n.reg .pred loads;\n"
      "setp.ne.b32 loads, %2, 0;\n"
      "@loads ld.global.nc.f32 %0, [%1];\n}"
      : "+f"(otherwise)
      : "l"(at), "r"(static_cast<int>(loads)));
  return otherwise;
}
SAGE_DEVICE uint32_t LoadGlobalByteIf(bool loads, const uint8_t* at, uint32_t otherwise) {
  asm volatile(
      "{\n.reg .pred loads;\n"
      "setp.ne.b32 loads, %2, 0;\n"
      "@loads ld.global.nc.u8 %0, [%1];\n}"
      : "+r"(otherwise)
      : "l"(at), "r"(static_cast<int>(loads)));
  return otherwise;
}
// Through L2.
SAGE_DEVICE void AddGlobal4(float* at, float x, float y, float z, float w) {
  asm volatile("red.global.relaxed.gpu.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(x),
               "f"(y), "f"(z), "f"(w)
               : "memory");
}

// ---- registers per warpgroup ----

template <int kRegisters>
SAGE_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
SAGE_DEVICE void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma ----

SAGE_DEVICE void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SAGE_DEVICE void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
SAGE_DEVICE void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Where chunk c (16 bytes) of row r lies in a swizzled row of W bytes, W = 64 or 128; 8 rows of 128
// bytes repeat.
template <int kRowBytes>
__host__ __device__ constexpr int SwizzledChunk(int row, int chunk) {
  return kRowBytes == 128 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
}

// Where element d of a row of D one-byte codes lies in an operand of `kBlockRows` rows. Rows of 256
// bytes are two operands of 128, one after the other.
template <int D, int kBlockRows>
__host__ __device__ constexpr int OperandByte(int row, int d) {
  constexpr int kRowBytes = D < 128 ? D : 128;
  return d / kRowBytes * (kBlockRows * kRowBytes) + row * kRowBytes +
         SwizzledChunk<kRowBytes>(row, d % kRowBytes / 16) * 16 + d % 16;
}

// Descriptor of a K-major operand in swizzled rows of 64 or 128 bytes; `at` is aligned to 8 rows.
// Adding 2 moves 32 bytes along K.
// Low half of a descriptor.
SAGE_DEVICE uint32_t OperandLow(uint32_t at) { return (at >> 4) + 0x10000; }
template <int kRowBytes>
__host__ __device__ constexpr uint32_t OperandHigh() {
  return (kRowBytes == 128 ? 1u : 2u) << 30 | (8 * kRowBytes >> 4);
}

// Lists of accumulator registers for the statements below.
#define SAGE_R8(a, b, c, d, e, f, g, h) \
  "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define SAGE_R32                                         \
  SAGE_R8(0, 1, 2, 3, 4, 5, 6, 7)                        \
  "," SAGE_R8(8, 9, 10, 11, 12, 13, 14, 15) "," SAGE_R8( \
      16, 17, 18, 19, 20, 21, 22, 23) "," SAGE_R8(24, 25, 26, 27, 28, 29, 30, 31)
#define SAGE_R64                                                              \
  SAGE_R32 "," SAGE_R8(32, 33, 34, 35, 36, 37, 38, 39) "," SAGE_R8(           \
      40, 41, 42, 43, 44, 45, 46, 47) "," SAGE_R8(48, 49, 50, 51, 52, 53, 54, \
                                                  55) "," SAGE_R8(56, 57, 58, 59, 60, 61, 62, 63)
#define SAGE_R128 \
  SAGE_R64 "," SAGE_R8(64, 65, 66, 67, 68, 69, 70, 71) "," SAGE_R8(                          \
      72, 73, 74, 75, 76, 77, 78, 79) "," SAGE_R8(80, 81, 82, 83, 84, 85, 86, 87) "," SAGE_R8( \
      88, 89, 90, 91, 92, 93, 94, 95) "," SAGE_R8(96, 97, 98, 99, 100, 101, 102,             \
                                                  103) "," SAGE_R8(104, 105, 106, 107, 108,  \
                                                                   109, 110,                 \
                                                                   111) "," SAGE_R8(         \
      112, 113, 114, 115, 116, 117, 118, 119) "," SAGE_R8(120, 121, 122, 123, 124, 125, 126, 127)
#define SAGE_OPS8(k, d, i) \
  k(d[i]), k(d[i + 1]), k(d[i + 2]), k(d[i + 3]), k(d[i + 4]), k(d[i + 5]), k(d[i + 6]), k(d[i + 7])
#define SAGE_OPS32(k, d, i) \
  SAGE_OPS8(k, d, i), SAGE_OPS8(k, d, i + 8), SAGE_OPS8(k, d, i + 16), SAGE_OPS8(k, d, i + 24)

// s[64 x 128] (+)= a[64 x 32] b[128 x 32]', int8, both in shared memory. Thread (g, c) of a warp
// (g = lane / 4, c = lane % 4) holds rows g and g + 8 of its 16: s[4j + 2r + e] is row g + 8r,
// column 8j + 2c + e.
template <int D>
SAGE_DEVICE void WgmmaScores(int (&s)[64], uint32_t a, uint32_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %66, 0;\n"
      "mov.b64 a, {%64, %67};\nmov.b64 b, {%65, %67};\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" SAGE_R64 "}, a, b, p;\n}"
      : SAGE_OPS32("+r", s, 0), SAGE_OPS32("+r", s, 32)
      : "r"(a), "r"(b), "r"(accumulate), "n"(OperandHigh<D>()));
}

// t[64 x N] += p[64 x 32] v[N x 32]', e4m3, p in registers; t as the scores.
SAGE_DEVICE void WgmmaOutputs(float (&t)[64], const uint32_t* p, uint32_t v) {
  asm volatile(
      "{\n.reg .b64 v;\nmov.b64 v, {%68, %69};\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" SAGE_R64
      "}, {%64,%65,%66,%67}, v, 1, 1, 1;\n}"
      : SAGE_OPS32("+f", t, 0), SAGE_OPS32("+f", t, 32)
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(v), "n"(OperandHigh<128>()));
}
SAGE_DEVICE void WgmmaOutputs(float (&t)[128], const uint32_t* p, uint32_t v) {
  asm volatile(
      "{\n.reg .b64 v;\nmov.b64 v, {%132, %133};\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {" SAGE_R128
      "}, {%128,%129,%130,%131}, v, 1, 1, 1;\n}"
      : SAGE_OPS32("+f", t, 0), SAGE_OPS32("+f", t, 32), SAGE_OPS32("+f", t, 64),
        SAGE_OPS32("+f", t, 96)
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(v), "n"(OperandHigh<128>()));
}
SAGE_DEVICE void WgmmaOutputs(float (&t)[32], const uint32_t* p, uint32_t v) {
  asm volatile(
      "{\n.reg .b64 v;\nmov.b64 v, {%36, %37};\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" SAGE_R32
      "}, {%32,%33,%34,%35}, v, 1, 1, 1;\n}"
      : SAGE_OPS32("+f", t, 0)
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(v), "n"(OperandHigh<128>()));
}

// The products of 64 rows with a tile of keys, on their way: scores, then outputs.
template <int D>
SAGE_DEVICE void IssueScores(int (&s)[64], uint32_t q, uint32_t k) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < D / 32; ++i) WgmmaScores<D>(s, q + 2 * i, k + 2 * i, i != 0);
  WgmmaCommit();
}
template <int kSums>
SAGE_DEVICE void IssueOutputs(float (&t)[kSums], const uint32_t (&p)[16], uint32_t v) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < 4; ++i) WgmmaOutputs(t, p + 4 * i, v + 2 * i);
  WgmmaCommit();
}

#undef SAGE_R8
#undef SAGE_R32
#undef SAGE_R64
#undef SAGE_R128
#undef SAGE_OPS8
#undef SAGE_OPS32

// o[16 x 8] += a[16 x 8] b[8 x 8] in tf32 with float32 sums; a warp's own rows. a: rows g, g + 8 of
// column c, then of column c + 4; b: rows c, c + 4 of column g.
SAGE_DEVICE void MmaTf32(float* o, const uint32_t (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(__float_as_uint(b0)),
        "r"(__float_as_uint(b1)));
}

// The same in int8, 32 deep: a: bytes from 4c on of rows g, g + 8, then from 16 + 4c on; b: those
// of column g.
SAGE_DEVICE void MmaInt8(int* s, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same in fp16, 16 deep: a: columns 2c, 2c + 1 of rows g, g + 8, then columns 2c + 8, 2c + 9.
SAGE_DEVICE void MmaHalf(float (&o)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- arithmetic ----

// Sums over the four threads of a quad, which share rows g and g + 8 of a fragment.
SAGE_DEVICE float2 SumOfQuad(float2 x) {
#pragma unroll
  for (int other = 1; other < 4; other *= 2) {
    x.x += __shfl_xor_sync(~0u, x.x, other);
    x.y += __shfl_xor_sync(~0u, x.y, other);
  }
  return x;
}

SAGE_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// NaN if one is.
SAGE_DEVICE float MaxOrNaN(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// Volatile: the place in the code is where the conversion should be.
SAGE_DEVICE float IntToFloat(int x) {
  float y;
  asm volatile("cvt.rn.f32.s32 %0, %1;" : "=f"(y) : "r"(x));
  return y;
}

// Four floats as e4m3 bytes, a lowest; to nearest even, at most 448. Volatile: moved below the next
// wgmma, the floats would outlive their registers.
SAGE_DEVICE uint32_t PackE4m3(float a, float b, float c, float d) {
  uint32_t bytes;
  asm volatile(
      "{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}"
      : "=r"(bytes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return bytes;
}

// The same wherever the compiler likes.
SAGE_DEVICE uint32_t RoundE4m3(float a, float b, float c, float d) {
  uint32_t bytes;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}"
      : "=r"(bytes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return bytes;
}

// Four e4m3 bytes as halves, two to a word.
SAGE_DEVICE uint2 UnpackE4m3(uint32_t bytes) {
  uint2 halves;
  asm("{\n.reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n}"
      : "=r"(halves.x), "=r"(halves.y)
      : "r"(bytes));
  return halves;
}

// Two floats as fp16, a in the low half.
SAGE_DEVICE uint32_t PackHalves(float a, float b) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(a), "f"(b));
  return pair;
}
SAGE_DEVICE float2 UnpackHalves(uint32_t pair) {
  float2 x;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(x.x), "=f"(x.y)
      : "r"(pair));
  return x;
}

SAGE_DEVICE uint32_t RoundTf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_HOPPER_CUH_
