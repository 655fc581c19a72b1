// Which rows of a block of 128 tokens share a scale.
#ifndef SAGE_FORMATS_TOKEN_GROUP_H_
#define SAGE_FORMATS_TOKEN_GROUP_H_

#include "formats/float_bits.h"
#include "sage/problem.h"

namespace sage {

// Group of row t inside a 128-token block (docs/numerics.md 4.1).
SAGE_HOST_DEVICE static inline int GroupInBlock(TokenGroup kind, int t) {
  switch (kind) {
    case TokenGroup::kToken:
      return t;
    case TokenGroup::kWarp32:
    case TokenGroup::kConsecutive32:
      return t / 32;
    case TokenGroup::kThread32:
      return t / 32 * 8 + t % 8;
    case TokenGroup::kThread64:
      return t / 64 * 4 + t % 8 / 2;
    case TokenGroup::kWarp64:
    case TokenGroup::kBlock64:
      return t / 64;
    case TokenGroup::kBlock128:
      return 0;
  }
  return 0;
}

}  // namespace sage

#endif  // SAGE_FORMATS_TOKEN_GROUP_H_
