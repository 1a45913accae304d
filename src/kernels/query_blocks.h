// Blocks of consecutive tokens of one segment: what attention's units of work are made of.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace trimpot {

struct Block {
  const Segment* segment;
  std::int64_t first;  // row within the segment
  std::int64_t count;
};

inline std::vector<Block> query_blocks(std::span<const Segment> segments, std::int64_t rows) {
  std::vector<Block> blocks;
  for (const Segment& segment : segments)
    for (std::int64_t first = 0; first < segment.count; first += rows)
      blocks.push_back({&segment, first, std::min(rows, segment.count - first)});
  return blocks;
}

}  // namespace trimpot
