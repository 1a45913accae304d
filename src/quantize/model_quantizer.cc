#include "quantize/model_quantizer.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>

#include "model/stored.h"
#include "quantize/calibration.h"
#include "quantize/columns.h"
#include "quantize/layer_quantizer.h"
#include "quantize/model_output.h"

namespace trimpot {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A linear layer as floats [rows][columns], rows and channels in the original order.
std::vector<float> original_rows(Compute& compute, const Model& model, std::size_t index) {
  const Linear& linear = model.linear(index);
  const LinearAxes axes = linear_axes(model, index);
  const std::int64_t rows = linear.rows(), columns = linear.columns;
  std::vector<float> out(static_cast<std::size_t>(rows * columns));
  const auto channel = [&](std::int64_t position) -> std::int64_t {
    return axes.columns ? (*axes.columns)[static_cast<std::size_t>(position)] : position;
  };
  compute.team.for_each(rows, 32, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> stored(static_cast<std::size_t>(columns));
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t to_row = axes.rows ? (*axes.rows)[static_cast<std::size_t>(row)] : row;
      float* to = out.data() + to_row * columns;
      const auto place = [&](const Matrix& part, const ColumnOrder& order, std::int64_t first) {
        part.dequantize_row(row, stored.data());
        for (std::int64_t c = 0; c < part.columns(); ++c)
          to[channel(order ? (*order)[static_cast<std::size_t>(c)] : first + c)] +=
              stored[static_cast<std::size_t>(c)];
      };
      place(linear.weight, linear.weight_columns, 0);
      if (linear.weak.rows() > 0) place(linear.weak, linear.weak_columns, linear.weight.columns());
    }
  });
  return out;
}

using LayerRows = std::vector<std::vector<float>>;  // by kind

// Norms of a layer in the original order, with dense f32 linear layers.
Result<LayerWeights> dense_layer(const Model& model, std::size_t layer, const LayerRows& rows) {
  LayerWeights weights;
  const auto undo = [&](const std::vector<float>& norm) {
    std::vector<float> original(norm.size());
    for (std::size_t i = 0; i < norm.size(); ++i)
      original[model.residual_order ? static_cast<std::size_t>((*model.residual_order)[i]) : i] =
          norm[i];
    return original;
  };
  weights.attention_norm = undo(model.layers[layer].attention_norm);
  weights.feed_forward_norm = undo(model.layers[layer].feed_forward_norm);
  for (std::size_t kind = 0; kind < rows.size(); ++kind) {
    const auto [count, columns] = linear_size(model.config, kind);
    Linear& linear = weights.*kLinearKinds[kind].linear;
    linear.columns = columns;
    TRIMPOT_TRY(linear.weight, Matrix::pack(ElementType::kF32, count, columns,
                                            std::as_bytes(std::span(rows[kind]))));
  }
  return weights;
}

// Weak columns of every linear layer, in the original order of channels.
using ChosenColumns = std::map<std::size_t, std::vector<std::int32_t>>;

Result<ChosenColumns> columns_of_file(const std::string& path, const Model& model,
                                      std::int64_t& count) {
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(path));
  TRIMPOT_TRY(const auto other, load_frame(file));
  if (other->config.layers != model.config.layers || other->config.hidden != model.config.hidden ||
      other->config.feed_forward != model.config.feed_forward)
    return fail(
        "{}: its shape differs from the input's; weak columns can only be taken from a "
        "model of the same family and size",
        path);
  ChosenColumns chosen;
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    const std::int64_t columns = linear_size(model.config, index % kLinearKinds.size()).columns;
    TRIMPOT_TRY(std::vector<std::int32_t> weak,
                read_weak_columns(file, linear_name(index), columns));
    if (weak.empty() || (index > 0 && static_cast<std::int64_t>(weak.size()) != count))
      return fail("{}: {} has {} weak columns; the same number in every layer was expected", path,
                  linear_name(index), weak.size());
    count = static_cast<std::int64_t>(weak.size());
    if (const ColumnOrder axis = linear_axes(*other, index).columns)
      for (std::int32_t& column : weak) column = (*axis)[static_cast<std::size_t>(column)];
    std::sort(weak.begin(), weak.end());
    chosen[index] = std::move(weak);
  }
  return chosen;
}

