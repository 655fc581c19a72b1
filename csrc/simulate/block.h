// A CUDA grid on the host: every thread of a block is a fiber, blocks run one after another. What
// kernels of the tile vocabulary (csrc/cuda/core) are executed by where there is no device.
//
// Deterministic: fibers run in turn on one operating system thread and change only inside the
// functions below. Collective functions must be called by all 32 threads of a warp (all threads of
// the block for SyncBlock), as on a device; a warp that does not get there is a deadlock, which is
// detected and ends the process with a message.
#ifndef SAGE_SIMULATE_BLOCK_H_
#define SAGE_SIMULATE_BLOCK_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace sage::simulate {

// Runs `body(shared)` as `blocks` blocks of `threads` threads (a multiple of 32) with
// `shared_bytes` of shared memory, whose content is poisoned before each block.
void RunGrid(int blocks, int threads, size_t shared_bytes,
             const std::function<void(uint8_t*)>& body);

// Of the running fiber.
int ThreadIndex();
int BlockIndex();
int GridSize();

// Gives the other fibers a turn; for loops that wait for memory to change.
void Yield();
// To be called when waiting made progress possible for nobody: see kPatience in block.cc.
void Progress();

void SyncWarp();
void SyncBlock();

// What the 32 threads of the running thread's warp passed; valid until the warp's next collective
// function. `mine` is copied.
constexpr size_t kExchangeBytes = 64;
const uint8_t* Exchange(const void* mine, size_t bytes);

}  // namespace sage::simulate

#endif  // SAGE_SIMULATE_BLOCK_H_
