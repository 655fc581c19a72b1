// One persistent thread pool for the whole process: ParallelFor hands out task numbers by an atomic
// counter.
//
// Threads start when first asked for, never more than asked for. The caller takes part as worker 0.
// A helper that has not begun when the tasks run out is called off, so nobody waits for a sleeping
// thread. The pool serves one caller at a time; whoever finds it busy (another JavaScript thread,
// an asynchronous call, a nested call) computes alone on its own thread, which gives the same bits
// as long as the tasks are independent of each other. Each such caller takes the place of a helper,
// which stops after its task: all callers and helpers together stay within the threads of the call
// that has the pool.
#ifndef SAGE_CPU_THREAD_POOL_H_
#define SAGE_CPU_THREAD_POOL_H_

#include <cstdint>

namespace sage {

// Largest number of workers of one call, the caller included. Far above any machine this serves.
constexpr int kMaxThreads = 1024;

// Runs fn(context, task, worker) for every task in [0, tasks); worker is in [0, threads) and no two
// tasks run under one worker number at a time. Returns when all are done; what they wrote is then
// visible. fn must not throw.
using TaskFunction = void (*)(void* context, int64_t task, int worker);
void RunTasks(int64_t tasks, int threads, TaskFunction function, void* context);

// One turn of waiting for another thread's work: spins at first (passes counts the turns so far),
// then yields the processor.
void WaitABit(int64_t passes);

// RunTasks for a callable fn(int64_t task, int worker), called through a pointer: nothing is
// allocated. It is static so that a file compiled for one instruction set never lends its copy to
// another (the linker keeps only one of an inline function).
template <typename Fn>
static void ParallelFor(int64_t tasks, int threads, const Fn& fn) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(task, 0);
    return;
  }
  struct Trampoline {
    static void Call(void* context, int64_t task, int worker) {
      (*static_cast<const Fn*>(context))(task, worker);
    }
  };
  RunTasks(tasks, threads, &Trampoline::Call, const_cast<Fn*>(&fn));
}

}  // namespace sage

#endif  // SAGE_CPU_THREAD_POOL_H_
