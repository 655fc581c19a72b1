// What an ARM processor (aarch64) offers. NEON is part of every one; dot products are asked for.
#include "cpu/cpu_features_arm.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sage {
namespace {

#if defined(__aarch64__) && defined(__linux__)
// Bit of AT_HWCAP by the kernel's interface; not every C library's header names it.
constexpr unsigned long kDotProducts = 1ul << 20;

bool HasDotProducts() { return (getauxval(AT_HWCAP) & kDotProducts) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool HasDotProducts() {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
}
#else
bool HasDotProducts() { return false; }
#endif

}  // namespace

void ReadArmFeatures(CpuFeatures* features) {
#if defined(__aarch64__)
  features->neon = true;
#endif
  features->dotprod = HasDotProducts();
}

}  // namespace sage
