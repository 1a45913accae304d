// Which input columns are weak, that is, worth keeping in f16.
//   per layer, by what rounding them costs     OWQ; QEFT, eq. 3    column_errors, column_costs
//   per layer, by the Hessian's diagonal                           top_columns of the diagonal
//   one choice for all layers                  QEFT, appendix B, algorithm 1    global_columns
// All of it is deterministic: of equals the lower column wins.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "quantize/scheme.h"
#include "sys/thread_team.h"

namespace trimpot {

// ||dW_:,j||^2 of each column j, where dW = W - (W rounded with these parameters, rtn.h): those of
// min_max_parameters() for OWQ. To be added up over matrices that share their input, or not.
std::vector<double> column_errors(ThreadTeam& team, const WeightView& w,
                                  const GroupParameters& parameters);

// lambda_j ||dW_:,j||^2 with lambda = diag(H). Spans of one length.
std::vector<double> column_costs(std::span<const double> diagonal, std::span<const double> errors);

// The `count` columns with the highest values, ascending by column. Errors: more than there are, a
// value that is not a number.
Result<std::vector<std::int32_t>> top_columns(std::span<const double> values, std::int64_t count);

// Algorithm 1. `diagonals` holds diag(H) of each distinct input of the residual axis (attention and
// feed-forward count once each, as their matrices share it): the top `count` of each get their
// share of the mean added to their column's sum, and the top `count` of the sums are chosen.
// Errors: those of top_columns(), diagonals of different lengths or of zeros only.
Result<std::vector<std::int32_t>> global_columns(std::span<const std::vector<double>> diagonals,
                                                 std::int64_t count);

}  // namespace trimpot
