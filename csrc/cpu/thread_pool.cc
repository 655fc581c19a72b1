// The pool behind ParallelFor. Each helper thread owns one Seat, whose atomic `state` is the whole
// protocol:
//
//   kIdle ──caller posts──> kPosted ──helper takes──> kRunning ──helper ends──> kIdle
//   kIdle ──helper tires──> kAsleep ──caller posts──> kPosted (and wakes it)
//   kPosted ──caller calls off──> kIdle
//   kRunning ──caller tires of waiting──> kAwaited ──helper ends──> kIdle (and wakes the caller)
//
// Waiting goes in three steps (measured on two cores): spin for a hand-off of 0.2 to 0.4 us, yield
// so that a thread sharing the caller's core costs one time slice at most, then sleep, which costs
// 40 to 55 us to wake from.
//
// Nothing here is ever destroyed: at exit the helpers sleep, or are ended with the process in the
// middle of a task nobody waits for. The addon is linked so that it is never unloaded
// (CMakeLists.txt), hence their code stays mapped.
#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "sage/capabilities.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace sage {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kSpinTime{5};
// Long enough to bridge the gap between the phases of one attention call (quantise, attend,
// reduce).
constexpr std::chrono::microseconds kYieldTime{60};

enum State : int { kIdle, kPosted, kRunning, kAwaited, kAsleep };

// A cache line of its own, so that helpers polling their states do not slow each other.
struct alignas(64) Seat {
  std::atomic<int> state{kIdle};
  std::mutex mutex;
  std::condition_variable changed;
};

struct Pool {
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
  std::atomic<int> threads{0};
  Seat* seats[kMaxThreads] = {};  // seats[0] is the caller's and stays empty

  // Threads that compute now and are none of the helpers: the one that has the pool, and those that
  // found it busy.
  std::atomic<int> callers{0};

  // The job at hand, written by the caller while every seat is idle.
  TaskFunction function = nullptr;
  void* context = nullptr;
  int64_t tasks = 0;
  int job_threads = 0;
  alignas(64) std::atomic<int64_t> next{0};
};

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins, then yields, until done() or out of patience. True if done.
template <typename Done>
bool WaitAwake(const Done& done) {
  const Clock::time_point start = Clock::now();
  for (;;) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      Pause();
    }
    const Clock::duration waited = Clock::now() - start;
    if (waited > kSpinTime + kYieldTime) return false;
    if (waited > kSpinTime) std::this_thread::yield();
  }
}

// Sleeps until another thread has changed the state from `value`. The changer calls Wake
// afterwards.
void SleepWhile(Seat* seat, int value) {
  std::unique_lock<std::mutex> lock(seat->mutex);
  seat->changed.wait(lock, [&] { return seat->state.load(std::memory_order_acquire) != value; });
}

void Wake(Seat* seat) {
  // Taking the mutex closes the gap between the sleeper's last look at the state and its sleep.
  { std::lock_guard<std::mutex> lock(seat->mutex); }
  seat->changed.notify_one();
}

// Set while a thread runs tasks, so that a call from inside one is no further caller.
thread_local bool inside_a_task = false;

// Until the tasks run out; a helper also until other callers need its processor.
void WorkOff(Pool* pool, int worker) {
  for (;;) {
    if (worker > 0 && worker + pool->callers.load(std::memory_order_relaxed) > pool->job_threads) {
      return;
    }
    const int64_t task = pool->next.fetch_add(1, std::memory_order_relaxed);
    if (task >= pool->tasks) return;
    pool->function(pool->context, task, worker);
  }
}

void HelperMain(Pool* pool, int worker) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "sage-attention");
#endif
  Seat* seat = pool->seats[worker];
  inside_a_task = true;
  for (;;) {
    const auto posted = [&] { return seat->state.load(std::memory_order_relaxed) == kPosted; };
    if (!WaitAwake(posted)) {
      int expected = kIdle;
      if (seat->state.compare_exchange_strong(expected, kAsleep)) SleepWhile(seat, kAsleep);
    }
    int expected = kPosted;
    // Fails when the caller called the task off in the meantime.
    if (!seat->state.compare_exchange_strong(expected, kRunning)) continue;
    WorkOff(pool, worker);
    if (seat->state.exchange(kIdle) == kAwaited) Wake(seat);
  }
}

