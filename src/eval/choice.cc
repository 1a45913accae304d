#include "eval/choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "eval/likelihood.h"
#include "eval/python_text.h"

namespace trimpot {
namespace {

std::size_t position_of_highest(std::span<const double> values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

// Ids of a text and, as `tokenizers` with the model's own settings, BOS before them. Control tokens
// written out in a data set stay text.
std::vector<TokenId> encode(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<TokenId> ids = tokenizer.encode(text);
  if (tokenizer.adds_bos() && tokenizer.bos()) ids.insert(ids.begin(), *tokenizer.bos());
  return ids;
}

// The ending's tokens are those of the whole text behind as many as the context has by itself;
// white space at the context's end belongs to the ending, since it is part of its first token.
Result<LikelihoodRequest> encode_pair(const Tokenizer& tokenizer, std::string_view context,
                                      std::string_view ending) {
  const std::string_view stripped = strip_right(context);
  const std::string whole = fmt::format("{}{}", context, ending);
  LikelihoodRequest request;
  request.tokens = encode(tokenizer, stripped);
  const std::vector<TokenId> all = encode(tokenizer, whole);
  const std::size_t before = request.tokens.size();
  if (before == 0) {  // nothing to predict the first token from
    const auto first = tokenizer.bos() ? tokenizer.bos() : tokenizer.eos();
    if (!first) return fail("the context is empty and the model has no token for a text's begin");
    request.tokens.push_back(*first);
  }
  request.scored = static_cast<std::int64_t>(request.tokens.size());
  if (all.size() <= before) return fail("an ending without tokens of its own");
  request.tokens.insert(request.tokens.end(), all.begin() + static_cast<std::ptrdiff_t>(before),
                        all.end());
  return request;
}

// Keeps the last tokens that fit, as lm-eval does. The last one is predicted, never read.
Result<bool> truncate(LikelihoodRequest& request, std::int64_t context) {
  const std::int64_t over = static_cast<std::int64_t>(request.tokens.size()) - (context + 1);
  if (over <= 0) return false;
  if (over >= request.scored)
    return fail("an ending of {} tokens does not fit in the model's context of {}",
                static_cast<std::int64_t>(request.tokens.size()) - request.scored, context);
  request.tokens.erase(request.tokens.begin(), request.tokens.begin() + over);
  request.scored -= over;
  return true;
}

bool has_normalized(ChoiceTask task) {
  return task != ChoiceTask::kMmlu && task != ChoiceTask::kWinogrande &&
         task != ChoiceTask::kTruthfulMc2;
}

ChoiceAnswer judge(ChoiceTask task, const ChoiceItem& item, const LikelihoodGroup& requests,
                   std::span<const Likelihood> likelihoods, ChoiceNorm norm) {
  ChoiceAnswer answer;
  // Nothing is left behind the common tokens of equal endings; then all of one's tokens count.
  const std::int64_t common = common_prefix(requests, INT64_MAX);
  for (std::size_t i = 0; i < likelihoods.size(); ++i) {
    const std::vector<double>& log_probs = likelihoods[i].log_probs;
    answer.log_likelihoods.push_back(likelihoods[i].sum());
    answer.greedy.push_back(likelihoods[i].greedy);
    if (norm == ChoiceNorm::kChars) {
      const std::int64_t characters = count_characters(item.endings[i]);
      answer.normalized.push_back(answer.log_likelihoods[i] /
                                  static_cast<double>(std::max<std::int64_t>(1, characters)));
      continue;
    }
    std::int64_t skip = std::max<std::int64_t>(0, common - requests[i].scored);
    if (skip >= static_cast<std::int64_t>(log_probs.size())) skip = 0;
    answer.normalized.push_back(std::accumulate(log_probs.begin() + skip, log_probs.end(), 0.0) /
                                static_cast<double>(log_probs.end() - (log_probs.begin() + skip)));
  }
  answer.picked = position_of_highest(answer.log_likelihoods);
  answer.picked_normalized = position_of_highest(answer.normalized);
  answer.score_normalized = item.right[answer.picked_normalized];
  answer.score = item.right[answer.picked];
  if (task != ChoiceTask::kTruthfulMc2) return answer;
  const double highest = answer.log_likelihoods[answer.picked];
  double right = 0, all = 0;
  for (std::size_t i = 0; i < likelihoods.size(); ++i) {
    const double probability = std::exp(answer.log_likelihoods[i] - highest);
    all += probability;
    if (item.right[i] != 0) right += probability;
  }
  answer.score = right / all;
  return answer;
}

}  // namespace

Metric mean_metric(std::string name, std::span<const double> values) {
  const auto count = static_cast<double>(values.size());
  Metric metric{std::move(name), 0, 0};
  if (values.empty()) return metric;
  metric.value = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - metric.value) * (value - metric.value);
  if (values.size() > 1) metric.error = std::sqrt(squares / (count - 1) / count);
  return metric;
}

std::string choice_prompt(const ChoiceFile& file, const ChoiceFile* examples, std::int64_t count,
                          std::size_t index, std::size_t choice) {
  std::string prompt = file.header;
  const ChoiceFile& pool = examples != nullptr ? *examples : file;
  for (std::size_t i = 0; i < pool.items.size() && count > 0; ++i) {
    if (examples == nullptr && i == index) continue;
    const ChoiceItem& item = pool.items[i];
    prompt += item.context(item.gold()) + " " + item.endings[item.gold()] + "\n\n";
    --count;
  }
  return prompt + file.items[index].context(choice);
}

Result<ChoiceResult> score_choices(Compute& compute, const Model& model, const Tokenizer& tokenizer,
                                   ChoiceTask task, const std::string& path, const ChoiceFile& file,
                                   const ChoiceFile* examples, const ChoiceOptions& options,
                                   const std::function<void(std::int64_t done)>& progress) {
  const bool truthful = task == ChoiceTask::kTruthfulMc1 || task == ChoiceTask::kTruthfulMc2;
  if (truthful && options.examples > 0)
    return fail(
        "truthfulqa's examples are always the same; give their text with --preamble and leave out "
        "--num-fewshot");
  const auto available = static_cast<std::int64_t>(examples != nullptr ? examples->items.size()
                                                                       : file.items.size() - 1);
  if (options.examples > available)
    return fail("{}: {} examples were asked for, but there are {}; use a smaller --num-fewshot",
                path, options.examples, available);
  std::size_t count = file.items.size();
  if (options.limit > 0) count = std::min(count, static_cast<std::size_t>(options.limit));
  ChoiceResult result;
  std::vector<LikelihoodGroup> groups;
  for (std::size_t i = 0; i < count; ++i) {
    const ChoiceItem& item = file.items[i];
    LikelihoodGroup group;
    for (std::size_t choice = 0; choice < item.endings.size(); ++choice) {
      const std::string context = choice_prompt(file, examples, options.examples, i, choice);
      auto request = encode_pair(tokenizer, context, " " + item.endings[choice]);
      if (!request) return fail("{}:{}: {}", path, item.line, request.error().message);
      const auto cut = truncate(*request, model.config.context_length);
      if (!cut) return fail("{}:{}: {}", path, item.line, cut.error().message);
      result.truncated += *cut;
      group.push_back(std::move(*request));
    }
    groups.push_back(std::move(group));
  }
  TRIMPOT_TRY(const auto likelihoods, log_likelihoods(compute, model, groups, progress));
  std::vector<double> scores, normalized;
  for (std::size_t i = 0; i < count; ++i) {
    result.answers.push_back(judge(task, file.items[i], groups[i], likelihoods[i], options.norm));
    scores.push_back(result.answers[i].score);
    normalized.push_back(result.answers[i].score_normalized);
  }
  result.metrics.push_back(mean_metric("acc", scores));
  if (has_normalized(task)) result.metrics.push_back(mean_metric("acc_norm", normalized));
  return result;
}

}  // namespace trimpot
