// What eval report shows: numbers of several models by task, and their answers to the same
// questions.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/eval/common.h"

namespace trimpot::cli {

struct EvalMeasure {
  std::string id;      // of its JSON field
  std::string header;  // with the unit
  double factor;       // fields are shares, people read per cent
  bool more_is_better;
};

struct EvalValue {
  double value = 0;
  std::optional<double> error;
};

struct EvalAnswer {
  std::string text;
  bool right = false;
};

struct EvalQuestion {
  std::string task, question;
  std::string expected;                       // the right answers, joined
  std::vector<std::string> choices;           // of multiple choice
  std::map<std::size_t, EvalAnswer> answers;  // by model
};

struct EvalColumn {
  std::string task;  // with what it was measured by: "hellaswag, 5 examples"
  EvalMeasure measure;
  std::map<std::size_t, EvalValue> values;  // by model
};

struct EvalReport {
  std::vector<std::string> models;  // names, in the order they were given
  std::vector<EvalColumn> columns;
  std::vector<EvalQuestion> questions;

  // `text`: what --json or --output of ppl, choice, generate, match or kl gave. Errors name `path`
  // and line: no JSON, no results of an evaluation.
  Status add(const std::string& model, const std::string& path, std::string_view text);

 private:
  Status add_object(std::size_t model, const std::string& place, const Json& object);
  void add_values(std::size_t model, const std::string& task, const Json& object);
  Status add_item(std::size_t model, const std::string& place, const Json& item);
  EvalQuestion& question(const std::string& task, std::size_t line, const Json& item);
  std::map<std::pair<std::string, std::string>, std::size_t> known_;  // (task, line and text)
};

// One page without any outside resource. `samples`: questions per task, those on which models
// differ first.
std::string eval_page(const std::string& title, const EvalReport& report, std::size_t samples);

}  // namespace trimpot::cli
