// The pre-pass of int8_fp8 on Hopper, from float32 or 16 bits in any strides. Where a cluster of
// blocks holds a head of k or v, read_once.cuh does it. Elsewhere it is one launch that takes
// statistics of some heads (statistics.cuh) while it quantises others (quantise.cuh), so that k and
// v are read from memory once and found in L2 the second time. Traffic per element of k and v: 4
// (2) bytes read, as many from L2, 1 written; of q, unless attention rounds it (round_queries.cuh):
// 4 (2) read, 1 written.
//
// (16-bit inputs: all statistics come first, and k and v from memory twice.)
//
// Persistent blocks draw tickets in order:
//
//   0 .. lead        S S S S S ...          statistics of a tile each
//   then             S Q Q S Q Q ...        in proportion; Q: a tile of k and v, or 128 rows of q
//   at the end       Q Q Q ...
//
// S runs ahead of Q by one head and a little, the least that lets Q find its head finished, if L2
// holds that; else all S come first. A Q whose head is not finished waits, for S tickets of lower
// numbers only. Blocks finish their tickets in order, so the lowest unfinished ticket is always
// being worked on: there is always progress.
#include <algorithm>

#include "cuda/sm90/launch.h"
#include "cuda/sm90/quantise.cuh"
#include "cuda/sm90/statistics.cuh"
#include "formats/float_bits.h"

