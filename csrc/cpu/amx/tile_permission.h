// The system's permission to use AMX tiles.
#ifndef SAGE_CPU_AMX_TILE_PERMISSION_H_
#define SAGE_CPU_AMX_TILE_PERMISSION_H_

namespace sage {

// Null if this process may use tiles; else why not, in words. Asked of the system at the first
// call, and once: the permission holds for all threads, and children of a fork, until exec.
const char* TileRefusal();

}  // namespace sage

#endif  // SAGE_CPU_AMX_TILE_PERMISSION_H_
