#include "quantize/columns.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quantize/dense.h"
#include "quantize/rtn.h"
#include "support/random.h"

namespace trimpot {
namespace {

TEST(Columns, ErrorsAreThoseOfTheRoundedMatrix) {
  constexpr std::int64_t kRows = 37, kColumns = 100;
  RandomStream random(11);
  const std::vector<float> w = random.normals(kRows * kColumns);
  ThreadTeam one(1), three(3);
  for (const std::int64_t group : {kWholeRow, std::int64_t{32}, std::int64_t{64}}) {
    const auto parameters =
        min_max_parameters(one, whole(w, kRows, kColumns), {3, group, ZeroKind::kInteger});
    const auto errors = column_errors(one, whole(w, kRows, kColumns), *parameters);
    EXPECT_EQ(errors, column_errors(three, whole(w, kRows, kColumns), *parameters));
    const auto values = dequantized(round_to_nearest(one, whole(w, kRows, kColumns), *parameters));
    for (std::int64_t c = 0; c < kColumns; ++c) {
      double want = 0;
      for (std::int64_t r = 0; r < kRows; ++r)
        want += std::pow(static_cast<double>(w[r * kColumns + c]) - values[r * kColumns + c], 2);
      EXPECT_NEAR(errors[c], want, 1e-6 * want);  // values rounded to f32 on one side
    }
  }
}

TEST(Columns, CostIsLambdaTimesError) {
  const std::vector<double> lambda = {2, 0, 3}, errors = {1, 9, 4};
  EXPECT_EQ(column_costs(lambda, errors), (std::vector<double>{2, 0, 12}));
}

TEST(Columns, TopIsAscendingAndTiesGoToTheLower) {
  const std::vector<double> values = {1, 5, 3, 5, 5, 0};
  EXPECT_EQ(*top_columns(values, 2), (std::vector<std::int32_t>{1, 3}));
  EXPECT_EQ(*top_columns(values, 4), (std::vector<std::int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(*top_columns(values, 0), std::vector<std::int32_t>{});
  EXPECT_EQ(top_columns(values, 6)->size(), 6u);
  EXPECT_FALSE(top_columns(values, 7));
  EXPECT_FALSE(top_columns(values, -1));
  EXPECT_FALSE(top_columns(std::vector<double>{1, std::nan("")}, 1));
}

// Appendix B by hand, k = 2. Means 4, 2, 1:
//   layer 1 votes 10/4 for column 0 and 4/4 for 3;  layer 2 4/2 for 1 and 2/2 for 2
//   layer 3 2/1 for 1 and 1.5/1 for 3                sums 2.5, 4, 1, 2.5: 1, then 0 before 3.
TEST(Columns, GlobalChoiceIsAlgorithmOne) {
  std::vector<std::vector<double>> diagonals = {{10, 1, 1, 4}, {1, 4, 2, 1}, {0.25, 2, 0.25, 1.5}};
  EXPECT_EQ(*global_columns(diagonals, 2), (std::vector<std::int32_t>{0, 1}));
  // Only the top k of a layer vote: with k = 1, 0 has 2.5 and 1 has 4.
  EXPECT_EQ(*global_columns(diagonals, 1), (std::vector<std::int32_t>{1}));
  // A factor of one layer's Hessian is irrelevant.
  for (double& value : diagonals[2]) value *= 100;
  EXPECT_EQ(*global_columns(diagonals, 2), (std::vector<std::int32_t>{0, 1}));
  // Column 1 has the largest sum of all, but no layer's vote.
  const std::vector<std::vector<double>> second = {{10, 9, 0, 0}, {0, 9, 10, 0}, {0, 9, 0, 10}};
  EXPECT_EQ(*global_columns(second, 1), (std::vector<std::int32_t>{0}));
  EXPECT_FALSE(global_columns(diagonals, 5));
  EXPECT_FALSE(global_columns({}, 1));
  diagonals.push_back({1, 2});
  EXPECT_FALSE(global_columns(diagonals, 1));
  diagonals.back() = {0, 0, 0, 0};
  EXPECT_FALSE(global_columns(diagonals, 1));
}

}  // namespace
}  // namespace trimpot
