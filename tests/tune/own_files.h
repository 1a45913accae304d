// Toy models in our own format, made of a toy with F32 layers by rounding to nearest.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "model/session.h"
#include "quantize/rtn.h"
#include "support/compare.h"
#include "support/quantizers.h"
#include "support/random.h"
#include "support/toy_model.h"

namespace trimpot {

inline ToyFile dense_toy(ElementType type = ElementType::kF32) {
  ToyOptions options;
  options.head_dim = 8;
  options.heads = 8;
  options.kv_heads = 4;
  options.vocabulary = 41;
  options.embedding = ElementType::kF16;
  options.linear_types = ToyOptions::all_linears(type);
  return toy_file(options);
}

inline std::vector<float> logits(const Model& model, Precision precision) {
  Compute compute(*usable_kernels().front(), precision, 2);
  Session session(compute, model, 16);
  const std::vector<TokenId> tokens{3, 14, 15, 9, 2, 6};
  std::vector<float> out(41);
  EXPECT_TRUE(session.append(tokens, out.data()));
  return out;
}

struct OwnOptions {
  Scheme scheme{4, 32, ZeroKind::kInteger};
  std::int64_t weak = 0;  // columns per layer, at channels of `weak_seed`'s choice
  std::uint64_t weak_seed = 1;
  // Axes that are stored in another order: the file is another function than the toy, but a channel
  // is found where the order says.
  std::uint64_t order_seed = 0;           // 0: not reordered
  std::optional<ElementType> dense = {};  // layers in this type instead of codes
};

template <typename T>
std::vector<std::byte> raw(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

inline std::vector<std::int32_t> shuffled(std::int64_t count, std::uint64_t seed) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  RandomStream random(seed, 77);
  for (std::int64_t i = count - 1; seed != 0 && i > 0; --i)
    std::swap(order[static_cast<std::size_t>(i)],
              order[static_cast<std::size_t>(random.below(i + 1))]);
  return order;
}

// One layer: weights [rows, columns] of the toy, read at the given original rows and channels.
inline void add_own_layer(ToyFile& out, const std::string& name, const ToyTensor& tensor,
                          const std::vector<std::int32_t>& row_order,
                          const std::vector<std::int32_t>& column_order,
                          const OwnOptions& options) {
  const auto rows = static_cast<std::int64_t>(tensor.shape[1]);
  const auto columns = static_cast<std::int64_t>(tensor.shape[0]);
  const std::vector<float> source = dequantize_bytes(tensor.type, tensor.data);
  const auto value = [&](std::int64_t row, std::int64_t position) {
    return source[static_cast<std::size_t>(row_order[static_cast<std::size_t>(row)] * columns +
                                           column_order[static_cast<std::size_t>(position)])];
  };
  // The same channels whatever the order.
  std::vector<std::int32_t> channels = shuffled(columns, options.weak_seed + 1000);
  channels.resize(static_cast<std::size_t>(options.weak));
  std::vector<std::int32_t> weak_positions, robust_positions;
  for (std::int64_t p = 0; p < columns; ++p) {
    const bool weak = std::find(channels.begin(), channels.end(),
                                column_order[static_cast<std::size_t>(p)]) != channels.end();
    (weak ? weak_positions : robust_positions).push_back(static_cast<std::int32_t>(p));
  }
  const std::uint64_t file_rows = tensor.shape[1];
  std::vector<float> robust;
  std::vector<f16> weak;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (const std::int32_t p : robust_positions) robust.push_back(value(row, p));
    for (const std::int32_t p : weak_positions) weak.push_back(f32_to_f16(value(row, p)));
  }
  if (options.dense) {
    out.tensors.push_back(
        {name + ".weight", *options.dense, tensor.shape, quantize_values(*options.dense, robust)});
    return;
  }
  ThreadTeam team(1);
  const auto count = static_cast<std::int64_t>(robust_positions.size());
  const auto codes = quantize_rtn(team, {robust.data(), rows, count, count}, options.scheme);
  ASSERT_TRUE(codes) << codes.error().message;
  const auto groups = static_cast<std::uint64_t>(codes->view().groups());
  using enum ElementType;
  out.tensors.push_back({name + ".codes",
                         kI8,
                         {static_cast<std::uint64_t>(codes->view().row_bytes()), file_rows},
                         raw(codes->codes)});
  out.tensors.push_back({name + ".scales", kF16, {groups, file_rows}, raw(codes->scales)});
  if (!codes->zeros.empty())
    out.tensors.push_back({name + ".zeros", kF16, {groups, file_rows}, raw(codes->zeros)});
  if (!codes->offsets.empty())
    out.tensors.push_back({name + ".offsets", kF16, {groups, file_rows}, raw(codes->offsets)});
  if (options.weak == 0) return;
  out.tensors.push_back({name + ".weak", kF16, {weak_positions.size(), file_rows}, raw(weak)});
  out.tensors.push_back(
      {name + ".weak_columns", kI32, {weak_positions.size()}, raw(weak_positions)});
}

inline ToyFile own_file(const ToyFile& toy, const OwnOptions& options) {
  ToyFile out{toy.metadata, {}};
  out.metadata.set_string("general.architecture", "trimpot");
  out.metadata.set_uint32("trimpot.version", 1);
  out.metadata.set_string("trimpot.architecture", "llama");
  out.metadata.set_uint32("trimpot.bits", static_cast<std::uint32_t>(options.scheme.bits));
  out.metadata.set_uint32("trimpot.group_size", static_cast<std::uint32_t>(std::max<std::int64_t>(
                                                    0, options.scheme.group_size)));
  const auto order_of = [&](std::uint64_t extent, std::uint64_t which) {
    const std::uint64_t seed = options.order_seed == 0 ? 0 : options.order_seed * 16 + which;
    return shuffled(static_cast<std::int64_t>(extent), seed);
  };
  for (const ToyTensor& tensor : toy.tensors) {
    const LinearKind* kind = nullptr;
    for (const LinearKind& each : kLinearKinds)
      if (tensor.name.ends_with("." + std::string(each.gguf_suffix) + ".weight")) kind = &each;
    if (kind == nullptr) {
      out.tensors.push_back(tensor);
      continue;
    }
    const std::string name = tensor.name.substr(0, tensor.name.size() - 7);
    const std::uint64_t layer = static_cast<std::uint64_t>(tensor.name[4] - '0');
    const auto which = static_cast<int>(kind - kLinearKinds.data());
    const auto identity = [](std::uint64_t n) { return shuffled(static_cast<std::int64_t>(n), 0); };
    const std::uint64_t rows = tensor.shape[1], columns = tensor.shape[0];
    add_own_layer(out, name, tensor,
                  which == kO || which == kDown    ? order_of(rows, 9)
                  : which == kGate || which == kUp ? order_of(rows, layer)
                                                   : identity(rows),
                  which == kO      ? identity(columns)
                  : which == kDown ? order_of(columns, layer)
                                   : order_of(columns, 9),
                  options);
    if (options.order_seed == 0) continue;
    if (which == kDown)
      out.tensors.push_back({"blk." + std::to_string(layer) + ".ffn_order",
                             ElementType::kI32,
                             {columns},
                             raw(order_of(columns, layer))});
    if (which == kQ && layer == 0)
      out.tensors.push_back(
          {"residual_order", ElementType::kI32, {columns}, raw(order_of(columns, 9))});
  }
  return out;
}

}  // namespace trimpot
