// Work for all threads where a matrix has fewer parts (tiles, chunks) than keep them busy: a rank
// of 16 is one tile, 16 weak columns are one chunk. Then the parts' rows are split too. Outputs are
// split, never sums.
#pragma once

#include <algorithm>

#include "kernels/ops.h"

namespace trimpot {

// Rows of each block. About four pieces per thread; kernels take 12 rows at once, and below 48 the
// unpacking of a part, once per block, would show.
inline std::int64_t block_rows(const Compute& compute, std::int64_t parts, std::int64_t rows) {
  constexpr std::int64_t kAtOnce = 12, kLeast = 48;
  const std::int64_t wanted = compute.team.size() == 1 ? 1 : 4 * compute.team.size() / parts;
  if (wanted <= 1) return rows;
  return std::max(kLeast, (rows / wanted + kAtOnce - 1) / kAtOnce * kAtOnce);
}

// Of how many parts of its tokens, each of `least` or more, an operation's work consists, the first
// of which the first threads take, and so on: what one operation leaves in a core's caches is what
// the next one reads there, row operations like norms included. Each part unpacks the weights anew,
// which takes as long as products of some 150 tokens in bf16, 20 in bytes. With int8 products,
// Zen 4, two cores, a step of `qeft` takes 0.92 to 0.95 of the time and a prompt 0.90 to 0.98 in
// hours when the other core's cache is slow to give, 0.99 to 1.01 in others.
constexpr std::int64_t kLeastTokens = 256;
inline std::int64_t token_parts(const Compute& compute, std::int64_t tokens,
                                std::int64_t least = kLeastTokens) {
  return std::clamp<std::int64_t>(tokens / least, 1, compute.team.size());
}

// Calls body(begin, end of the tokens, first item, end, member) for `items` things with all tokens,
// in pieces of at most `grain` items. Tokens come in multiples of 32 where there are tiles, else of
// 4, as kernels take them.
template <typename Body>
void for_each_token_part(Compute& compute, std::int64_t tokens, std::int64_t parts,
                         std::int64_t items, std::int64_t grain, Body&& body) {
  const std::int64_t step = compute.kernels.tiled ? 32 : 4;
  const std::int64_t size = (tokens + step * parts - 1) / (step * parts) * step;
  compute.team.for_each(
      parts * items, grain, [&](std::int64_t begin, std::int64_t end, int member) {
        while (begin < end) {
          const std::int64_t part = begin / items, stop = std::min(end, (part + 1) * items);
          const std::int64_t token = std::min(tokens, part * size);
          const std::int64_t token_end = std::min(tokens, token + size);
          if (token < token_end)
            body(token, token_end, begin % items, begin % items + stop - begin, member);
          begin = stop;
        }
      });
}

// Calls body(part, begin, end of its rows, member) for all parts, in pieces.
template <typename Body>
void for_each_block(Compute& compute, std::int64_t parts, std::int64_t rows, Body&& body) {
  if (parts == 0 || rows == 0) return;
  const std::int64_t size = block_rows(compute, parts, rows), blocks = (rows + size - 1) / size;
  compute.team.for_each(parts * blocks, 1,
                        [&](std::int64_t piece, std::int64_t piece_end, int member) {
                          for (; piece < piece_end; ++piece) {
                            const std::int64_t begin = piece % blocks * size;
                            body(piece / blocks, begin, std::min(rows, begin + size), member);
                          }
                        });
}

}  // namespace trimpot
