// Features of ARM processors, asked of the operating system.
#ifndef SAGE_CPU_CPU_FEATURES_ARM_H_
#define SAGE_CPU_CPU_FEATURES_ARM_H_

#include "sage/capabilities.h"

namespace sage {

// Sets `neon` and `dotprod`: false on other processors.
void ReadArmFeatures(CpuFeatures* features);

}  // namespace sage

#endif  // SAGE_CPU_CPU_FEATURES_ARM_H_
