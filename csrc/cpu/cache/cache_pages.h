// The pages of a cache, counted by their readers.
#ifndef SAGE_CPU_CACHE_CACHE_PAGES_H_
#define SAGE_CPU_CACHE_CACHE_PAGES_H_

#include <cstdint>
#include <vector>

#include "cpu/cache/page_layout.h"

namespace sage {

// One reader less; the last one's page is freed.
void ReleasePage(uint8_t* page);

// The pages in the order of their tokens; those past the length are in reserve.
struct CachePages {
  std::vector<uint8_t*> list;

  ~CachePages() {
    for (uint8_t* page : list) ReleasePage(page);
  }
};

}  // namespace sage

#endif  // SAGE_CPU_CACHE_CACHE_PAGES_H_
