// CPUID leaves 1 and 7 say what the processor has; XCR0 says which registers the operating system
// saves. Both must agree, or the first wide instruction ends the process.
#include "cpu/cpu_features.h"

#include <cstring>

#include "cpu/amx/tile_permission.h"
#include "cpu/cpu_features_arm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#define SAGE_X86 1
#else
#define SAGE_X86 0
#endif

namespace sage {
namespace {

constexpr const char* kIsaNames[kIsaCount] = {"portable", "avx2", "avx512",  "avx512_bf16",
                                              "amx",      "neon", "neon_dot"};

// Bits of XCR0: SSE and AVX state; opmask, upper halves and upper registers of AVX-512; AMX tile
// configuration and data.
constexpr uint64_t kAvxState = 0x6;
constexpr uint64_t kAvx512State = kAvxState | 0xe0;
constexpr uint64_t kAmxState = 0x60000;

bool Bit(uint32_t word, int bit) { return (word >> bit) & 1u; }

#if SAGE_X86
uint64_t ReadXcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}
#endif

CpuRegisters ReadRegisters() {
  CpuRegisters r = {};
#if SAGE_X86
  uint32_t eax, ebx, ecx, edx;
  r.max_leaf = __get_cpuid_max(0, nullptr);
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) r.leaf1_ecx = ecx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    r.leaf7_ebx = ebx;
    r.leaf7_ecx = ecx;
    r.leaf7_edx = edx;
    const uint32_t last_subleaf = eax;
    if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) r.leaf7_1_eax = eax;
  }
  if (Bit(r.leaf1_ecx, 27)) r.xcr0 = ReadXcr0();  // OSXSAVE: xgetbv is allowed
#endif
  return r;
}

// The flags that CMakeLists.txt gave a per-ISA object file to the linker for.
bool Compiled(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
#if defined(SAGE_WITH_AVX2)
      return true;
#else
      return false;
#endif
    case Isa::kAvx512:
#if defined(SAGE_WITH_AVX512)
      return true;
#else
      return false;
#endif
    case Isa::kAvx512Bf16:
#if defined(SAGE_WITH_AVX512_BF16)
      return true;
#else
      return false;
#endif
    case Isa::kAmx:
#if defined(SAGE_WITH_AMX)
      return true;
#else
      return false;
#endif
    case Isa::kNeon:
#if defined(SAGE_WITH_NEON)
      return true;
#else
      return false;
#endif
    case Isa::kNeonDot:
#if defined(SAGE_WITH_NEON_DOT)
      return true;
#else
      return false;
#endif
  }
  return false;
}

struct BrandString {
  char text[49] = "unknown";
  BrandString() {
#if SAGE_X86
    uint32_t words[12];
    for (uint32_t leaf = 0; leaf < 3; ++leaf) {
      uint32_t* part = words + 4 * leaf;
      if (!__get_cpuid(0x80000002u + leaf, &part[0], &part[1], &part[2], &part[3])) return;
    }
    char raw[49] = {};
    std::memcpy(raw, words, sizeof(words));
    // Some processors pad their name with spaces on the left, most on the right.
    const char* begin = raw;
    while (*begin == ' ') ++begin;
    size_t length = std::strlen(begin);
    while (length > 0 && begin[length - 1] == ' ') --length;
    if (length == 0) return;
    std::memcpy(text, begin, length);
    text[length] = '\0';
#endif
  }
};

}  // namespace

CpuFeatures FeaturesFrom(const CpuRegisters& r) {
  CpuFeatures f = {};
  const bool avx = Bit(r.leaf1_ecx, 28) && (r.xcr0 & kAvxState) == kAvxState;
  if (!avx) return f;
  f.fma = Bit(r.leaf1_ecx, 12);
  f.f16c = Bit(r.leaf1_ecx, 29);
  if (r.max_leaf < 7) return f;
  f.avx2 = Bit(r.leaf7_ebx, 5);
  if ((r.xcr0 & kAvx512State) == kAvx512State) {
    f.avx512f = Bit(r.leaf7_ebx, 16);
    f.avx512dq = Bit(r.leaf7_ebx, 17);
    f.avx512bw = Bit(r.leaf7_ebx, 30);
    f.avx512vl = Bit(r.leaf7_ebx, 31);
    f.avx512vnni = Bit(r.leaf7_ecx, 11);
    f.avx512bf16 = Bit(r.leaf7_1_eax, 5);
  }
  if ((r.xcr0 & kAmxState) == kAmxState) {
    f.amx_bf16 = Bit(r.leaf7_edx, 22);
    f.amx_tile = Bit(r.leaf7_edx, 24);
    f.amx_int8 = Bit(r.leaf7_edx, 25);
  }
  return f;
}

