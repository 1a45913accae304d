// Memory of models: pieces do not overlap, are aligned and zeroed, and outlive what they replace.
#include "sys/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "sys/aligned_buffer.h"

namespace trimpot {
namespace {

TEST(Arena, PiecesAreApartAlignedAndZero) {
  Arena arena;
  struct Piece {
    std::uint8_t* data;
    std::size_t size;
  };
  std::vector<Piece> pieces;
  // Regions have 64 MiB: the large ones need regions of their own, the small ones share.
  for (const std::size_t size : {1ul, 64ul, 65ul, 5'000'000ul, 63'000'000ul, 130'000'000ul, 7ul}) {
    auto* data = static_cast<std::uint8_t*>(arena.take(size));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u);
    for (std::size_t i = 0; i < size; i += 4096) ASSERT_EQ(data[i], 0) << size << " at " << i;
    pieces.push_back({data, size});
  }
  for (std::size_t i = 0; i < pieces.size(); ++i)
    std::memset(pieces[i].data, static_cast<int>(i) + 1, pieces[i].size);
  for (std::size_t i = 0; i < pieces.size(); ++i)
    for (const std::size_t at : {std::size_t{0}, pieces[i].size / 2, pieces[i].size - 1})
      EXPECT_EQ(pieces[i].data[at], i + 1);
}

TEST(Arena, BuffersMoveIn) {
  Arena arena;
  AlignedBuffer<float> small(1000), large(2'000'000);
  for (std::size_t i = 0; i < small.size(); ++i) small[i] = static_cast<float>(i);
  const float* before = large.data();
  small.move_to(arena);
  large.move_to(arena);
  EXPECT_EQ(large.data(), before);  // on huge pages already
  ASSERT_EQ(small.size(), 1000u);
  for (std::size_t i = 0; i < small.size(); ++i) ASSERT_EQ(small[i], static_cast<float>(i));
  AlignedBuffer<float> other(std::move(small));
  EXPECT_EQ(other[999], 999.0f);
  EXPECT_TRUE(small.empty());
  // A new size leaves the arena; the neighbours' bytes stay.
  AlignedBuffer<std::uint8_t> first(3 * 4096), second(3 * 4096);
  std::memset(first.data(), 1, first.size());
  std::memset(second.data(), 2, second.size());
  first.move_to(arena);
  second.move_to(arena);
  first.resize(10);
  EXPECT_EQ(first[9], 0);
  for (std::size_t i = 0; i < second.size(); ++i) ASSERT_EQ(second[i], 2);
  for (std::size_t i = 0; i < other.size(); ++i) ASSERT_EQ(other[i], static_cast<float>(i));
}

}  // namespace
}  // namespace trimpot
