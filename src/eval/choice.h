// Multiple choice by log-likelihood: which ending does the model find most likely?
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "eval/choice_items.h"
#include "model/session.h"
#include "text/tokenizer.h"

namespace trimpot {

// A mean over items and its standard error (deviation of the sample / sqrt(n), as lm-eval's).
struct Metric {
  std::string name;
  double value = 0;
  double error = 0;
};

Metric mean_metric(std::string name, std::span<const double> values);

enum class ChoiceNorm {
  kChars,   // lm-eval's acc_norm: log-likelihood by characters of the ending
  kTokens,  // llama.cpp's score: mean of the tokens behind what all endings have in common
};

struct ChoiceOptions {
  std::int64_t limit = 0;  // items to score; 0: all
  std::int64_t examples = 0;
  ChoiceNorm norm = ChoiceNorm::kChars;
};

struct ChoiceAnswer {
  std::vector<double> log_likelihoods;  // by choice
  std::vector<double> normalized;       // by choice
  std::vector<std::uint8_t> greedy;     // by choice: its tokens are what the model would have said
  std::size_t picked = 0;               // the choice of the highest log-likelihood, the first of
  std::size_t picked_normalized = 0;    // equals
  double score = 0;             // 1 or 0; truthfulqa-mc2: the right choices' share of probability
  double score_normalized = 0;  // 1 or 0
};

struct ChoiceResult {
  std::vector<ChoiceAnswer> answers;  // of the first items of the file
  std::vector<Metric> metrics;        // acc, and acc_norm where the endings' lengths differ
  std::int64_t truncated = 0;  // prompts that lost their beginning to fit the model's context
};

// Examples come from `examples`, its first ones, or if that is null from the file itself, its first
// ones except the item (lm-eval's sampler "first_n"). `path` is for messages. `progress` is called
// with the number of items that are done. Errors: more examples than there are; examples for
// truthfulqa, which has its own; an ending without tokens.
Result<ChoiceResult> score_choices(Compute& compute, const Model& model, const Tokenizer& tokenizer,
                                   ChoiceTask task, const std::string& path, const ChoiceFile& file,
                                   const ChoiceFile* examples, const ChoiceOptions& options,
                                   const std::function<void(std::int64_t done)>& progress);

// The text before item `index`'s endings: header, examples, context; for winogrande the one of
// `choice`.
std::string choice_prompt(const ChoiceFile& file, const ChoiceFile* examples, std::int64_t count,
                          std::size_t index, std::size_t choice);

}  // namespace trimpot
