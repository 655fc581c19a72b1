// Which features of an ARM processor choose which path, and what this machine makes of it.
#include "cpu/cpu_features_arm.h"

#include <cstdio>

#include "cpu/cpu_features.h"
#include "sage/capabilities.h"

namespace {

using sage::Isa;

int failures = 0;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAIL %s\n", what);
  ++failures;
}

}  // namespace

int main() {
  sage::CpuFeatures f = {};
  Check(!Supports(f, Isa::kNeon) && !Supports(f, Isa::kNeonDot), "nothing supports nothing");
  f.neon = true;
  Check(Supports(f, Isa::kNeon) && !Supports(f, Isa::kNeonDot), "NEON alone");
  f.dotprod = true;
  Check(Supports(f, Isa::kNeonDot) && !Supports(f, Isa::kAvx2), "dot products");
  f.neon = false;
  Check(!Supports(f, Isa::kNeonDot), "dot products without NEON");

  sage::CpuFeatures here = {};
  ReadArmFeatures(&here);
#if defined(__aarch64__)
  Check(here.neon && sage::CanRun(Isa::kNeon), "every aarch64 processor has NEON");
  Check(sage::CanRun(Isa::kNeonDot) == here.dotprod, "dot products where they are reported");
  Check(sage::DetectIsa() == (here.dotprod ? Isa::kNeonDot : Isa::kNeon), "the best of them");
#else
  Check(!here.neon && !here.dotprod && !sage::CanRun(Isa::kNeon), "no NEON elsewhere");
#endif
  Isa isa;
  Check(sage::ParseIsa("neon_dot", &isa) && isa == Isa::kNeonDot, "its name");
  std::printf(failures == 0 ? "all checks hold\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
