#include "tune/matrices.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/rng.h"
#include "quantize/rtn.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

enum class MatrixPart { kWeak, kLowRankA, kLowRankB, kWeight, kFakeQuantized };

struct MatrixTarget {
  std::size_t linear = 0;
  MatrixPart part{};
  Matrix* matrix = nullptr;
  std::size_t begin = 0, count = 0;  // in the parameter arrays, [tiles][columns][16]
  std::vector<f16> base;             // weak columns as they were
};

const char* suffix(MatrixPart part) {
  switch (part) {
    case MatrixPart::kWeak:
      return ".weak";
    case MatrixPart::kLowRankA:
      return ".lora_a";
    case MatrixPart::kLowRankB:
      return ".lora_b";
    default:
      return "";
  }
}

std::size_t dense_size(const Matrix& matrix) {
  return static_cast<std::size_t>(matrix.view().tiles * matrix.columns() * kTileRows);
}

// Rows as floats in the layout of dense matrices.
void read_values(const Matrix& matrix, std::span<float> out) {
  std::vector<float> row(static_cast<std::size_t>(matrix.columns()));
  for (std::int64_t r = 0; r < matrix.rows(); ++r) {
    matrix.dequantize_row(r, row.data());
    float* to = out.data() + (r / kTileRows) * matrix.columns() * kTileRows + r % kTileRows;
    for (std::size_t c = 0; c < row.size(); ++c) to[c * kTileRows] = row[c];
  }
}

class MatrixTuning final : public TuningMethod {
 public:
  MatrixTuning(Model& model, std::vector<MatrixTarget> targets, bool dropout, Scheme scheme = {})
      : model_(model), targets_(std::move(targets)), dropout_(dropout), scheme_(scheme) {
    std::size_t count = 0;
    for (MatrixTarget& target : targets_) {
      target.begin = count;
      target.count = dense_size(*target.matrix);
      count += target.count;
      parameters_.list.push_back({linear_tensor_name(target.linear) + suffix(target.part),
                                  target.linear, target.begin, target.count, 1.0});
    }
    parameters_.allocate(count);
    for (MatrixTarget& target : targets_) {
      const auto values = parameters_.values.span().subspan(target.begin, target.count);
      read_values(*target.matrix, values);
      if (target.part == MatrixPart::kWeak && !target.matrix->dense_f16().empty())
        target.base.assign(target.matrix->dense_f16().begin(), target.matrix->dense_f16().end());
      if (sink_.linears.size() <= target.linear) sink_.linears.resize(target.linear + 1);
      gradient_of(sink_.linears[target.linear], target.part) =
          parameters_.gradient.data() + target.begin;
    }
  }

  Parameters& parameters() override { return parameters_; }
  const GradientSink& sink() override { return sink_; }
  void begin_pass(std::uint64_t number) override {
    sink_.dropout_stream = dropout_ ? number + 1 : 0;
  }

  std::size_t trainable() const override {
    std::size_t count = 0;
    for (const MatrixTarget& target : targets_)
      count += static_cast<std::size_t>(target.matrix->rows() * target.matrix->columns());
    return count;
  }

  Status commit(ThreadTeam& team) override {
    if (!targets_.empty() && targets_.front().part == MatrixPart::kFakeQuantized)
      return commit_rounded(team);
    std::atomic<std::size_t> bad{targets_.size()};
    team.for_each(static_cast<std::int64_t>(targets_.size()), 1,
                  [&](std::int64_t i, std::int64_t, int) {
                    if (!commit_target(targets_[static_cast<std::size_t>(i)]))
                      bad = static_cast<std::size_t>(i);
                  });
    if (bad < targets_.size())
      return fail("{}: a tuned weight left the range of its type; lower the learning rate",
                  parameters_.list[bad].name);
    return {};
  }

