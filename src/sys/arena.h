// Memory of huge pages for what lives as long as a model: its weights, one after the other. Weights
// of small models are far below 2 MiB each; on pages of their own of 4 KiB, decoding one token at a
// time on one core took 1.4 to 1.5 times as long (TLB misses under nested paging).
#pragma once

#include <cstddef>
#include <vector>

namespace trimpot {

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `bytes` of zeroed memory on a 64-byte boundary, readable for 64 bytes more; it stays valid as
  // long as the arena. Untouched memory costs nothing. Throws std::bad_alloc.
  void* take(std::size_t bytes);
  // Gives the pages inside a range back to the system; their contents are gone.
  static void discard(void* memory, std::size_t bytes);

 private:
  struct Region {
    std::byte* begin;
    std::size_t size, used;
  };
  std::vector<Region> regions_;
};

}  // namespace trimpot
