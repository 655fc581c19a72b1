// The device cache behind host arrays (sage/cuda_host_cache.h), with calls in streams of the caller
// among them: all must have the bits of a cache that was filled in one stream.
#ifndef SAGE_TEST_CUDA_KV_CACHE_STREAMS_H_
#define SAGE_TEST_CUDA_KV_CACHE_STREAMS_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "sage/cuda_host_cache.h"
#include "test/cuda/kv_cache_forks.h"

namespace sage_test {

// Keeps a stream busy for some milliseconds, so that whoever does not wait for it is early.
static __global__ void Delay(int64_t clocks) {
  const int64_t begin = clock64();
  while (clock64() - begin < clocks) {
  }
}

template <class Attend>
int CheckStreams(uint64_t seed, const Attend& attend) {
  constexpr int64_t kDelay = 20'000'000;  // clocks, some 10 ms
  Case c;
  c.name = "streams";
  c.causal = sage::Causal::kBottomRight;
  c.heads = 4, c.kv_heads = 2, c.q_len = 2, c.qk_dim = 64, c.v_dim = 48, c.kv_len = 500;
  const Data data = MakeData(c, seed);
  const sage::KvCacheShape shape = {data.p.batch, 2, 64, 48, sage::CacheForm::kInt8};
  int failed = 0;
  const auto expect = [&](bool holds, const char* what) {
    if (holds) return;
    std::printf("FAIL streams: %s\n", what);
    ++failed;
  };
  // Tokens [first, end) of both heads, without gaps.
  const auto piece = [&](const std::vector<float>& x, const sage::TokenStrides& s, int64_t first,
                         int64_t end, int64_t dim) {
    std::vector<float> out;
    for (int64_t head = 0; head < data.p.batch * 2; ++head) {
      const float* from = x.data() + head / 2 * s.batch + head % 2 * s.head;
      for (int64_t t = first; t < end; ++t) {
        out.insert(out.end(), from + t * s.token, from + t * s.token + dim);
      }
    }
    return out;
  };
  std::unique_ptr<sage::CudaKvCache> alone;
  MustHold(sage::CudaKvCache::Create(shape, 0, nullptr, &alone), "Create");
  AppendTokens(data, alone.get(), 0, 200, 1.0f);
  AppendTokens(data, alone.get(), 200, 330, 1.0f);
  const auto at_fork = attend(Shortened(data, 330), alone.get());
  AppendTokens(data, alone.get(), 330, 500, 1.0f);
  const auto wanted = attend(data, alone.get());

  MustHold(sage::ChooseCudaDevice(""), "ChooseCudaDevice");
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams) {
    Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  }
  const auto compare = [&](const sage::Status& status, const std::vector<float>& o,
                           const std::vector<float>& lse, const auto& like, const char* what) {
    expect(status.ok(), status.ok() ? what : status.message);
    expect(std::memcmp(o.data(), like.o.data(), o.size() * 4) == 0 &&
               std::memcmp(lse.data(), like.lse.data(), lse.size() * 4) == 0,
           what);
  };
  const auto attend_host = [&](sage::CudaHostCache* cache, const Data& part, const auto& like,
                               const char* what) {
    std::vector<float> o(like.o.size(), 1e30f), lse(like.lse.size(), 1e30f);
    const sage::ForwardBuffers buffers = {part.q.data(), nullptr,  nullptr,
                                          nullptr,       o.data(), lse.data()};
    const sage::Status status = cache->Attend(part.p, buffers, {});
    compare(status, o, lse, like, what);
  };
  const auto attend_in = [&](cudaStream_t stream, sage::CudaHostCache* cache, const Data& part,
                             const auto& like, const char* what) {
    Device q(part.q.size() * 4), o_there(like.o.size() * 4), lse_there(like.lse.size() * 4);
    Upload(q, part.q);
    const sage::ForwardBuffers buffers = {
        q.as<float>(), nullptr, nullptr, nullptr, o_there.as<float>(), lse_there.as<float>()};
    const sage::Status status = cache->AttendInStream(part.p, buffers, stream);
    Require(cudaStreamSynchronize(stream), what);
    const std::vector<float> o = Download(o_there.as<float>(), like.o.size());
    const std::vector<float> lse = Download(lse_there.as<float>(), like.lse.size());
    compare(status, o, lse, like, what);
  };

  for (int round = 0; round < 2; ++round) {
    std::unique_ptr<sage::CudaHostCache> cache, fork;
    MustHold(sage::CudaHostCache::Create(shape, round * 1000, &cache), "CudaHostCache::Create");
    const std::vector<float> k0 = piece(data.k, data.p.k, 0, 200, 64);
    const std::vector<float> v0 = piece(data.v, data.p.v, 0, 200, 48);
    MustHold(cache->Append(k0.data(), v0.data(), 200, {}), "Append");
    const std::vector<float> k1 = piece(data.k, data.p.k, 200, 330, 64);
    const std::vector<float> v1 = piece(data.v, data.p.v, 200, 330, 48);
    const std::vector<float> k2 = piece(data.k, data.p.k, 330, 500, 64);
    const std::vector<float> v2 = piece(data.v, data.p.v, 330, 500, 48);
    Device k1_there(k1.size() * 4), v1_there(v1.size() * 4);
    Device k2_there(k2.size() * 4), v2_there(v2.size() * 4);
    Upload(k1_there, k1), Upload(v1_there, v1), Upload(k2_there, k2), Upload(v2_there, v2);
    Delay<<<1, 1, 0, streams[0]>>>(kDelay);
    MustHold(cache->AppendInStream(k1_there.as<float>(), v1_there.as<float>(), 130, streams[0]),
             "AppendInStream");
    MustHold(cache->Fork(&fork), "Fork");
    attend_in(streams[1], fork.get(), Shortened(data, 330), at_fork, "another stream, a fork");
    Delay<<<1, 1, 0, streams[1]>>>(kDelay);
    MustHold(fork->AppendInStream(k2_there.as<float>(), v2_there.as<float>(), 170, streams[1]),
             "AppendInStream of a fork");
    attend_host(fork.get(), data, wanted, "host arrays after a stream");
    attend_host(cache.get(), Shortened(data, 330), at_fork, "the source of the fork");
    MustHold(cache->Append(k2.data(), v2.data(), 170, {}), "Append after a fork");
    attend_in(streams[0], cache.get(), data, wanted, "a stream after host arrays");
    std::unique_ptr<sage::KvCache> moved;
    MustHold(cache->ToHost(&moved), "ToHost");
    expect(moved->length() == 500, "tokens that moved");
    expect(cache->Truncate(501).code == sage::StatusCode::kInvalidArgument, "truncate to more");
  }
  for (cudaStream_t stream : streams) Require(cudaStreamDestroy(stream), "stream");
  const int64_t before = sage::GetCudaHostState().device_bytes;
  sage::ReleaseCudaMemory();
  expect(sage::GetCudaHostState().device_bytes == 0, "memory that nobody holds");
  std::printf("%s streams, %ld bytes kept until released\n", failed == 0 ? "ok  " : "FAIL", before);
  return failed;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_KV_CACHE_STREAMS_H_
