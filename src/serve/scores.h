// Log-probabilities of tokens from rows of logits.
#pragma once

#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "serve/ticket.h"

namespace trimpot::serve {

// The `count` likeliest tokens; of equals the lower id first.
std::vector<TokenId> likeliest(std::span<const float> logits, int count);

// log softmax(logits) at `token` and at the `top` likeliest of the first `tokens` entries; what
// lies beyond belongs to no token but takes part in the sum, as in other programs.
TokenScore score_token(const Kernels& kernels, std::span<const float> logits, std::size_t tokens,
                       TokenId token, int top);

}  // namespace trimpot::serve
