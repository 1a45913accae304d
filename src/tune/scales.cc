#include "tune/scales.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace trimpot {
namespace {

bool finite(f16 bits) { return (bits & 0x7c00u) != 0x7c00u; }

// Half of what f16 holds: room for the shift. Groups beyond it have nearly constant weights.
constexpr float kLargestZeroPoint = 32768.0f;

bool is_frozen(GroupValues base, bool learns_zero) {
  return (base.scale & 0x7fffu) == 0 ||
         (learns_zero && std::fabs(zero_point(base)) > kLargestZeroPoint);
}

// One zero-point step against one relative scale step. A step of 5e-3 on the scales then moves
// zero-points by 0.03 codes, a tenth of the rounding error's spread.
constexpr double kZeroRateFactor = 6.0;

// What the method keeps of one linear layer.
struct Target {
  std::size_t linear = 0;
  Matrix* matrix = nullptr;
  bool scales = false;  // learns them
  bool zeros = false;
  std::size_t scale_begin = 0;  // in the parameter arrays
  std::size_t zero_begin = 0;
  AlignedBuffer<f16> base_scales, base_centres;  // packed order; centres: offsets or zeros
};

class ScaleTuning final : public TuningMethod {
 public:
  ScaleTuning(const Model& model, std::vector<Target> targets, ScaleGranularity granularity)
      : model_(model), targets_(std::move(targets)), granularity_(granularity) {
    std::size_t count = 0, linears = 0;
    for (Target& target : targets_) {
      const std::string name = linear_tensor_name(target.linear);
      const std::size_t size = parameter_size(*target.matrix);
      if (target.scales) {
        parameters_.list.push_back({name + ".scale", target.linear, count, size, 1.0});
        target.scale_begin = count;
        count += size;
      }
      if (target.zeros) {
        parameters_.list.push_back({name + ".zero", target.linear, count, size, kZeroRateFactor});
        target.zero_begin = count;
        count += size;
      }
      linears = std::max(linears, target.linear + 1);
    }
    parameters_.allocate(count);
    for (Target& target : targets_)
      if (target.scales)
        std::fill_n(parameters_.values.data() + target.scale_begin, parameter_size(*target.matrix),
                    1.0f);
    sink_.linears.resize(linears);
    for (Target& target : targets_)
      sink_.linears[target.linear].scales = [this, &target](std::int64_t begin, std::int64_t end,
                                                            const float* d_scale,
                                                            const float* d_offset) {
        accumulate(target, begin, end, d_scale, d_offset);
      };
  }

  Parameters& parameters() override { return parameters_; }
  const GradientSink& sink() override { return sink_; }

  std::size_t trainable() const override {
    std::size_t count = 0;
    for (const Target& target : targets_) {
      const std::int64_t groups =
          granularity_ == ScaleGranularity::kGroup ? target.matrix->groups() : 1;
      count +=
          static_cast<std::size_t>(target.matrix->rows() * groups) * (target.scales + target.zeros);
    }
    return count;
  }