  Result<std::vector<AdapterTensor>> adapter_tensors() const override {
    std::vector<AdapterTensor> tensors;
    for (const MatrixTarget& target : targets_) {
      if (target.part == MatrixPart::kWeight || target.part == MatrixPart::kFakeQuantized)
        return fail(
            "this method changes all weights; its result is a model file (.gguf), not an "
            "adapter");
      tensors.push_back(adapter_matrix(target));
      if (target.part == MatrixPart::kWeak) tensors.push_back(adapter_columns(target));
    }
    return tensors;
  }

 private:
  static float*& gradient_of(LinearSink& sink, MatrixPart part) {
    switch (part) {
      case MatrixPart::kWeak:
        return sink.weak;
      case MatrixPart::kLowRankA:
        return sink.low_rank_a;
      case MatrixPart::kLowRankB:
        return sink.low_rank_b;
      default:
        return sink.weight;
    }
  }

  bool commit_target(MatrixTarget& target) {
    const auto values = parameters_.values.span().subspan(target.begin, target.count);
    const bool finite =
        std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
    if (const auto to = target.matrix->dense_f32(); !to.empty()) {
      std::copy(values.begin(), values.end(), to.begin());
      return finite;
    }
    bool in_range = finite;
    if (const auto to = target.matrix->dense_f16(); !to.empty()) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        to[i] = f32_to_f16(values[i]);
        in_range = in_range && (to[i] & 0x7c00u) != 0x7c00u;
      }
      return in_range;
    }
    const auto to = target.matrix->dense_bf16();
    for (std::size_t i = 0; i < values.size(); ++i) {
      to[i] = f32_to_bf16(values[i]);
      in_range = in_range && (to[i] & 0x7f80u) != 0x7f80u;
    }
    return in_range;
  }

  // The masters rounded to nearest, as `trimpot quantize --method rtn` does it.
  Status commit_rounded(ThreadTeam& team) {
    std::vector<float> plain;
    for (MatrixTarget& target : targets_) {
      const std::int64_t rows = target.matrix->rows(), columns = target.matrix->columns();
      const float* values = parameters_.values.data() + target.begin;
      plain.resize(static_cast<std::size_t>(rows * columns));
      team.for_each(rows, 64, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r)
          for (std::int64_t c = 0; c < columns; ++c)
            plain[static_cast<std::size_t>(r * columns + c)] =
                values[((r / kTileRows) * columns + c) * kTileRows + r % kTileRows];
      });
      auto codes = quantize_rtn(team, {plain.data(), rows, columns, columns}, scheme_);
      if (!codes) return fail("{}: {}", linear_tensor_name(target.linear), codes.error().message);
      TRIMPOT_TRY(*target.matrix, Matrix::pack_groups(codes->view()));
    }
    return {};
  }

  // Rows and columns back in the original order; weak columns as differences.
  AdapterTensor adapter_matrix(const MatrixTarget& target) const {
    const Matrix& matrix = *target.matrix;
    const LinearAxes axes = linear_axes(model_, target.linear);
    const bool pooled =
        target.part == MatrixPart::kLowRankA && model_.linear(target.linear).low_rank->pool > 0;
    const ColumnOrder rows = target.part == MatrixPart::kLowRankA ? nullptr : axes.rows;
    const ColumnOrder columns =
        target.part == MatrixPart::kLowRankA && !pooled ? axes.columns : nullptr;
    std::vector<float> values(static_cast<std::size_t>(matrix.rows() * matrix.columns()));
    for (std::int64_t r = 0; r < matrix.rows(); ++r)
      for (std::int64_t c = 0; c < matrix.columns(); ++c) {
        const std::size_t at = matrix.dense_index(r, c);
        // The committed value, so that base + adapter is the tuned model.
        const float now = matrix.dense_f32().empty() ? f16_to_f32(matrix.dense_f16()[at])
                                                     : matrix.dense_f32()[at];
        const float old = target.base.empty() ? 0.0f : f16_to_f32(target.base[at]);
        const std::int64_t row = rows ? (*rows)[static_cast<std::size_t>(r)] : r;
        const std::int64_t column = columns ? (*columns)[static_cast<std::size_t>(c)] : c;
        values[static_cast<std::size_t>(row * matrix.columns() + column)] = now - old;
      }
    return AdapterTensor::make<float>(
        linear_tensor_name(target.linear) + suffix(target.part), "F32",
        {static_cast<std::uint64_t>(matrix.rows()), static_cast<std::uint64_t>(matrix.columns())},
        std::span<const float>(values));
  }

  // The weak columns' channels in the original order.
  AdapterTensor adapter_columns(const MatrixTarget& target) const {
    const std::vector<std::int32_t> channels = weak_channels(model_, target.linear);
    return AdapterTensor::make<std::int32_t>(linear_tensor_name(target.linear) + ".weak_columns",
                                             "I32", {static_cast<std::uint64_t>(channels.size())},
                                             std::span<const std::int32_t>(channels));
  }

  Model& model_;
  std::vector<MatrixTarget> targets_;
  bool dropout_;
  Scheme scheme_;
  Parameters parameters_;
  GradientSink sink_;
};