bool Supports(const CpuFeatures& f, Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return f.avx2 && f.fma && f.f16c;
    case Isa::kAvx512:
      return Supports(f, Isa::kAvx2) && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq &&
             f.avx512vnni;
    case Isa::kAvx512Bf16:
      return Supports(f, Isa::kAvx512) && f.avx512bf16;
    case Isa::kAmx:
      return Supports(f, Isa::kAvx512Bf16) && f.amx_tile && f.amx_int8 && f.amx_bf16;
    case Isa::kNeon:
      return f.neon;
    case Isa::kNeonDot:
      return f.neon && f.dotprod;
  }
  return false;
}

namespace {

constexpr uint32_t kAuthenticAmd = 0x68747541;  // "Auth"
constexpr uint32_t kZen5 = 0x1a;                // a family

uint32_t FamilyOf(uint32_t leaf1_eax) {
  const uint32_t base = leaf1_eax >> 8 & 0xf, extended = leaf1_eax >> 20 & 0xff;
  return base == 0xf ? base + extended : base;
}

// Asks `from` about this processor.
bool AskProcessor(bool (*from)(uint32_t leaf0_ebx, uint32_t leaf1_eax)) {
#if SAGE_X86
  uint32_t eax, ebx, ecx, edx, signature;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return false;
  const uint32_t vendor = ebx;
  if (__get_cpuid(1, &signature, &ebx, &ecx, &edx) == 0) return false;
  return from(vendor, signature);
#else
  (void)from;
  return false;
#endif
}

}  // namespace

bool ManyLineBuffersFrom(uint32_t leaf0_ebx, uint32_t leaf1_eax) {
  return leaf0_ebx == kAuthenticAmd && FamilyOf(leaf1_eax) >= kZen5;
}

bool FewLineBuffersFrom(uint32_t leaf0_ebx, uint32_t leaf1_eax) {
  return leaf0_ebx == kAuthenticAmd && FamilyOf(leaf1_eax) < kZen5;
}

bool HasManyLineBuffers() {
  static const bool many = AskProcessor(ManyLineBuffersFrom);
  return many;
}

bool HasFewLineBuffers() {
  static const bool few = AskProcessor(FewLineBuffersFrom);
  return few;
}

const CpuFeatures& DetectedCpuFeatures() {
  static const CpuFeatures features = [] {
    CpuFeatures f = FeaturesFrom(ReadRegisters());
    ReadArmFeatures(&f);
    return f;
  }();
  return features;
}

const char* CpuName() {
  static const BrandString brand;
  return brand.text;
}

const char* IsaName(Isa isa) {
  const int index = static_cast<int>(isa);
  return index >= 0 && index < kIsaCount ? kIsaNames[index] : "unknown";
}

bool ParseIsa(const char* name, Isa* isa) {
  for (int index = 0; index < kIsaCount; ++index) {
    if (std::strcmp(name, kIsaNames[index]) != 0) continue;
    *isa = static_cast<Isa>(index);
    return true;
  }
  return false;
}

const char* IsaRefusal(Isa isa) {
  if (!Compiled(isa)) return "this build has no code for it";
  if (!Supports(DetectedCpuFeatures(), isa)) {
    return "the processor lacks it, or the operating system does not save its registers";
  }
  return isa == Isa::kAmx ? TileRefusal() : nullptr;
}

bool CanRun(Isa isa) { return IsaRefusal(isa) == nullptr; }

Isa DetectIsa() {
  for (int index = kIsaCount - 1; index > 0; --index) {
    if (CanRun(static_cast<Isa>(index))) return static_cast<Isa>(index);
  }
  return Isa::kPortable;
}

Isa KernelIsa(Isa isa) { return isa == Isa::kAmx ? Isa::kAvx512Bf16 : isa; }

const char* BuildVersion() { return SAGE_VERSION; }

}  // namespace sage
