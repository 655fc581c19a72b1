#include <algorithm>

#include "cpu/thread_pool.h"
#include "cuda/host/staging.h"

namespace sage::cuda {
namespace {

constexpr size_t kChunks = 4;
constexpr int64_t kChunkBytes = int64_t{4} << 20;
// What one processor moves at a time: some 20 us, far above the cost of handing it out.
constexpr int64_t kTaskBytes = int64_t{256} << 10;

}  // namespace

Staging::~Staging() {
  for (Ring* ring : {&in_, &out_}) {
    for (Chunk& chunk : ring->chunks) {
      device_.GiveEvent(chunk.copied);
      device_.pinned().Give(chunk.memory);
    }
  }
}

// The bytes [from, to) of an area, between the host arrays and a chunk that begins at `from`.
void Staging::Move(const Area& area, int64_t from, int64_t to, void* chunk, bool gather) const {
  const int64_t tasks = (to - from + kTaskBytes - 1) / kTaskBytes;
  ParallelFor(tasks, threads_, [&](int64_t task, int) {
    const int64_t first = from + task * kTaskBytes, last = std::min(to, first + kTaskBytes);
    for (const Part& part : area.parts) {
      const int64_t begin = std::max<int64_t>(0, first - part.offset);
      const int64_t end = std::min(part.box.bytes(), last - part.offset);
      if (begin >= end) continue;
      void* compact = static_cast<char*>(chunk) + (part.offset + begin - from);
      if (gather) {
        GatherBox(part.box, part.host, begin, end, compact);
      } else if (part.add) {
        AddBox(part.box, part.host, begin, end, compact);
      } else {
        ScatterBox(part.box, part.host, begin, end, compact);
      }
    }
  });
}

cudaError_t Staging::Land(Chunk* chunk) {
  if (!chunk->busy) return cudaSuccess;
  const cudaError_t error = cudaEventSynchronize(chunk->copied);
  if (error != cudaSuccess) return error;
  chunk->busy = false;
  if (chunk->area != nullptr) {
    Move(*chunk->area, chunk->from, chunk->to, chunk->memory, false);
    chunk->area = nullptr;
  }
  return cudaSuccess;
}

// The next chunk in turn, free to be used: a new one as long as the ring is not complete and the
// oldest is busy.
cudaError_t Staging::Acquire(Ring* ring, Chunk** chunk) {
  std::vector<Chunk>& chunks = ring->chunks;
  const bool wanted = chunks.empty() || chunks[ring->next].busy;
  if (wanted && chunks.size() < kChunks) {
    chunks.reserve(kChunks);
    void* memory = device_.pinned().Take(kChunkBytes);
    cudaEvent_t event = memory == nullptr ? nullptr : device_.TakeEvent();
    if (event != nullptr) {
      // In front of the oldest, so that the order of the ring stays that of time.
      chunks.insert(chunks.begin() + static_cast<std::ptrdiff_t>(ring->next),
                    {memory, event, nullptr, 0, 0, false});
    } else {
      device_.pinned().Give(memory);
      if (chunks.empty()) return cudaErrorMemoryAllocation;
    }
  }
  *chunk = &chunks[ring->next];
  ring->next = (ring->next + 1) % chunks.size();
  return Land(*chunk);
}

cudaError_t Staging::Upload(const Area& area, void* to, cudaStream_t stream) {
  for (int64_t from = 0; from < area.bytes; from += kChunkBytes) {
    const int64_t end = std::min(area.bytes, from + kChunkBytes);
    Chunk* chunk = nullptr;
    cudaError_t error = Acquire(&in_, &chunk);
    if (error != cudaSuccess) return error;
    Move(area, from, end, chunk->memory, true);
    error = cudaMemcpyAsync(static_cast<char*>(to) + from, chunk->memory,
                            static_cast<size_t>(end - from), cudaMemcpyHostToDevice, stream);
    if (error == cudaSuccess) error = cudaEventRecord(chunk->copied, stream);
    if (error != cudaSuccess) return error;
    chunk->busy = true;
  }
  return cudaSuccess;
}

cudaError_t Staging::Download(const Area& area, const void* from, cudaStream_t stream) {
  for (int64_t at = 0; at < area.bytes; at += kChunkBytes) {
    const int64_t end = std::min(area.bytes, at + kChunkBytes);
    Chunk* chunk = nullptr;
    cudaError_t error = Acquire(&out_, &chunk);
    if (error != cudaSuccess) return error;
    error = cudaMemcpyAsync(chunk->memory, static_cast<const char*>(from) + at,
                            static_cast<size_t>(end - at), cudaMemcpyDeviceToHost, stream);
    if (error == cudaSuccess) error = cudaEventRecord(chunk->copied, stream);
    if (error != cudaSuccess) return error;
    chunk->busy = true;
    chunk->area = &area;
    chunk->from = at;
    chunk->to = end;
  }
  return cudaSuccess;
}

cudaError_t Staging::Finish() {
  for (size_t n = 0; n < out_.chunks.size(); ++n) {
    const cudaError_t error = Land(&out_.chunks[(out_.next + n) % out_.chunks.size()]);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace sage::cuda
