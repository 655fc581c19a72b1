// The CUDA engine on host arrays, to be run where a device is:
//
//   host_runner check [--every n]   every case against float64: whole, in pieces, strided, on
//   threads host_runner memory              limits, a full device, release host_runner failures a
//   broken context and a fork, in processes of their own host_runner large               many
//   pieces and chunks, against the CPU engine host_runner time                overlap against one
//   piece after another
//
// Ends with 0 when all is well, 77 without a device.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>

#include "sage/capabilities.h"
#include "sage/cuda_attention.h"
#include "test/cuda/host_bench.h"
#include "test/cuda/host_checker.h"

namespace sage_test {
namespace {

using sage::CudaHostOptions;
using sage::Status;
using sage::StatusCode;

constexpr int64_t kLeastLimit = int64_t{64} << 10;

int failures = 0;

void Expect(bool condition, const char* what) {
  if (condition) return;
  ++failures;
  std::printf("FAIL %s\n", what);
}

CudaHostOptions Threads(int threads) {
  CudaHostOptions options;
  options.threads = threads;
  return options;
}

std::vector<Case> CheckCases() {
  std::vector<Case> cases = Cases();
  for (const char* axes : {"bhqk", "hqk", "bqk", "qk", "k"}) {
    Case c{"pieces, mask"};
    c.batch = 3;
    c.heads = 6;
    c.kv_heads = 3;
    c.q_len = 150;
    c.kv_len = 170;
    c.qk_dim = c.v_dim = 64;
    c.mask = MaskKind::kAdditive;
    c.mask_axes = axes;
    cases.push_back(c);
  }
  return cases;
}

// Limits from the least upwards: refusals, then results in many pieces, then whole ones.
void CheckInPieces(HostChecker& checker, Totals* totals) {
  bool served = false;
  for (int64_t limit = kLeastLimit; limit <= int64_t{64} << 20; limit *= 4) {
    sage::SetCudaMemoryLimit(limit);
    Status status;
    const Outputs out = checker.Run(0, Threads(1), &status);
    if (sage::GetCudaHostState().device_bytes > limit) checker.Fail("holds more than its limit");
    if (status.code == StatusCode::kOutOfMemory && !served) {
      ++totals->refused;
      continue;
    }
    if (!status.ok()) {
      checker.Fail(status.message);
      break;
    }
    served = true;
    checker.Compare(out);
  }
  sage::SetCudaMemoryLimit(0);
  if (!served) checker.Fail("no limit was enough");
}

int Check(int64_t every) {
  Totals totals;
  const std::vector<Case> cases = CheckCases();
  for (size_t n = 0; n < cases.size(); n += static_cast<size_t>(every)) {
    const Data data = MakeData(cases[n]);
    HostChecker checker(cases[n], data, &totals);
    Status status;
    const Outputs whole = checker.Run(0, Threads(4), &status);
    if (!status.ok()) {
      checker.Fail(status.message);
      continue;
    }
    checker.Compare(whole);
    if (!SameBits(whole, checker.Run(0, Threads(1), &status))) checker.Fail("other bits again");
    if (!SameBits(whole, checker.Run(3, Threads(2), &status))) checker.Fail("other bits strided");
    CheckInPieces(checker, &totals);
  }
  // Threads at once, each with a problem of its own.
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const Case& c = cases[cases.size() - 1 - t];
      const Data data = MakeData(c);
      Totals own;
      HostChecker checker(c, data, &own);
      Status status;
      const Outputs first = checker.Run(0, Threads(2), &status);
      checker.Compare(first);
      for (int n = 0; n < 25; ++n) {
        const Outputs again = checker.Run(n % 2, Threads(2), &status);
        if (!status.ok() || !SameBits(first, again)) ++wrong;
      }
      wrong += own.failures;
    });
  }
  for (std::thread& thread : threads) thread.join();
  Expect(wrong == 0, "threads at once");
  std::printf("check: %d runs, %d failed, %d refused by a limit\n", totals.runs,
              totals.failures + failures, totals.refused);
  return totals.failures + failures;
}

Case Sized(int64_t heads, int64_t tokens, int64_t dim) {
  Case c{"sized"};
  c.heads = c.kv_heads = heads;
  c.q_len = c.kv_len = tokens;
  c.qk_dim = c.v_dim = dim;
  return c;
}

