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
  eval->footer(
      "Examples:\n"
      "  trimpot eval ppl -m model.gguf -f wiki.test.raw -c 512\n"
      "  trimpot eval match -m tuned.gguf --data heldout.jsonl --show 3\n"
      "  trimpot eval choice -m model.gguf --task hellaswag -f hellaswag_val.jsonl");
}

}  // namespace trimpot::cli
