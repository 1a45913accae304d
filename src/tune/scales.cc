#include "tune/scales.h"

#include <algorithm>
#include <atomic>

#include "tune/scale_groups.h"

namespace trimpot {
namespace {

// One zero-point step against one relative scale step. A step of 5e-3 on the scales then moves
// zero-points by 0.03 codes, a tenth of the rounding error's spread.
constexpr double kZeroRateFactor = 6.0;

// What the method keeps of one linear layer.
struct ScaleTarget {
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
  ScaleTuning(const Model& model, std::vector<ScaleTarget> targets, ScaleGranularity granularity)
      : model_(model), targets_(std::move(targets)), granularity_(granularity) {
    std::size_t count = 0, linears = 0;
    for (ScaleTarget& target : targets_) {
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
    for (ScaleTarget& target : targets_)
      if (target.scales)
        std::fill_n(parameters_.values.data() + target.scale_begin, parameter_size(*target.matrix),
                    1.0f);
    sink_.linears.resize(linears);
    for (ScaleTarget& target : targets_)
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
    for (const ScaleTarget& target : targets_) {
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
    for (const ScaleTarget& target : targets_) {
      const Matrix& matrix = *target.matrix;
      const std::string name = linear_tensor_name(target.linear);
      const auto count = static_cast<std::size_t>(matrix.rows() * matrix.groups());
      std::vector<f16> scales(target.scales ? count : 0), zeros(target.zeros ? count : 0);
      const ColumnOrder rows = linear_axes(model_, target.linear).rows;
      const auto spread = [&](const f16* lanes, std::size_t index, std::vector<f16>& out) {
        const auto at = static_cast<std::int64_t>(index) / kTileRows;
        const std::int64_t tile = at / matrix.groups(), group = at % matrix.groups();
        for (std::int64_t i = 0; i < kTileRows && tile * kTileRows + i < matrix.rows(); ++i) {
          const std::int64_t row = tile * kTileRows + i;
          const std::int64_t original = rows ? (*rows)[static_cast<std::size_t>(row)] : row;
          out[static_cast<std::size_t>(original * matrix.groups() + group)] = lanes[i];
        }
      };
      for_each_group(matrix, 0, matrix.view().tiles, [&](std::size_t index, std::size_t master) {
        if (target.scales) spread(matrix.scales().data() + index, index, scales);
        if (!target.zeros) return;
        f16 learned[kTileRows];
        shift_lanes(lanes_at(base(target), index), masters(target.zero_begin, master), learned);
        spread(learned, index, zeros);
      });
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
  // Calls use(index of a group's 16 rows, index of their master values) for tiles [begin, end):
  // groups lie as [tiles][groups][16], masters of rows as [tiles][16].
  template <typename Use>
  void for_each_group(const Matrix& matrix, std::int64_t begin, std::int64_t end, Use&& use) const {
    for (std::int64_t tile = begin; tile < end; ++tile)
      for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        const std::int64_t index = tile * matrix.groups() + group;
        const std::int64_t master = granularity_ == ScaleGranularity::kGroup ? index : tile;
        use(static_cast<std::size_t>(index * kTileRows),
            static_cast<std::size_t>(master * kTileRows));
      }
  }
  static GroupLanes base(const ScaleTarget& target) {
    return {target.base_scales.data(), target.base_centres.data(), target.matrix->has_zeros()};
  }
  const float* masters(std::size_t begin, std::size_t master) const {
    return parameters_.values.data() + begin + master;
  }

  bool commit_target(ScaleTarget& target) {
    Matrix& matrix = *target.matrix;
    f16* scales = matrix.scales().data();
    f16* centres = (matrix.has_zeros() ? matrix.zeros() : matrix.offsets()).data();
    bool good = true;
    for_each_group(matrix, 0, matrix.view().tiles, [&](std::size_t index, std::size_t master) {
      const GroupLanes old = lanes_at(base(target), index);
      f16 learned_scales[kTileRows], learned_zeros[kTileRows];
      if (target.scales)
        scale_lanes(old.scales, masters(target.scale_begin, master), learned_scales);
      if (target.zeros) shift_lanes(old, masters(target.zero_begin, master), learned_zeros);
      good = commit_lanes(old, kTileRows, target.scales ? learned_scales : old.scales,
                          target.zeros ? learned_zeros : nullptr, scales + index,
                          centres != nullptr ? centres + index : nullptr) &&
             good;
    });
    return good;
  }

  void accumulate(ScaleTarget& target, std::int64_t tile_begin, std::int64_t tile_end,
                  const float* d_scale, const float* d_offset) {
    const Matrix& matrix = *target.matrix;
    const auto first =
        static_cast<std::size_t>(tile_begin * matrix.groups()) * std::size_t{kTileRows};
    float* gradient = parameters_.gradient.data();
    for_each_group(matrix, tile_begin, tile_end, [&](std::size_t index, std::size_t master) {
      const GroupLanes old = lanes_at(base(target), index);
      f16 zeros[kTileRows];
      if (target.zeros) shift_lanes(old, masters(target.zero_begin, master), zeros);
      const std::size_t local = index - first;
      add_lane_gradients(old, matrix.scales().data() + index, target.zeros ? zeros : nullptr,
                         d_scale + local, d_offset != nullptr ? d_offset + local : nullptr,
                         target.scales ? gradient + target.scale_begin + master : nullptr,
                         target.zeros ? gradient + target.zero_begin + master : nullptr);
    });
  }

  const Model& model_;
  std::vector<ScaleTarget> targets_;
  ScaleGranularity granularity_;
  Parameters parameters_;
  GradientSink sink_;
};

}  // namespace

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
  std::vector<ScaleTarget> targets;
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
    ScaleTarget target;
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
      std::any_of(targets.begin(), targets.end(), [](const ScaleTarget& t) { return t.zeros; });
  if (options.method != ScaleMethod::kScales && !any_zeros)
    return fail(
        "the zero-points of this file's formats are fixed by their definition (Q4_0: 8, "
        "Q5_0: 16, Q8_0: 0; symmetric: the middle) and cannot be tuned; use --method peqa, or a "
        "file in Q4_1 or Q5_1, or one that `trimpot quantize` made with zero-points");
  return std::make_unique<ScaleTuning>(model, std::move(targets), options.granularity);
}

}  // namespace trimpot
