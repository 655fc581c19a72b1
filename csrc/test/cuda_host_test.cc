// The parts of the CUDA engine on host arrays that need no device: the pool of memory blocks, moves
// between strided arrays and compact bytes, the cut into pieces, and names of devices.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "cuda/host/block_pool.h"
#include "cuda/host/find_device.h"
#include "cuda/host/pieces.h"
#include "cuda/host/strided_box.h"

namespace sage {
namespace {

using cuda::BlockPool;
using cuda::StridedBox;

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (0)

constexpr int64_t kMiB = int64_t{1} << 20;

// A device with little memory, which counts what it has given.
int64_t available = 0, given = 0;
int allocations = 0;
std::vector<std::pair<void*, int64_t>> blocks;

void* Allocate(int64_t bytes) {
  if (given + bytes > available) return nullptr;
  void* block = std::malloc(1);
  blocks.emplace_back(block, bytes);
  given += bytes;
  ++allocations;
  return block;
}

void Free(void* block) {
  for (size_t n = 0; n < blocks.size(); ++n) {
    if (blocks[n].first != block) continue;
    given -= blocks[n].second;
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(n));
    std::free(block);
    return;
  }
  CHECK(!"a block was freed that was not allocated");
}

void PoolKeepsBlocks() {
  available = 1000 * kMiB;
  allocations = 0;
  BlockPool pool(Allocate, Free, 100 * kMiB);
  void* a = pool.Take(10 * kMiB);
  CHECK(a != nullptr && allocations == 1 && pool.held() == 10 * kMiB && given == pool.held());
  pool.Give(a);
  CHECK(pool.held() == 10 * kMiB);
  CHECK(pool.Take(10 * kMiB - 1) == a && allocations == 1);
  // In use, so another one.
  void* b = pool.Take(10 * kMiB);
  CHECK(b != nullptr && b != a && allocations == 2);
  pool.Give(a);
  pool.Give(b);
  // A small request does not occupy a block that is far too large.
  void* small = pool.Take(1000);
  CHECK(small != a && small != b && allocations == 3);
  CHECK(pool.held() == 20 * kMiB + 65536);
  CHECK(pool.Trim() == 20 * kMiB && pool.held() == 65536 && given == 65536);
  pool.Give(small);
  pool.Give(nullptr);
  CHECK(pool.Trim() == 65536 && given == 0 && pool.Trim() == 0);
  // What is too large to be kept goes at once.
  a = pool.Take(2 * kMiB);
  small = pool.Take(kMiB);
  pool.Give(a, kMiB);
  pool.Give(small, kMiB);
  CHECK(pool.held() == kMiB && given == kMiB && pool.Trim() == kMiB);
}

void PoolKeepsItsLimit() {
  available = 1000 * kMiB;
  BlockPool pool(Allocate, Free, 32 * kMiB);
  CHECK(pool.Take(33 * kMiB) == nullptr && given == 0);
  void* a = pool.Take(16 * kMiB);
  void* b = pool.Take(16 * kMiB);
  CHECK(a != nullptr && b != nullptr && pool.Take(1) == nullptr);
  pool.Give(a);
  // The kept block goes, since a larger one and b fit together only without it.
  CHECK(pool.Take(17 * kMiB) == nullptr && pool.held() == 16 * kMiB);
  void* c = pool.Take(12 * kMiB);
  CHECK(c != nullptr && pool.held() == 28 * kMiB && given == pool.held());
  pool.SetLimit(8 * kMiB);
  CHECK(pool.held() == 28 * kMiB);  // in use
  pool.Give(b);
  CHECK(pool.held() == 12 * kMiB);
  pool.Give(c);
  CHECK(pool.held() == 0 && given == 0);
}

void PoolYieldsWhenMemoryIsShort() {
  available = 20 * kMiB;
  BlockPool pool(Allocate, Free, 100 * kMiB);
  void* a = pool.Take(8 * kMiB);
  void* b = pool.Take(8 * kMiB);
  pool.Give(a);
  // 8 of 20 in use: 12 can be had once the kept block is given back.
  void* c = pool.Take(12 * kMiB);
  CHECK(c != nullptr && pool.held() == 20 * kMiB && pool.Take(1) == nullptr);
  pool.Give(b);
  pool.Give(c);
  pool.Abandon();
  CHECK(pool.held() == 0 && given == 20 * kMiB);
  pool.Give(b);  // of a device that is gone: no effect
  while (!blocks.empty()) Free(blocks.back().first);
}

void SizesAreRounded() {
  CHECK(BlockPool::Rounded(0) == 65536 && BlockPool::Rounded(1) == 65536);
  CHECK(BlockPool::Rounded(kMiB) == kMiB && BlockPool::Rounded(kMiB + 1) == kMiB + 131072);
  for (int64_t bytes = 1; bytes < int64_t{1} << 45; bytes = bytes * 5 / 3 + 1) {
    const int64_t rounded = BlockPool::Rounded(bytes);
    CHECK(rounded >= bytes && rounded % 65536 == 0);
    CHECK(rounded <= 65536 || rounded <= bytes + bytes / 8 + 65536);
    CHECK(BlockPool::Rounded(rounded) == rounded);
  }
}

// Moves a box by one call and by ranges of every kind, against loops over its elements.
void CheckBox(const StridedBox& box, int64_t reach) {
  std::vector<float> source(static_cast<size_t>(reach));
  for (size_t n = 0; n < source.size(); ++n) source[n] = static_cast<float>(n + 1);
  std::vector<float> expected;
  std::vector<size_t> places;
  for (int64_t a = 0; a < box.size[0]; ++a)
    for (int64_t b = 0; b < box.size[1]; ++b)
      for (int64_t c = 0; c < box.size[2]; ++c)
        for (int64_t d = 0; d < box.size[3]; ++d) {
          const int64_t at =
              a * box.stride[0] + b * box.stride[1] + c * box.stride[2] + d * box.stride[3];
          places.push_back(static_cast<size_t>(at));
          expected.push_back(source[static_cast<size_t>(at)]);
        }
  CHECK(box.bytes() == static_cast<int64_t>(expected.size() * sizeof(float)));
  for (const int64_t step : {box.bytes(), int64_t{4}, int64_t{12}, int64_t{64}, int64_t{7}}) {
    std::vector<float> compact(expected.size(), -1.0f);
    std::vector<float> back(source.size(), 0.0f), sum(source.size(), 0.5f);
    for (int64_t from = 0; from < box.bytes(); from += step) {
      const int64_t to = std::min(box.bytes(), from + step);
      char* at = reinterpret_cast<char*>(compact.data()) + from;
      GatherBox(box, source.data(), from, to, at);
      ScatterBox(box, back.data(), from, to, at);
      if (step % 4 == 0) AddBox(box, sum.data(), from, to, at);
    }
    CHECK(compact == expected);
    std::set<size_t> written(places.begin(), places.end());
    for (size_t n = 0; n < back.size(); ++n) {
      const bool inside = written.count(n) > 0;
      CHECK(back[n] == (inside ? source[n] : 0.0f));
      // An axis of stride 0 is added as often as it repeats; that is the caller's to avoid.
      if (step % 4 == 0 && written.size() == places.size()) {
        CHECK(sum[n] == 0.5f + (inside ? source[n] : 0.0f));
      }
    }
  }
}

void BoxesMove() {
  CheckBox({{1, 1, 1, 1}, {5, 5, 5, 5}, 4}, 1);
  CheckBox({{2, 3, 5, 8}, {120, 40, 8, 1}, 4}, 240);   // all in one run
  CheckBox({{2, 3, 5, 8}, {150, 50, 10, 1}, 4}, 300);  // gaps behind rows
  CheckBox({{2, 5, 3, 8}, {120, 24, 8, 1}, 4}, 240);   // tokens before heads
  CheckBox({{2, 2, 5, 8}, {120, 8, 24, 1}, 4}, 240);   // two of three heads
  CheckBox({{1, 1, 7, 9}, {0, 0, 9, 1}, 4}, 63);       // a broadcast mask
  CheckBox({{2, 1, 1, 9}, {9, 0, 0, 1}, 4}, 18);       // of keys, per batch
  CheckBox({{1, 4, 6, 1}, {0, 6, 1, 0}, 4}, 24);       // of queries
  CheckBox({{2, 3, 4, 5}, {60, 20, 1, 4}, 4}, 120);    // the last axis strided
  CheckBox({{3, 1, 4, 8}, {0, 32, 8, 1}, 4}, 32);      // batches that share an operand
  CHECK(cuda::BoxRuns({{2, 3, 5, 8}, {120, 40, 8, 1}, 4}).run() == 960);
  CHECK(cuda::BoxRuns({{2, 3, 5, 8}, {150, 50, 10, 1}, 4}).run() == 32);
}

Problem Sizes(int64_t batch, int64_t q_heads, int64_t kv_heads, int64_t tokens, int64_t dim) {
  Problem p = {};
  p.batch = batch;
  p.q_heads = q_heads;
  p.kv_heads = kv_heads;
  p.q_len = p.kv_len = tokens;
  p.qk_dim = p.v_dim = dim;
  return p;
}

// Every head of every batch once, in order, within the limit.
void PiecesCoverTheCall() {
  for (const int64_t batch : {1, 2, 5}) {
    for (const int64_t heads : {1, 2, 3, 7, 32}) {
      for (int64_t units = 1; units <= batch * heads + 3; ++units) {
        const Problem p = Sizes(batch, heads * 2, heads, 100, 64);
        std::vector<int> seen(static_cast<size_t>(batch * heads));
        int64_t last = -1;
        for (const cuda::Piece& piece : cuda::CutIntoPieces(p, units)) {
          CHECK(piece.batches >= 1 && piece.heads >= 1);
          CHECK(piece.batches * piece.heads <= units);
          CHECK(piece.batches == 1 || piece.heads == heads);
          for (int64_t b = 0; b < piece.batches; ++b) {
            for (int64_t h = 0; h < piece.heads; ++h) {
              const int64_t at = (piece.batch + b) * heads + piece.head + h;
              CHECK(at > last);
              last = at;
              ++seen[static_cast<size_t>(at)];
            }
          }
        }
        for (const int count : seen) CHECK(count == 1);
      }
    }
  }
}

void PiecesHaveASize() {
  // A small call is one piece.
  CHECK(cuda::UnitsOfPiece(Sizes(1, 8, 8, 512, 64), false) == 8);
  // 256 MiB there and back: an eighth of it a piece; 512 MiB: at most 64.
  CHECK(cuda::UnitsOfPiece(Sizes(1, 32, 32, 4096, 128), false) == 4);
  CHECK(cuda::UnitsOfPiece(Sizes(1, 32, 32, 4096, 128), true) == 3);
  // A head of 2 GiB cannot be cut.
  CHECK(cuda::UnitsOfPiece(Sizes(1, 4, 4, int64_t{1} << 20, 128), false) == 1);
  // A unit is a key/value head with its group.
  CHECK(cuda::TransferOfUnit(Sizes(1, 8, 2, 10, 4), false) == 4 * (40 * 4 * 2 + 10 * 4 * 2 + 40));
}

void DevicesAreFound() {
  const unsigned char bytes[16] = {0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xff};
  CHECK(cuda::UuidText(bytes) == "GPU-deadbeef-0102-0304-0506-0708090a0bff");
  std::vector<std::string> uuids = {"GPU-deadbeef-0102-0304-0506-0708090a0bff",
                                    "GPU-dead0000-0102-0304-0506-0708090a0bff"};
  std::string why;
  const auto find = [&](const char* text) {
    why.clear();
    return cuda::FindDevice(text, uuids, &why);
  };
  CHECK(find("0") == 0 && find("1") == 1 && find("01") == 1);
  CHECK(find("2") == -1 && why == "there is no CUDA device 2: the driver shows 2 devices");
  CHECK(find("99999999999999999999") == -1);
  CHECK(find("GPU-deadbeef") == 0 && find("gpu-DEAD0") == 1 && find("MIG-dead0000-0102") == 1);
  CHECK(find("GPU-dead") == -1 && why.find("more than one") == 0);
  CHECK(find("GPU-beef") == -1 && why.find("no CUDA device has the UUID GPU-beef") == 0);
  for (const char* text : {"", "GPU-", "first", "-1", "1.0", "GPU-xyz", "deadbeef"}) {
    CHECK(find(text) == -1 && why.find("is neither") != std::string::npos);
  }
  // A device that is listed and does not answer.
  uuids.insert(uuids.begin(), "");
  CHECK(find("GPU-deadbeef") == 1 && find("GPU-beef") == -1 && find("0") == 0);
}

}  // namespace
}  // namespace sage

int main() {
  sage::PoolKeepsBlocks();
  sage::PoolKeepsItsLimit();
  sage::PoolYieldsWhenMemoryIsShort();
  sage::SizesAreRounded();
  sage::BoxesMove();
  sage::PiecesCoverTheCall();
  sage::PiecesHaveASize();
  sage::DevicesAreFound();
  std::puts("pool, boxes, pieces and names of devices: as they should be");
  return 0;
}
