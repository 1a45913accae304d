#include "quantize/model_output.h"

#include <algorithm>

#include "format/ggml_blocks.h"
#include "model/save.h"
#include "model/stored.h"
#include "quantize/rtn.h"

namespace trimpot {
namespace {

std::int64_t stored_group_size(const Scheme& scheme) {
  return scheme.group_size == kWholeRow ? 0 : scheme.group_size;
}

StoredShape grouped_shape(const Scheme& scheme, std::int64_t rows, std::int64_t columns,
                          std::int64_t weak) {
  StoredShape shape;
  shape.rows = rows;
  shape.columns = columns;
  shape.weak = weak;
  shape.grouped = true;
  shape.bits = scheme.bits;
  shape.groups = scheme.groups(columns - weak);
  shape.zeros = scheme.zeros == ZeroKind::kInteger;
  shape.offsets = scheme.zeros == ZeroKind::kOffset;
  return shape;
}

bool is_part_of(const std::string& tensor, const std::string& name) {
  return tensor.starts_with(name + ".");
}

// Embedding and head as dense numbers can be reordered; blocks and groups keep their order.
bool is_dense(const gguf::File& in, const std::string& name) {
  const gguf::TensorInfo* info = in.find_tensor(name + ".weight");
  return info != nullptr && block_format(info->type).bits == 0;
}

bool exists(const gguf::File& in, const std::string& name) {
  return in.find_tensor(name + ".weight") != nullptr || in.find_tensor(name + ".codes") != nullptr;
}

std::string layer_name(std::size_t layer, const char* suffix) {
  return fmt::format("blk.{}.{}", layer, suffix);
}

}  // namespace

bool ModelOutput::keeps_head_order() const {
  return options_.head.kind == HeadFormat::kAsInput &&
         (!is_dense(in_, "token_embd") || (exists(in_, "output") && !is_dense(in_, "output")));
}

StoredShape ModelOutput::head_shape() const {
  const ModelConfig& config = frame_.config;
  if (options_.head.kind == HeadFormat::kGrouped)
    return grouped_shape(options_.head.scheme, config.vocabulary, config.hidden, 0);
  StoredShape shape;
  shape.rows = config.vocabulary;
  shape.columns = config.hidden;
  shape.type = options_.head.type;
  return shape;
}

void ModelOutput::declare() {
  const Recipe& recipe = options_.recipe;
  const ModelConfig& config = frame_.config;
  for (const char* name : {"token_embd", "output"}) {
    if (!exists(in_, name)) continue;
    if (options_.head.kind != HeadFormat::kAsInput) {
      declare_stored(out_, name, head_shape());
      continue;
    }
    for (const gguf::TensorInfo& tensor : in_.tensors())
      if (is_part_of(tensor.name, name)) out_.declare(tensor.name, tensor.type, tensor.shape);
  }
  const auto hidden = static_cast<std::uint64_t>(config.hidden);
  out_.declare("output_norm.weight", ElementType::kF32, {hidden});
  if (const gguf::TensorInfo* rope = in_.find_tensor("rope_freqs.weight"))
    out_.declare(rope->name, rope->type, rope->shape);
  if (recipe.reorder) out_.declare("residual_order", ElementType::kI32, {hidden});
  for (std::size_t layer = 0; layer < frame_.layers.size(); ++layer) {
    out_.declare(layer_name(layer, "attn_norm.weight"), ElementType::kF32, {hidden});
    out_.declare(layer_name(layer, "ffn_norm.weight"), ElementType::kF32, {hidden});
    if (recipe.reorder)
      out_.declare(layer_name(layer, "ffn_order"), ElementType::kI32,
                   {static_cast<std::uint64_t>(config.feed_forward)});
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
      const auto [rows, columns] = linear_size(config, kind);
      const std::int64_t weak = recipe.selection == Selection::kNone ? 0 : recipe.weak_columns;
      StoredShape shape = grouped_shape(recipe.scheme, rows, columns, weak);
      shape.grouped = recipe.target != Target::kDense;
      shape.nf4 = recipe.target == Target::kNf4;
      shape.bits = shape.nf4 ? 4 : shape.bits;
      shape.type = recipe.dense_type;
      declare_stored(out_, linear_name(layer * kLinearKinds.size() + kind), shape);
    }
  }
}

