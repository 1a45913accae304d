#include "support/own_toy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "format/grouped.h"
#include "support/quantizers.h"
#include "support/random.h"

namespace trimpot {
namespace {

using Channels = std::vector<std::int32_t>;

Channels in_order(std::int64_t count) {
  Channels all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

Channels shuffled(Channels channels, std::uint64_t seed) {
  RandomStream random(seed, 99);
  for (std::size_t i = channels.size(); i-- > 1;)
    std::swap(channels[i],
              channels[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i) + 1))]);
  return channels;
}

// One axis of the model: the original channel at each position, and the weak ones.
struct Axis {
  Channels order;
  Channels weak;  // original channels
};
Axis make_axis(std::int64_t count, const OwnOptions& own, bool reordered, std::uint64_t seed) {
  Axis axis{in_order(count), {}};
  if (own.weak_last)
    axis.weak.assign(axis.order.end() - own.weak, axis.order.end());
  else
    axis.weak = shuffled(axis.order, seed);
  axis.weak.resize(static_cast<std::size_t>(own.weak));
  if (!reordered) return axis;
  Channels robust;
  for (const std::int32_t channel : shuffled(axis.order, seed + 1))
    if (std::find(axis.weak.begin(), axis.weak.end(), channel) == axis.weak.end())
      robust.push_back(channel);
  axis.order = robust;
  axis.order.insert(axis.order.end(), axis.weak.begin(), axis.weak.end());
  return axis;
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

void add(ToyFile& file, std::string name, ElementType type, std::int64_t columns, std::int64_t rows,
         std::vector<std::byte> data) {
  std::vector<std::uint64_t> shape{static_cast<std::uint64_t>(columns)};
  if (rows > 0) shape.push_back(static_cast<std::uint64_t>(rows));
  file.tensors.push_back({std::move(name), type, std::move(shape), std::move(data)});
}

class Maker {
 public:
  Maker(const ToyOptions& options, const OwnOptions& own) : options_(options), own_(own) {}

  // Both forms of a matrix. Every number is drawn by its original row and column, so that the order
  // in the file does not change it.
  void add_matrix(OwnToy& out, const std::string& name, int bits, std::int64_t group_size,
                  const Channels& rows, const Axis& columns) {
    const auto width = static_cast<std::int64_t>(columns.order.size());
    const auto height = static_cast<std::int64_t>(rows.size());
    const std::uint64_t tensor = 8 * next_++;
    const CounterRng code_of(options_.seed, tensor), scale_of(options_.seed, tensor + 1),
        centre_of(options_.seed, tensor + 2), weak_of(options_.seed, tensor + 3);
    Channels robust, weak;  // positions
    for (const std::int32_t channel : columns.weak)
      weak.push_back(static_cast<std::int32_t>(
          std::find(columns.order.begin(), columns.order.end(), channel) - columns.order.begin()));
    for (std::int32_t at = 0; at < width; ++at)
      if (std::find(weak.begin(), weak.end(), at) == weak.end()) robust.push_back(at);
    const auto count = static_cast<std::int64_t>(robust.size());
    const std::int64_t each = group_size == 0 ? count : group_size;
    const std::int64_t groups = (count + each - 1) / each, row_bytes = (count * bits + 7) / 8;
    const float size = 3.5f * options_.gain / std::sqrt(static_cast<float>(width));
    const double middle = 1 << (bits - 1);
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(height * row_bytes));
    std::vector<f16> scales, centres, weak_values;
    std::vector<float> plain(static_cast<std::size_t>(height * width));
    for (std::int64_t i = 0; i < height; ++i) {
      const auto row = static_cast<std::uint64_t>(rows[static_cast<std::size_t>(i)]);
      float* plain_row = plain.data() + row * static_cast<std::uint64_t>(width);
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::uint64_t at = row * 4096 + static_cast<std::uint64_t>(g);
        scales.push_back(f32_to_f16(size / static_cast<float>(1 << bits) *
                                    static_cast<float>(0.5 + scale_of.uniform(at))));
        // Zeros in quarters: s (q - z) is then exact in f32, as are s q and hence its sum with m.
        const double zero = middle + (static_cast<double>(centre_of.below(at, 9)) - 4) / 4;
        centres.push_back(f32_to_f16(static_cast<float>(
            own_.centre == OwnCentre::kOffsets ? -zero * f16_to_f32(scales.back()) : zero)));
      }
      std::vector<std::uint8_t> codes;
      for (std::int64_t j = 0; j < count; ++j) {
        const auto channel = static_cast<std::uint64_t>(columns.order[robust[j]]);
        codes.push_back(static_cast<std::uint8_t>(code_of.below(
            row * static_cast<std::uint64_t>(width) + channel, std::uint64_t{1} << bits)));
        const auto at = static_cast<std::size_t>(i * groups + j / each);
        const float scale = f16_to_f32(scales[at]), centre = f16_to_f32(centres[at]);
        const float code = codes.back();
        plain_row[channel] = own_.centre == OwnCentre::kOffsets ? scale * code + centre
                             : own_.centre == OwnCentre::kZeros
                                 ? scale * (code - centre)
                                 : scale * (code - static_cast<float>(middle));
      }
      pack_row(bits, codes, packed.data() + i * row_bytes);
      for (const std::int32_t channel : columns.weak) {
        const std::uint64_t at =
            row * static_cast<std::uint64_t>(width) + static_cast<std::uint64_t>(channel);
        weak_values.push_back(f32_to_f16(size * static_cast<float>(weak_of.uniform(at) - 0.5)));
        plain_row[channel] = f16_to_f32(weak_values.back());
      }
    }
    add(out.plain, name + ".weight", ElementType::kF32, width, height, bytes_of(plain));
    add(out.own, name + ".codes", ElementType::kI8, row_bytes, height, bytes_of(packed));
    add(out.own, name + ".scales", ElementType::kF16, groups, height, bytes_of(scales));
    if (own_.centre != OwnCentre::kSymmetric)
      add(out.own, name + (own_.centre == OwnCentre::kZeros ? ".zeros" : ".offsets"),
          ElementType::kF16, groups, height, bytes_of(centres));
    if (weak.empty()) return;
    add(out.own, name + ".weak", ElementType::kF16, static_cast<std::int64_t>(weak.size()), height,
        bytes_of(weak_values));
    add(out.own, name + ".weak_columns", ElementType::kI32, static_cast<std::int64_t>(weak.size()),
        0, bytes_of(weak));
  }

 private:
  const ToyOptions& options_;
  const OwnOptions& own_;
  std::uint64_t next_ = 1;
};