  Status commit(ThreadTeam& team) override {
    std::atomic<std::size_t> bad{targets_.size()};
    team.for_each(static_cast<std::int64_t>(targets_.size()), 4,
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i)
                      if (!commit_target(targets_[i])) bad = static_cast<std::size_t>(i);
                  });
    if (bad < targets_.size())
      return fail("{}: a tuned scale left the range of 16-bit floats; lower the learning rate",
                  linear_tensor_name(targets_[bad].linear));
    return {};
  }

  Result<std::vector<AdapterTensor>> adapter_tensors() const override {
    std::vector<AdapterTensor> tensors;
    for (const Target& target : targets_) {
      const Matrix& matrix = *target.matrix;
      const std::string name = linear_tensor_name(target.linear);
      const auto count = static_cast<std::size_t>(matrix.rows() * matrix.groups());
      std::vector<f16> scales(target.scales ? count : 0), zeros(target.zeros ? count : 0);
      const ColumnOrder rows = linear_axes(model_, target.linear).rows;
      for (std::int64_t row = 0; row < matrix.rows(); ++row)
        for (std::int64_t group = 0; group < matrix.groups(); ++group) {
          const std::size_t index = matrix.scale_index(row, group);
          const std::int64_t original = rows ? (*rows)[static_cast<std::size_t>(row)] : row;
          const auto at = static_cast<std::size_t>(original * matrix.groups() + group);
          if (target.scales) scales[at] = matrix.scales()[index];
          if (target.zeros) zeros[at] = zero_value(target, index);
        }
      const std::vector<std::uint64_t> shape{static_cast<std::uint64_t>(matrix.rows()),
                                             static_cast<std::uint64_t>(matrix.groups())};
      if (target.scales)
        tensors.push_back(
            AdapterTensor::make<f16>(name + ".scale", "F16", shape, std::span(scales)));
      if (target.zeros)
        tensors.push_back(AdapterTensor::make<f16>(name + ".zero", "F16", shape, std::span(zeros)));
    }
    return tensors;
  }

 private:
  std::size_t parameter_size(const Matrix& matrix) const {
    const MatrixView& view = matrix.view();
    const std::int64_t groups = granularity_ == ScaleGranularity::kGroup ? view.groups : 1;
    return static_cast<std::size_t>(view.tiles * groups * kTileRows);
  }
  // Index of a group's master value: groups lie as [tiles][groups][16], rows as [tiles][16].
  std::size_t master_index(const Matrix& matrix, std::size_t index) const {
    if (granularity_ == ScaleGranularity::kGroup) return index;
    const std::size_t tile = index / (static_cast<std::size_t>(matrix.groups()) * kTileRows);
    return tile * kTileRows + index % kTileRows;
  }
  static GroupValues base(const Target& target, std::size_t index) {
    return {target.base_scales[index],
            target.base_centres.empty() ? f16{0} : target.base_centres[index],
            target.matrix->has_zeros()};
  }
  f16 zero_value(const Target& target, std::size_t index) const {
    if (is_frozen(base(target, index), true)) return 0;  // unused
    const float shift = parameters_.values[target.zero_begin + master_index(*target.matrix, index)];
    return f32_to_f16(zero_point(base(target, index)) + shift);
  }

  bool commit_target(Target& target) {
    Matrix& matrix = *target.matrix;
    bool good = true;
    for (std::size_t index = 0; index < matrix.scales().size(); ++index) {
      const GroupValues old = base(target, index);
      const std::size_t master = master_index(matrix, index);
      const f16 scale =
          target.scales
              ? f32_to_f16(f16_to_f32(old.scale) * parameters_.values[target.scale_begin + master])
              : old.scale;
      const GroupValues now = committed_group(
          old, scale, target.zeros ? std::optional<f16>(zero_value(target, index)) : std::nullopt);
      good = good && finite(now.scale) && finite(now.centre);
      set_group_values(matrix, index, now);
    }
    return good;
  }

  // With offsets:  d theta = s d_scale + m d_offset with s, m at theta = 1 (m at the current
  // zero-point). With zeros (the kernel's d_scale is that of z = 0): d theta = s (d_scale - z
  // d_offset).  Both: d z = -s' d_offset.
  void accumulate(Target& target, std::int64_t tile_begin, std::int64_t tile_end,
                  const float* d_scale, const float* d_offset) {
    const Matrix& matrix = *target.matrix;
    const auto per_tile = static_cast<std::size_t>(matrix.groups()) * kTileRows;
    for (std::size_t index = static_cast<std::size_t>(tile_begin) * per_tile;
         index < static_cast<std::size_t>(tile_end) * per_tile; ++index) {
      const std::size_t local = index - static_cast<std::size_t>(tile_begin) * per_tile;
      const GroupValues old = base(target, index);
      if (is_frozen(old, target.zeros)) continue;
      const std::size_t master = master_index(matrix, index);
      const float scale = f16_to_f32(old.scale);
      const float d_m = d_offset != nullptr ? d_offset[local] : 0.0f;
      if (target.scales) {
        float offset = f16_to_f32(old.centre);  // m at theta = 1
        if (target.zeros || old.is_zero)
          offset = -scale * f16_to_f32(target.zeros ? zero_value(target, index) : old.centre);
        parameters_.gradient[target.scale_begin + master] += scale * d_scale[local] + offset * d_m;
      }
      if (target.zeros)
        parameters_.gradient[target.zero_begin + master] -=
            f16_to_f32(matrix.scales()[index]) * d_m;
    }
  }

  const Model& model_;
  std::vector<Target> targets_;
  ScaleGranularity granularity_;
  Parameters parameters_;
  GradientSink sink_;
};

}  // namespace

