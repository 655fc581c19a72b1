// Fibers by ucontext, switched by hand where the processor is x86-64: swapcontext makes a system
// call per switch, and a kernel switches millions of times.
#include "simulate/block.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace sage::simulate {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
// Rounds over all fibers of a block in which no fiber got past a wait: more than any correct kernel
// needs, since a round lets every fiber run up to its next wait.
constexpr int kPatience = 1000;

struct Fiber {
  ucontext_t context;
  void* stack_pointer = nullptr;  // where the hand-written switch left it
  std::unique_ptr<uint8_t[]> stack;
  bool started = false, done = false;
};

struct Warp {
  int arrived = 0;
  uint64_t generation = 0;
  alignas(16) uint8_t slots[2][32 * kExchangeBytes];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int arrived = 0, live = 0;
  uint64_t generation = 0;
  int block = 0, blocks = 0, thread = 0;
  bool progressed = false;
  ucontext_t scheduler;
  void* scheduler_stack = nullptr;
  const std::function<void(uint8_t*)>* body = nullptr;
  uint8_t* shared = nullptr;
};

thread_local Block* running = nullptr;

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SAGE_FAST_SWITCH 1
// Saves the registers that a call must keep on this stack and takes up another one.
extern "C" void sage_switch_stack(void** from, void* to);
asm(".text\n.hidden sage_switch_stack\n.globl sage_switch_stack\n"
    ".type sage_switch_stack, @function\n"
    "sage_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size sage_switch_stack, .-sage_switch_stack\n");
#else
#define SAGE_FAST_SWITCH 0
#endif

void Leave();

void Enter() {
  (*running->body)(running->shared);
  Fiber& fiber = running->fibers[running->thread];
  fiber.done = true;
  --running->live;
  running->progressed = true;
  Leave();
}

void Leave() {
  Fiber& fiber = running->fibers[running->thread];
#if SAGE_FAST_SWITCH
  sage_switch_stack(&fiber.stack_pointer, running->scheduler_stack);
#else
  swapcontext(&fiber.context, &running->scheduler);
#endif
}

void Resume(Fiber* fiber) {
#if SAGE_FAST_SWITCH
  if (!fiber->started) {
    fiber->started = true;
    // The first switch returns into Enter with a stack aligned as after a call.
    uintptr_t top = reinterpret_cast<uintptr_t>(fiber->stack.get()) + kStackBytes;
    top = (top & ~uintptr_t{15}) - 8;
    void** frame = reinterpret_cast<void**>(top) - 7;
    std::memset(frame, 0, 7 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(&Enter);
    *reinterpret_cast<void**>(top) = nullptr;
    fiber->stack_pointer = frame;
  }
  sage_switch_stack(&running->scheduler_stack, fiber->stack_pointer);
#else
  if (!fiber->started) {
    fiber->started = true;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, Enter, 0);
  }
  swapcontext(&running->scheduler, &fiber->context);
#endif
}

// Waits until `size` threads have called; the last one opens the gate.
void Meet(int* arrived, uint64_t* generation, int size) {
  const uint64_t mine = *generation;
  if (++*arrived == size) {
    *arrived = 0;
    ++*generation;
    running->progressed = true;
    return;
  }
  while (*generation == mine) Leave();
}

}  // namespace

int ThreadIndex() { return running->thread; }
int BlockIndex() { return running->block; }
int GridSize() { return running->blocks; }
void Yield() { Leave(); }
void Progress() { running->progressed = true; }

void SyncWarp() {
  Warp& warp = running->warps[running->thread / 32];
  Meet(&warp.arrived, &warp.generation, 32);
}

void SyncBlock() {
  Meet(&running->arrived, &running->generation, static_cast<int>(running->fibers.size()));
}

const uint8_t* Exchange(const void* mine, size_t bytes) {
  Warp& warp = running->warps[running->thread / 32];
  // Two sets in turn: a fast thread's next exchange must not overwrite what a slow one still reads.
  uint8_t* slots = warp.slots[warp.generation & 1];
  std::memcpy(slots + running->thread % 32 * kExchangeBytes, mine, bytes);
  Meet(&warp.arrived, &warp.generation, 32);
  return slots;
}

void RunGrid(int blocks, int threads, size_t shared_bytes,
             const std::function<void(uint8_t*)>& body) {
  Block block;
  block.fibers.resize(threads);
  for (Fiber& fiber : block.fibers) fiber.stack.reset(new uint8_t[kStackBytes]);
  std::vector<uint8_t> memory(shared_bytes + 1024);
  block.shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 1023) &
                                            ~uintptr_t{1023});
  block.body = &body;
  block.blocks = blocks;
  Block* const outer = running;
  running = &block;
  for (block.block = 0; block.block < blocks; ++block.block) {
    std::memset(block.shared, 0xc5, shared_bytes);
    block.warps.assign(threads / 32, Warp());
    block.arrived = 0;
    block.live = threads;
    for (Fiber& fiber : block.fibers) fiber.started = fiber.done = false;
    int idle = 0;
    while (block.live > 0) {
      block.progressed = false;
      for (block.thread = 0; block.thread < threads; ++block.thread) {
        Fiber& fiber = block.fibers[block.thread];
        if (!fiber.done) Resume(&fiber);
      }
      idle = block.progressed ? 0 : idle + 1;
      if (idle > kPatience) {
        std::fprintf(stderr, "simulated block %d: its threads wait for each other\n", block.block);
        std::abort();
      }
    }
  }
  running = outer;
}

}  // namespace sage::simulate