// Columns of an F32 matrix, or elements of a vector, in another order.
std::vector<std::byte> reorder(const ToyTensor& tensor, const Channels& order) {
  const std::vector<float> from = dequantize_bytes(tensor.type, tensor.data);
  std::vector<float> to;
  for (std::size_t row = 0; row < from.size(); row += order.size())
    for (const std::int32_t channel : order)
      to.push_back(from[row + static_cast<std::size_t>(channel)]);
  return bytes_of(to);
}

}  // namespace

OwnToy own_toy(const ToyOptions& o, const OwnOptions& own) {
  const ToyFile base = toy_file(o);
  OwnToy out{{base.metadata, {}}, {base.metadata, {}}};
  gguf::Writer& metadata = out.own.metadata;
  metadata.set_string("general.architecture", "trimpot");
  metadata.set_uint32("trimpot.version", 1);
  metadata.set_string("trimpot.architecture", "llama");
  metadata.set_uint32("trimpot.bits", static_cast<std::uint32_t>(own.bits));
  metadata.set_uint32("trimpot.group_size", static_cast<std::uint32_t>(own.group_size));
  const Axis residual = make_axis(o.hidden, own, own.reordered, o.seed);
  const bool original = !own.reordered || own.embedding_in_original_order;
  Maker maker(o, own);
  for (const ToyTensor& tensor : base.tensors) {
    if (tensor.name.starts_with("blk.") && tensor.shape.size() > 1) continue;  // below
    const bool matrix = tensor.name == "token_embd.weight" || tensor.name == "output.weight";
    if (matrix && own.head_bits > 0) {
      maker.add_matrix(out, tensor.name.substr(0, tensor.name.size() - 7), own.head_bits, 0,
                       in_order(o.vocabulary), {in_order(o.hidden), {}});
      continue;
    }
    out.plain.tensors.push_back(tensor);
    out.own.tensors.push_back(tensor);
    if (tensor.name == "rope_freqs.weight" || !own.reordered || (matrix && original)) continue;
    out.own.tensors.back().data = reorder(tensor, residual.order);
  }
  if (own.head_bits > 0) {
    metadata.set_uint32("trimpot.head.bits", static_cast<std::uint32_t>(own.head_bits));
    metadata.set_uint32("trimpot.head.group_size", 0);
  }
  if (own.reordered) {
    metadata.set_bool("trimpot.embedding_in_original_order", original);
    add(out.own, "residual_order", ElementType::kI32, o.hidden, 0, bytes_of(residual.order));
  }
  const std::int64_t q_width = o.heads * o.head_dim, kv_width = o.kv_heads * o.head_dim;
  for (std::int64_t layer = 0; layer < o.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const std::uint64_t seed = o.seed + 10 + static_cast<std::uint64_t>(layer) * 10;
    const Axis inner = make_axis(o.feed_forward, own, own.reordered, seed);
    const Axis attention = make_axis(q_width, own, false, seed + 5);
    if (own.reordered)
      add(out.own, prefix + "ffn_order", ElementType::kI32, o.feed_forward, 0,
          bytes_of(inner.order));
    const auto put = [&](const char* suffix, const Channels& rows, const Axis& columns) {
      maker.add_matrix(out, prefix + suffix, own.bits, own.group_size, rows, columns);
    };
    put("attn_q", in_order(q_width), residual);
    put("attn_k", in_order(kv_width), residual);
    put("attn_v", in_order(kv_width), residual);
    put("attn_output", residual.order, attention);
    put("ffn_gate", inner.order, residual);
    put("ffn_up", inner.order, residual);
    put("ffn_down", residual.order, inner);
  }
  return out;
}

}  // namespace trimpot
