// The pipeline: pieces of a call go round two or three slots, each a block of device memory and a
// stream of its own.
//
//   processors   gather 1 | gather 2  scatter - | gather 3  scatter 1 | gather 4  scatter 2 | ...
//   copies in             | 1                   | 2                   | 3                   | ...
//   kernels               |    1                |    2                |    3                | ...
//   copies out                                  | 1                   | 2                   | ...
//
// A slot's stream keeps the order of its own pieces, so memory is used again without waiting. What
// a piece gives back is asked for after the next one is on its way.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "cuda/host/pass.h"

namespace sage::cuda {
namespace {

// Copies in, kernels and copies out of three pieces at once.
constexpr int kSlots = 3;
constexpr int64_t kAlignment = 1024;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t BlockBytes(const Work& work) {
  return Aligned(work.in.bytes) + Aligned(work.out.bytes) + work.workspace;
}

// Device memory that goes back to the pool.
class Block {
 public:
  Block(HostDevice& device, int64_t bytes)
      : pool_(device.memory()), data_(static_cast<char*>(pool_.Take(bytes))) {}
  ~Block() { pool_.Give(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  char* data() const { return data_; }

 private:
  BlockPool& pool_;
  char* data_;
};

class Stream {
 public:
  explicit Stream(HostDevice& device) : device_(device), stream_(device.TakeStream()) {}
  ~Stream() {
    if (stream_ != nullptr) device_.GiveStream(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  HostDevice& device_;
  cudaStream_t stream_;
};

class Event {
 public:
  explicit Event(HostDevice& device) : device_(device), event_(device.TakeEvent()) {}
  ~Event() {
    if (event_ != nullptr) device_.GiveEvent(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  HostDevice& device_;
  cudaEvent_t event_;
};

struct Slot {
  explicit Slot(HostDevice& device, int64_t bytes) : block(device, bytes), stream(device) {}
  Block block;
  Stream stream;
  bool has_mask = false;  // waited for the shared mask
};

Status NoMemory(const char* why) { return {StatusCode::kOutOfMemory, why}; }

// Slots that fit in the memory limit, of which another call may want half; 0 = not even one.
int SlotsWithin(int64_t limit, int64_t block, int64_t mask, int most) {
  for (int slots = most; slots > 1; --slots) {
    if (slots * BlockPool::Rounded(block) + mask <= limit / 2) return slots;
  }
  return BlockPool::Rounded(block) + mask <= limit ? 1 : 0;
}

Status Launch(const Pass& pass, const Work& work, const Slot& slot, const char* mask) {
  char* in = slot.block.data();
  char* out = in + Aligned(work.in.bytes);
  return pass.Launch(work, in, out, out + Aligned(work.out.bytes), mask, slot.stream.get());
}

// One attempt with pieces of at most `units` heads. Nothing is in flight when it returns.
class Attempt {
 public:
  Attempt(const Pass& pass, const CudaHostOptions& options, HostDevice& device)
      : pass_(pass), options_(options), device_(device), staging_(device, options.threads) {}

  Status Run(int64_t units) {
    for (const Piece& piece : CutIntoPieces(pass_.problem(), units)) {
      works_.push_back(pass_.Describe(piece));
    }
    Status status = TakeMemory();
    if (!status.ok()) return status;
    pass_.Begin();
    status = RunPieces();
    if (status.ok()) status = Checked(staging_.Finish());
    if (!status.ok()) {
      for (const std::unique_ptr<Slot>& slot : slots_) cudaStreamSynchronize(slot->stream.get());
      cudaGetLastError();
    }
    return status;
  }

 private:
  Status Checked(cudaError_t error) {
    return error == cudaSuccess ? Status::Ok() : device_.Fail(error);
  }

  Status TakeMemory() {
    int64_t block = 0;
    for (const Work& work : works_) block = std::max(block, BlockBytes(work));
    const SharedMask& shared = pass_.shared();
    const int64_t mask_bytes = shared.used ? BlockPool::Rounded(shared.area.bytes) : 0;
    const int most =
        options_.overlap ? static_cast<int>(std::min<size_t>(kSlots, works_.size())) : 1;
    const int count = SlotsWithin(device_.memory().limit(), block, mask_bytes, most);
    if (count == 0) return NoMemory("one piece needs more than the limit of device memory");
    if (shared.used) {
      mask_ = std::make_unique<Block>(device_, shared.area.bytes);
      if (mask_->data() == nullptr) return NoMemory("the device has no memory for the mask");
    }
    for (int n = 0; n < count; ++n) {
      auto slot = std::make_unique<Slot>(device_, block);
      if (slot->block.data() == nullptr || slot->stream.get() == nullptr) break;
      slots_.push_back(std::move(slot));
    }
    // Fewer slots overlap less, and compute the same.
    return slots_.empty() ? NoMemory("the device has no memory left") : Status::Ok();
  }

  Status RunPieces() {
    const Event mask_there(device_);
    if (pass_.shared().used) {
      if (mask_there.get() == nullptr) return Checked(cudaErrorMemoryAllocation);
      cudaStream_t stream = slots_[0]->stream.get();
      cudaError_t error = staging_.Upload(pass_.shared().area, mask_->data(), stream);
      if (error == cudaSuccess) error = cudaEventRecord(mask_there.get(), stream);
      if (error != cudaSuccess) return Checked(error);
    }
    const size_t lag = slots_.size() > 1 ? 1 : 0;
    for (size_t n = 0; n < works_.size() + lag; ++n) {
      if (options_.cancelled != nullptr && options_.cancelled->load(std::memory_order_relaxed)) {
        return {StatusCode::kCancelled, "the call was cancelled"};
      }
      if (n < works_.size()) {
        const Status status = Begin(works_[n], *slots_[n % slots_.size()], mask_there.get());
        if (!status.ok()) return status;
      }
      if (n >= lag) {
        const Work& work = works_[n - lag];
        const Slot& slot = *slots_[(n - lag) % slots_.size()];
        const char* out = slot.block.data() + Aligned(work.in.bytes);
        const Status status = Checked(staging_.Download(work.out, out, slot.stream.get()));
        if (!status.ok()) return status;
      }
      if (!options_.overlap) {
        const Status status = Checked(staging_.Finish());
        if (!status.ok()) return status;
      }
    }
    return Status::Ok();
  }

  Status Begin(const Work& work, Slot& slot, cudaEvent_t mask_there) {
    cudaError_t error = staging_.Upload(work.in, slot.block.data(), slot.stream.get());
    if (error == cudaSuccess && pass_.shared().used && !slot.has_mask) {
      error = cudaStreamWaitEvent(slot.stream.get(), mask_there, 0);
      slot.has_mask = true;
    }
    if (error != cudaSuccess) return Checked(error);
    const Status status = Launch(pass_, work, slot, mask_ != nullptr ? mask_->data() : nullptr);
    return status.ok() || status.code == StatusCode::kUnsupported ? status
                                                                  : device_.Recheck(status);
  }

  const Pass& pass_;
  const CudaHostOptions& options_;
  HostDevice& device_;
  std::vector<Work> works_;
  std::unique_ptr<Block> mask_;
  std::vector<std::unique_ptr<Slot>> slots_;
  Staging staging_;
};

}  // namespace

Status RunPass(const Pass& pass, const CudaHostOptions& options) try {
  HostDevice& device = HostDevice::Get();
  const Status ready = device.Check();
  if (!ready.ok()) return ready;
  const DeviceScope scope(device.index());
  if (scope.error() != cudaSuccess) return device.Fail(scope.error());
  const char* reason = nullptr;
  if (!pass.Supported(&reason)) return {StatusCode::kUnsupported, reason};
  for (int64_t units = UnitsOfPiece(pass.problem(), pass.backward());; units = (units + 1) / 2) {
    const Status status = Attempt(pass, options, device).Run(units);
    if (status.code != StatusCode::kOutOfMemory || units == 1) return status;
  }
} catch (const std::bad_alloc&) {
  // Lists of pieces are made before anything is enqueued.
  return NoMemory("no memory for the plan of the call");
}

namespace {

class Events {
 public:
  explicit Events(int count) : events_(static_cast<size_t>(count), nullptr) {
    for (cudaEvent_t& event : events_) {
      if (error_ == cudaSuccess) error_ = cudaEventCreate(&event);
    }
  }
  ~Events() {
    for (const cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
  cudaError_t error() const { return error_; }
  cudaEvent_t operator[](int i) const { return events_[static_cast<size_t>(i)]; }

 private:
  std::vector<cudaEvent_t> events_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

// All calls are enqueued before the first is waited for: a device at rest would add the time that a
// launch takes to reach it, which a caller with more work to enqueue does not see.
Status TimePass(const Pass& pass, int repeats, float* milliseconds) try {
  HostDevice& device = HostDevice::Get();
  const Status ready = device.Check();
  if (!ready.ok()) return ready;
  const DeviceScope scope(device.index());
  if (scope.error() != cudaSuccess) return device.Fail(scope.error());
  const char* reason = nullptr;
  if (!pass.Supported(&reason)) return {StatusCode::kUnsupported, reason};
  const Problem& p = pass.problem();
  const Work work = pass.Describe({0, p.batch, 0, p.kv_heads});
  Slot slot(device, BlockBytes(work));
  Block mask(device, std::max<int64_t>(1, pass.shared().area.bytes));
  if (slot.block.data() == nullptr || slot.stream.get() == nullptr || mask.data() == nullptr) {
    return NoMemory("the inputs do not fit in the limit of device memory");
  }
  cudaStream_t stream = slot.stream.get();
  // The first two calls load code and wake the clocks.
  constexpr int kWarmUps = 2;
  const Events begin(repeats + kWarmUps), end(repeats + kWarmUps);
  cudaError_t error = begin.error() != cudaSuccess ? begin.error() : end.error();
  Status status = Status::Ok();
  {
    Staging staging(device, 1);
    if (error == cudaSuccess && pass.shared().used) {
      error = staging.Upload(pass.shared().area, mask.data(), stream);
    }
    if (error == cudaSuccess) error = staging.Upload(work.in, slot.block.data(), stream);
    for (int n = 0; n < repeats + kWarmUps && error == cudaSuccess && status.ok(); ++n) {
      error = cudaEventRecord(begin[n], stream);
      if (error == cudaSuccess) status = Launch(pass, work, slot, mask.data());
      if (error == cudaSuccess) error = cudaEventRecord(end[n], stream);
    }
    const cudaError_t waited = cudaStreamSynchronize(stream);
    if (error == cudaSuccess) error = waited;
    for (int n = 0; n < repeats && error == cudaSuccess && status.ok(); ++n) {
      error = cudaEventElapsedTime(&milliseconds[n], begin[n + kWarmUps], end[n + kWarmUps]);
    }
  }
  if (error != cudaSuccess) return device.Fail(error);
  return status.ok() || status.code == StatusCode::kUnsupported ? status : device.Recheck(status);
} catch (const std::bad_alloc&) {
  return NoMemory("no memory for the events");
}

}  // namespace sage::cuda