GroupValues committed_group(GroupValues base, f16 scale, std::optional<f16> zero) {
  if (is_frozen(base, zero.has_value())) return base;
  const float new_scale = f16_to_f32(scale);
  if (base.is_zero) return {scale, zero ? *zero : base.centre, true};
  if (zero) return {scale, f32_to_f16(-new_scale * f16_to_f32(*zero)), false};
  const float ratio = f16_to_f32(base.centre) / f16_to_f32(base.scale);
  return {scale, f32_to_f16(new_scale * ratio), false};
}

float zero_point(GroupValues base) {
  if ((base.scale & 0x7fffu) == 0) return 0.0f;
  if (base.is_zero) return f16_to_f32(base.centre);
  return -f16_to_f32(base.centre) / f16_to_f32(base.scale);
}

GroupValues group_values(const Matrix& matrix, std::size_t index) {
  const std::span<const f16> centres = matrix.has_zeros() ? matrix.zeros() : matrix.offsets();
  return {matrix.scales()[index], centres.empty() ? f16{0} : centres[index], matrix.has_zeros()};
}

void set_group_values(Matrix& matrix, std::size_t index, GroupValues values) {
  matrix.scales()[index] = values.scale;
  const std::span<f16> centres = matrix.has_zeros() ? matrix.zeros() : matrix.offsets();
  if (!centres.empty()) centres[index] = values.centre;
}

bool learns_zeros(ScaleMethod method, const Matrix& matrix) {
  return method != ScaleMethod::kScales && (matrix.has_offsets() || matrix.has_zeros());
}

Status check_target_modules(const std::vector<std::string>& modules) {
  for (const std::string& module : modules)
    if (std::none_of(kLinearKinds.begin(), kLinearKinds.end(),
                     [&](const LinearKind& kind) { return kind.module == module; }))
      return fail(
          "target module \"{}\" matches nothing; this model has q_proj, k_proj, v_proj, "
          "o_proj, gate_proj, up_proj, down_proj",
          module);
  return {};
}

Result<std::unique_ptr<TuningMethod>> make_scale_method(Model& model, const ScaleOptions& options) {
  TRIMPOT_TRY_VOID(check_target_modules(options.target_modules));
  std::vector<Target> targets;
  bool any_quantized = false;
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    const LinearKind& kind = kLinearKinds[index % kLinearKinds.size()];
    if (!options.target_modules.empty() &&
        std::find(options.target_modules.begin(), options.target_modules.end(), kind.module) ==
            options.target_modules.end())
      continue;
    Matrix& matrix = model.linear(index).weight;
    if (!matrix.quantized()) continue;
    any_quantized = true;
    Target target;
    target.linear = index;
    target.matrix = &matrix;
    target.scales = options.method != ScaleMethod::kZeros;
    target.zeros = learns_zeros(options.method, matrix);
    if (!target.scales && !target.zeros) continue;
    target.base_scales.resize(matrix.scales().size());
    std::copy(matrix.scales().begin(), matrix.scales().end(), target.base_scales.data());
    const std::span<const f16> centres = matrix.has_zeros() ? matrix.zeros() : matrix.offsets();
    target.base_centres.resize(centres.size());
    std::copy(centres.begin(), centres.end(), target.base_centres.data());
    targets.push_back(std::move(target));
  }
  if (!any_quantized)
    return fail(
        "no linear layer of this model is quantized, so there are no scales to tune; "
        "`trimpot quantize` makes a quantized file of it");
  const bool any_zeros =
      std::any_of(targets.begin(), targets.end(), [](const Target& t) { return t.zeros; });
  if (options.method != ScaleMethod::kScales && !any_zeros)
    return fail(
        "the zero-points of this file's formats are fixed by their definition (Q4_0: 8, "
        "Q5_0: 16, Q8_0: 0; symmetric: the middle) and cannot be tuned; use --method peqa, or a "
        "file in Q4_1 or Q5_1, or one that `trimpot quantize` made with zero-points");
  return std::make_unique<ScaleTuning>(model, std::move(targets), options.granularity);
}

}  // namespace trimpot