class Quantization {
 public:
  Quantization(Compute& compute, const gguf::File& in, const QuantizeOptions& options,
               const QuantizeProgress& progress)
      : compute_(compute), in_(in), options_(options), progress_(progress) {}

  Result<QuantizeReport> run(const std::string& out) {
    const double start = now_seconds();
    TRIMPOT_TRY(model_, load_frame(in_));
    Recipe& recipe = options_.recipe;
    const ModelConfig& config = model_->config;
    if (!options_.weak_columns_from.empty()) {
      TRIMPOT_TRY(chosen_,
                  columns_of_file(options_.weak_columns_from, *model_, recipe.weak_columns));
    }
    const auto widths = {config.hidden, config.attention.q_width(), config.feed_forward};
    TRIMPOT_TRY_VOID(check_recipe(recipe, std::min(widths), std::max(widths)));
    if (recipe.needs_calibration()) TRIMPOT_TRY_VOID(find_global_columns(out));
    TRIMPOT_TRY(ModelOutput output, ModelOutput::open(in_, *model_, options_, out));
    if (recipe.reorder) output.set_residual_order(weak_last(report_.global_columns, config.hidden));
    TRIMPOT_TRY_VOID(output.write_frame(compute_));
    std::optional<CalibrationRun> samples;
    if (recipe.needs_calibration()) {
      TRIMPOT_TRY(CalibrationRun run, start_run(out));
      samples.emplace(std::move(run));
    }
    for (std::size_t layer = 0; layer < model_->layers.size(); ++layer) {
      tell(stages_ - 1, layer, "quantizing");
      TRIMPOT_TRY_VOID(quantize_layer(layer, samples ? &*samples : nullptr, output));
    }
    TRIMPOT_TRY_VOID(output.commit());
    report_.seconds = now_seconds() - start;
    return report_;
  }

 private:
  void tell(int stage, std::size_t layer, const char* what) {
    const double part = static_cast<double>(layer) / static_cast<double>(model_->layers.size());
    // The first pass has one forward of three and no Hessians: about a quarter.
    const double first = stages_ == 2 ? 0.25 : 0.0;
    const double done = stage == 0 && stages_ == 2 ? first * part : first + (1 - first) * part;
    if (progress_)
      progress_(done, fmt::format("{} layer {} of {}", what, layer + 1, model_->layers.size()));
  }

  Result<CalibrationRun> start_run(const std::string& out) {
    TRIMPOT_TRY_VOID(load_embedding(in_, *model_));
    auto run = CalibrationRun::start(compute_, *model_, options_.calibration,
                                     std::filesystem::path(out).parent_path().string());
    model_->embedding = Matrix();
    return run;
  }