Result<ModelOutput> ModelOutput::open(const gguf::File& in, const Model& frame,
                                      const QuantizeOptions& options, const std::string& path) {
  ModelOutput output(in, frame, options);
  const Recipe& recipe = options.recipe;
  const bool moved = frame.residual_order && !frame.embedding_order;
  if (options.head.kind == HeadFormat::kAsInput && moved)
    for (const char* name : {"token_embd", "output"})
      if (exists(in, name) && !in.find_tensor(std::string(name) + ".weight"))
        return fail(
            "{}: {} is in groups whose channels are in another order than the output's: it cannot "
            "be kept; give --head-type q8_0, or another",
            in.path(), name);
  // Embedding and head in groups of ours, kept or made, take a file of ours.
  const bool own = recipe.target != Target::kDense || options.head.kind == HeadFormat::kGrouped ||
                   (options.head.kind == HeadFormat::kAsInput &&
                    (in.find_tensor("token_embd.codes") || in.find_tensor("output.codes")));
  TRIMPOT_TRY_VOID(copy_metadata(in, own, output.out_));
  if (own) {
    output.out_.set_string("trimpot.method", recipe.method);
    if (recipe.target == Target::kCodes) {
      output.out_.set_uint32("trimpot.bits", static_cast<std::uint32_t>(recipe.scheme.bits));
      output.out_.set_uint32("trimpot.group_size",
                             static_cast<std::uint32_t>(stored_group_size(recipe.scheme)));
    }
    if (options.head.kind == HeadFormat::kGrouped) {
      output.out_.set_uint32("trimpot.head.bits",
                             static_cast<std::uint32_t>(options.head.scheme.bits));
      output.out_.set_uint32("trimpot.head.group_size",
                             static_cast<std::uint32_t>(stored_group_size(options.head.scheme)));
    } else if (options.head.kind == HeadFormat::kAsInput) {
      for (const char* key : {"trimpot.head.bits", "trimpot.head.group_size"})
        if (const gguf::Value* value = in.find(key)) output.out_.copy_value(key, *value);
    }
    if (recipe.reorder)
      output.out_.set_bool("trimpot.embedding_in_original_order", output.keeps_head_order());
  } else {
    const bool half = recipe.dense_type != ElementType::kF32;
    output.out_.set_uint32("general.file_type", recipe.dense_type == ElementType::kBF16 ? 32u
                                                : half                                  ? 1u
                                                                                        : 0u);
  }
  output.declare();
  TRIMPOT_TRY_VOID(output.out_.open(path));
  return output;
}

std::vector<float> ModelOutput::reordered(std::span<const float> values) const {
  if (residual_.empty()) return {values.begin(), values.end()};
  std::vector<float> moved(values.size());
  for (std::size_t i = 0; i < moved.size(); ++i)
    moved[i] = values[static_cast<std::size_t>(residual_[i])];
  return moved;
}

// `frame_` holds norms in the order of the input file; the original order comes first.
Status ModelOutput::write_frame(Compute& compute) {
  const auto write_norm = [&](const std::string& name, const std::vector<float>& norm) -> Status {
    std::vector<float> original(norm.size());
    for (std::size_t i = 0; i < norm.size(); ++i)
      original[frame_.residual_order ? static_cast<std::size_t>((*frame_.residual_order)[i]) : i] =
          norm[i];
    return out_.write(name, 0, std::as_bytes(std::span<const float>(reordered(original))));
  };
  TRIMPOT_TRY_VOID(write_norm("output_norm.weight", frame_.output_norm));
  for (std::size_t layer = 0; layer < frame_.layers.size(); ++layer) {
    TRIMPOT_TRY_VOID(
        write_norm(layer_name(layer, "attn_norm.weight"), frame_.layers[layer].attention_norm));
    TRIMPOT_TRY_VOID(
        write_norm(layer_name(layer, "ffn_norm.weight"), frame_.layers[layer].feed_forward_norm));
  }
  if (const gguf::TensorInfo* rope = in_.find_tensor("rope_freqs.weight"))
    TRIMPOT_TRY_VOID(out_.write(rope->name, 0, in_.data(*rope)));
  if (!residual_.empty())
    TRIMPOT_TRY_VOID(out_.write("residual_order", 0, std::as_bytes(std::span(residual_))));
  for (const char* name : {"token_embd", "output"})
    if (exists(in_, name)) TRIMPOT_TRY_VOID(write_head(compute, name));
  return {};
}

