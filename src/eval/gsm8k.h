// GSM8K: prompts and the numbers in answers, by the rules of lm-eval 0.4.13's task.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace trimpot {

struct MathItem {
  std::size_t line = 0;  // in the file, from 1
  std::string question;
  std::string answer;  // the worked solution, which ends in "#### NUMBER"
};

// JSON Lines with question and answer. Errors name file, line and field.
Result<std::vector<MathItem>> read_gsm8k(const std::string& path);
Result<std::vector<MathItem>> parse_gsm8k(const std::string& path, std::string_view text);

// "Question: ...\nAnswer:" behind the first `count` examples; where `examples` are the items
// themselves, the item is not among them.
std::string gsm8k_prompt(const std::vector<MathItem>& items, std::size_t index,
                         const std::vector<MathItem>& examples, std::int64_t count);

// The number behind the first "#### "; the last number of the text. Nothing found: "[invalid]".
std::string strict_number(std::string_view text);
std::string flexible_number(std::string_view text);
// Equal without commas, dollar signs, what comes before "#### ", and a dot at the end.
bool same_number(std::string_view found, std::string_view expected);

}  // namespace trimpot
