// The thread pool under every kind of caller, and CPU detection from the registers of known
// processors. Run it under the thread sanitizer as well: cmake -S . -B build/tsan -DSAGE_TESTS=ON
// -DSAGE_SANITIZE=thread `thread_pool_test --time` prints what hand-offs cost instead.
#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/cpu_features.h"

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define SAGE_UNDER_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SAGE_UNDER_THREAD_SANITIZER 1
#endif
#endif

namespace sage {
namespace {

void Check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

void EveryTaskRunsOnce() {
  for (const int threads : {1, 2, 3, 8}) {
    for (const int64_t tasks : {0, 1, 2, 17, 127, 129, 1000}) {
      std::vector<int> runs(static_cast<size_t>(tasks), 0);
      std::vector<std::atomic<int>> inside(static_cast<size_t>(threads));
      std::atomic<bool> shared_worker{false};
      ParallelFor(tasks, threads, [&](int64_t task, int worker) {
        Check(worker >= 0 && worker < threads, "worker number out of range");
        if (inside[static_cast<size_t>(worker)].fetch_add(1) != 0) shared_worker = true;
        ++runs[static_cast<size_t>(task)];
        inside[static_cast<size_t>(worker)].fetch_sub(1);
      });
      for (const int count : runs) Check(count == 1, "a task ran not once");
      Check(!shared_worker, "two tasks under one worker number");
    }
  }
}

void OneThreadNeverTouchesThePool() {
  ParallelFor(100, 1,
              [](int64_t, int worker) { Check(worker == 0, "one thread, another worker"); });
  ParallelFor(1, 8, [](int64_t, int worker) { Check(worker == 0, "one task, another worker"); });
  Check(PoolThreadCount() == 0, "threads started without need");
}

void ThreadsStartAsAskedFor() {
  const int before = PoolThreadCount();
  ParallelFor(100, before + 3, [](int64_t, int) {});
  Check(PoolThreadCount() == before + 2, "not the number of threads that was asked for");
  ParallelFor(100, 2, [](int64_t, int) {});
  Check(PoolThreadCount() == before + 2, "threads started without need");
}

// Long gaps let the helpers fall asleep, short ones catch them spinning or yielding.
void SurvivesEveryRhythm() {
  const int gaps_us[] = {0, 1, 4, 6, 30, 65, 70, 200, 1000};
  for (int round = 0; round < 400; ++round) {
    std::atomic<int64_t> sum{0};
    ParallelFor(7, 3, [&](int64_t task, int) { sum += task; });
    Check(sum == 21, "tasks lost");
    const int gap = gaps_us[round % 9];
    if (gap > 0) std::this_thread::sleep_for(std::chrono::microseconds(gap));
  }
}

void SeveralCallersAndNestedCalls() {
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        ParallelFor(5, 3, [&](int64_t, int) {
          ParallelFor(3, 2, [&](int64_t inner, int) { sum += inner; });
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  Check(sum == 4 * 200 * 5 * 3, "tasks lost among several callers");
}

// Several JavaScript threads at once: whoever computes alone takes the place of a helper. With two
// such callers beside a call of 4 threads, its helpers 2 and 3 end after the task they are in.
void CallersTakeThePlaceOfHelpers() {
  constexpr int kThreads = 4;
  std::atomic<bool> begun{false}, ended{false};
  std::atomic<int> alone{0};
  std::atomic<int> tasks[kThreads] = {};
  const auto nap = [] { std::this_thread::sleep_for(std::chrono::microseconds(200)); };
  std::vector<std::thread> others;
  for (int other = 0; other < 2; ++other) {
    others.emplace_back([&] {
      while (!begun) nap();
      ParallelFor(2, kThreads, [&](int64_t task, int worker) {
        Check(worker == 0, "a caller without the pool got a helper");
        if (task == 0) ++alone;
        while (!ended) nap();
      });
    });
  }
  ParallelFor(100, kThreads, [&](int64_t, int worker) {
    begun = true;
    while (alone < 2) nap();
    ++tasks[worker];
    nap();
  });
  ended = true;
  for (std::thread& other : others) other.join();
  Check(tasks[2] <= 1 && tasks[3] <= 1, "helpers stay where other callers need their processor");
  Check(tasks[0] + tasks[1] >= 98, "tasks lost beside other callers");
}

// The caller ends first and has to wait, awake or asleep, for a helper in a long task.
void WaitsForASlowHelper() {
  for (const int helper_ms : {0, 1, 20}) {
    std::atomic<int> done{0};
    std::atomic<bool> helper_began{false};
    ParallelFor(2, 2, [&](int64_t, int worker) {
      if (worker != 0) {
        helper_began = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(helper_ms));
      } else {
        // Leaves the other task to the helper, unless it does not come.
        for (int i = 0; i < 200 && !helper_began; ++i)
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      ++done;
    });
    Check(done == 2, "returned before a helper had ended");
  }
}

void AForkedChildStartsAfresh() {
#if defined(__unix__) && !defined(SAGE_UNDER_THREAD_SANITIZER)
  ParallelFor(10, 3, [](int64_t, int) {});
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);  // ends a child that hangs
    std::atomic<int> count{0};
    ParallelFor(10, 3, [&](int64_t, int) { ++count; });
    _exit(count == 10 && PoolThreadCount() == 2 ? 0 : 1);
  }
  int status = -1;
  Check(waitpid(child, &status, 0) == child && status == 0, "a forked child could not compute");
#endif
}

// Registers as the processors' manuals give them.
void ReadsRegistersRight() {
  CpuRegisters r = {};
  Check(!Supports(FeaturesFrom(r), Isa::kAvx2) && Supports(FeaturesFrom(r), Isa::kPortable),
        "no features at all");
  r.max_leaf = 0xd;
  r.leaf1_ecx = (1u << 12) | (1u << 27) | (1u << 28) | (1u << 29);
  r.leaf7_ebx = 1u << 5;
  r.xcr0 = 0x7;
  Check(Supports(FeaturesFrom(r), Isa::kAvx2), "Haswell runs avx2");
  Check(!Supports(FeaturesFrom(r), Isa::kAvx512), "Haswell runs no avx512");
  r.xcr0 = 0x3;
  Check(!Supports(FeaturesFrom(r), Isa::kAvx2),
        "an operating system that does not save ymm registers");
  r.xcr0 = 0xe7;
  r.leaf7_ebx |= (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  Check(!Supports(FeaturesFrom(r), Isa::kAvx512), "Skylake-X has no VNNI");
  r.leaf7_ecx = 1u << 11;
  Check(Supports(FeaturesFrom(r), Isa::kAvx512), "Cascade Lake runs avx512");
  Check(!Supports(FeaturesFrom(r), Isa::kAvx512Bf16), "Cascade Lake has no BF16");
  r.leaf7_1_eax = 1u << 5;
  Check(Supports(FeaturesFrom(r), Isa::kAvx512Bf16), "Zen 4 runs avx512_bf16");
  r.xcr0 = 0x7;
  Check(!Supports(FeaturesFrom(r), Isa::kAvx512),
        "an operating system that does not save zmm registers");
  r.leaf7_edx = (1u << 22) | (1u << 24) | (1u << 25);
  r.xcr0 = 0xe7;
  Check(!Supports(FeaturesFrom(r), Isa::kAmx), "an operating system that does not save tiles");
  r.xcr0 = 0x602e7;
  Check(Supports(FeaturesFrom(r), Isa::kAmx), "Sapphire Rapids runs amx");

  constexpr uint32_t kAmd = 0x68747541, kIntel = 0x756e6547;
  Check(sage::ManyLineBuffersFrom(kAmd, 0x00b00f21), "Zen 5 fetches into L1");
  Check(!sage::ManyLineBuffersFrom(kAmd, 0x00a10f11), "Zen 4 fetches into L2");
  Check(!sage::ManyLineBuffersFrom(kIntel, 0x00b00f21), "so do others");
  Check(sage::FewLineBuffersFrom(kAmd, 0x00a10f11), "Zen 4 has few places in L1");
  Check(!sage::FewLineBuffersFrom(kAmd, 0x00b00f21), "Zen 5 has not");
  Check(!sage::FewLineBuffersFrom(kIntel, 0x000806f8), "nor others");
}

// From the call to the first instruction of a helper, minimum and median: the caller does nothing
// until then.
void PrintHandOffLatency(int gap_us) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 1000;
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    std::atomic<bool> began{false};
    std::atomic<int64_t> latency{0};
    const Clock::time_point start = Clock::now();
    ParallelFor(2, 2, [&](int64_t, int worker) {
      if (worker != 0) {
        latency =
            std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
        began = true;
      } else {
        while (!began) {
        }
      }
    });
    times.push_back(static_cast<double>(latency) / 1000.0);
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(gap_us);
    while (Clock::now() < end) {
    }
  }
  std::sort(times.begin(), times.end());
  std::printf("hand-off, %3d us after the last: minimum %.2f us, median %.2f us\n", gap_us,
              times[0], times[kRounds / 2]);
}

// Median time of a phase of 4 tasks of 20 us for each of 1 and of `threads` workers.
void PrintPhases(int threads, int gap_us) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 200;
  const auto spin = [](int us) {
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(us);
    while (Clock::now() < end) {
    }
  };
  double median[2];
  for (const int many : {0, 1}) {
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      const Clock::time_point start = Clock::now();
      ParallelFor(4 * (many ? threads : 1), many ? threads : 1, [&](int64_t, int) { spin(20); });
      times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
      spin(gap_us);
    }
    std::sort(times.begin(), times.end());
    median[many] = times[kRounds / 2];
  }
  std::printf("4 tasks of 20 us a worker, %4d us after the last: %.1f us with 1, %.1f us with %d\n",
              gap_us, median[0], median[1], threads);
}

}  // namespace
}  // namespace sage

int main(int count, char** arguments) {
  using namespace sage;
  if (count > 1 && std::strcmp(arguments[1], "--time") == 0) {
    for (const int gap : {0, 20, 200}) PrintHandOffLatency(gap);
    const int threads = AvailableProcessors();
    for (const int gap : {0, 50, 200, 2000}) PrintPhases(threads, gap);
    return 0;
  }
  OneThreadNeverTouchesThePool();
  EveryTaskRunsOnce();
  ThreadsStartAsAskedFor();
  SurvivesEveryRhythm();
  SeveralCallersAndNestedCalls();
  CallersTakeThePlaceOfHelpers();
  WaitsForASlowHelper();
  AForkedChildStartsAfresh();
  ReadsRegistersRight();
  std::puts("thread_pool_test: ok");
  return 0;
}
