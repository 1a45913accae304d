// Greedy continuations of many prompts, decoded together.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/session.h"
#include "text/tokenizer.h"

namespace trimpot {

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  std::vector<std::string> stops;  // a text ends before the first of these
  std::size_t together = 16;       // sequences of a step
};

// Text by prompt; prompts have at least one token. What all prompts begin with is computed once; a
// sequence that ends makes room for the next prompt at once. A text depends on its prompt alone.
// `progress` is called with the number of prompts that are done. Errors: a prompt (named by its
// place in `prompts`, from 1) that leaves no room for an answer in the model's context.
Result<std::vector<std::string>> generate_texts(
    Compute& compute, const Model& model, const Tokenizer& tokenizer,
    std::span<const std::vector<TokenId>> prompts, const GenerateOptions& options,
    const std::function<void(std::int64_t done)>& progress);

}  // namespace trimpot
