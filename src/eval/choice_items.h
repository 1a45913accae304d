// Multiple-choice data sets, in the formats in which their authors publish them, as questions with
// the texts that lm-eval 0.4.13 makes of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace trimpot {

enum class ChoiceTask {
  kHellaswag,
  kArc,
  kMmlu,
  kTruthfulMc1,
  kTruthfulMc2,
  kWinogrande,
  kOpenBook
};

const std::vector<std::string>& choice_task_names();  // in the order of ChoiceTask
// Errors: no such task.
Result<ChoiceTask> find_choice_task(std::string_view name);

struct ChoiceItem {
  std::size_t line = 0;  // in the file, from 1
  std::string question;  // as people read it
  // What the model reads before an ending, examples and header apart: one text for all endings, or
  // (winogrande) one for each.
  std::vector<std::string> contexts;
  std::vector<std::string> endings;  // what is scored, after a blank
  std::vector<std::string> choices;  // the endings as people read them
  std::vector<std::uint8_t> right;   // one per choice; exactly one except in truthfulqa-mc2

  const std::string& context(std::size_t choice) const {
    return contexts[contexts.size() == 1 ? 0 : choice];
  }
  std::size_t gold() const;  // the first right choice
};

struct ChoiceFile {
  std::string header;  // before examples and question: mmlu's subject; a preamble
  std::vector<ChoiceItem> items;
};

// hellaswag: JSON Lines with activity_label, ctx_a, ctx_b, endings, label; or llama.cpp's text, six
// lines per item (context, number of the right ending from 0, four endings), taken as it is.
// arc, openbookqa: JSON Lines with question.stem, question.choices[].text and .label, answerKey.
// mmlu: CSV without header: question, A, B, C, D, letter; the subject is the file's name without
// _test, _dev or _val. truthfulqa: mc_task.json, a list of objects with question and mc1_targets or
// mc2_targets. winogrande: JSON Lines with sentence, option1, option2, answer.
// Errors name file, line and field.
Result<ChoiceFile> read_choices(ChoiceTask task, const std::string& path);
// The same for text in memory; `path` is for messages and the subject.
Result<ChoiceFile> parse_choices(ChoiceTask task, const std::string& path, std::string_view text);

}  // namespace trimpot