Status ModelOutput::write_head(Compute& compute, const std::string& name) {
  const HeadFormat& head = options_.head;
  const bool moves = !residual_.empty() && !keeps_head_order();
  // The input's own order must be undone where the output has another.
  const bool was_moved = frame_.residual_order && !frame_.embedding_order;
  if (head.kind == HeadFormat::kAsInput && !moves && !was_moved) {
    for (const gguf::TensorInfo& tensor : in_.tensors()) {
      if (!is_part_of(tensor.name, name)) continue;
      TRIMPOT_TRY_VOID(out_.write(tensor.name, 0, in_.data(tensor)));
      in_.release(tensor);
    }
    return {};
  }
  const std::int64_t rows = frame_.config.vocabulary, columns = frame_.config.hidden;
  TRIMPOT_TRY(const Matrix matrix, read_matrix(in_, name, rows, columns, "trimpot.head"));
  const gguf::TensorInfo* plain = in_.find_tensor(name + ".weight");
  const ElementType type = head.kind == HeadFormat::kAsInput ? plain->type : head.type;
  constexpr std::int64_t kRows = 1024;
  std::vector<float> block, row(static_cast<std::size_t>(columns));
  for (std::int64_t first = 0; first < rows; first += kRows) {
    const std::int64_t count = std::min(kRows, rows - first);
    block.resize(static_cast<std::size_t>(count * columns));
    compute.team.for_each(count, 64, [&](std::int64_t begin, std::int64_t end, int) {
      std::vector<float> stored(static_cast<std::size_t>(columns)), original(stored.size());
      for (std::int64_t r = begin; r < end; ++r) {
        matrix.dequantize_row(first + r, stored.data());
        for (std::size_t i = 0; i < stored.size(); ++i)
          original[was_moved ? static_cast<std::size_t>((*frame_.residual_order)[i]) : i] =
              stored[i];
        const std::vector<float> moved = reordered(original);
        std::copy(moved.begin(), moved.end(), block.begin() + r * columns);
      }
    });
    if (head.kind != HeadFormat::kGrouped) {
      TRIMPOT_TRY_VOID(write_rows(out_, name + ".weight", type, columns, first, block));
      continue;
    }
    TRIMPOT_TRY(const GroupedCodes codes,
                quantize_rtn(compute.team, {block.data(), count, columns, columns}, head.scheme));
    const auto at = [&](const auto& values) {
      return static_cast<std::uint64_t>(first) * std::as_bytes(std::span(values)).size() /
             static_cast<std::uint64_t>(count);
    };
    const auto put = [&](const char* part, const auto& values) -> Status {
      if (values.empty()) return {};
      return out_.write(name + part, at(values), std::as_bytes(std::span(values)));
    };
    TRIMPOT_TRY_VOID(put(".codes", codes.codes));
    TRIMPOT_TRY_VOID(put(".scales", codes.scales));
    TRIMPOT_TRY_VOID(put(".zeros", codes.zeros));
    TRIMPOT_TRY_VOID(put(".offsets", codes.offsets));
  }
  return {};
}

Status ModelOutput::write_layer(std::size_t layer, std::vector<QuantizedLinear>& linears,
                                std::span<const std::int32_t> feed_forward) {
  if (!residual_.empty())
    TRIMPOT_TRY_VOID(out_.write(layer_name(layer, "ffn_order"), 0, std::as_bytes(feed_forward)));
  for (std::size_t kind = 0; kind < linears.size(); ++kind) {
    QuantizedLinear& linear = linears[kind];
    const std::string name = linear_name(layer * kLinearKinds.size() + kind);
    std::vector<std::int32_t> weak(linear.weak_columns().begin(), linear.weak_columns().end());
    if (!residual_.empty()) {
      if (kind == kO || kind == kDown) permute_rows(linear, residual_);
      if (kind == kGate || kind == kUp) permute_rows(linear, feed_forward);
      // In the new order weak columns are the last ones, except where heads may not be mixed.
      const auto columns = static_cast<std::int32_t>(linear.columns.size());
      if (kind != kO)
        for (std::size_t i = 0; i < weak.size(); ++i)
          weak[i] = columns - static_cast<std::int32_t>(weak.size() - i);
    }
    if (linear.nf4) {
      const auto put = [&](const char* part, const auto& values) {
        return out_.write(name + part, 0, std::as_bytes(std::span(values)));
      };
      TRIMPOT_TRY_VOID(put(".codes", linear.nf4->codes));
      TRIMPOT_TRY_VOID(put(".absmax", linear.nf4->absmax_codes));
      TRIMPOT_TRY_VOID(put(".absmax_scales", linear.nf4->absmax_scales));
      TRIMPOT_TRY_VOID(put(".absmax_offset", std::vector<float>{linear.nf4->offset}));
      continue;
    }
    TRIMPOT_TRY_VOID(write_grouped(out_, name, linear.codes));
    if (linear.weak_count > 0) TRIMPOT_TRY_VOID(write_weak(out_, name, linear.weak, weak));
  }
  return {};
}

Status ModelOutput::write_dense(const std::string& name, std::span<const float> rows,
                                std::int64_t columns) {
  return write_rows(out_, name + ".weight", options_.recipe.dense_type, columns, 0, rows);
}

}  // namespace trimpot
