#include "eval/columns.h"

#include <algorithm>
#include <numeric>

#include "cli/engine.h"
#include "cli/eval/common.h"

namespace trimpot::cli {
namespace {

struct ColumnsOptions {
  ModelOptions model;
  std::string text, module = "q_proj";
  std::int64_t layer = 0, context = 512, windows = 8;
  int bits = 4;
  bool json = false;
};

Status eval_columns(const ColumnsOptions& options) {
  std::size_t kind = 0;
  while (kind < kLinearKinds.size() && kLinearKinds[kind].module != options.module) ++kind;
  if (kind == kLinearKinds.size())
    return fail(
        "--module {}: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj was "
        "expected",
        options.module);
  TRIMPOT_TRY(const std::string text, read_text_file(options.text));
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  const std::vector<TokenId> tokens = engine->tokenizer->encode(text);
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::int64_t most = engine->model->config.context_length;
  if (options.context > most)
    return fail("windows of {} tokens exceed the model's context; use -c {}", options.context,
                most);
  if (count < options.context)
    return fail("{}: {} tokens are less than a window of {}; use a longer text or a smaller -c",
                options.text, count, options.context);
  std::vector<std::vector<TokenId>> windows;
  for (std::int64_t at = 0;
       at + options.context <= count && static_cast<std::int64_t>(windows.size()) < options.windows;
       at += options.context)
    windows.emplace_back(tokens.begin() + at, tokens.begin() + at + options.context);
  Scheme scheme;
  scheme.bits = options.bits;
  scheme.group_size = kWholeRow;
  const std::size_t linear = static_cast<std::size_t>(options.layer) * kLinearKinds.size() + kind;
  TRIMPOT_TRY(const ColumnStudy study,
              study_columns(engine->compute, *engine->model, windows, linear, scheme));
  if (options.json)
    return print(Json{{"tensor", linear_name(linear)},
                      {"bits", options.bits},
                      {"windows", windows.size()},
                      {"sensitivity", study.sensitivity},
                      {"gradient", study.gradient}}
                     .dump() +
                 "\n");
  std::vector<std::size_t> order(study.sensitivity.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return study.sensitivity[a] > study.sensitivity[b];
  });
  std::string table = fmt::format("{:>8}{:>14}{:>14}\n", "channel", "sensitivity", "gradient^2");
  for (std::size_t i = 0; i < std::min<std::size_t>(20, order.size()); ++i)
    table += fmt::format("{:>8}{:>14.4g}{:>14.4g}\n", order[i], study.sensitivity[order[i]],
                         study.gradient[order[i]]);
  return print(table);
}

}  // namespace

void add_eval_columns(CLI::App& eval, Action& action) {
  CLI::App* columns = eval.add_subcommand(
      "columns", "Input channels of one layer by sensitivity to quantization, and their gradient");
  auto options = std::make_shared<ColumnsOptions>();
  add_model_options(*columns, options->model, {.adapter = false, .bf16 = false});
  columns->add_option("-f,--file", options->text, "text file, read as it is")->required();
  columns->add_option("--layer", options->layer, "counted from 0")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  columns->add_option("--module", options->module, "linear layer: q_proj, ..., down_proj")
      ->capture_default_str();
  columns->add_option("--bits", options->bits, "bits of the rounding, channel-wise")
      ->check(CLI::IsMember({3, 4, 8}))
      ->capture_default_str();
  columns->add_option("-c,--ctx-size", options->context, "tokens of a window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  columns->add_option("--chunks", options->windows, "windows to read")
      ->check(whole_number(1))
      ->capture_default_str();
  columns->add_flag("--json", options->json, "one JSON object instead of text");
  columns->footer("Example:\n  trimpot eval columns -m f32.gguf -f text.txt --layer 10");
  columns->callback([options, &action] { action = [options] { return eval_columns(*options); }; });
}

}  // namespace trimpot::cli
