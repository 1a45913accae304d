// Comparing results with tolerances that follow from the arithmetic.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace trimpot {

// Half a unit in the last place: the relative error of one rounding to f32.
inline constexpr double kRoundoff = 0x1p-24;

// What all others are held to.
inline const Kernels& scalar() { return **kernels_by_name("scalar"); }

// Which form output gradients are rounded to.
inline bool rounds_to(const Kernels& kernels, std::string_view form) {
  return kernels.rounded != nullptr && kernels.rounded == form;
}
inline bool rounds_to_int16(const Kernels& kernels) { return rounds_to(kernels, "int16"); }
inline bool rounds_to_bf16(const Kernels& kernels) { return rounds_to(kernels, "bf16"); }

// The kernels that this machine can run.
inline std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> kernels;
  for (const IsaInfo& isa : list_isas())
    if (isa.usable) kernels.push_back(isa.kernels);
  return kernels;
}

inline std::vector<double> widened(std::span<const float> values) {
  return {values.begin(), values.end()};
}

inline double largest(std::span<const double> values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::fabs(value));
  return most;
}

// The largest difference over the largest wanted value; infinity where something is not a number.
inline double relative_error(std::span<const float> got, std::span<const double> want) {
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
    worst = std::max(worst, std::isfinite(difference) ? difference : HUGE_VAL);
  }
  const double most = largest(want);
  return most > 0 ? worst / most : worst;
}

// The worst of many errors, written into the test's XML and JSON reports.
class WorstError {
 public:
  explicit WorstError(std::string name) : name_(std::move(name)) {}
  ~WorstError() { testing::Test::RecordProperty(name_, testing::PrintToString(worst_)); }
  void add(double error) { worst_ = std::max(worst_, error); }

 private:
  std::string name_;
  double worst_ = 0;
};

// |got - want| <= roundings * kRoundoff * magnitude, element by element; `magnitude` is the sum of
// the absolute values of the terms that were added up. Returns the largest part of its tolerance
// that an element used.
inline double expect_close(std::span<const float> got, std::span<const double> want,
                           std::span<const double> magnitude, double roundings,
                           const std::string& what) {
  double used = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double tolerance = roundings * kRoundoff * std::fabs(magnitude[i]) + 1e-37;
    const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
    EXPECT_LE(difference, tolerance) << what << ", element " << i << " of " << want.size() << ": "
                                     << got[i] << " instead of " << want[i];
    if (!(difference <= tolerance)) return HUGE_VAL;
    used = std::max(used, difference / tolerance);
  }
  return used;
}

template <typename T>
testing::AssertionResult same_bits(std::span<const T> a, std::span<const T> b) {
  if (a.size() != b.size())
    return testing::AssertionFailure() << a.size() << " against " << b.size() << " elements";
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0)
      return testing::AssertionFailure()
             << "element " << i << " of " << a.size() << ": " << +a[i] << " and " << +b[i];
  return testing::AssertionSuccess();
}
template <typename T>
testing::AssertionResult same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return same_bits(std::span<const T>(a), std::span<const T>(b));
}

}  // namespace trimpot