// Replaces a layer's codes by their f16 values: what a tuned file will hold.
void make_dense(Linear& linear) {
  Matrix dense = Matrix::zeros(Storage::kF16, linear.weight.rows(), linear.weight.columns());
  std::vector<float> values(dense.dense_f16().size());
  read_values(linear.weight, values);
  std::transform(values.begin(), values.end(), dense.dense_f16().begin(),
                 [](float value) { return f32_to_f16(value); });
  linear.weight = std::move(dense);
}

// The layers whose weights are to be tuned whole, dense. Errors: weak columns.
Result<std::vector<MatrixTarget>> dense_targets(Model& model, ThreadTeam& team,
                                                const std::vector<std::string>& target_modules,
                                                MatrixPart part) {
  TRIMPOT_TRY_VOID(check_target_modules(target_modules));
  std::vector<MatrixTarget> targets;
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    if (!is_target(target_modules, index)) continue;
    Linear& linear = model.linear(index);
    if (linear.weak.rows() > 0)
      return fail(
          "{} has weak columns, which this method would not tune with the rest; use "
          "--method qeft, or a file without weak columns",
          linear_tensor_name(index));
    targets.push_back({index, part, &linear.weight, 0, 0, {}});
  }
  if (part == MatrixPart::kFakeQuantized) return targets;
  team.for_each(static_cast<std::int64_t>(targets.size()), 1,
                [&](std::int64_t i, std::int64_t, int) {
                  Linear& linear = model.linear(targets[static_cast<std::size_t>(i)].linear);
                  if (linear.weight.quantized()) make_dense(linear);
                });
  return targets;
}

}  // namespace

bool is_target(const std::vector<std::string>& target_modules, std::size_t linear) {
  return target_modules.empty() ||
         std::find(target_modules.begin(), target_modules.end(),
                   kLinearKinds[linear % kLinearKinds.size()].module) != target_modules.end();
}

Result<std::unique_ptr<TuningMethod>> make_weak_column_method(
    Model& model, const std::vector<std::string>& target_modules) {
  TRIMPOT_TRY_VOID(check_target_modules(target_modules));
  std::vector<MatrixTarget> targets;
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    Linear& linear = model.linear(index);
    if (is_target(target_modules, index) && linear.weak.rows() > 0)
      targets.push_back({index, MatrixPart::kWeak, &linear.weak, 0, 0, {}});
  }
  if (targets.empty())
    return fail(
        "this model has no weak columns; `trimpot quantize --method qeft` makes a file "
        "with some, or choose them here with --weak-columns 16");
  return std::make_unique<MatrixTuning>(model, std::move(targets), false);
}

void add_weak_columns(Model& model, const std::vector<std::vector<std::int32_t>>& columns) {
  for (std::size_t index = 0; index < columns.size(); ++index) {
    if (columns[index].empty()) continue;
    Linear& linear = model.linear(index);
    linear.weak = Matrix::zeros(Storage::kF32, linear.rows(),
                                static_cast<std::int64_t>(columns[index].size()));
    linear.weak_columns = std::make_shared<const std::vector<std::int32_t>>(columns[index]);
  }
}