int Memory() {
  Timed problem(Sized(8, 1024, 64), false);
  const auto run = [&] { return problem.Run(Threads(2)); };
  Expect(run().ok(), "a call with memory");
  Expect(sage::GetCudaHostState().device_bytes > 0, "memory is kept");
  Expect(sage::ReleaseCudaMemory() > 0, "memory is released");
  const sage::CudaHostState empty = sage::GetCudaHostState();
  Expect(empty.device_bytes == 0 && empty.pinned_bytes == 0, "nothing is held after a release");

  sage::SetCudaMemoryLimit(kLeastLimit);
  const Status capped = run();
  Expect(capped.code == StatusCode::kOutOfMemory, "a tiny limit");
  std::printf("tiny limit: %s\n", capped.message);
  sage::SetCudaMemoryLimit(0);

  // All memory of the device, down to small blocks.
  std::vector<void*> hogged;
  for (size_t bytes = size_t{8} << 30; bytes >= size_t{1} << 20;) {
    void* block = nullptr;
    if (cudaMalloc(&block, bytes) == cudaSuccess) {
      hogged.push_back(block);
    } else {
      cudaGetLastError();
      bytes /= 2;
    }
  }
  const Status full = run();
  Expect(full.code == StatusCode::kOutOfMemory, "a full device");
  std::printf("full device: %s\n", full.message);
  Expect(!sage::GetCudaHostState().failed, "a full device is no failure of CUDA");
  for (void* block : hogged) cudaFree(block);
  Expect(run().ok(), "a call after memory came back");

  std::atomic<bool> cancelled{true};
  CudaHostOptions options = Threads(2);
  options.cancelled = &cancelled;
  Expect(problem.Run(options).code == StatusCode::kCancelled, "cancelled before it began");
  Timed large(Sized(16, 8192, 128), false);
  cancelled = false;
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    cancelled = true;
  });
  const Status status = large.Run(options);
  canceller.join();
  Expect(status.code == StatusCode::kCancelled, "cancelled while it ran");
  Expect(large.Run(Threads(4)).ok(), "a call after a cancelled one");

  Expect(sage::ChooseCudaDevice("0").ok(), "the device by number");
  Expect(sage::ChooseCudaDevice("99").code == StatusCode::kInvalidArgument, "no such device");
  sage::CudaDevice device = {};
  Expect(sage::ListCudaDevices(&device, 1) >= 1, "a list of devices");
  Expect(sage::ChooseCudaDevice(device.uuid).ok(), "the device by UUID");
  std::printf("%s %s sm_%d, %d multiprocessors, %.0f GiB; %s\n", device.name, device.uuid,
              device.compute_capability, device.multiprocessors,
              static_cast<double>(device.memory) / 1073741824.0, sage::GetCudaHostState().reason);
  std::printf("memory: %d failed\n", failures);
  return failures;
}

__global__ void WriteNowhere(int* place) { *place = 1; }

int InBrokenContext() {
  Timed problem(Sized(4, 256, 64), false);
  Expect(problem.Run(Threads(2)).ok(), "a call before the failure");
  WriteNowhere<<<1, 1>>>(reinterpret_cast<int*>(16));
  const Status first = problem.Run(Threads(2));
  Expect(!first.ok(), "a call after the failure");
  const Status second = problem.Run(Threads(2));
  Expect(second.code == StatusCode::kUnsupported, "the engine is marked");
  Expect(sage::GetCudaHostState().failed, "the state tells");
  Expect(sage::ReleaseCudaMemory() == 0, "nothing is freed");
  std::printf("broken: %s\n", second.message);
  return failures;
}

int InFork() {
  Timed problem(Sized(4, 256, 64), false);
  Expect(problem.Run(Threads(1)).ok(), "a call before the fork");
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const Status status = problem.Run(Threads(1));
    std::printf("forked: %s\n", status.message);
    std::fflush(stdout);
    _exit(status.code == StatusCode::kUnsupported ? 0 : 1);
  }
  int result = 1;
  waitpid(child, &result, 0);
  Expect(result == 0, "a call in a forked process is refused");
  Expect(problem.Run(Threads(1)).ok(), "the parent goes on");
  return failures;
}

int Failures(const char* self) {
  for (const char* mode : {"broken", "fork"}) {
    const std::string command = std::string(self) + " " + mode;
    const int result = std::system(command.c_str());
    Expect(result == 0, mode);
  }
  std::printf("failures: %d failed\n", failures);
  return failures;
}

int Main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  if (mode != "failures") {
    const Status status = sage::ChooseCudaDevice("");
    if (!status.ok()) {
      std::printf("%s\n", status.message);
      return 77;
    }
  }
  if (mode == "memory") return Memory();
  if (mode == "failures") return Failures(argv[0]);
  if (mode == "broken") return InBrokenContext();
  if (mode == "fork") return InFork();
  if (mode == "large") return CheckLarge();
  if (mode == "time") return TimeOverlap();
  return Check(argc > 3 ? std::max(1, std::atoi(argv[3])) : 1);
}

}  // namespace
}  // namespace sage_test

int main(int argc, char** argv) {
  const int result = sage_test::Main(argc, argv);
  return result == 0 || result == 77 ? result : 1;
}
