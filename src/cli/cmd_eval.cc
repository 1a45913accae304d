#include "cli/eval/common.h"

namespace trimpot::cli {

void add_eval(CLI::App& app, Action& action) {
  CLI::App* eval = app.add_subcommand(
      "eval", "Measure a model: perplexity, multiple choice, answers, distance from a teacher");
  eval->require_subcommand(1);
  add_eval_ppl(*eval, action);
  add_eval_choice(*eval, action);
  add_eval_generate(*eval, action);
  add_eval_match(*eval, action);
  add_eval_kl(*eval, action);
  add_eval_columns(*eval, action);
  add_eval_report(*eval, action);
}

}  // namespace trimpot::cli