Result<std::unique_ptr<TuningMethod>> make_low_rank_method(Model& model,
                                                           const LowRankOptions& options) {
  TRIMPOT_TRY_VOID(check_target_modules(options.target_modules));
  if (!(options.dropout >= 0 && options.dropout < 1))
    return fail("--lora-dropout is {}; it must be at least 0 and below 1", options.dropout);
  const auto rank = static_cast<double>(options.rank);
  // All layers are checked before the first one gets a pair: a refused model stays as it was.
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    if (!is_target(options.target_modules, index)) continue;
    const Linear& linear = model.linear(index);
    const std::int64_t most = std::min(linear.rows(), linear.columns);
    if (options.rank < 1 || options.rank > most)
      return fail("--lora-r is {}; {} takes a rank from 1 to {}", options.rank,
                  linear_tensor_name(index), most);
    if (options.pooled && (!linear.weight.quantized() || linear.weak.rows() > 0))
      return fail(
          "{}: QA-LoRA needs a layer in groups of codes without weak columns; "
          "`trimpot quantize --method rtn --group-size 32` makes such a file",
          linear_tensor_name(index));
  }
  std::vector<MatrixTarget> targets;
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    if (!is_target(options.target_modules, index)) continue;
    Linear& linear = model.linear(index);
    auto path = std::make_unique<LowRank>();
    std::int64_t inputs = linear.columns;
    if (options.pooled) {
      path->pool = linear.weight.view().group_chunks * kChunkColumns;
      inputs = linear.weight.groups();
    }
    path->a = Matrix::zeros(Storage::kF32, options.rank, inputs);
    path->b = Matrix::zeros(Storage::kF32, linear.rows(), options.rank);
    path->scale =
        static_cast<float>(options.alpha / (options.rank_stabilized ? std::sqrt(rank) : rank));
    path->dropout = static_cast<float>(options.dropout);
    path->seed = options.seed * 8192 + index;
    const CounterRng rng(options.seed, index);
    const double bound = 1.0 / std::sqrt(static_cast<double>(inputs));
    for (std::int64_t r = 0; r < options.rank; ++r)
      for (std::int64_t c = 0; c < inputs; ++c)
        path->a.dense_f32()[path->a.dense_index(r, c)] = static_cast<float>(
            (2.0 * rng.uniform(static_cast<std::uint64_t>(r * inputs + c)) - 1.0) * bound);
    linear.low_rank = std::move(path);
    targets.push_back({index, MatrixPart::kLowRankA, &linear.low_rank->a, 0, 0, {}});
    targets.push_back({index, MatrixPart::kLowRankB, &linear.low_rank->b, 0, 0, {}});
  }
  return std::make_unique<MatrixTuning>(model, std::move(targets), options.dropout > 0);
}

Result<std::unique_ptr<TuningMethod>> make_full_method(
    Model& model, ThreadTeam& team, const std::vector<std::string>& target_modules) {
  TRIMPOT_TRY(std::vector<MatrixTarget> targets,
              dense_targets(model, team, target_modules, MatrixPart::kWeight));
  return std::make_unique<MatrixTuning>(model, std::move(targets), false);
}

Result<std::unique_ptr<TuningMethod>> make_qat_method(
    Model& model, ThreadTeam& team, const Scheme& scheme,
    const std::vector<std::string>& target_modules) {
  TRIMPOT_TRY(std::vector<MatrixTarget> targets,
              dense_targets(model, team, target_modules, MatrixPart::kFakeQuantized));
  auto method = std::make_unique<MatrixTuning>(model, std::move(targets), false, scheme);
  TRIMPOT_TRY_VOID(method->commit(team));  // the first forward sees rounded weights too
  return method;
}

}  // namespace trimpot
