// Times of repeated calls, for the benchmarks of the engine without Node.
#ifndef SAGE_TEST_CALL_TIMES_H_
#define SAGE_TEST_CALL_TIMES_H_

#include <algorithm>
#include <ctime>
#include <vector>

namespace sage_test {

inline double Seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Milliseconds of a call; the least processor time is that of all threads together.
struct CallTimes {
  double median, least, least_cpu;
};

// Two calls outside, so that pages are touched and threads started, then at least `calls` of them
// and `budget` milliseconds. between() follows each one, untimed.
template <class Call, class Between>
CallTimes TimeCalls(size_t calls, double budget, const Call& call, const Between& between) {
  for (int i = 0; i < 2; ++i) call();
  std::vector<double> times;
  double least_cpu = 1e30;
  const double start = Seconds(CLOCK_MONOTONIC);
  while (times.size() < calls || (Seconds(CLOCK_MONOTONIC) - start) * 1e3 < budget) {
    const double before = Seconds(CLOCK_MONOTONIC), cpu = Seconds(CLOCK_PROCESS_CPUTIME_ID);
    call();
    times.push_back((Seconds(CLOCK_MONOTONIC) - before) * 1e3);
    least_cpu = std::min(least_cpu, (Seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e3);
    between();
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0], least_cpu};
}

}  // namespace sage_test

#endif  // SAGE_TEST_CALL_TIMES_H_
