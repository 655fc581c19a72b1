// A forward or backward call on host arrays, as the pipeline sees it: what a piece copies in and
// out, and how it is launched.
#ifndef SAGE_CUDA_HOST_PASS_H_
#define SAGE_CUDA_HOST_PASS_H_

#include <cstdint>

#include "cuda/host/pieces.h"
#include "cuda/host/staging.h"
#include "sage/cuda_host.h"

namespace sage::cuda {

// One piece. The offsets are places in the areas, by operand, in the order of the buffers.
struct Work {
  Problem problem;  // strides of the compact forms
  Area in, out;
  int64_t at_in[8], at_out[4];
  int64_t mask;  // bytes from the beginning of the shared mask
  int64_t workspace;
};

// The mask of all pieces, copied once: where heads or batches share it, copies would repeat.
struct SharedMask {
  bool used = false;
  Area area;
  MaskStrides strides;  // on the device
};

// Decides whether the mask is copied once for all pieces.
SharedMask ShareMask(const Problem& problem, const void* mask);

class Pass {
 public:
  Pass(const Problem& problem, const void* mask)
      : problem_(problem), mask_(mask), shared_(ShareMask(problem, mask)) {}
  virtual ~Pass() = default;

  const Problem& problem() const { return problem_; }
  const SharedMask& shared() const { return shared_; }

  virtual bool backward() const = 0;
  // Whether there are kernels on the current device; `reason` says why not.
  virtual bool Supported(const char** reason) const = 0;
  // Before the first piece, and again before a second attempt.
  virtual void Begin() const {}
  virtual Work Describe(const Piece& piece) const = 0;
  // Enqueues the kernels. `mask` is the shared one on the device.
  virtual Status Launch(const Work& work, char* in, char* out, void* workspace, const char* mask,
                        cudaStream_t stream) const = 0;

 protected:
  // Sizes of a piece, its mask added to `work->in` unless it is shared (operand `place`).
  void Begin(const Piece& piece, int place, Work* work) const;
  // Adds float32 rows of a piece: of query heads, or of key/value heads.
  int64_t AddRows(const Piece& piece, const float* host, const TokenStrides& from, bool queries,
                  int64_t dim, Area* area, TokenStrides* strides) const;
  // Adds one value per query row, [B,H,Nq].
  int64_t AddValues(const Piece& piece, const float* host, Area* area) const;
  const void* MaskOf(const Work& work, int place, const char* in, const char* mask) const;

  const Problem& problem_;
  const void* mask_;
  const SharedMask shared_;
};

// Runs all pieces, in as many attempts as the device's memory makes necessary.
Status RunPass(const Pass& pass, const CudaHostOptions& options);

// Events around repeated launches of one piece that is the whole call.
Status TimePass(const Pass& pass, int repeats, float* milliseconds);

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_PASS_H_
