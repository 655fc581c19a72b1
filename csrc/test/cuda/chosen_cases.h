// Which cases of a table a run of a test's runner checks, so that a long table can be shared out
// among processes.
#ifndef SAGE_TEST_CUDA_CHOSEN_CASES_H_
#define SAGE_TEST_CUDA_CHOSEN_CASES_H_

#include <cstdint>
#include <cstdlib>
#include <string>

namespace sage_test {

// Of the cases with a part in their names and of at most `longest` tokens, every of-th from the
// n-th (n from 0).
class ChosenCases {
 public:
  // From arguments [part [n of [longest]]], the first of which is argv[first].
  ChosenCases(int argc, char** argv, int first) {
    if (argc > first) part_ = argv[first];
    if (argc > first + 2) {
      n_ = std::atoi(argv[first + 1]);
      of_ = std::atoi(argv[first + 2]);
    }
    if (argc > first + 3) longest_ = std::atol(argv[first + 3]);
  }

  // Whether this run is the one that checks the case. To be asked once of each case, in order.
  bool Takes(const std::string& name, int64_t tokens) {
    if (name.find(part_) == std::string::npos || tokens > longest_) return false;
    const bool mine = asked_++ % of_ == n_;
    taken_ += mine;
    return mine;
  }

  int taken() const { return taken_; }

 private:
  std::string part_;
  int n_ = 0, of_ = 1, asked_ = 0, taken_ = 0;
  int64_t longest_ = INT64_MAX;
};

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_CHOSEN_CASES_H_