// Starts threads until there are `count` or the system gives no more; returns how many there are.
int EnsureThreads(Pool* pool, int count) {
  int have = pool->threads.load(std::memory_order_relaxed);
  while (have < count) {
    Seat* seat = new (std::nothrow) Seat;
    if (seat == nullptr) break;
    pool->seats[have + 1] = seat;
    try {
      std::thread(HelperMain, pool, have + 1).detach();
    } catch (const std::system_error&) {
      delete seat;
      break;
    }
    pool->threads.store(++have, std::memory_order_relaxed);
  }
  return have;
}

void CallOffOrAwait(Seat* seat) {
  int expected = kPosted;
  if (seat->state.compare_exchange_strong(expected, kIdle)) return;
  // Idle, or already asleep again.
  const auto ended = [&] { return seat->state.load(std::memory_order_acquire) != kRunning; };
  if (WaitAwake(ended)) return;
  expected = kRunning;
  if (seat->state.compare_exchange_strong(expected, kAwaited)) SleepWhile(seat, kAwaited);
}

std::atomic<Pool*> shared_pool{nullptr};

#if defined(__unix__) || defined(__APPLE__)
// A forked child has none of the parent's threads: it forgets the pool and starts afresh.
void ForgetPool() { shared_pool.store(nullptr, std::memory_order_relaxed); }
#endif

Pool* SharedPool() {
  Pool* pool = shared_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return pool;
#if defined(__unix__) || defined(__APPLE__)
  static std::once_flag at_fork_once;
  std::call_once(at_fork_once, [] { pthread_atfork(nullptr, nullptr, ForgetPool); });
#endif
  Pool* fresh = new (std::nothrow) Pool;
  if (fresh == nullptr) return nullptr;
  if (shared_pool.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return pool;
}

void RunAlone(int64_t tasks, TaskFunction function, void* context) {
  for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
}

}  // namespace

void RunTasks(int64_t tasks, int threads, TaskFunction function, void* context) {
  Pool* pool = inside_a_task ? nullptr : SharedPool();
  if (pool == nullptr) return RunAlone(tasks, function, context);
  inside_a_task = true;
  const int others = pool->callers.fetch_add(1, std::memory_order_relaxed);
  int64_t helpers = (threads < kMaxThreads ? threads : kMaxThreads) - 1 - others;
  if (helpers > tasks - 1) helpers = tasks - 1;
  if (helpers <= 0 || pool->busy.test_and_set(std::memory_order_acquire)) {
    RunAlone(tasks, function, context);
  } else {
    const int have = EnsureThreads(pool, static_cast<int>(helpers));
    const int seats = static_cast<int>(helpers < have ? helpers : have);
    pool->function = function;
    pool->context = context;
    pool->tasks = tasks;
    pool->job_threads = threads;
    pool->next.store(0, std::memory_order_relaxed);
    for (int worker = 1; worker <= seats; ++worker) {
      Seat* seat = pool->seats[worker];
      if (seat->state.exchange(kPosted) == kAsleep) Wake(seat);
    }
    WorkOff(pool, 0);
    for (int worker = 1; worker <= seats; ++worker) CallOffOrAwait(pool->seats[worker]);
    pool->busy.clear(std::memory_order_release);
  }
  pool->callers.fetch_sub(1, std::memory_order_relaxed);
  inside_a_task = false;
}

void WaitABit(int64_t passes) {
  // Some 5 us, as long as a helper spins for work.
  constexpr int64_t kSpinningPasses = 100;
  if (passes < kSpinningPasses) {
    Pause();
  } else {
    std::this_thread::yield();
  }
}

int PoolThreadCount() {
  const Pool* pool = shared_pool.load(std::memory_order_acquire);
  return pool == nullptr ? 0 : pool->threads.load(std::memory_order_relaxed);
}

int MaxThreads() { return kMaxThreads; }

}  // namespace sage
