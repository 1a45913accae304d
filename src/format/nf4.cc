#include "format/nf4.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace trimpot {
namespace {

// Every value below is rounded to f32 where PyTorch rounds it; the test compares all bits.
std::array<float, 256> make_dynamic_map() {
  std::array<float, 256> map;
  std::size_t count = 0;
  for (int power = 0; power < 7; ++power) {
    const int steps = 1 << power;
    const float step = (1.0f - 0.1f) / static_cast<float>(steps);
    // torch.linspace: from the nearer end, with one rounding.
    const auto boundary = [&](int i) {
      const double wide = static_cast<double>(step);
      return static_cast<float>(i < (steps + 1) / 2 ? static_cast<double>(0.1f) + wide * i
                                                    : 1.0 - wide * (steps - i));
    };
    const auto scale = static_cast<float>(std::pow(10.0, power - 6));
    for (int i = 0; i < steps; ++i) {
      const float value = scale * ((boundary(i) + boundary(i + 1)) / 2.0f);
      map[count++] = value;
      map[count++] = -value;
    }
  }
  map[count++] = 0.0f;
  map[count++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map();
  return map;
}

float Nf4Codes::absmax(std::int64_t index) const {
  return dynamic_map()[absmax_codes[static_cast<std::size_t>(index)]] *
             absmax_scales[scale_index(index)] +
         offset;
}

GroupedCodes nf4_grouped(Nf4Codes nf4) {
  GroupedCodes grouped;
  grouped.book = CodeBook::kNf4;
  grouped.bits = 4;
  grouped.rows = nf4.rows;
  grouped.columns = nf4.columns;
  grouped.group_size = std::min(kNf4Block, nf4.columns);
  grouped.scales.resize(nf4.absmax_codes.size());
  for (std::size_t i = 0; i < grouped.scales.size(); ++i)
    grouped.scales[i] = f32_to_f16(nf4.absmax(static_cast<std::int64_t>(i)));
  grouped.codes = std::move(nf4.codes);
  return grouped;
}

}  // namespace trimpot