  Result<LayerRows> read_layer(std::size_t layer) {
    TRIMPOT_TRY_VOID(load_layer(in_, compute_.team, layer, *model_));
    LayerRows rows;
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
      const std::size_t index = layer * kLinearKinds.size() + kind;
      rows.push_back(original_rows(compute_, *model_, index));
      model_->linear(index) = Linear();
    }
    return rows;
  }

  // QEFT's algorithm 1 on the unquantized model: one vote per distinct input of the residual axis.
  Status find_global_columns(const std::string& out) {
    const Recipe& recipe = options_.recipe;
    if (recipe.selection != Selection::kGlobal) return {};
    if (!chosen_.empty()) {
      report_.global_columns = chosen_[kQ];
      for (const auto& [index, columns] : chosen_) {
        const std::size_t kind = index % kLinearKinds.size();
        if (kind != kO && kind != kDown && columns != report_.global_columns)
          return fail(
              "{}: its weak columns differ from layer to layer; method qeft needs one "
              "choice for the residual axis (take them with --method owq)",
              options_.weak_columns_from);
      }
      return {};
    }
    const double start = now_seconds();
    stages_ = 2;
    TRIMPOT_TRY(CalibrationRun samples, start_run(out));
    std::vector<std::vector<double>> diagonals;
    for (std::size_t layer = 0; layer < model_->layers.size(); ++layer) {
      tell(0, layer, "sensitivity of");
      TRIMPOT_TRY(const LayerRows rows, read_layer(layer));
      TRIMPOT_TRY(const LayerWeights weights, dense_layer(*model_, layer, rows));
      InputStatistics attention(model_->config.hidden, false);
      InputStatistics feed_forward(model_->config.hidden, false);
      for (const LayerInput input : kLayerInputs)
        TRIMPOT_TRY_VOID(samples.see(weights, input, [&](const float* values, std::int64_t tokens) {
          if (input == LayerInput::kAttention) attention.add(compute_, values, tokens);
          if (input == LayerInput::kFeedForward) feed_forward.add(compute_, values, tokens);
        }));
      if (layer + 1 < model_->layers.size()) TRIMPOT_TRY_VOID(samples.advance(weights));
      diagonals.push_back(attention.diagonal());
      diagonals.push_back(feed_forward.diagonal());
    }
    TRIMPOT_TRY(report_.global_columns, global_columns(diagonals, recipe.weak_columns));
    report_.sensitivity_seconds = now_seconds() - start;
    return {};
  }

  Result<std::vector<std::int32_t>> choose(std::size_t layer, std::size_t kind,
                                           const LayerRows& rows, const InputStatistics* seen) {
    const Recipe& recipe = options_.recipe;
    if (recipe.selection == Selection::kNone) return std::vector<std::int32_t>();
    if (!chosen_.empty()) return chosen_[layer * kLinearKinds.size() + kind];
    if (recipe.selection == Selection::kGlobal && kind != kO && kind != kDown)
      return report_.global_columns;
    return costliest_columns(compute_, recipe, rows[kind], linear_size(model_->config, kind).rows,
                             seen->diagonal());
  }

  Status quantize_layer(std::size_t layer, CalibrationRun* samples, ModelOutput& output) {
    const Recipe& recipe = options_.recipe;
    TRIMPOT_TRY(LayerRows rows, read_layer(layer));
    if (recipe.target == Target::kDense) {
      for (std::size_t kind = 0; kind < rows.size(); ++kind)
        TRIMPOT_TRY_VOID(output.write_dense(linear_name(layer * kLinearKinds.size() + kind),
                                            rows[kind], linear_size(model_->config, kind).columns));
      return {};
    }
    LayerWeights weights;
    if (samples != nullptr) {
      TRIMPOT_TRY(weights, dense_layer(*model_, layer, rows));
    }
    std::vector<QuantizedLinear> linears(kLinearKinds.size());
    for (const LayerInput input : kLayerInputs) {
      std::optional<InputStatistics> seen;
      if (samples != nullptr) {
        const double start = now_seconds();
        seen.emplace(input_width(model_->config, input), recipe.needs_hessian());
        TRIMPOT_TRY_VOID(samples->see(weights, input, [&](const float* x, std::int64_t tokens) {
          seen->add(compute_, x, tokens);
        }));
        report_.statistics_seconds += now_seconds() - start;
      }
      const double start = now_seconds();
      TRIMPOT_TRY_VOID(
          quantize_readers(layer, input, seen ? &*seen : nullptr, rows, weights, linears));
      report_.layers_seconds += now_seconds() - start;
    }
    if (samples != nullptr && layer + 1 < model_->layers.size())
      TRIMPOT_TRY_VOID(samples->advance(weights));
    const std::vector<std::int32_t> feed_forward =
        recipe.reorder ? linears[kDown].columns : std::vector<std::int32_t>();
    return output.write_layer(layer, linears, feed_forward);
  }

  // The linear layers that read one input: they share its statistics, and the factor where they
  // keep the same columns.
  Status quantize_readers(std::size_t layer, LayerInput input, const InputStatistics* seen,
                          LayerRows& rows, LayerWeights& weights,
                          std::vector<QuantizedLinear>& linears) {
    const Recipe& recipe = options_.recipe;
    std::optional<InverseFactor> factor;
    std::vector<std::int32_t> factor_columns;
    ColumnOrder robust_order, weak_order;
    for (std::size_t kind = 0; kind < rows.size(); ++kind) {
      if (input_of(kind) != input) continue;
      const auto size = linear_size(model_->config, kind);
      TRIMPOT_TRY(const std::vector<std::int32_t> weak, choose(layer, kind, rows, seen));
      const auto count = static_cast<std::int64_t>(weak.size());
      std::vector<std::int32_t> columns = weak_last(weak, size.columns);
      if (recipe.needs_hessian() && factor_columns != columns) {
        auto prepared = InverseFactor::prepare(compute_, seen->hessian(columns), size.columns,
                                               {recipe.damping, count, recipe.act_order});
        if (!prepared) return named(layer, kind, prepared.error());
        factor = std::move(*prepared);
        factor_columns = columns;
      }
      auto done = quantize_linear(
          compute_, recipe, rows[kind], size.rows, std::move(columns), count,
          factor ? &*factor : nullptr,
          nf4_row_places(model_->config, linear_name(layer * kLinearKinds.size() + kind)));
      if (!done) return named(layer, kind, done.error());
      report_.weights += static_cast<std::size_t>(size.rows * (size.columns - count));
      report_.tunable_weak += static_cast<std::size_t>(size.rows * count);
      rows[kind] = {};
      if (samples_used()) {
        TRIMPOT_TRY(weights.*kLinearKinds[kind].linear, done->linear(robust_order, weak_order));
      }
      linears[kind] = std::move(*done);
    }
    return {};
  }
  bool samples_used() const { return options_.recipe.needs_calibration(); }

  Status named(std::size_t layer, std::size_t kind, const Error& error) const {
    return fail("{}: {}: {}", in_.path(), linear_name(layer * kLinearKinds.size() + kind),
                error.message);
  }

  Compute& compute_;
  const gguf::File& in_;
  QuantizeOptions options_;
  const QuantizeProgress& progress_;
  std::unique_ptr<Model> model_;
  ChosenColumns chosen_;
  QuantizeReport report_;
  int stages_ = 1;
};

}  // namespace

Result<HeadFormat> head_format_of(const std::string& name, std::int64_t group_size) {
  HeadFormat head;
  if (name == "keep") return head;
  head.kind = HeadFormat::kTensor;
  if (name == "f32") {
    head.type = ElementType::kF32;
  } else if (name == "f16") {
    head.type = ElementType::kF16;
  } else if (name == "bf16") {
    head.type = ElementType::kBF16;
  } else if (name == "q8_0") {
    head.type = ElementType::kQ8_0;
  } else if (name == "q3" || name == "q4" || name == "q8") {
    head.kind = HeadFormat::kGrouped;
    head.scheme.bits = name[1] - '0';
    head.scheme.group_size = group_size;
  } else {
    return fail("--head-type {}: keep, f32, f16, bf16, q8_0, q8, q4 or q3 was expected", name);
  }
  return head;
}

Result<QuantizeReport> quantize_model(Compute& compute, const gguf::File& in,
                                      const std::string& out, const QuantizeOptions& options,
                                      const QuantizeProgress& progress) {
  Quantization quantization(compute, in, options, progress);
  return quantization.run(out);
}

}  // namespace trimpot
