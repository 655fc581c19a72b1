// The floating-point mode that the engines are specified for. A host may set flush-to-zero around
// its own code, as TensorFlow does around its kernels; results must not depend on who calls.
#ifndef SAGE_NATIVE_FLOAT_MODE_H_
#define SAGE_NATIVE_FLOAT_MODE_H_

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace sage_node {

// Switches this thread to denormals as they are, and back when it goes out of scope. Threads that
// are started in between inherit the mode.
class DefaultFloatMode {
 public:
  DefaultFloatMode() : before_(Read()) { Write(before_ & ~kFlushBits); }
  ~DefaultFloatMode() { Write(before_); }
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using Bits = unsigned int;
  static constexpr Bits kFlushBits = 0x8040;  // MXCSR: FZ (outputs) and DAZ (inputs)
  static Bits Read() { return _mm_getcsr(); }
  static void Write(Bits bits) { _mm_setcsr(bits); }
#elif defined(__aarch64__)
  using Bits = uint64_t;
  static constexpr Bits kFlushBits = Bits{1} << 24;  // FPCR: FZ
  static Bits Read() {
    Bits bits;
    asm volatile("mrs %0, fpcr" : "=r"(bits));
    return bits;
  }
  static void Write(Bits bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }
#else
  using Bits = int;
  static constexpr Bits kFlushBits = 0;
  static Bits Read() { return 0; }
  static void Write(Bits) {}
#endif

  Bits before_;
};

}  // namespace sage_node

#endif  // SAGE_NATIVE_FLOAT_MODE_H_
