// Linux gives tile data, 8 KiB of state for each thread, only to processes that ask for it. Without
// that the first tile instruction ends the process.
#include "cpu/amx/tile_permission.h"

#include <cerrno>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sage {
namespace {

#if defined(__linux__) && defined(__x86_64__)
// arch_prctl(2): the request, and the number of the state component "tile data" in XCR0.
constexpr long kRequestPermission = 0x1023;
constexpr long kTileData = 18;

const char* Ask() {
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return nullptr;
  switch (errno) {
    case EINVAL:
      return "the kernel knows no permission for AMX tiles (Linux 5.16 and later do)";
    case ENOSPC:
      return "a thread's signal stack is too small for AMX tiles";
    case EPERM:
      return "the kernel denies this process AMX tiles";
    default:
      return "the kernel refuses this process AMX tiles";
  }
}
#else
const char* Ask() { return "AMX tiles are used on Linux alone"; }
#endif

}  // namespace

const char* TileRefusal() {
  static const char* const refusal = Ask();
  return refusal;
}

}  // namespace sage
