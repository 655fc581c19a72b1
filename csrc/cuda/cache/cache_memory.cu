#include <algorithm>
#include <new>

#include "cuda/cache/cache_memory.h"

namespace sage {
namespace cuda {
namespace {

constexpr int64_t kLeastSlabPages = 8;
// What cudaMalloc aligns to.
constexpr int64_t kAlignment = 256;

constexpr char kNoMemory[] = "there is no device memory left for the cache";

// Copies the first `count` pages of every head from `page` of a slab on; `to` is a slab too.
cudaError_t CopyPages(const CachePageLayout& layout, int64_t heads, const uint8_t* from,
                      int64_t from_pages, uint8_t* to, int64_t to_pages, int64_t count,
                      cudaStream_t stream) {
  const auto bytes = [&](int64_t pages) { return static_cast<size_t>(pages * layout.PageBytes()); };
  return cudaMemcpy2DAsync(to, bytes(to_pages), from, bytes(from_pages), bytes(count),
                           static_cast<size_t>(heads), cudaMemcpyDeviceToDevice, stream);
}

}  // namespace

DeviceBlock::~DeviceBlock() {
  if (data == nullptr) return;
  cudaDeviceSynchronize();
  source->Give(data);
  cudaGetLastError();
}

Status StatusOf(cudaError_t error) {
  if (error == cudaSuccess) return Status::Ok();
  cudaGetLastError();
  return {error == cudaErrorMemoryAllocation ? StatusCode::kOutOfMemory : StatusCode::kInternal,
          cudaGetErrorString(error)};
}

Status TakeZeroed(DeviceMemory* source, int64_t bytes, SharedBlock* out) try {
  const auto block = std::make_shared<DeviceBlock>(DeviceBlock{source, nullptr, bytes});
  block->data = source->Take(std::max<int64_t>(bytes, 1));
  if (block->data == nullptr) return {StatusCode::kOutOfMemory, kNoMemory};
  cudaError_t error = cudaMemset(block->data, 0, static_cast<size_t>(bytes));
  if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
  if (error == cudaSuccess) *out = block;
  return StatusOf(error);
} catch (const std::bad_alloc&) {
  return {StatusCode::kOutOfMemory, "no memory for the cache"};
}

}  // namespace cuda

using cuda::kMostSlabs;
using cuda::StatusOf;

Status CudaCacheMemory::TakeMean() {
  return cuda::TakeZeroed(source, heads * (layout.k_dims + 1) * 4, &mean);
}

Status CudaCacheMemory::HoldScratch(int64_t counters, int64_t floats) {
  const int64_t bytes =
      (counters * 4 + cuda::kAlignment - 1) / cuda::kAlignment * cuda::kAlignment +
      floats * static_cast<int64_t>(sizeof(float));
  if (scratch != nullptr && scratch->bytes >= bytes) return Status::Ok();
  scratch.reset();
  return cuda::TakeZeroed(source, bytes, &scratch);
}

void CudaCacheMemory::CutAt(int page) {
  while (slabs.count > 0 && slabs.first_page[slabs.count - 1] >= page) {
    --slabs.count;
    blocks.pop_back();
  }
  if (slabs.count > 0) {
    slabs.first_page[slabs.count] = std::min(slabs.first_page[slabs.count], page);
  }
}

Status CudaCacheMemory::AddSlab(int64_t count) {
  cuda::SharedBlock block;
  const Status status = cuda::TakeZeroed(source, heads * count * layout.PageBytes(), &block);
  if (!status.ok()) return status;
  const int n = slabs.count;
  blocks.push_back(block);
  slabs.base[n] = static_cast<uint8_t*>(block->data);
  slabs.pages[n] = static_cast<int>(count);
  slabs.first_page[n + 1] = slabs.first_page[n] + static_cast<int>(count);
  ++slabs.count;
  return Status::Ok();
}

Status CudaCacheMemory::Grow(int64_t more, cudaStream_t stream) {
  if (slabs.count == kMostSlabs) return Compact(more, stream);
  // By half of what is its own, so that few slabs hold any length.
  int64_t own = 0;
  for (int n = 0; n < slabs.count; ++n) own += IsShared(n) ? 0 : slabs.pages[n];
  const int64_t least = slabs.count == 0 ? 1 : std::max(cuda::kLeastSlabPages, own / 2);
  return AddSlab(std::max(more, least));
}

Status CudaCacheMemory::Compact(int64_t more, cudaStream_t stream) {
  const int64_t used = pages();
  CudaCacheMemory whole;
  whole.source = source;
  whole.heads = heads;
  whole.layout = layout;
  whole.blocks.reserve(kMostSlabs);
  const Status status = whole.AddSlab(used + std::max(more, used / 2));
  if (!status.ok()) return status;
  for (int n = 0; n < slabs.count; ++n) {
    const int64_t first = slabs.first_page[n], count = slabs.first_page[n + 1] - first;
    const cudaError_t error = cuda::CopyPages(layout, heads, slabs.base[n], slabs.pages[n],
                                              whole.slabs.base[0] + first * layout.PageBytes(),
                                              whole.slabs.pages[0], count, stream);
    if (error != cudaSuccess) return StatusOf(error);
  }
  blocks = std::move(whole.blocks);  // waits for the copies
  slabs = whole.slabs;
  owned_from = 0;
  return Status::Ok();
}

Status CudaCacheMemory::MakeWritable(int64_t length, int64_t end, cudaStream_t stream) {
  const int first = static_cast<int>(length / cuda::kPageTokens);
  if (length < owned_from) {
    bool shared = false;
    for (int n = 0; n < slabs.count; ++n) {
      shared = shared || (slabs.first_page[n + 1] > first && IsShared(n));
    }
    if (shared && length % cuda::kPageTokens != 0) {
      int from = 0;
      while (slabs.first_page[from + 1] <= first) ++from;
      const uint8_t* page =
          slabs.base[from] + int64_t{first - slabs.first_page[from]} * layout.PageBytes();
      const int from_pages = slabs.pages[from];
      // Held until its page has been copied.
      const cuda::SharedBlock held = blocks[static_cast<size_t>(from)];
      CudaCacheMemory before = *this;
      CutAt(first);
      Status status = Grow(cuda::PagesFor(end) - first, stream);
      if (status.ok()) {
        const int n = slabs.count - 1;
        status = StatusOf(cuda::CopyPages(
            layout, heads, page, from_pages,
            slabs.base[n] + int64_t{first - slabs.first_page[n]} * layout.PageBytes(),
            slabs.pages[n], 1, stream));
      }
      if (!status.ok()) {
        *this = before;
        return status;
      }
    } else if (shared) {
      CutAt(first);
    }
    owned_from = length;
  }
  if (slabs.count > 0 && !IsShared(slabs.count - 1)) {
    // Pages that were out of use beside a fork.
    const int n = slabs.count - 1;
    slabs.first_page[n + 1] = slabs.first_page[n] + slabs.pages[n];
  }
  const int64_t more = cuda::PagesFor(end) - pages();
  return more > 0 ? Grow(more, stream) : Status::Ok();
}

void CudaCacheMemory::ShareWith(int64_t length, CudaCacheMemory* fork) {
  fork->source = source;
  fork->heads = heads;
  fork->layout = layout;
  fork->blocks = blocks;
  fork->slabs = slabs;
  fork->mean = mean;
  const int64_t held = cuda::PagesFor(length);
  fork->CutAt(static_cast<int>(held));
  fork->owned_from = held * cuda::kPageTokens;
  owned_from = std::max(owned_from, length);
}

int64_t CudaCacheMemory::Bytes(bool exclusive) const {
  int64_t bytes = 0;
  const auto add = [&](const cuda::SharedBlock& block) {
    if (block != nullptr && (!exclusive || block.use_count() == 1)) bytes += block->bytes;
  };
  for (const cuda::SharedBlock& block : blocks) add(block);
  add(mean);
  add(scratch);
  return bytes;
}

}  // namespace sage
