// How many processors this process may keep busy: the affinity mask, cut by the CPU quota of its
// control groups. A container with `--cpus 2` on a machine of 64 sees 64 processors in its mask,
// and 64 threads would be throttled.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "sage/capabilities.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace sage {
namespace {

#if defined(__linux__)
constexpr double kNoQuota = 1e9;

int AffinityCount() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
}

// First line of a small file, empty when it cannot be read.
std::string ReadLine(const std::string& path) {
  std::string line;
  if (std::FILE* file = std::fopen(path.c_str(), "re")) {
    char text[256];
    if (std::fgets(text, sizeof(text), file) != nullptr) line = text;
    std::fclose(file);
  }
  return line;
}

// Version 2: "max 100000" or "200000 100000", both in microseconds.
double QuotaV2(const std::string& directory) {
  double quota = 0, period = 0;
  const std::string line = ReadLine(directory + "/cpu.max");
  if (std::sscanf(line.c_str(), "%lf %lf", &quota, &period) != 2) return kNoQuota;
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

// Version 1: two files, -1 for no quota.
double QuotaV1(const std::string& directory) {
  double quota = 0, period = 0;
  if (std::sscanf(ReadLine(directory + "/cpu.cfs_quota_us").c_str(), "%lf", &quota) != 1 ||
      std::sscanf(ReadLine(directory + "/cpu.cfs_period_us").c_str(), "%lf", &period) != 1) {
    return kNoQuota;
  }
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

// The smallest quota from the group itself up to the root of the hierarchy: each level binds.
double SmallestQuota(const std::string& root, std::string group,
                     double (*quota)(const std::string&)) {
  double smallest = kNoQuota;
  for (;;) {
    smallest = std::min(smallest, quota(root + group));
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos || group.empty()) return smallest;
    group.erase(slash);
  }
}

// Lines of /proc/self/cgroup: "0::/user.slice" (version 2), "4:cpu,cpuacct:/docker/1a2b" (version
// 1).
double QuotaOfThisProcess() {
  double smallest = kNoQuota;
  std::FILE* file = std::fopen("/proc/self/cgroup", "re");
  if (file == nullptr) return smallest;
  char line[4096];
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    line[std::strcspn(line, "\n")] = '\0';
    char* controllers = std::strchr(line, ':');
    char* group = controllers != nullptr ? std::strchr(controllers + 1, ':') : nullptr;
    if (group == nullptr) continue;
    const std::string names = "," + std::string(controllers + 1, group) + ",";
    if (names == ",,") {
      smallest = std::min(smallest, SmallestQuota("/sys/fs/cgroup", group + 1, QuotaV2));
    } else if (names.find(",cpu,") != std::string::npos) {
      smallest = std::min(smallest, SmallestQuota("/sys/fs/cgroup/cpu", group + 1, QuotaV1));
    }
  }
  std::fclose(file);
  return smallest;
}
#endif

}  // namespace

int AvailableProcessors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  if (const int affinity = AffinityCount()) count = affinity;
  const double quota = QuotaOfThisProcess();
  if (quota < count) count = static_cast<int>(std::ceil(quota));
#endif
  return count > 0 ? count : 1;
}

}  // namespace sage
