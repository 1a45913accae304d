#include "sys/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace trimpot {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kRegion = 32 * kHugePage;

std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

// Reserved address space, on a boundary of huge pages.
std::byte* map_region(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* start = static_cast<std::byte*>(memory);
  const std::size_t skipped = round_up(reinterpret_cast<std::uintptr_t>(start), kHugePage) -
                              reinterpret_cast<std::uintptr_t>(start);
  if (skipped > 0) ::munmap(start, skipped);
  ::munmap(start + skipped + bytes, kHugePage - skipped);
  ::madvise(start + skipped, bytes, MADV_HUGEPAGE);
  return start + skipped;
}

}  // namespace

Arena::~Arena() {
  for (const Region& region : regions_) ::munmap(region.begin, region.size);
}

void* Arena::take(std::size_t bytes) {
  const std::size_t wanted = round_up(bytes + 64, 64);
  if (regions_.empty() || regions_.back().size - regions_.back().used < wanted) {
    const std::size_t size = std::max(kRegion, round_up(wanted, kHugePage));
    regions_.reserve(regions_.size() + 1);  // a region must not be lost to a later exception
    regions_.push_back({map_region(size), size, 0});
  }
  Region& region = regions_.back();
  void* memory = region.begin + region.used;
  region.used += wanted;
  return memory;
}

void Arena::discard(void* memory, std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  const auto start = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = round_up(start, kPage), end = (start + bytes) / kPage * kPage;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace trimpot
