// Blocks of memory that are expensive to get, kept for later calls: device memory and page-locked
// host memory. Never more than a limit is held, in use and kept together.
//
// The functions that get and free memory are the caller's, so the arithmetic runs (and is tested)
// without a device.
#ifndef SAGE_CUDA_HOST_BLOCK_POOL_H_
#define SAGE_CUDA_HOST_BLOCK_POOL_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

namespace sage::cuda {

class BlockPool {
 public:
  using Allocate = void* (*)(int64_t bytes);  // null when there is none
  using Free = void (*)(void* block);

  BlockPool(Allocate allocate, Free free, int64_t limit)
      : allocate_(allocate), free_(free), limit_(limit) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // At least `bytes` bytes, or null: the limit would be passed, or there is no more memory. Kept
  // blocks are given up before either is reported.
  void* Take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t size = Rounded(bytes);
    if (void* kept = TakeKept(size)) return kept;
    if (size > limit_) return nullptr;
    while (held_ + size > limit_) {
      if (!FreeLargestKept()) return nullptr;
    }
    void* memory = allocate_(size);
    // What others of this process or machine hold may be less than what is kept here.
    while (memory == nullptr && FreeLargestKept()) memory = allocate_(size);
    if (memory == nullptr) return nullptr;
    blocks_.push_back({memory, size, true});
    held_ += size;
    return memory;
  }

  // A block from Take; null is none. A larger one than `keep` is freed at once.
  void Give(void* memory, int64_t keep = std::numeric_limits<int64_t>::max()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t n = 0; n < blocks_.size(); ++n) {
      if (blocks_[n].memory != memory) continue;
      blocks_[n].used = false;
      if (blocks_[n].size > keep) Drop(n);
      break;
    }
    // A limit that was lowered meanwhile.
    while (held_ > limit_ && FreeLargestKept()) {
    }
  }

  // Frees everything that nobody uses; the bytes that were freed.
  int64_t Trim() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t before = held_;
    while (FreeLargestKept()) {
    }
    return before - held_;
  }

  // Forgets all blocks without freeing them: their memory went with the device.
  void Abandon() {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.clear();
    held_ = 0;
  }

  void SetLimit(int64_t limit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = limit;
    while (held_ > limit_ && FreeLargestKept()) {
    }
  }

  int64_t limit() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return limit_;
  }
  // Bytes in use and kept.
  int64_t held() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  // Sizes are rounded so that problems of nearly one size share blocks: to 64 KiB, above 1 MiB to
  // an eighth of the power of two below.
  static int64_t Rounded(int64_t bytes) {
    int64_t step = int64_t{1} << 16;
    while (step < int64_t{1} << 40 && bytes > step * 16) step *= 2;
    return std::max(step, (bytes + step - 1) / step * step);
  }

 private:
  struct Block {
    void* memory;
    int64_t size;
    bool used;
  };

  // The smallest kept block that is large enough, unless it is far too large.
  void* TakeKept(int64_t size) {
    Block* best = nullptr;
    for (Block& block : blocks_) {
      if (block.used || block.size < size || block.size / 4 > size) continue;
      if (best == nullptr || block.size < best->size) best = &block;
    }
    if (best == nullptr) return nullptr;
    best->used = true;
    return best->memory;
  }

  bool FreeLargestKept() {
    size_t found = blocks_.size();
    for (size_t n = 0; n < blocks_.size(); ++n) {
      if (blocks_[n].used) continue;
      if (found == blocks_.size() || blocks_[n].size > blocks_[found].size) found = n;
    }
    if (found == blocks_.size()) return false;
    Drop(found);
    return true;
  }

  void Drop(size_t n) {
    free_(blocks_[n].memory);
    held_ -= blocks_[n].size;
    blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(n));
  }

  mutable std::mutex mutex_;
  const Allocate allocate_;
  const Free free_;
  int64_t limit_;
  int64_t held_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_BLOCK_POOL_H_
