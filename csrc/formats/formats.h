// All number formats: one include for code that uses several of them.
#ifndef SAGE_FORMATS_FORMATS_H_
#define SAGE_FORMATS_FORMATS_H_

#include "formats/e8m0.h"        // IWYU pragma: export
#include "formats/float_bits.h"  // IWYU pragma: export
#include "formats/half.h"        // IWYU pragma: export
#include "formats/integers.h"    // IWYU pragma: export
#include "formats/minifloat.h"   // IWYU pragma: export

#endif  // SAGE_FORMATS_FORMATS_H_