namespace sage {
namespace sm90 {
namespace {

constexpr int kThreadsPerMultiprocessor = 512;
template <int D>
constexpr int kBlocksPerMultiprocessor = kThreadsPerMultiprocessor / kPrepassThreads<D>;

// Of k and v between the two readings: what was seen to be found again in an L2 of 50 MB.
constexpr int64_t kLeadBytes = int64_t{28} << 20;

struct Ticket {
  bool statistics;
  int head, index;
};

// Tickets of a head: of statistics, and of quantisation (tiles of k and v, then blocks of q).
template <int D, class E>
__host__ __device__ int StatisticsTickets(const PrepassArguments& a) {
  return (a.space.tiles + kStatisticsTiles<D, E> - 1) / kStatisticsTiles<D, E>;
}
__host__ __device__ inline int QuantiseTickets(const PrepassArguments& a) {
  return a.space.tiles + a.group * a.q_blocks;
}

template <int D, class E>
SAGE_DEVICE Ticket TicketOf(const PrepassArguments& a, int64_t n) {
  const int64_t s = StatisticsTickets<D, E>(a), q = QuantiseTickets(a);
  Ticket ticket;
  if (n < a.lead) {
    ticket.statistics = true;
  } else {
    // Of the tickets after the lead, how many of statistics come before this one.
    const int64_t at = n - a.lead, left = a.kv_count * s - a.lead;
    const int64_t before = at * s / (s + q);
    ticket.statistics = before < left && (at + 1) * s / (s + q) > before;
    n = ticket.statistics ? a.lead + before : at - min(before, left);
  }
  const int64_t per_head = ticket.statistics ? s : q;
  ticket.head = static_cast<int>(n / per_head);
  ticket.index = static_cast<int>(n - ticket.head * per_head);
  return ticket;
}

template <int D, class E>
__global__ void __launch_bounds__(kPrepassThreads<D>, kBlocksPerMultiprocessor<D>)
    PrepassKernel(const __grid_constant__ PrepassArguments a) {
  __shared__ QuantiseShared<D> shared;
  __shared__ Ticket drawn;
  __shared__ bool last, done;
  LetNextLaunchBegin();
  const int64_t tickets =
      a.kv_count * (static_cast<int64_t>(StatisticsTickets<D, E>(a)) + QuantiseTickets(a));
  // Drawn a ticket ahead: the answer takes as long as reading a tile.
  uint32_t next = threadIdx.x == 0 ? atomicAdd(a.space.ticket, 1u) : 0;
  while (true) {
    __syncthreads();  // shared memory is free
    if (threadIdx.x == 0) {
      done = next >= tickets;
      drawn = TicketOf<D, E>(a, next);
      next = atomicAdd(a.space.ticket, 1u);
    }
    __syncthreads();
    if (done) return;
    const Ticket ticket = drawn;
    if (ticket.statistics) {
      Statistics<D, E>(a, ticket.head, ticket.index * kStatisticsTiles<D, E>, &last);
      continue;
    }
    const int block = ticket.index - a.space.tiles;
    if (block < 0) {
      QuantiseTile<D, E>(a, ticket.head, ticket.index, &shared);
    } else {
      // The query heads of a group are next to each other.
      QuantiseQ<D, E>(a, ticket.head * a.group * a.q_blocks + block);
    }
  }
}

template <int D, class E>
cudaError_t Launch(PrepassArguments a, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int64_t s = StatisticsTickets<D, E>(a), q = QuantiseTickets(a);
  const int64_t tickets = a.kv_count * (s + q);
  const int64_t blocks = std::min<int64_t>(tickets, kBlocksPerMultiprocessor<D> * multiprocessors);
  // One head; and the statistics among the tickets that are being worked on or drawn ahead, by
  // measurement. Where L2 does not hold so much, all statistics come first.
  const int64_t lead = s + blocks * 7 / 10 + 2;
  const int64_t bytes = lead * kStatisticsTiles<D, E> * kTile * D * (8 / E::kInWord);
  // The second reading of 16 bits from memory costs less than waiting for a head.
  const bool all_first = E::kInWord > 1 || bytes > kLeadBytes;
  a.lead = static_cast<int>(all_first ? a.kv_count * s : std::min(a.kv_count * s, lead));
  PrepassKernel<D, E><<<static_cast<unsigned>(blocks), kPrepassThreads<D>, 0, stream>>>(a);
  return cudaGetLastError();
}

template <class E>
cudaError_t LaunchFor(const PrepassArguments& a, cudaStream_t stream) {
  switch (a.space.dim) {
    case 64:
      return Launch<64, E>(a, stream);
    case 128:
      return Launch<128, E>(a, stream);
    default:
      return Launch<256, E>(a, stream);
  }
}

}  // namespace

cudaError_t Prepass(const Problem& p, const ForwardBuffers& buffers, const Workspace& space,
                    cudaStream_t stream) {
  PrepassArguments a = {};
  a.q = SourceOf(buffers.q, p.input, p.q, p.q_heads, p.q_len, p.qk_dim, space.dim);
  a.k = SourceOf(buffers.k, p.input, p.k, p.kv_heads, p.kv_len, p.qk_dim, space.dim);
  a.v = SourceOf(buffers.v, p.input, p.v, p.kv_heads, p.kv_len, p.v_dim, space.dim);
  a.space = space;
  a.q_heads = static_cast<int>(p.q_heads);
  a.group = static_cast<int>(p.group());
  a.kv_count = static_cast<int>(p.batch * p.kv_heads);
  a.q_blocks = space.rounds_queries && a.q.chunks ? 0 : space.q_rows / kTile;
  a.smooth_k = p.recipe.smooth_k;
  a.smooth_v = p.recipe.smooth_v > 0;
  a.want_lse = p.want_lse;
  a.sign = p.scale < 0.0 ? -1.0f : 1.0f;
  a.scale = p.scale;
  const cudaError_t cleared = cudaMemsetAsync(space.schedule, 0, space.zeroed_bytes, stream);
  if (cleared != cudaSuccess) return cleared;
  if (!a.smooth_v) {
    // Attention fetches means before it asks whether there are any.
    const int64_t means = int64_t{a.kv_count} * space.mean_groups * kMeanTiles * space.dim;
    const cudaError_t none = cudaMemsetAsync(space.mean_image, 0, means * sizeof(float), stream);
    if (none != cudaSuccess) return none;
  }
  bool done = false;
  const cudaError_t error = ReadOnce(a, p.input, stream, &done);
  if (done || error != cudaSuccess) return error;
  switch (p.input) {
    case InputType::kFloat16:
      return LaunchFor<Float16>(a, stream);
    case InputType::kBfloat16:
      return LaunchFor<BFloat16>(a, stream);
    default:
      return LaunchFor<Float32>(a, stream);
  }
}

}  // namespace sm90
}  // namespace sage
