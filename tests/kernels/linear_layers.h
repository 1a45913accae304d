// Layers of every kind for tests of linear layers: formats of codes, weak columns, column orders,
// low-rank paths.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "format/linear.h"
#include "kernels/kernels.h"
#include "support/random.h"
#include "support/random_groups.h"
#include "sys/aligned_buffer.h"

namespace trimpot {

// What the weight's columns see on the default path: rounded to int8 by the kernel itself.
inline std::vector<double> rounded_to_int8(const Kernels& kernels, const std::vector<double>& x,
                                           std::int64_t columns) {
  const auto tokens = static_cast<std::int64_t>(x.size()) / columns;
  const std::int64_t blocks = (columns + 31) / 32, most = most_remainders(blocks);
  AlignedBuffer<float> values(x.size());
  AlignedBuffer<Int8Block> rounded(tokens * blocks);
  AlignedBuffer<Int8Remainder> remainders(tokens * most);
  std::copy(x.begin(), x.end(), values.data());
  const Int8View view{rounded.data(), blocks, nullptr, remainders.data()};
  kernels.quantize(values.data(), columns, columns, 0, tokens, view);
  std::vector<double> out;
  const auto value = [](const Int8Block& block, std::int64_t j) {
    return double{block.scale} * block.codes[j % 32];
  };
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < columns; ++j) out.push_back(value(view.row(t)[j / 32], j));
    for (std::int64_t i = 0; i < most && view.remainders_of(t)[i].chunk >= 0; ++i) {
      const std::int64_t first = 32 * view.remainders_of(t)[i].chunk;
      for (std::int64_t j = first; j < std::min(columns, first + 32); ++j)
        out[t * columns + j] += value(view.remainders_of(t)[i].block, j);
    }
  }
  return out;
}

enum class Weak {
  kNone,
  kLast,      // no orders
  kAnywhere,  // kept apart from the codes
  kOnTop,     // added to a full weight, one of them twice
};

struct Case {
  std::string name;
  Weak weak = Weak::kNone;
  std::int64_t weak_count = 0;
  std::int64_t rank = 0;
  int pool = 0;
  float dropout = 0;
};
inline const Case kCases[] = {
    {"plain"},
    {"last", Weak::kLast, 5},
    {"last 37", Weak::kLast, 37},
    {"anywhere", Weak::kAnywhere, 5},
    {"anywhere 33", Weak::kAnywhere, 33},
    {"on top", Weak::kOnTop, 6},
    {"low rank", Weak::kNone, 0, 3},
    {"low rank 20", Weak::kNone, 0, 20},
    {"pooled", Weak::kNone, 0, 4, 32},
    {"pooled rows", Weak::kNone, 0, 2, 1024},
    {"dropout", Weak::kNone, 0, 3, 0, 0.3f},
    {"pooled dropout", Weak::kNone, 0, 3, 32, 0.5f},
    {"anywhere, low rank, dropout", Weak::kAnywhere, 7, 3, 0, 0.1f},
    {"last, pooled", Weak::kLast, 3, 5, 64},
    {"on top, low rank", Weak::kOnTop, 4, 3},
};

struct WeightFormat {
  std::string name;
  std::int64_t unit;  // columns are a multiple of it
  std::function<Matrix(std::int64_t rows, std::int64_t columns)> make;
};
inline std::vector<WeightFormat> weight_formats() {
  std::vector<WeightFormat> formats;
  for (const ElementType type : {ElementType::kQ4_1, ElementType::kF32, ElementType::kBF16})
    formats.push_back({type_name(type), type == ElementType::kQ4_1 ? 32 : 1,
                       [=](std::int64_t rows, std::int64_t columns) {
                         return random_matrix(type, rows, columns, 1);
                       }});
  struct Grouped {
    int bits;
    std::int64_t group;
    GroupKind kind;
  };
  for (const auto& [bits, group, kind] :
       {Grouped{3, 64, GroupKind::kZeros}, Grouped{4, 1 << 20, GroupKind::kTuned},
        Grouped{8, 32, GroupKind::kConstant}, Grouped{4, 64, GroupKind::kOffsets}})
    formats.push_back(
        {std::to_string(bits) + " bits", 1, [=](std::int64_t rows, std::int64_t columns) {
           auto made =
               Matrix::pack_groups(random_groups(bits, rows, columns, group, kind, 1).view());
           EXPECT_TRUE(made) << made.error().message;
           return std::move(*made);
         }});
  return formats;
}

inline ColumnOrder order(std::vector<std::int32_t> columns) {
  return std::make_shared<const std::vector<std::int32_t>>(std::move(columns));
}

inline Matrix random_dense(Storage storage, std::int64_t rows, std::int64_t columns,
                           std::uint64_t seed) {
  Matrix out = Matrix::zeros(storage, rows, columns);
  RandomStream random(seed);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      const float value = 0.3f * random.normal();
      if (storage == Storage::kF32) out.dense_f32()[out.dense_index(r, c)] = value;
      if (storage == Storage::kF16) out.dense_f16()[out.dense_index(r, c)] = f32_to_f16(value);
    }
  return out;
}

// `count` different channels, not in order; different ones for every seed.
inline std::vector<std::int32_t> some_channels(std::int64_t channels, std::int64_t count,
                                               std::uint64_t seed) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(channels));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
  RandomStream random(seed);
  for (std::size_t i = all.size() - 1; i > 0; --i)
    std::swap(all[i],
              all[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i) + 1))]);
  all.resize(static_cast<std::size_t>(count));
  return all;
}

// The weight has `weight_columns` columns.
inline Linear make_linear(const WeightFormat& format, const Case& c, std::int64_t rows,
                          std::int64_t weight_columns, std::uint64_t seed = 1) {
  Linear linear;
  linear.weight = format.make(rows, weight_columns);
  const bool apart = c.weak == Weak::kLast || c.weak == Weak::kAnywhere;
  linear.columns = weight_columns + (apart ? c.weak_count : 0);
  if (c.weak != Weak::kNone)
    linear.weak = random_dense(c.weak == Weak::kOnTop ? Storage::kF32 : Storage::kF16, rows,
                               c.weak_count, seed + 2);
  if (c.weak == Weak::kAnywhere) {
    auto all = some_channels(linear.columns, linear.columns, seed + 3);
    std::vector<std::int32_t> weak(all.begin(), all.begin() + c.weak_count);
    std::vector<std::int32_t> others(all.begin() + c.weak_count, all.end());
    std::sort(others.begin(), others.end());
    linear.weak_columns = order(weak);
    linear.weight_columns = order(others);
  }
  if (c.weak == Weak::kOnTop) {
    auto weak = some_channels(linear.columns, c.weak_count, seed + 3);
    weak[1] = weak[0];
    linear.weak_columns = order(weak);
  }
  if (c.rank == 0) return linear;
  auto path = std::make_unique<LowRank>();
  const std::int64_t inputs = c.pool == 0 ? linear.columns : (linear.columns + c.pool - 1) / c.pool;
  path->a = random_dense(Storage::kF32, c.rank, inputs, seed + 4);
  path->b = random_dense(Storage::kF32, rows, c.rank, seed + 5);
  path->scale = 1.7f;
  path->pool = c.pool;
  path->dropout = c.dropout;
  path->seed = seed;
  linear.low_rank = std::move(path);
  return linear;
}

}  // namespace trimpot
