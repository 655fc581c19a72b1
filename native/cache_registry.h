// Caches by number, so that an op of TensorFlow, which takes tensors alone, finds the one it is
// meant for. Numbers are of the process and never used twice.
#ifndef SAGE_NATIVE_CACHE_REGISTRY_H_
#define SAGE_NATIVE_CACHE_REGISTRY_H_

#include <cstdint>
#include <memory>

#include "sage/cuda_host_cache.h"
#include "sage/kv_cache.h"

namespace sage_node {

// The number of a cache, which it keeps as long as somebody holds it.
int64_t RegisterCache(const std::shared_ptr<sage::KvCache>& cache);
int64_t RegisterCache(const std::shared_ptr<sage::CudaHostCache>& cache);

// Null where the number is of no such cache that is still there.
template <class Cache>
std::shared_ptr<Cache> FindCache(int64_t number);

}  // namespace sage_node

#endif  // SAGE_NATIVE_CACHE_REGISTRY_H_
